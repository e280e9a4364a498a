"""Ways to look for hands that Holistic may have missed.

All of them return points as fractions of the frame, and NaN where there is nothing; sides are the
first axis or the second of two: left, right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kpstore.extractors import mediapipe_regions as regions
from kpstore.extractors.devices import reproducible
from kpstore.extractors.mediapipe import load_solutions, models_folder, quiet_calls, quiet_start
from kpstore.extractors.mediapipe_crops import Frames, crop_matrices, pixel_regions, take_crops
from kpstore.extractors.mediapipe_models import (
    HandModel,
    HandRecropModel,
    MediapipeModel,
)
from kpstore.extractors.mediapipe_points import projected, without_padding

Picture = NDArray[np.uint8]
Points = NDArray[np.float32]

SIDES = 2
HAND_POINTS = 21
WRISTS = (15, 16)
"""Points of the pose: left and right."""
PALMS = ((15, 17, 19), (16, 18, 20))
"""Wrist, little finger and index finger."""
SHOULDERS = (11, 12)
_LEAST_VISIBILITY = 0.1
_SMALLEST_CROP = 384


def no_hands(frames: int) -> Points:
    """Return (frames, 2, 21, 3) of NaN."""
    return np.full((frames, SIDES, HAND_POINTS, 3), np.nan, dtype=np.float32)


def present(hands: Points) -> NDArray[np.bool_]:
    """Return where there are hands, without the last two axes."""
    there: NDArray[np.bool_] = np.isfinite(hands[..., 0, 0])
    return there


@dataclass(frozen=True)
class Spotted:
    """A hand that MediaPipe's Hands found.

    Parameters
    ----------
    points : (21, 3), as fractions of the frame.
    side : 0 for the subject's left, 1 for the right, by the look of the hand alone.
    """

    points: Points
    side: int


class Spotter:
    """MediaPipe's Hands on single pictures: palms are detected, then hands are fitted."""

    def __init__(self, least_detection: float = 0.5) -> None:
        solutions = load_solutions()
        with quiet_start(), quiet_calls():
            self._hands = solutions.hands.Hands(
                static_image_mode=True,
                max_num_hands=2,
                model_complexity=1,
                min_detection_confidence=least_detection,
            )
            self._hands._graph.wait_until_idle()

    def in_whole(self, picture: Picture, times: int) -> list[Spotted]:
        """Look at a whole frame, enlarged some times."""
        height, width = picture.shape[:2]
        return self._spotted(_resized(picture, (width * times, height * times)))

    def in_crop(self, picture: Picture, centre: Points, side: float) -> list[Spotted]:
        """Look at a square, given in pixels, as far as it lies in the frame."""
        size = np.array(picture.shape[1::-1])
        low = np.clip(np.floor(centre - side / 2), 0, size).astype(int)
        high = np.clip(np.ceil(centre + side / 2), 0, size).astype(int)
        if ((high - low) < 8).any():
            return []
        crop = picture[low[1] : high[1], low[0] : high[0]]
        times = max(1.0, _SMALLEST_CROP / max(crop.shape[:2]))
        crop = _resized(crop, (round(crop.shape[1] * times), round(crop.shape[0] * times)))
        made = []
        for one in self._spotted(crop):
            points = one.points.copy()
            points[:, :2] = (points[:, :2] * (high - low) + low) / size
            points[:, 2] *= (high[0] - low[0]) / size[0]
            made.append(Spotted(points, one.side))
        return made

    def _spotted(self, picture: Picture) -> list[Spotted]:
        with quiet_calls():
            found: Any = self._hands.process(np.ascontiguousarray(picture))
        if not found.multi_hand_landmarks:
            return []
        # Labels are meant for mirrored pictures: "Right" is the left hand in a photograph.
        sides = [int(one.classification[0].label == "Left") for one in found.multi_handedness]
        return [
            Spotted(
                np.array([(point.x, point.y, point.z) for point in hand.landmark], np.float32), side
            )
            for hand, side in zip(found.multi_hand_landmarks, sides, strict=True)
        ]


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    if size == picture.shape[1::-1]:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


class Fitter:
    """MediaPipe's model of hands on any region of a frame, with its score, in torch."""

    def __init__(self) -> None:
        folder = models_folder()
        self._hand, self._recrop = (
            kind.load(folder).eval() for kind in (HandModel, HandRecropModel)
        )
        with reproducible(torch.device("cpu")):
            for model in (self._hand, self._recrop):
                model.network.pack(1)

    def around(self, picture: Picture, hand: Points) -> tuple[Points, float]:
        """Return a hand fitted where one was, in this frame or in one beside it."""
        size = _size(picture)
        rect = regions.hand_region_of_landmarks(torch.from_numpy(hand)[None], size)
        return self._fitted(self._hand, Frames.of([picture]), rect)

    def at_pose(
        self, picture: Picture, pose: Points, side: int, scales: Sequence[float]
    ) -> tuple[Points, float]:
        """Return the best hand, by score, in regions of several sizes that a pose suggests.

        Parameters
        ----------
        pose : (33, 4), x, y, z and visibility.
        scales : of Holistic's own region.
        """
        best = np.full((HAND_POINTS, 3), np.nan, dtype=np.float32), 0.0
        if not pose[WRISTS[side], 3] > _LEAST_VISIBILITY:
            return best
        size, frames = _size(picture), Frames.of([picture])
        fingers = torch.from_numpy(np.ascontiguousarray(pose[list(PALMS[side])]))[None]
        asked = regions.hand_region_of_pose(fingers, size)
        points, _ = self._fitted(self._recrop, frames, asked)
        fresh = regions.hand_region_of_recrop(torch.from_numpy(points)[None], size)
        for rect in (fresh, asked):
            for scale in scales:
                found = self._fitted(self._hand, frames, regions.transformed(rect, size, scale))
                best = max(best, found, key=lambda one: one[1])
        return best

    def _fitted(self, model: MediapipeModel, frames: Frames, rect: Tensor) -> tuple[Points, float]:
        sizes = frames.sizes.float()
        with torch.inference_mode(), reproducible(torch.device("cpu")):
            pixels, padding = pixel_regions(rect, sizes, model.kind)
            if not torch.isfinite(pixels).all() or not (pixels[:, 2:] >= 1).all():
                return np.full((HAND_POINTS, 3), np.nan, dtype=np.float32), 0.0
            matrices = crop_matrices(pixels, rect[:, 4], model.kind.side)
            crops = take_crops(frames, torch.zeros(1, dtype=torch.int64), matrices, model.kind)
            points, scores = model(crops)
            points = projected(without_padding(points, padding), rect)
        return points[0].numpy().copy(), float(scores[0])


def _size(picture: Picture) -> Tensor:
    return torch.tensor([picture.shape[1::-1]], dtype=torch.float32)


def shoulder_width(pose: Points, size: NDArray[np.float64]) -> float:
    """Return the distance of a pose's shoulders in pixels."""
    left, right = (pose[number, :2] * size for number in SHOULDERS)
    return float(np.linalg.norm(left - right))


def by_body(
    hands: Sequence[Spotted], pose: Points, size: NDArray[np.float64], most: float
) -> Points:
    """Return (2, 21, 3): each hand goes to the nearest wrist of the pose, each wrist gets one.

    Parameters
    ----------
    pose : (33, 4); without one (NaN), hands go by their own look.
    most : farthest distance of a hand's wrist, in widths of the shoulders.
    """
    made = no_hands(1)[0]
    if not np.isfinite(pose[0, 0]):
        for hand in reversed(hands):
            made[hand.side] = hand.points
        return made
    width = max(1.0, shoulder_width(pose, size))
    pairs = sorted(
        (float(np.linalg.norm((hand.points[0, :2] - pose[WRISTS[side], :2]) * size)), number, side)
        for number, hand in enumerate(hands)
        for side in range(SIDES)
    )
    taken: set[int] = set()
    for distance, number, side in pairs:
        if distance > most * width or number in taken or present(made[side]):
            continue
        taken.add(number)
        points = hands[number].points
        if not same_hand(points, made[1 - side], size):
            made[side] = points
    return made


def same_hand(one: Points, other: Points, size: NDArray[np.float64]) -> bool:
    """Return whether two sets of points lie on one hand: nearer than half of its size.

    Nothing (NaN) is no hand.
    """
    distance = np.linalg.norm((one - other)[:, :2] * size, axis=1).mean()
    spans = [np.ptp(hand[:, :2] * size, axis=0).max() for hand in (one, other)]
    return bool(distance < 0.5 * max(spans))
