"""Keypoints beside the pictures that they draw."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError
from kpstore.render.raster import draw_skeletons, kpstore_style
from kpstore.schema.layout import PART_SLICES, keypoints_spec
from tests.fakes import record
from tests.render.test_raster import frames
from tests.store.data import fill


@pytest.fixture
def drawn(memory_store: kpstore.Store) -> kpstore.Store:
    """Two videos of people; in the first frame of each, no left hand.

    The last frame of ``b`` failed.
    """
    with memory_store.transaction("keypoints") as tx:
        tx.add_videos([record("a", 4), record("b", 5, "dev")])
        tx.add_feature(keypoints_spec(), {"extractor": "made up"})
        for video, n in (("a", 4), ("b", 5)):
            values = frames(n, n)
            values[0, PART_SLICES["left_hand"]] = np.nan
            tx.write("keypoints", video, values, failed_frames={4: "no"} if video == "b" else {})
    return memory_store.at()


def test_a_sample_is_keypoints_and_their_picture(drawn: kpstore.Store) -> None:
    view = drawn.skeletons(pixels="uint8", size=64)
    assert len(view) == 8
    batch = view.batch([5, 1])
    stored = drawn["keypoints"][[5, 1]]
    edges = tuple(map(tuple, drawn.feature("keypoints").attrs["edges"]))
    expected = draw_skeletons(stored, 64, style=kpstore_style(64, edges))
    np.testing.assert_array_equal(batch["image"], expected[:, None])
    np.testing.assert_array_equal(batch["keypoints"], stored)
    assert (expected == 0).any()
    sample = view[5]
    assert sample["image"].shape == (1, 64, 64)
    np.testing.assert_array_equal(sample["image"], expected[0][None])


def test_ink_is_minus_one_and_paper_one_for_training(drawn: kpstore.Store) -> None:
    as_float, as_bytes = drawn.skeletons()[2]["image"], drawn.skeletons(pixels="uint8")[2]["image"]
    assert as_float.dtype == np.float32
    assert as_float.shape == (1, 256, 256)
    np.testing.assert_array_equal(as_float, np.where(as_bytes == 255, 1.0, -1.0))


def test_missing_points_are_filled_but_not_drawn(drawn: kpstore.Store) -> None:
    hand = PART_SLICES["left_hand"]
    sample = drawn.skeletons()[0]
    assert (sample["keypoints"][hand] == 0).all()
    assert (sample["image"][0, :8, :8] == 1).all()
    assert np.isnan(drawn.skeletons(fill=float("nan"))[0]["keypoints"][hand]).all()
    kept = drawn.skeletons(missing="nan")
    assert len(kept) == 9
    assert (kept[8]["image"] == 1).all()


def test_styles_differ_and_selections_work(drawn: kpstore.Store) -> None:
    ours, theirs = drawn.skeletons(split="dev"), drawn.skeletons(split="dev", style="phoenix")
    assert len(ours) == len(theirs) == 4
    assert (theirs[1]["image"] != ours[1]["image"]).sum() > 100
    again = pickle.loads(pickle.dumps(theirs))
    np.testing.assert_array_equal(again[1]["image"], theirs[1]["image"])


def test_the_loader_gives_tensors(drawn: kpstore.Store) -> None:
    batch = next(iter(kpstore.loader(drawn.skeletons(), 3)))
    assert tuple(batch["image"].shape) == (3, 1, 256, 256)
    assert tuple(batch["keypoints"].shape) == (3, 143, 3)


def test_what_cannot_be_drawn_is_refused(drawn: kpstore.Store, disk_store: kpstore.Store) -> None:
    with pytest.raises(
        InvalidError, match=r"'points' has rows of \(5, 3\); skeletons need rows of \(143, 3\)"
    ):
        fill(disk_store).skeletons(feature="points")
    with pytest.raises(InvalidError, match="pixels='int8': use 'float32' or 'uint8'"):
        drawn.skeletons(pixels="int8")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="a picture of 4 pixels is too small"):
        drawn.skeletons(size=4)
