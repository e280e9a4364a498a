"""Pickles of keypoints: every form into a store, and out again without loss."""

from __future__ import annotations

import os
import pickle
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.interop import outputs
from kpstore.interop.pickle.forms import recognises
from kpstore.interop.pickle.read import PickleImport
from kpstore.interop.pickle.rows import RowMaker
from kpstore.interop.pickle.write import PickleExport
from kpstore.interop.transfer import import_document
from kpstore.schema.feature import FeatureRows, State
from kpstore.schema.layout import PART_SLICES, PARTS, keypoints_spec
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location
from tests.fakes import record
from tests.interop.formats import same
from tests.interop.test_unpickling import Runs


def frame(seed: int, missing: Sequence[str] = (), shape: Any = (260, 210)) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    points = {
        part: rng.standard_normal((rows.stop - rows.start, 3)).astype("f4")
        for part, rows in PART_SLICES.items()
    }
    parts: dict[str, Any] = {
        part: None if part in missing else values for part, values in points.items()
    }
    return parts if shape is None else {**parts, "image_shape": shape}


def split_of(lengths: dict[str, int], first_seed: int = 0) -> dict[str, list[Any]]:
    """Return a split of a raw pickle, in which some left hands are missing and frame 1 failed."""
    named = [(video, n) for video, length in lengths.items() for n in range(length)]
    frames = [frame(first_seed + i, ("left_hand",) if i % 2 else ()) for i in range(len(named))]
    return {
        "keypoints": [None if i == 1 else one for i, one in enumerate(frames)],
        "image_paths": [f"features/{video}/images{n:04d}.png" for video, n in named],
        "video_ids": [video for video, _ in named],
    }


def stats_of(group: dict[str, list[Any]]) -> dict[str, Any]:
    success = sum(one is not None for one in group["keypoints"])
    total = len(group["keypoints"])
    return {"total": total, "success": success, "failed": total - success, "total_time": 1.5}


def raw_of(**splits: dict[str, int]) -> dict[str, Any]:
    groups = {
        split: split_of(lengths, 100 * i) for i, (split, lengths) in enumerate(splits.items())
    }
    return {
        **groups,
        "stats": {split: stats_of(group) for split, group in groups.items()},
        "keypoint_info": {"face": (68, 3), "indices": np.arange(3)},
        "dataset_info": {
            "name": "PHOENIX",
            "splits": tuple(splits),
            "processing_info": {"num_gpus": 4},
        },
    }


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def stored(path: Path, notes: list[str] | None = None, **options: Any) -> kpstore.Store:
    location = memory_location()
    report = import_document(
        PickleImport(**options).open(path), backend_for(location), source=str(path)
    )
    if notes is not None:
        notes += report.notes
    return kpstore.open(location)


def exported(store: kpstore.Store, path: Path, **options: Any) -> Any:
    PickleExport(**options).export(store, path, overwrite=True)
    return pickle.loads(path.read_bytes()) if path.is_file() else path


def test_a_raw_pickle_is_a_store(tmp_path: Path) -> None:
    raw = raw_of(train={"a": 3, "ü/b": 1}, dev={"c": 2})
    store = stored(write(tmp_path / "x.pkl", raw))
    assert (store.name, store.splits, store.index.ids.tolist()) == (
        "PHOENIX",
        ["train", "dev"],
        ["a", "ü/b", "c"],
    )
    video = store.video("a")
    assert video.image_paths == raw["train"]["image_paths"][:3]
    assert (video.width, video.height) == (210, 260)
    np.testing.assert_array_equal(video["keypoints"][0, :68], raw["train"]["keypoints"][0]["face"])
    assert np.isnan(video["keypoints"][1]).all()
    assert video["keypoints_detected"].tolist() == [[True] * 4, [False] * 4, [True] * 4]
    assert np.isnan(store["keypoints_visibility"][:]).all()
    assert [(f.video_id, f.frame) for f in store.failures("keypoints")] == [("a", 1), ("c", 1)]
    assert store.video("ü/b")["keypoints_detected"].tolist() == [[True, False, True, True]]
    assert store.provenance("keypoints")["document"]["form"] == "raw"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_raw_pickle_comes_back(tmp_path: Path, protocol: int) -> None:
    raw = raw_of(train={"a": 3, "b": 1}, dev={}, test={"c": 2})
    store = stored(write(tmp_path / "x.pkl", raw, protocol))
    assert same(exported(store, tmp_path / "y.pkl"), raw)


PART_SETS = st.lists(st.sampled_from(PARTS), unique=True)
NAMES = st.text(string.ascii_letters + "äß語_- ", min_size=1, max_size=6).filter(
    lambda text: text != "all"
)
RAWS = st.dictionaries(
    st.sampled_from(["train", "dev", "test", "übung"]),
    st.dictionaries(
        NAMES, st.lists(st.none() | PART_SETS.filter(lambda p: len(p) < 4), min_size=1, max_size=4)
    ),
    min_size=1,
)


@COSTLY
@given(RAWS, st.sampled_from([None, (260, 210)]))
def test_every_raw_pickle_comes_back(tmp_path: Path, splits: Any, shape: Any) -> None:
    raw: dict[str, Any] = {}
    for split, videos in splits.items():
        raw[split] = {"keypoints": [], "image_paths": [], "video_ids": []}
        for video, frames in videos.items():
            raw[split]["keypoints"] += [
                m if m is None else frame(i, m, shape) for i, m in enumerate(frames)
            ]
            raw[split]["image_paths"] += [f"{split}/{video}/{n}.png" for n in range(len(frames))]
            raw[split]["video_ids"] += [video] * len(frames)
        if all(
            one is None for one in raw[split]["keypoints"]
        ):  # shapes are kept by video, of the frames that have one
            shape = None
    raw["stats"] = {split: stats_of(raw[split]) for split in splits}
    raw |= {"keypoint_info": {}, "dataset_info": {"name": "x"}}
    store = stored(write(tmp_path / "x.pkl", raw))
    assert same(exported(store, tmp_path / "y.pkl"), raw)


ROWS = st.lists(st.sampled_from(["done", "failed", "nothing", *PARTS]), max_size=5)


@COSTLY
@given(
    st.dictionaries(
        NAMES, st.tuples(st.sampled_from(["", "train", "dev"]), ROWS), min_size=1, max_size=5
    )
)
def test_every_store_comes_back(tmp_path: Path, videos: Any) -> None:
    store = kpstore.create(memory_location())
    splits = ("", "train", "dev")
    ordered = sorted(videos.items(), key=lambda item: splits.index(item[1][0]))
    with store.transaction("fill") as tx:
        tx.add_videos([record(video, len(rows), split) for video, (split, rows) in ordered])
        tx.add_feature(keypoints_spec())
        for video, (_, rows) in ordered:
            block = FeatureRows(
                np.random.default_rng(0).standard_normal((len(rows), 143, 3)).astype("f4")
            )
            detected = np.array(
                [[kind not in (part, "failed", "nothing") for part in PARTS] for kind in rows],
                dtype=bool,
            ).reshape(-1, 4)
            for column, part in enumerate(PARTS):
                block.values[~detected[:, column], PART_SLICES[part]] = np.nan
            failed = {n: "torn" for n, kind in enumerate(rows) if kind == "failed"}
            tx.write(
                "keypoints",
                video,
                FeatureRows(block.values, {"detected": detected}),
                failed_frames=failed,
            )
    store = store.at()
    exported(store, tmp_path / "x.pkl", empty="keep")
    again = stored(tmp_path / "x.pkl")
    assert again.index.ids.tolist() == [video for video, (_, rows) in ordered if rows]
    for video in again.index.ids:
        before, after = store.video(video), again.video(video)
        assert after.image_paths == before.image_paths
        if set(videos[video][1]) != {
            "failed"
        }:  # only a frame that did not fail has its image's size
            assert (after.width, after.height) == (before.width, before.height)
        for name in ("keypoints", "keypoints_detected", "keypoints_status"):
            np.testing.assert_array_equal(after[name], before[name])
    first = (tmp_path / "x.pkl").read_bytes()
    exported(store, tmp_path / "x.pkl", empty="keep")
    assert (tmp_path / "x.pkl").read_bytes() == first


def test_splits_in_files_of_their_own_come_back(tmp_path: Path) -> None:
    store = stored(write(tmp_path / "x.pkl", raw_of(train={"a": 3}, dev={"c": 2})))
    folder = exported(store, tmp_path / "out", form="split")
    assert sorted(os.listdir(folder)) == ["mediaPipe_Phoenix.dev", "mediaPipe_Phoenix.train"]
    dev = pickle.loads((folder / "mediaPipe_Phoenix.dev").read_bytes())
    assert list(dev) == ["dev", "stats", "keypoint_info", "dataset_info"]
    assert dev["stats"] == {"dev": {"total": 2, "success": 1, "failed": 1, "total_time": 1.5}}
    assert dev["dataset_info"]["original_splits"] == ["train", "dev"]
    again = stored(folder)
    assert again.splits == ["train", "dev"]
    np.testing.assert_array_equal(again["keypoints"][:], store["keypoints"][:])
    twice = exported(again, tmp_path / "again", form="split")
    for name in os.listdir(folder):
        assert (twice / name).read_bytes() == (folder / name).read_bytes()


def test_workers_files_are_merged_in_their_order(tmp_path: Path) -> None:
    group = split_of({"a": 6, "b": 6})
    results = [
        {"image_path": path, "video_id": video, "keypoints": points}
        for points, path, video in zip(*group.values(), strict=True)
    ]
    for worker in range(12):  # the eleventh comes last by number, not by name
        part = {
            "process_id": worker,
            "gpu_id": worker % 2,
            "results": results[worker : worker + 1],
            "speed": 9.5,
        }
        write(tmp_path / f"temp_split_{worker}_gpu{worker % 2}.pkl", part)
    store = stored(tmp_path, split="train")
    assert store.index.ids.tolist() == ["a", "b"]
    assert store["image_path"][:].tolist() == group["image_paths"]
    assert store.splits == ["train"]
    document = store.provenance("keypoints")["document"]
    assert [facts["process_id"] for facts in document["workers"]] == list(range(12))
    one = stored(tmp_path / "temp_split_3_gpu1.pkl")
    assert one["image_path"][:].tolist() == group["image_paths"][3:4]


def test_flat_files_with_backslashes(tmp_path: Path) -> None:
    paths = [rf"frames\{n} hello\frame_{i:06d}.jpg" for n in (1, 2) for i in (0, 1, 3)]
    content = {
        "keypoints": [frame(n, shape=np.array([1080, 1920])) for n in range(6)],
        "image_paths": paths,
        "stats": {"total": 9, "success": 6, "failed": 3},
        "keypoint_info": {},
    }
    notes: list[str] = []
    store = stored(write(tmp_path / "x.pkl", content), notes)
    assert store.index.ids.tolist() == ["1 hello", "2 hello"]
    assert store["image_path"][0] == "frames/1 hello/frame_000000.jpg"
    assert (store.video("1 hello").width, store.video("1 hello").height) == (1920, 1080)
    text = "\n".join(notes)
    for said in (
        "read as flat",
        "no video ids",
        "backslashes",
        "3 of 9 frames were dropped",
        "2 frames of 2 videos",
    ):
        assert said in text
    raw = exported(store, tmp_path / "y.pkl", paths="as_imported", stats="as_imported")
    assert raw["all"]["image_paths"] == paths
    assert raw["stats"] == content["stats"]
    assert same(raw["all"]["keypoints"], content["keypoints"])
    assert (
        exported(store, tmp_path / "y.pkl")["all"]["image_paths"][0]
        == "frames/1 hello/frame_000000.jpg"
    )


def test_a_part_of_nan_alone_was_not_detected(tmp_path: Path) -> None:
    group = split_of({"a": 1})
    group["keypoints"][0]["face"] = np.full((68, 3), np.nan)
    store = stored(write(tmp_path / "x.pkl", {"train": group}))
    assert store["keypoints_detected"][0].tolist() == [False, True, True, True]


@pytest.mark.parametrize("odd", [None, "list", "double", "more", "none"])
def test_rows_made_at_once_are_those_made_one_by_one(
    tmp_path: Path, odd: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``odd`` is what one frame has in place of arrays of float32 of known parts."""
    raw = raw_of(train={"a": 6, "b": 4})
    frames = raw["train"]["keypoints"]
    frames[3]["face"][2] = np.nan
    frames[4]["pose"][:] = np.nan
    match odd:
        case "list":
            frames[2]["face"] = frames[2]["face"].tolist()
        case "double":
            frames[2]["face"] = frames[2]["face"].astype(float)
        case "more":
            frames[2]["iris"] = frames[2]["face"]
        case "none":
            frames[2] = dict.fromkeys(frames[2])
    path = write(tmp_path / "x.pkl", raw)
    notes: list[str] = []
    store = stored(path, notes)
    monkeypatch.setattr(RowMaker, "_fill_alike", lambda *_: False)
    one_by_one: list[str] = []
    other = stored(path, one_by_one)
    for name in ("keypoints", "keypoints_detected", "keypoints_state"):
        np.testing.assert_array_equal(store[name][:], other[name][:])
    assert notes == one_by_one
    assert [store.video(name).width for name in "ab"] == [other.video(name).width for name in "ab"]


def test_faces_become_a_feature_of_their_own(tmp_path: Path) -> None:
    faces = np.random.default_rng(0).standard_normal((4, 68, 3)).astype("f4")
    faces[2] = 0
    paths = [f"v/{n}.png" for n in range(4)]
    store = stored(write(tmp_path / "x.pkl", {"keypoints": faces, "image_paths": paths}))
    assert list(store.features) == ["face_keypoints"]
    assert store["face_keypoints_detected"][:].tolist() == [[True], [True], [False], [True]]
    assert np.isnan(store["face_keypoints"][2]).all()
    assert len(store.face_keypoints(feature="face_keypoints")) == 3
    again = exported(store, tmp_path / "y.pkl", form="face", empty="keep")
    assert same(again, {"keypoints": faces, "image_paths": paths})
    assert len(exported(store, tmp_path / "y.pkl", form="face")["keypoints"]) == 3
    bare = stored(write(tmp_path / "z.pkl", {"keypoints": faces}), zeros="values")
    assert bare.index.ids.tolist() == ["z"]
    assert bare["image_path"][:].tolist()[:2] == ["z.pkl#0", "z.pkl#1"]
    np.testing.assert_array_equal(bare["face_keypoints"][:], faces)


def test_model_input_comes_back(tmp_path: Path) -> None:
    store = stored(write(tmp_path / "x.pkl", raw_of(train={"a": 3, "b": 2}, dev={"c": 2})))
    folder = exported(store, tmp_path / "out", form="model_input")
    train = pickle.loads((folder / "train_keypoints.pkl").read_bytes())
    own = [
        "keypoints",
        "keypoints_dict",
        "image_paths",
        "video_ids",
        "split",
        "num_samples",
        "keypoint_shape",
    ]
    assert list(train) == own
    assert train["keypoints"].shape == train["keypoint_shape"] == (4, 143, 3)
    assert not train["keypoints"][2, 68:89].any()
    notes: list[str] = []
    again = stored(folder / "train_keypoints.pkl", notes)
    assert not any("keypoints_dict" in note for note in notes)
    assert again["keypoints_detected"][2].tolist() == [True, False, True, True]
    twice = exported(again, tmp_path / "again", form="model_input")
    assert (twice / "train_keypoints.pkl").read_bytes() == (
        folder / "train_keypoints.pkl"
    ).read_bytes()
    values = stored(folder / "train_keypoints.pkl", zeros="values")
    assert not values["keypoints"][2, 68:89].any()
    assert values["keypoints_detected"][:].all()


def test_sequences_are_videos(tmp_path: Path) -> None:
    store = stored(write(tmp_path / "x.pkl", {"sequences": [[frame(0), None], [], [frame(1)]]}))
    assert store.index.ids.tolist() == ["sequence_00000", "sequence_00002"]
    assert store.index.n_frames.tolist() == [2, 1]
    assert store["keypoints_status"][1] == State.FAILED


def test_what_does_not_go_into_a_store_is_said(tmp_path: Path) -> None:
    group = split_of({"a": 2, "b": 2})
    order = [0, 2, 3, 1, 0]
    train = {name: [items[n] for n in order] for name, items in group.items()}
    train["keypoints"][1] = {**frame(9, shape=(5, 5)), "iris": 1, "pose": np.zeros((33, 3))}
    raw = {
        "train": train,
        "stats": {"train": {"total": 10, "success": 10}},
        "dev": split_of({"a": 1}),
    }
    notes: list[str] = []
    store = stored(write(tmp_path / "x.pkl", raw), notes, split="test")
    assert store.index.ids.tolist() == ["train/a", "b", "dev/a"]
    text = "\n".join(notes)
    for said in (
        "1 frames whose image path came before",
        "videos are interleaved",
        "10 frames succeeded, it holds 4",
        "also hold 'iris'",
        "1 arrays are float64",
        "1 videos have frames of several image shapes",
        "ids are in several splits",
        "the given split, 'test', is not used",
    ):
        assert said in text
    assert exported(store, tmp_path / "y.pkl")["dev"]["video_ids"] == ["a"]


def test_folders_of_one_name_are_two_videos(tmp_path: Path) -> None:
    content = {
        "keypoints": [frame(n) for n in range(4)],
        "image_paths": ["x/1/0.png", "y/1/0.png", "y/2/0.png", "0.png"],
    }
    store = stored(write(tmp_path / "stem.pkl", content))
    assert store.index.ids.tolist() == ["x/1", "y/1", "2", "stem"]


def edited(path: tuple[Any, ...], value: Any) -> Any:
    raw = raw_of(train={"a": 3})
    inner: Any = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return raw


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            edited(("train", "keypoints", 2, "pose"), np.zeros((33, 4), "f4")),
            r"\['keypoints'\]\[2\]\['pose'\].*33, 4",
        ),
        (
            edited(("train", "keypoints", 0, "face"), "x"),
            r"\['keypoints'\]\[0\]\['face'\]: \(\) of <U1",
        ),
        (edited(("train", "keypoints", 0, "face"), [[1], [1, 2]]), r"\(\) of object"),
        (edited(("train", "keypoints", 0), 7), r"\['keypoints'\]\[0\]: \(\) of int64, \(143, 3\)"),
        (
            edited(("train", "keypoints", 0, "image_shape"), (0, "x")),
            "image_shape.*height and width",
        ),
        (
            edited(("train", "image_paths"), ["x"]),
            r"x\.pkl\['train'\]: 1 image_paths for 3 keypoints",
        ),
        (edited(("train", "image_paths", 1), None), r"image_paths\[1\] is a NoneType"),
        (edited(("train", "keypoints"), {}), "a list of frames is needed"),
        (edited(("more",), [1]), r"\['more'\] is a list; a split is a dict"),
        (edited(("train", "keypoints", 0), Runs(os.system, "false")), "runs no code"),
        ([1], "holds a list; a dict with keypoints"),
        ({"a": 1}, "holds 'a'; there is no 'keypoints'"),
        ({"keypoints": np.zeros((2, 5, 3))}, r"keypoints of \(5, 3\) a frame"),
        ({"keypoints": np.zeros(3)}, r"keypoints of \(\) a frame"),
        (
            {"keypoints": np.full((1, 143, 3), 1e300)},
            r"\['keypoints'\]\[0\]: 1e\+300 does not fit float32",
        ),
        ({"results": [{}]}, r"\['results'\]\[0\]"),
        ({"sequences": [1]}, "not a list of lists"),
    ],
)
def test_what_breaks_the_rules_is_one_line_and_stores_nothing(
    tmp_path: Path, content: Any, said: str
) -> None:
    write(tmp_path / "x.pkl", content)
    location = tmp_path / "s.kps"
    with pytest.raises(InvalidError, match=said) as caught:
        import_document(
            PickleImport().open(tmp_path / "x.pkl"), backend_for(str(location)), source="x.pkl"
        )
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x.pkl"]


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="neither workers' files"):
        PickleImport().open(tmp_path)
    write(tmp_path / "a.pkl", raw_of(train={"a": 1}))
    write(tmp_path / "b.pkl", raw_of(train={"a": 1}))
    with pytest.raises(InvalidError, match="split 'train' in two files"):
        PickleImport().open(tmp_path)
    write(tmp_path / "b.pkl", {"keypoints": np.zeros((1, 68, 3))})
    with pytest.raises(InvalidError, match=r"pickle of .* \(face\), which is imported by itself"):
        PickleImport().open(tmp_path)
    with pytest.raises(NotFoundError, match="no pickle at"):
        PickleImport().open(tmp_path / "c.pkl")


def test_pickles_are_recognised(tmp_path: Path) -> None:
    assert recognises(write(tmp_path / "x", raw_of(train={"a": 1})))
    (tmp_path / "y").write_bytes(b"PK\x03\x04")
    assert not recognises(tmp_path / "y")
    assert not recognises(tmp_path)
    write(tmp_path / "temp_split_0_gpu0.pkl", {})
    assert recognises(tmp_path)
    assert not recognises(tmp_path / "nothing")


def test_blocks_do_not_change_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(write(tmp_path / "x.pkl", raw_of(train={"a": 7, "b": 2}, dev={"c": 3})))
    whole = exported(store, tmp_path / "whole.pkl")
    monkeypatch.setattr(outputs, "BLOCK_FRAMES", 2)
    seen: list[int] = []
    PickleExport().export(store, tmp_path / "blocks.pkl", on_progress=seen.append)
    assert same(pickle.loads((tmp_path / "blocks.pkl").read_bytes()), whole)
    assert sum(seen) == 12


def test_what_an_export_leaves_out_is_counted(tmp_path: Path) -> None:
    raw = raw_of(train={"a": 3, "b": 2})
    raw["train"]["keypoints"][2] = frame(0, PARTS)
    store = stored(write(tmp_path / "x.pkl", raw))
    with store.transaction("more") if store.mode == "a" else _writable(store) as tx:
        tx.add_videos([record("pending", 4), record("nothing", 0)])
    store = store.at()
    (file,) = PickleExport().export(store, tmp_path / "y.pkl").files
    assert (file.frames, file.videos, dict(file.left_out)) == (
        4,
        2,
        {"failed": 0, "pending": 4, "empty": 1},
    )
    found = pickle.loads((tmp_path / "y.pkl").read_bytes())
    assert found["stats"]["train"] == {"total": 5, "success": 3, "failed": 2, "total_time": 1.5}
    report = PickleExport(failed="drop", empty="keep").export(store, tmp_path / "z.pkl")
    assert dict(report.files[0].left_out) == {"failed": 1, "pending": 4, "empty": 0}
    assert "1 videos without frames" in report.notes
    with pytest.raises(ExistsError, match=r"y\.pkl exists? already"):
        PickleExport().export(store, tmp_path / "y.pkl")
    with pytest.raises(InvalidError, match="is a folder"):
        PickleExport().export(store, tmp_path)
    with pytest.raises(InvalidError, match="form='zip'"):
        PickleExport(form="zip")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="split 'val' not found"):
        PickleExport(splits=["val"]).export(store, tmp_path / "v.pkl")


def _writable(store: kpstore.Store) -> Any:
    return kpstore.open(store.location, mode="a").transaction("more")


@pytest.mark.parametrize("split", ["../evil", "/abs", "a\\b"])
def test_splits_never_lead_out_of_the_folder(tmp_path: Path, split: str) -> None:
    store = stored(write(tmp_path / "x.pkl", {split: split_of({"a": 1})}))
    for form in ("split", "model_input"):
        with pytest.raises(InvalidError, match="cannot be"):
            PickleExport(form=form).export(store, tmp_path / "out")
    assert os.listdir(tmp_path) == ["x.pkl"]


@pytest.mark.parametrize(
    "split", ["stats", "keypoint_info", "dataset_info", "keypoints", "results", "sequences"]
)
def test_splits_that_a_pickle_has_another_key_for_are_refused(tmp_path: Path, split: str) -> None:
    store = stored(write(tmp_path / "x.pkl", split_of({"a": 1})), split=split)
    for form in ("raw", "split"):
        with pytest.raises(InvalidError, match=f"split '{split}' cannot be in a pickle of lists"):
            PickleExport(form=form).export(store, tmp_path / "out")
    assert os.listdir(tmp_path) == ["x.pkl"]
    PickleExport(form="model_input").export(store, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [f"{split}_keypoints.pkl"]


def test_workers_that_are_missing_are_said(tmp_path: Path) -> None:
    for worker in (0, 2, 5):
        result = {
            "image_path": f"v{worker}/0.png",
            "video_id": f"v{worker}",
            "keypoints": frame(worker),
        }
        part = {"process_id": worker, "results": [result], "total_images": np.int64(5)}
        write(tmp_path / f"temp_split_{worker}_gpu0.pkl", part)
    notes: list[str] = []
    stored(tmp_path, notes)
    assert (
        "of workers 0 to 5, these left no file: 1, 3, 4; their share of the frames is missing"
        in notes
    )
    assert [note.partition(":")[0] for note in notes if "count" in note] == [
        "the workers' files count 15 frames and hold 3"
    ]
    assert sum("do not say which split" in note for note in notes) == 1


def test_numpy_numbers_of_stats_are_compared_and_shown_as_numbers(tmp_path: Path) -> None:
    group = split_of({"a": 4})
    content = {
        "train": group,
        "stats": {"train": {"total": np.int64(9), "success": np.int64(7), "failed": 2}},
    }
    notes: list[str] = []
    stored(write(tmp_path / "x.pkl", content), notes)
    assert any("say that 7 frames succeeded, it holds 3;" in note for note in notes)
    assert any("5 of 9 frames were dropped" in note for note in notes)
    content["stats"]["train"] = {"total": 4, "success": np.int64(3), "failed": 1}
    notes.clear()
    stored(write(tmp_path / "x.pkl", content), notes)
    assert not any("succeeded" in note for note in notes)
