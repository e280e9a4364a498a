"""Predictions: written back as a feature, or as pictures, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kpstore
from kpstore.errors import CorruptError, ExistsError, InvalidError, MismatchError, NotFoundError
from kpstore.schema.feature import State
from kpstore.trainers.fit import fit
from kpstore.trainers.keypoints import HierarchicalKeypointTransformer, KeypointTraining
from kpstore.trainers.predict import open_predictor, predict_feature, predict_pictures
from kpstore.trainers.train import load_model, train_keypoints, train_skeleton
from tests.conftest import memory_location
from tests.fakes import record
from tests.trainers.data import SMALL_KEYPOINTS, SMALL_SKELETON, train_store


@pytest.fixture(scope="module")
def faces_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    store = train_store(kpstore.create(memory_location()))
    train_keypoints(
        store, folder, config=SMALL_KEYPOINTS, epochs=3, batch_size=8, lr=5e-3, samples=0
    )
    return folder / "best.safetensors"


@pytest.fixture(scope="module")
def skeleton_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skeleton")
    store = train_store(kpstore.create(memory_location()))
    train_skeleton(store, folder, config=SMALL_SKELETON, epochs=1, batch_size=8, samples=0)
    return folder / "best.safetensors"


def opened(store: kpstore.Store) -> kpstore.Store:
    """The newest version, for writing."""
    return kpstore.open(store.location, mode="a")


def with_gaps(store: kpstore.Store) -> kpstore.Store:
    """Add a pending video, a failed one, and one with a failed frame and a frame without face."""
    train_store(store)
    with opened(store).transaction("gaps") as tx:
        tx.add_videos(
            [record("pending", 4, "dev"), record("failed", 3, "dev"), record("gap", 5, "dev")]
        )
        rows = store.at()["keypoints"][:5].copy()
        rows[2, :68] = np.nan
        tx.fail("keypoints", "failed", "unreadable")
        tx.write("keypoints", "gap", rows, failed_frames={4: "torn"})
    return opened(store)


def test_faces_are_written_back_in_the_stores_own_coordinates(
    store: kpstore.Store, faces_run: Path
) -> None:
    done = predict_feature(with_gaps(store), open_predictor(faces_run, batch_size=7), split="dev")
    assert (done.feature, done.frames, done.empty, done.not_extracted) == (
        "keypoints_predicted",
        24,
        5,
        4,
    )
    after = store.at()
    assert after.snapshot == done.snapshot
    found, faces = after.video("c")["keypoints_predicted"], after.video("c")["keypoints"][:, :68]
    view = after.face_keypoints(split="train", normalize="minmax")
    with torch.inference_mode():
        unit = torch.from_numpy((faces - view.range[0]) / (view.range[1] - view.range[0]))
        expected = view.denormalize(load_model(faces_run)(unit).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - faces).mean() < 0.1


def test_what_failed_or_is_not_there_stays_so(store: kpstore.Store, faces_run: Path) -> None:
    predict_feature(with_gaps(store), open_predictor(faces_run), split="dev", name="again")
    after = store.at()
    states = dict(zip(after.index.ids.tolist(), after.states("again").tolist(), strict=True))
    train, done, failed = State.PENDING, State.DONE, State.FAILED
    assert states == {
        "a": train,
        "b": train,
        "c": done,
        "pending": State.PENDING,
        "failed": failed,
        "gap": done,
    }
    gap = np.isfinite(after.video("gap")["again"]).all(axis=(1, 2)).tolist()
    assert gap == [True, True, False, True, False]
    assert np.isnan(after.video("failed")["again"]).all()
    assert {(f.video_id, f.frame) for f in after.failures("again")} == {
        ("failed", None),
        ("gap", 4),
    }
    assert len(after.face_keypoints(feature="again", split="dev")) == 16 + 3


def test_another_split_is_added_and_nothing_is_done_twice(
    store: kpstore.Store, faces_run: Path
) -> None:
    train_store(store)
    predictor = open_predictor(faces_run)
    predict_feature(opened(store), predictor, split="dev")
    before = store.at().video("c")["keypoints_predicted"]
    all_of_it = predict_feature(opened(store), predictor)
    assert (all_of_it.frames, all_of_it.done_before) == (48, 16)
    nothing = predict_feature(opened(store), predictor)
    assert (nothing.frames, nothing.done_before, nothing.snapshot) == (0, 64, None)
    assert store.at().snapshot == all_of_it.snapshot
    np.testing.assert_array_equal(store.at().video("c")["keypoints_predicted"], before)


def test_a_prediction_says_what_made_it(memory_store: kpstore.Store, faces_run: Path) -> None:
    import hashlib

    train_store(memory_store)
    predict_feature(opened(memory_store), open_predictor(faces_run))
    made = memory_store.at().provenance("keypoints_predicted")
    assert made["checkpoint_sha256"] == hashlib.sha256(faces_run.read_bytes()).hexdigest()
    assert made["trained_on"]["snapshot"]
    assert made["model"]["config"]["d_global"] == 32
    assert made["training"]["settings"]["lr"] == 5e-3
    assert made["source"] == "keypoints"
    assert memory_store.at().history()[0].metadata["predict"]["read"]


def test_an_interrupted_prediction_leaves_nothing(
    disk_store: kpstore.Store, faces_run: Path
) -> None:
    before = train_store(disk_store).snapshot

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_feature(opened(disk_store), open_predictor(faces_run), on_progress=stop)
    assert disk_store.at().snapshot == before
    assert predict_feature(opened(disk_store), open_predictor(faces_run)).frames == 64


def test_skeletons_are_written_as_pictures_of_bytes(
    store: kpstore.Store, skeleton_run: Path
) -> None:
    train_store(store)
    done = predict_feature(opened(store), open_predictor(skeleton_run), split="train")
    after = store.at()
    drawn = after.video("b")["keypoints_drawn"]
    assert (done.feature, drawn.shape, drawn.dtype) == ("keypoints_drawn", (18, 32, 32), np.uint8)
    with torch.inference_mode():
        expected = load_model(skeleton_run)(torch.from_numpy(after.video("b")["keypoints"]))[:, 0]
    np.testing.assert_allclose(drawn / 127.5 - 1, expected.numpy(), atol=1 / 127)


def test_pictures_are_not_written_into_a_store(
    memory_store: kpstore.Store, skeleton_run: Path, tmp_path: Path
) -> None:
    kpstore.create(tmp_path / "s.kps")
    with pytest.raises(ExistsError, match="lies in one; choose another place for the pictures"):
        predict_pictures(
            train_store(memory_store), open_predictor(skeleton_run), tmp_path / "s.kps" / "png"
        )


def test_pictures_go_on_where_a_killed_run_was(
    memory_store: kpstore.Store, skeleton_run: Path, tmp_path: Path
) -> None:
    store, predictor = train_store(memory_store), open_predictor(skeleton_run, batch_size=4)

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_pictures(store, predictor, tmp_path / "png", split="dev", on_progress=stop)
    again = predict_pictures(store, predictor, tmp_path / "png", split="dev")
    assert (again.frames, again.done_before, again.folder) == (8, 8, str(tmp_path / "png"))
    pictures = sorted((tmp_path / "png" / "c").iterdir())
    assert [path.name for path in pictures] == [f"{n:06d}.png" for n in range(16)]
    with Image.open(pictures[3]) as picture:
        assert (picture.mode, picture.size) == ("L", (32, 32))
    about = json.loads((tmp_path / "png" / "predict.json").read_text())
    assert about["checkpoint_sha256"] == again.checkpoint_sha256


def test_faces_are_drawn_and_frames_without_one_get_no_picture(
    memory_store: kpstore.Store, faces_run: Path, tmp_path: Path
) -> None:
    done = predict_pictures(
        with_gaps(memory_store), open_predictor(faces_run), tmp_path, split="dev"
    )
    assert (done.frames, done.empty) == (16 + 4, 1)
    assert len(list((tmp_path / "gap").iterdir())) == 3
    few = predict_pictures(memory_store.at(), open_predictor(faces_run), tmp_path / "few", limit=5)
    assert few.frames == 5


def test_videos_whose_ids_are_no_names_of_folders_stay_inside(
    memory_store: kpstore.Store, faces_run: Path, tmp_path: Path
) -> None:
    rows = train_store(memory_store)["keypoints"][:2]
    with opened(memory_store).transaction("odd") as tx:
        tx.add_videos([record("../up", 2, "odd"), record("..", 2, "odd")])
        for video in ("../up", ".."):
            tx.write("keypoints", video, rows)
    predict_pictures(memory_store.at(), open_predictor(faces_run), tmp_path / "png", split="odd")
    assert {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.png")} == {"png"}
    assert len(list(tmp_path.rglob("0*.png"))) == 4


# -- what cannot be --------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused(
    memory_store: kpstore.Store, faces_run: Path, tmp_path: Path
) -> None:
    store = train_store(memory_store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ExistsError, match="holds other files"):
        predict_pictures(store, open_predictor(faces_run), tmp_path / "mine")
    predict_pictures(store, open_predictor(faces_run), tmp_path / "png", limit=1)
    later = kpstore.open(store.location, mode="a")
    with later.transaction("more") as tx:
        tx.add_videos([record("later", 1, "test")])
    with pytest.raises(ExistsError, match="another checkpoint, store or version"):
        predict_pictures(later.at(), open_predictor(faces_run), tmp_path / "png", limit=1)


def test_features_of_another_kind_or_another_checkpoint_are_refused(
    memory_store: kpstore.Store, faces_run: Path, skeleton_run: Path
) -> None:
    train_store(memory_store)
    faces, skeletons = open_predictor(faces_run), open_predictor(skeleton_run)
    with opened(memory_store).transaction("others") as tx:
        tx.add_feature(kpstore.FeatureSpec("embedding", (7,), ("feature",)))
    for predictor, needed in ((faces, r"\(143, 3\) or \(68, 3\)"), (skeletons, r"\(143, 3\)")):
        with pytest.raises(InvalidError, match=rf"'embedding' has rows of \(7,\).*{needed}"):
            predict_feature(opened(memory_store), predictor, feature="embedding")
    with pytest.raises(NotFoundError, match="'nothing'"):
        predict_feature(opened(memory_store), faces, feature="nothing")
    with pytest.raises(NotFoundError, match="'nowhere'"):
        predict_feature(opened(memory_store), faces, split="nowhere")
    with pytest.raises(ExistsError, match="was not predicted"):
        predict_feature(opened(memory_store), faces, name="keypoints")
    predict_feature(opened(memory_store), faces, name="again")
    with pytest.raises(MismatchError, match="'again'"):
        predict_feature(opened(memory_store), skeletons, name="again")
    assert sorted(memory_store.at().features) == ["again", "embedding", "keypoints"]


def sized(config: str) -> str:
    """The description of a checkpoint whose model has this size."""
    model = f'{{"name": "HierarchicalKeypointTransformer", "config": {config}}}'
    return f'{{"format": 1, "model": {model}}}'


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ("[" * 200_000, "its description is nested too deeply"),
        ("9" * 10_000, "its description is not JSON"),
        ('{"format": 1}', "does not describe its model"),
        ('{"format": 1, "model": 3}', "does not describe its model"),
        ('{"format": 1, "model": {"config": {}}}', "does not describe its model"),
        (sized('{"d_global": "8"}'), "its model has d_global='8'"),
        (sized('{"heads": true}'), "its model has heads=True"),
        (sized('{"region_layers": 1000000000}'), "its model has region_layers=1000000000"),
        (sized('{"d_global": 10000000}'), "its model has d_global=10000000"),
        (sized('{"d_global": 9223372036854775808}'), "its model has d_global=9223372036854775808"),
        (sized("{}"), "its tensors are not those of this Hier"),
    ],
)
def test_a_strangers_checkpoint_is_one_line(tmp_path: Path, about: str, says: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "theirs.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata={"kpstore": about})
    with pytest.raises(InvalidError, match=says):
        open_predictor(path)


def test_checkpoints_that_are_none_are_one_line(
    memory_store: kpstore.Store, faces_run: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    with pytest.raises(NotFoundError, match="no checkpoint found"):
        open_predictor(tmp_path / "none.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(faces_run.read_bytes()[: faces_run.stat().st_size // 2])
    with pytest.raises(CorruptError, match="cannot be read as a checkpoint"):
        open_predictor(half)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidError, match="not a checkpoint of kpstore train"):
        open_predictor(tmp_path / "other.safetensors")
    loader = kpstore.loader(train_store(memory_store).face_keypoints(split="train"), batch_size=8)
    fit(
        HierarchicalKeypointTransformer(SMALL_KEYPOINTS),
        loader,
        training=KeypointTraining(),
        epochs=1,
        folder=tmp_path / "own",
    )
    with pytest.raises(
        InvalidError, match=r"does not describe its model's input \(feature, high, low\)"
    ):
        open_predictor(tmp_path / "own" / "best.safetensors")
