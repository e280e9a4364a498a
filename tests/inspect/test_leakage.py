"""What two splits share is found: names, paths, people, frames and near-copies.

What they do not share is not.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect import leakage
from kpstore.inspect.leakage import Shared, check_splits
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from tests.conftest import memory_location
from tests.fakes import record

SPEC = FeatureSpec("points", (10, 2), ("point", "space"), chunk_rows=8)


def clip(seed: int, n_frames: int = 30) -> np.ndarray:
    """A moving figure: (frames, 10, 2) float32, smooth in time, in its own place."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(0, 0.02, (n_frames, 10, 2)).cumsum(axis=0)
    return (rng.random((1, 10, 2)) + walk).astype(np.float32)


def store_of(videos: list[VideoRecord], values: dict[str, np.ndarray]) -> kpstore.Store:
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        tx.add_videos(videos)
        tx.add_feature(SPEC)
        for video_id, rows in values.items():
            tx.write("points", video_id, rows)
    return store.at()


def with_copy(copy: np.ndarray, split: str = "test", **changes: Any) -> list[Shared]:
    """Findings for ten clips, half in train and half in test, and a copy of the first."""
    values = {f"v{n}": clip(n) for n in range(10)} | {"copy": copy}
    videos = [
        record(v, len(x), "train" if v < "v5" else "test", **changes) for v, x in values.items()
    ]
    videos[-1] = replace(videos[-1], split=split)
    return list(store_of(videos, values).check_splits().shared)


def test_splits_that_share_nothing_are_clean(store: kpstore.Store) -> None:
    with store.transaction("fill") as tx:
        tx.add_videos(
            [record(f"v{n}", 30, "train" if n < 5 else "test", speaker=f"S{n}") for n in range(10)]
        )
        tx.add_feature(SPEC)
        for n in range(10):
            tx.write("points", f"v{n}", clip(n))
    found = check_splits(store.at())
    assert not found
    assert (found.videos, found.splits, found.feature, found.signer) == (
        10,
        ("train", "test"),
        "points",
        "speaker",
    )
    assert set(found.counts().values()) == {0}


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (lambda x: x, "frames", "30 of 30 frames"),
        (lambda x: x[3:20], "frames", "17 of 17 frames"),
        (lambda x: np.concatenate([x[10:16], clip(99, 40)]), "frames", "6 of 30 frames"),
        (
            lambda x: x + np.random.default_rng(1).normal(0, 0.002, x.shape).astype("f4"),
            "near",
            "distance 0.0",
        ),
        (lambda x: (x * 1.001)[:29], "near", "distance 0.0"),
    ],
    ids=["copy", "cut out", "spliced", "shaken", "scaled and cut"],
)
def test_copies_in_another_split_are_found(change: Any, kind: str, detail: str) -> None:
    (found,) = with_copy(change(clip(0)))
    assert (found.kind, found.splits, found.videos) == (kind, ("train", "test"), ("v0", "copy"))
    assert found.detail.startswith(detail)


@pytest.mark.parametrize("split", ["train", ""])
def test_copies_within_a_split_or_without_one_are_not(split: str) -> None:
    assert with_copy(clip(0), split) == []


def test_one_blank_frame_is_no_copy_and_still_pictures_are() -> None:
    assert with_copy(np.concatenate([clip(0)[:2], clip(99, 28)])) == []
    still = np.repeat(clip(0, 1), 12, axis=0)
    videos = [record("a", 12, "train"), record("b", 12, "test")]
    (found,) = store_of(videos, {"a": still, "b": still}).check_splits().shared
    assert (found.kind, found.detail) == ("frames", "12 of 12 frames")


@pytest.mark.parametrize(
    "splits", [["train", "test"] * 3, ["train"] * 3 + ["test"] * 3, ["a", "b", "c", "c", "c", "a"]]
)
def test_many_copies_are_each_named_without_all_pairs(splits: list[str]) -> None:
    values = {f"c{n}": clip(0) for n in range(6)} | {f"v{n}": clip(n) for n in range(1, 5)}
    videos = [
        record(v, 30, split) for v, split in zip(values, [*splits, *["train"] * 4], strict=True)
    ]
    found = store_of(videos, values).check_splits().shared
    assert {video for shared in found for video in shared.videos} == {f"c{n}" for n in range(6)}
    pairs = {2: 5, 3: 9}  # not all pairs there are, of which there may be thousands
    assert len(found) == pairs[len(set(splits))]


def test_a_third_split_hides_nothing() -> None:
    copied, values, videos = clip(0), {}, []
    for n in range(15):  # clips of dev that each share too little with train to be worth a word
        values[f"b{n}"] = clip(n + 1)
        values[f"b{n}"][:2] = copied[2 * n : 2 * n + 2]
    values = {"a": copied, **values, "c": copied.copy()}
    for video in values:
        videos.append(record(video, 30, {"a": "train", "b": "dev", "c": "test"}[video[0]]))
    found = [
        shared
        for shared in store_of(videos, values).check_splits().shared
        if shared.kind == "frames"
    ]
    assert [(shared.videos, shared.detail) for shared in found] == [(("a", "c"), "30 of 30 frames")]
    assert {shared.detail for shared in found} == {"30 of 30 frames"}


def test_frames_in_which_nothing_was_found_are_no_copies() -> None:
    for blank in (np.nan, 0):
        rows = np.full((6, 10, 2), blank, dtype=np.float32)
        videos = [record("a", 6, "train"), record("b", 6, "test")]
        assert not [
            f
            for f in store_of(videos, {"a": rows, "b": rows}).check_splits().shared
            if f.kind == "frames"
        ]


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_blocks_and_windows_miss_no_copy(seed: int, n_copies: int) -> None:
    rng = np.random.default_rng(seed)
    values = {f"v{n:02d}": clip(seed + n, int(rng.integers(2, 25))) for n in range(12)}
    pairs = {(f"v{n:02d}", f"w{n:02d}") for n in range(n_copies)}
    values |= {copy: values[of] + np.float32(0.0002) for of, copy in pairs}
    videos = [
        record(v, len(x), "train" if v[0] == "v" else "dev") for v, x in sorted(values.items())
    ]
    store = store_of(videos, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "_BLOCK_BYTES", 1000)
        patch.setattr(leakage, "_PAIR_ROWS", 3)
        found = {shared.videos for shared in store.check_splits().shared}
    assert found == pairs == {shared.videos for shared in store.check_splits().shared}


def test_the_same_paths_and_names_are_found_whatever_the_folder_of_the_split_is_called() -> None:
    paths = tuple(f"frames/train/Clip/{n:04d}.png" for n in range(4))
    other = tuple(f"Frames\\TEST\\clip\\{n:04d}.jpg" for n in range(2, 6))
    videos = [
        VideoRecord("train/Clip.mp4", "train", paths),
        VideoRecord("test/clip", "test", other),
        VideoRecord("far", "test", ("frames/far/0000.png",)),
        VideoRecord("unnamed", "test", ("", "")),
        VideoRecord("unnamed too", "train", ("", "")),
    ]
    found = store_of(videos, {}).check_splits().shared
    assert [(f.kind, f.videos, f.detail) for f in found] == [
        ("name", ("train/Clip.mp4", "test/clip"), ""),
        ("paths", ("train/Clip.mp4", "test/clip"), "2 of 4 frames"),
    ]


def test_people_in_two_splits_are_found_by_any_column() -> None:
    people = [
        ("a", "train", "Ann"),
        ("b", "train", "Ann"),
        ("c", "test", "Ann"),
        ("d", "test", "Bo"),
        ("e", "dev", ""),
    ]
    store = store_of([record(v, 1, split, speaker=p, room="1") for v, split, p in people], {})
    (found,) = store.check_splits().shared
    assert (found.splits, found.detail) == (("train", "test"), "speaker Ann: 2 in train, 1 in test")
    assert not store.check_splits(signers=False)
    assert store.check_splits(signer="room").counts()["signer"] == 1
    with pytest.raises(NotFoundError, match="annotation 'signer' not found; this store has"):
        store.check_splits(signer="signer")
    json.dumps(store.check_splits().to_json())


def test_videos_that_are_not_done_are_not_compared() -> None:
    videos = [record("a", 30, "train"), record("b", 30, "test")]
    assert not store_of(videos, {"a": clip(0)}).check_splits()


def test_stores_without_values_and_wrong_features(memory_store: kpstore.Store) -> None:
    assert check_splits(memory_store).feature is None
    with memory_store.transaction("feature") as tx:
        tx.add_feature(FeatureSpec("face", (3,), ("n",), axis="video"))
    for wrong, error, message in (
        ({"feature": "face"}, InvalidError, "'face' belongs to videos"),
        ({"feature": "nope"}, NotFoundError, "feature 'nope' not found"),
        ({"near": -1.0}, InvalidError, "near=-1.0: use 0 or more"),
    ):
        with pytest.raises(error, match=message):
            check_splits(memory_store.at(), **wrong)  # type: ignore[arg-type]
