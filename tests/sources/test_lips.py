"""Mouth crops: lists of a configuration, plain folders, damaged files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.embeddings.read import EmbeddingsImport
from kpstore.interop.transfer import import_document
from kpstore.sources import lips
from kpstore.sources.base import FrameError
from kpstore.sources.lips import LipsSource
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location

pytest.importorskip("yaml")

FOLDERS = {"train": "tr", "val": "cv", "test": "tt"}


def crops(seed: int, n_frames: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_frames, 96, 96), dtype=np.uint8)


def write(root: Path, name: str, n_frames: int = 3, **arrays: Any) -> Path:
    path = root / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **(arrays or {"data": crops(len(name), n_frames)}))
    return path


def configure(root: Path, lists: dict[str, list[list[str]]]) -> Path:
    """Write a configuration, and by split the files that s1.json and s2.json name."""
    config = root / "configs" / "LRS2-IIANet.yml"
    config.parent.mkdir(parents=True, exist_ok=True)
    keys = {"train": "train_dir", "val": "valid_dir", "test": "test_dir"}
    named = "".join(f"    {keys[split]}: DataPreProcess/{FOLDERS[split]}\n" for split in lists)
    config.write_text(f"datamodule:\n  data_config:\n    n_src: 1\n{named}")
    for split, files in lists.items():
        folder = root / "DataPreProcess" / FOLDERS[split]
        folder.mkdir(parents=True)
        for number, entries in enumerate(files, start=1):
            (folder / f"s{number}.json").write_text(
                json.dumps([["x.wav", name, 32000] for name in entries])
            )
        (folder / "mix.json").write_text(json.dumps([["x.wav", 32000]]))
    return config


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A configuration of three splits whose files are absolute, relative, and listed many times."""
    mouths = tmp_path / "mouths"
    for number, name in enumerate(("b", "a", "c", "d"), start=1):
        write(mouths, name, number)
    absolute = {name: str(mouths / f"{name}.npz") for name in "abcd"}
    train = [[absolute["b"], "mouths/a.npz", absolute["b"]], [absolute["a"]] * 3]
    return configure(
        tmp_path,
        {"train": train, "val": [["mouths/c.npz"]], "test": [["mouths/d.npz", absolute["c"]]]},
    )


def test_lists_may_have_another_form_of_unicode_than_the_disk(tmp_path: Path) -> None:
    write(tmp_path, "mouths/u\u0308")
    listing = LipsSource(configure(tmp_path, {"train": [["mouths/ü.npz"]]})).scan()
    assert listing.problems == ()
    assert [video.id for video in listing.videos] == ["u\u0308"]


def test_each_file_is_one_video_of_its_first_split(data_set: Path) -> None:
    seen: list[int] = []
    listing = LipsSource(data_set).scan(seen.append)
    told = [(video.id, video.split, video.n_frames) for video in listing.videos]
    assert told == [("b", "train", 1), ("a", "train", 2), ("c", "val", 3), ("d", "test", 4)]
    assert seen == [1, 2, 3, 4]
    assert listing.videos[1].frame_paths == ("a.npz#0", "a.npz#1")
    assert (listing.videos[0].width, listing.videos[0].height) == (96, 96)
    (twice,) = listing.problems
    assert twice.startswith(
        "1 utterances are listed in several splits, such as 'c'; each is taken in the first ('val'"
    )


def test_splits_choose_and_change_neither_ids_nor_splits(data_set: Path) -> None:
    def ids(**options: Any) -> list[str]:
        return [video.id for video in LipsSource(data_set, **options).scan().videos]

    assert ids(splits=("test",)) == ["d"]
    assert ids(splits=("val", "test")) == ["c", "d"]
    assert ids(max_videos_per_split=1) == ["b", "c", "d"]
    assert ids(root=data_set.parents[1]) == ["mouths/b", "mouths/a", "mouths/c", "mouths/d"]
    with pytest.raises(
        NotFoundError, match=r"split 'dev' not found in .*; there are \['train', 'val', 'test'\]"
    ):
        ids(splits=("dev",))
    with pytest.raises(InvalidError, match="max_videos_per_split is 0"):
        ids(max_videos_per_split=0)


def test_lists_of_other_splits_may_be_missing_but_not_broken(
    data_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = data_set.parents[1] / "DataPreProcess" / "tr" / "s1.json"
    train.write_text("[[")
    source = LipsSource(data_set, splits=("test",))
    assert any(
        "what split 'train' lists is not known" in problem for problem in source.scan().problems
    )
    for path in train.parent.iterdir():
        path.unlink()
    listing = source.scan()
    assert [video.id for video in listing.videos] == ["d"]
    assert len(listing.problems) == 1
    assert "what split 'train' lists is not known" in caplog.text
    with pytest.raises(NotFoundError, match=r"split 'train' has no s1\.json or s2\.json"):
        LipsSource(data_set).scan()


def test_crops_are_read_as_they_are(data_set: Path) -> None:
    source = pickle.loads(pickle.dumps(LipsSource(data_set)))
    lips._common_root.cache_clear()
    for video in source.scan().videos:
        frames = list(source.read_frames(video))
        np.testing.assert_array_equal(frames, crops(1, video.n_frames))
        assert all(frame.dtype == np.uint8 and frame.shape == (96, 96) for frame in frames)


def test_frames_to_skip_are_not_touched(data_set: Path) -> None:
    source = LipsSource(data_set)
    video = source.scan().videos[3]
    frames = list(source.read_frames(video, skip={0, 2}))
    assert [isinstance(frame, FrameError) for frame in frames] == [True, False, True, False]
    np.testing.assert_array_equal(frames[3], crops(1, 4)[3])
    (data_set.parents[1] / "mouths" / "d.npz").unlink()
    assert list(source.read_frames(video, skip=range(4))) == [FrameError("left out")] * 4


def test_provenance_says_which_lists(data_set: Path) -> None:
    made = LipsSource(data_set, splits=("val",)).provenance
    assert json.loads(json.dumps(made)) == made
    assert (made["kind"], made["configuration"], made["splits"]) == (
        "lips",
        "LRS2-IIANet.yml",
        ["val"],
    )
    assert made["lists"] == {split: f"DataPreProcess/{folder}" for split, folder in FOLDERS.items()}
    assert LipsSource(data_set).name == "LRS2-IIANet"
    folder = LipsSource(data_set.parents[1] / "mouths")
    assert (folder.name, folder.provenance["lists"]) == ("mouths", None)


# -- the same ids as imported stores ---------------------------------------------------------------

names = st.sampled_from(["a", "b", "s/a", "s/b", "字/x_1", "t/u/v"])
entries = st.lists(names, max_size=5)


@COSTLY
@given(
    st.dictionaries(st.sampled_from(list(FOLDERS)), st.tuples(entries, entries), min_size=1),
    st.booleans(),
)
def test_lists_give_what_an_import_of_their_embeddings_gives(
    tmp_path_factory: pytest.TempPathFactory,
    lists: dict[str, tuple[list[str], list[str]]],
    absolute: bool,
) -> None:
    root = tmp_path_factory.mktemp("data")
    mouths = root / "mouths"
    mouths.mkdir()
    for name in {name for both in lists.values() for names in both for name in names}:
        write(mouths, name, 1 + len(name) % 3)
        np.savez(
            mouths / f"{name}_embedding.npz",
            embedding=np.zeros((512, 1 + len(name) % 3), np.float32),
        )
    prefix = f"{mouths}/" if absolute else "mouths/"
    order = [split for split in FOLDERS if split in lists]
    config = configure(
        root, {s: [[f"{prefix}{n}.npz" for n in names] for names in lists[s]] for s in order}
    )
    first = {name: split for split in reversed(order) for both in lists[split] for name in both}
    if not first:
        with pytest.raises(NotFoundError, match="its lists name no npz files"):
            LipsSource(config, root=mouths).scan()
        return
    listing = LipsSource(config, root=mouths).scan()
    assert {video.id: video.split for video in listing.videos} == first
    assert len(listing.videos) == len(first)
    location = memory_location()
    import_document(EmbeddingsImport(config=config).open(mouths), backend_for(location), source="x")
    imported = kpstore.open(location)
    assert [video.id for video in listing.videos] == imported.index.ids.tolist()
    assert [video.split for video in listing.videos] == imported.index.splits.tolist()
    for video in listing.videos:
        assert list(video.frame_paths) == list(imported.video(video.id).image_paths)
    one = LipsSource(config, root=mouths, splits=(order[-1],)).scan().videos
    assert [video.id for video in one] == [v.id for v in listing.videos if v.split == order[-1]]


def test_folders_are_listed_without_embeddings(tmp_path: Path) -> None:
    for name in ("z", "a/b", "a/c"):
        write(tmp_path, name)
    np.savez(tmp_path / "z_embedding.npz", embedding=np.zeros((512, 3), np.float32))
    np.savez(tmp_path / "only_embedding.npz", embedding=np.zeros((512, 3), np.float32))
    (tmp_path / "._z.npz").write_bytes(b"x")
    listing = LipsSource(tmp_path).scan()
    assert [(video.id, video.split) for video in listing.videos] == [
        ("a/b", ""),
        ("a/c", ""),
        ("z", ""),
    ]
    assert listing.problems == ()
    with pytest.raises(InvalidError, match=r"says no splits, but \['train'\] were asked for"):
        LipsSource(tmp_path, splits=("train",)).scan()
    with pytest.raises(InvalidError, match="is a folder of npz files, so root="):
        LipsSource(tmp_path, root=tmp_path / "a").scan()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no npz files of mouth crops in"):
        LipsSource(tmp_path / "empty").scan()


# -- what is wrong ---------------------------------------------------------------------------------


def test_files_without_crops_are_problems_of_one_line(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "key", frames=crops(0, 2))
    write(tmp_path, "size", data=np.zeros((2, 88, 88), np.uint8))
    write(tmp_path, "colour", data=np.zeros((2, 96, 96, 3), np.uint8))
    write(tmp_path, "type", data=np.zeros((2, 96, 96), np.float32))
    write(tmp_path, "empty", data=np.zeros((0, 96, 96), np.uint8))
    write(tmp_path, "objects", data=np.array([{}, 1], object))
    torn = write(tmp_path, "torn")
    torn.write_bytes(torn.read_bytes()[:-30])
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "a\nb.npz").write_text("no name")
    listing = LipsSource(tmp_path).scan()
    assert [video.id for video in listing.videos] == ["good"]
    assert all("\n" not in problem for problem in listing.problems)
    told = "\n".join(listing.problems)
    for words in (
        "key.npz: no array 'data' in it; it has frames",
        "size.npz: 'data' is (2, 88, 88) uint8; grey mouth crops are (T, 96, 96) uint8",
        "colour.npz: 'data' is (2, 96, 96, 3) uint8",
        "type.npz: 'data' is (2, 96, 96) float32",
        "empty.npz: 'data' has no frames",
        "objects.npz: 'data' is (2,) object",
        "torn.npz is not an npz file, or is cut short",
        "text.npz is not an npz file",
        "'a\\nb': rename it",
    ):
        assert words in told
    assert len(listing.problems) == 9


def test_listed_files_that_are_not_there_are_problems(data_set: Path) -> None:
    (data_set.parents[1] / "mouths" / "a.npz").unlink()
    listing = LipsSource(data_set).scan()
    assert [video.id for video in listing.videos] == ["b", "c", "d"]
    assert any(
        problem.startswith("no npz file at ") and problem.endswith("a.npz")
        for problem in listing.problems
    )


def test_damage_inside_fails_all_frames(data_set: Path) -> None:
    source = LipsSource(data_set)
    video = source.scan().videos[3]
    path = data_set.parents[1] / "mouths" / "d.npz"
    whole = path.read_bytes()
    for damaged in (whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:], whole[:200], b""):
        path.write_bytes(damaged)
        frames = list(source.read_frames(video))
        assert len(frames) == 4
        assert all(isinstance(frame, FrameError) and "d.npz" in frame.reason for frame in frames)
        assert str(path) not in frames[0].reason  # type: ignore[union-attr]
    path.unlink()
    assert isinstance(next(source.read_frames(video)), FrameError)
    write(path.parent, "d", 7)
    with pytest.raises(InvalidError, match="holds 7 frames, and had 4 when it was listed"):
        list(source.read_frames(video))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("a: [", InvalidError, "is not YAML"),
        (
            "datamodule: {data_config: {n_src: 1}}",
            InvalidError,
            "no train_dir, valid_dir, test_dir in",
        ),
        (
            "datamodule: {data_config: {train_dir: nowhere}}",
            NotFoundError,
            r"has no s1\.json or s2\.json in",
        ),
        (None, NotFoundError, "no configuration at .* does not exist"),
    ],
)
def test_configurations_that_are_wrong_are_named(
    tmp_path: Path, text: str | None, error: Any, words: str
) -> None:
    config = tmp_path / "x.yml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(error, match=words):
        LipsSource(config).scan()


def test_files_outside_the_root_are_an_error(data_set: Path) -> None:
    elsewhere = data_set.parent
    with pytest.raises(
        InvalidError, match=r"which is not in .*; give a folder that holds all files"
    ):
        LipsSource(data_set, root=elsewhere).scan()
    with pytest.raises(NotFoundError, match=r"no folder of mouth crops at .* does not exist"):
        LipsSource(data_set, root=elsewhere / "x").scan()
