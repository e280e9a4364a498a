"""Crops have the bits of MediaPipe's ImageToTensorCalculator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kpstore.errors import InvalidError
from kpstore.extractors import mediapipe_crops
from kpstore.extractors.mediapipe_crops import (
    CropKind,
    Frames,
    crop_matrices,
    pixel_regions,
    take_crops,
)
from kpstore.extractors.mediapipe_models import ALL_MODELS
from tests.extractors.mediapipe_oracles import Stage, moving_clip

pytest.importorskip("mediapipe")

KINDS = {model.kind: model.__name__ for model in ALL_MODELS}
RECTS = {
    "whole": (0.5, 0.5, 1.0, 1.0, 0.0),
    "rotated": (0.41, 0.37, 0.5, 0.6, 0.7),
    "off the frame": (0.02, 1.01, 0.7, 0.4, -2.9),
    "outside": (3.0, -2.0, 0.3, 0.3, 0.1),
    "small": (0.61234, 0.41234, 0.05, 0.05, 1.57),
    "large": (0.5, 0.5, 9.0, 7.0, 3.1),
}


@pytest.fixture(scope="module")
def images():
    """Frames of three sizes, wide and tall."""
    photograph = moving_clip(1)[0]
    noise = np.random.default_rng(0).integers(0, 256, (130, 105, 3), dtype=np.uint8)
    return [np.ascontiguousarray(photograph[:250]), noise, photograph]


def crops_of(images, rows, kind):
    """Crops of (number of an image, rect)."""
    frames = Frames.of(images)
    numbers = torch.tensor([number for number, _ in rows])
    rects = torch.tensor([rect for _, rect in rows])
    pixels, _ = pixel_regions(rects, frames.sizes[numbers].float(), kind)
    matrices = crop_matrices(pixels, rects[:, 4], kind.side)
    return take_crops(frames, numbers, matrices, kind).numpy()


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
def test_crops_of_all_kinds_equal_mediapipes_bits(images, kind):
    stage = Stage(kind)
    rows = [(number, rect) for rect in RECTS.values() for number in range(len(images))]
    found = crops_of(images, rows, kind)
    for (number, rect), crop in zip(rows, found, strict=True):
        wanted, _ = stage(images[number], rect)
        np.testing.assert_array_equal(crop, wanted, str((number, rect)))


def test_a_crop_does_not_depend_on_those_beside_it(images):
    kind = CropKind(64)
    rows = [(number, rect) for rect in RECTS.values() for number in (2, 0, 1)]
    together = crops_of(images, rows, kind)
    for (number, rect), crop in zip(rows, together, strict=True):
        np.testing.assert_array_equal(crops_of([images[number]], [(0, rect)], kind)[0], crop)


def test_a_pixel_of_a_crop_is_not_shifted_by_half_a_pixel():
    """OpenCV 3.4, as MediaPipe calls it: pixel i of n is the place i / n."""
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    crop = crops_of([ramp], [(0, RECTS["whole"])], CropKind(64))[0]
    levels = np.round(crop[0, 0] * 255).astype(int)
    assert levels[:62:2].tolist() == ramp[0, :31, 0].tolist()
    assert levels[1:61:2].tolist() == (ramp[0, :30, 0].astype(int) + 4).tolist()


def test_levels_are_rounded_once_from_minus_one():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    crop = crops_of([image], [(0, RECTS["whole"])], CropKind(16, low=-1.0))[0]
    scale = np.float64(np.float32(2 / 255))
    wanted = (np.arange(256) * scale - 1).astype(np.float32).reshape(16, 16)
    np.testing.assert_array_equal(crop[0], wanted)


def test_around_the_frame_is_black_or_its_border():
    white = np.full((20, 30, 3), 255, dtype=np.uint8)
    rect = (0.5, 0.5, 2.0, 3.0, 0.0)
    border = crops_of([white], [(0, rect)], CropKind(32))[0]
    black = crops_of([white], [(0, rect)], CropKind(32, zero_border=True))[0]
    assert (border == 1).all()
    assert black.min() == 0
    assert black.max() == 1


def test_regions_far_away_or_not_finite_give_a_crop():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    far = (1e30, -1e30, 1e20, 1e20, 0.0)
    for rect in (far, (float("nan"),) * 5, (0.5, 0.5, 0.0, 0.0, 0.0)):
        assert crops_of([image], [(0, rect)], CropKind(16)).shape == (1, 3, 16, 16)


def test_frames_lie_one_after_another(images):
    frames = Frames.of(images)
    assert len(frames) == 3
    assert frames.sizes.tolist() == [[480, 250], [105, 130], [480, 600]]
    assert frames.starts.tolist() == [0, 480 * 250, 480 * 250 + 105 * 130]
    red, green, blue = images[1][0, 1].tolist()
    assert frames.pixels[480 * 250 + 1] == red + 256 * green + 65536 * blue


def test_too_many_pixels_for_their_places_are_refused(images, monkeypatch):
    monkeypatch.setattr(mediapipe_crops, "MOST_PIXELS", 1000)
    with pytest.raises(InvalidError, match="a batch has at most 1000; give fewer at once"):
        Frames.of(images)


def test_a_pixel_is_one_number_whatever_lies_beside_it():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((1, 1), (3, 5), (2, 2))]
    images.append(np.full((1, 2, 3), 255, dtype=np.uint8))
    images.append(images[1][:, ::-1])
    frames = Frames.of(images)
    for image, start in zip(images, frames.starts.tolist(), strict=True):
        wanted = (image.reshape(-1, 3).astype(np.int32) << [0, 8, 16]).sum(1)
        np.testing.assert_array_equal(frames.pixels[start : start + len(wanted)], wanted)
