"""What users' training scripts do today with a pickle, and the one line that replaces it."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import kpstore
from kpstore.schema.layout import PART_SLICES, keypoints_spec
from tests.fakes import record
from tests.render.test_raster import frames

LENGTHS = {"a": 12, "b": 33, "c": 31}
SIZES = {"face": 68, "left_hand": 21, "right_hand": 21, "pose": 33}
FrameDict = dict[str, Any]


@pytest.fixture
def people() -> dict[str, list[FrameDict]]:
    """Frames of each video as a raw pickle has them: parts by name, None where not detected."""
    rng = np.random.default_rng(3)
    videos = {}
    for name, n in LENGTHS.items():
        keypoints = frames(n, n)
        keypoints[..., 2] = rng.normal(0, 0.2, keypoints.shape[:2])
        videos[name] = [
            {part: None if rng.random() < 0.2 else points[PART_SLICES[part]] for part in SIZES}
            for points in keypoints
        ]
    return videos


@pytest.fixture
def store(people: dict[str, list[FrameDict]], memory_store: kpstore.Store) -> kpstore.Store:
    with memory_store.transaction("keypoints") as tx:
        tx.add_videos([record(name, len(video)) for name, video in people.items()])
        tx.add_feature(keypoints_spec(), {"extractor": "made up"})
        for name, video in people.items():
            rows = keypoints_spec().empty_rows(len(video))
            for row, frame in enumerate(video):
                for i, (part, points) in enumerate(frame.items()):
                    if points is not None:
                        rows.values[row, PART_SLICES[part]] = points
                        rows.companions["detected"][row, i] = True
            tx.write("keypoints", name, rows)
    return memory_store.at()


def flatten(frame: FrameDict) -> np.ndarray:
    parts = [
        np.zeros((n, 3), np.float32) if frame[part] is None else frame[part]
        for part, n in SIZES.items()
    ]
    return np.concatenate(parts)


class FaceDataset(Dataset[Any]):
    """Face points, zeros for None, mapped to [0, 1] by the range of all points together."""

    def __init__(self, people: dict[str, list[FrameDict]]) -> None:
        points = np.stack([flatten(frame)[:68] for video in people.values() for frame in video])
        low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
        span = np.where(high - low < 1e-8, 1, high - low)
        self.points = (points - low) / span

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.points[index])


def test_the_face_trainers_data_set_is_one_line(
    people: dict[str, list[FrameDict]], store: kpstore.Store
) -> None:
    theirs = FaceDataset(people)
    ours = store.face_keypoints(missing="zeros", transform=itemgetter("keypoints"))
    assert len(ours) == len(theirs) == 76
    for old, new in zip(DataLoader(theirs, 32), DataLoader(ours, 32), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
    without_faults = store.face_keypoints()
    assert len(without_faults) == sum(
        frame["face"] is not None for video in people.values() for frame in video
    )


def test_the_skeleton_trainers_data_set_is_one_line(
    people: dict[str, list[FrameDict]], store: kpstore.Store
) -> None:
    flat = [flatten(frame) for video in people.values() for frame in video]
    ours = store.skeletons(style="phoenix", transform=itemgetter("keypoints", "image"))
    assert len(ours) == len(flat)
    first = 0
    for keypoints, image in DataLoader(ours, 16):
        np.testing.assert_array_equal(keypoints, np.stack(flat[first : first + len(keypoints)]))
        assert tuple(image.shape) == (len(keypoints), 1, 256, 256)
        assert set(torch.unique(image).tolist()) == {-1.0, 1.0}
        first += len(keypoints)


def test_the_scripts_range_over_all_points_is_an_option(
    people: dict[str, list[FrameDict]], store: kpstore.Store
) -> None:
    flat = np.stack([flatten(frame) for video in people.values() for frame in video])
    low, high = flat.min(axis=(0, 1)), flat.max(axis=(0, 1))
    theirs, plain = (
        store.skeletons(style="phoenix", normalize="minmax"),
        store.skeletons(style="phoenix"),
    )
    found = theirs.batch(range(len(theirs)))
    np.testing.assert_array_equal(found["keypoints"], (flat - low) / (high - low))
    np.testing.assert_array_equal(found["image"], plain.batch(range(len(plain)))["image"])
    given = store.skeletons(fill=np.nan, normalize=(low, high)).batch([0, 5])["keypoints"]
    there = np.isfinite(given)
    np.testing.assert_array_equal(given[there], found["keypoints"][[0, 5]][there])
    assert not there.all()


def test_other_ranges_are_refused(store: kpstore.Store) -> None:
    with pytest.raises(kpstore.KpstoreError, match="normalize='mean': use 'minmax'"):
        store.skeletons(normalize="mean")  # type: ignore[arg-type]
    with pytest.raises(kpstore.KpstoreError, match="three finite numbers each"):
        store.skeletons(normalize=(0, 1))
    with pytest.raises(kpstore.KpstoreError, match="has no range"):
        store.skeletons().range  # noqa: B018


def test_sequences_are_one_line(people: dict[str, list[FrameDict]], store: kpstore.Store) -> None:
    """30 frames: shorter videos repeat their last frame, longer ones give a window per frame."""
    expected = []
    for video in people.values():
        flat = np.stack([flatten(frame) for frame in video])
        if len(flat) < 30:
            flat = np.concatenate([flat, np.repeat(flat[-1:], 30 - len(flat), axis=0)])
        expected += [flat[i : i + 30] for i in range(len(flat) - 30 + 1)]
    ours = store.clips("keypoints", 30, 1, short="pad")
    assert len(ours) == len(expected)
    np.testing.assert_array_equal(
        np.nan_to_num(ours.batch(range(len(ours)))["keypoints"]), np.stack(expected)
    )
