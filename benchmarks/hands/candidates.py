"""What each candidate finds in the labelled frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.hands import looking
from benchmarks.hands.looking import Fitter, Picture, Points, Spotted, Spotter, no_hands, present
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.extractors.mediapipe_extractor import MediapipeExtractor
from kpstore.extractors.parts import PartsExtractor
from kpstore.schema.layout import PART_SLICES

CROPS = (0.6, 1.0, 1.5)
"""Sides of square crops around the hands of the pose, in widths of the shoulders."""
SCALES = (0.75, 1.0, 1.35)
"""Sizes of regions that are tried, in those of Holistic."""
_FARTHEST = 1.5
"""From a wrist of the pose to that of a hand, in widths of the shoulders; thresholds are lower."""
_LEAST_ON = 0.5
"""Score of a hand from which on it is followed."""


@dataclass
class Found:
    """Hands of the labelled frames of one clip in one size.

    Parameters
    ----------
    size : (2,) width and height of the frames.
    pose : (labelled, 33, 4) of Holistic, NaN where there was none.
    hands : by candidate, (labelled, 2, 21, 3).
    scores : by candidate, (labelled, 2): of the model of hands, on the region that the hand itself
        suggests; NaN where there is no hand.
    """

    size: NDArray[np.float64]
    pose: Points
    hands: dict[str, Points] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write everything to a file of NumPy."""
        arrays = {"size": self.size, "pose": self.pose}
        arrays |= {f"hands {name}": one for name, one in self.hands.items()}
        arrays |= {f"scores {name}": one for name, one in self.scores.items()}
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Found:
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            parts: dict[str, dict[str, Points]] = {"hands": {}, "scores": {}}
            for key in file.files:
                kind, _, name = key.partition(" ")
                if name:
                    parts[kind][name] = file[key]
            return cls(file["size"], file["pose"], **parts)


class Candidates:
    """All of them, loaded once."""

    def __init__(self) -> None:
        self._holistic = HolisticExtractor(engine="mediapipe")
        self._parts = PartsExtractor(handedness="subject")
        for extractor in (self._holistic, self._parts):
            extractor.open()
        self._spotter = Spotter()
        self._eager = Spotter(least_detection=0.3)  # a crop holds little else than hands
        self._fitter = Fitter()

    def look(self, images: Sequence[Picture], labelled: NDArray[np.int64]) -> Found:
        """Return what all candidates find in some frames of a clip."""
        size = np.array(images[0].shape[1::-1], dtype=np.float64)
        hands, poses = self._by_holistic(images)
        back, _ = self._by_holistic(images[::-1])
        found = Found(size, poses[labelled])
        pictures = [images[number] for number in labelled]
        parts, _ = _run(self._parts, pictures)
        self._keep(found, pictures, "holistic", hands[labelled])
        self._keep(found, pictures, "parts", parts)
        self._keep(found, pictures, "backwards", back[::-1][labelled])
        self._spot(found, pictures, _filled(poses)[labelled])
        followed, scores = self._followed(images, hands)
        found.hands["followed"], found.scores["followed"] = followed[labelled], scores[labelled]
        self._try_regions(found, pictures)
        return found

    def _by_holistic(self, images: Sequence[Picture]) -> tuple[Points, Points]:
        self._holistic.start_video()
        return _run(self._holistic, images)

    def _keep(self, found: Found, pictures: Sequence[Picture], name: str, hands: Points) -> None:
        found.hands[name] = hands
        found.scores[name] = np.full(hands.shape[:2], np.nan)
        for number, side in np.argwhere(present(hands)):
            _, score = self._fitter.around(pictures[number], hands[number, side])
            found.scores[name][number, side] = score

    def _spot(self, found: Found, pictures: Sequence[Picture], poses: Points) -> None:
        """Detect palms on whole frames and in crops around the hands of a pose."""
        whole = [self._spotter.in_whole(picture, 3) for picture in pictures]
        self._keep(found, pictures, "whole x 3", self._sided(whole, poses, found.size))
        for factor in CROPS:
            spotted = [
                self._in_crops(picture, pose, found.size, factor)
                for picture, pose in zip(pictures, poses, strict=True)
            ]
            hands = self._sided(spotted, poses, found.size)
            self._keep(found, pictures, f"crops {factor}", hands)

    def _in_crops(
        self, picture: Picture, pose: Points, size: NDArray[np.float64], factor: float
    ) -> list[Spotted]:
        if not np.isfinite(pose[0, 0]):
            return []
        side = factor * max(16.0, looking.shoulder_width(pose, size))
        made = []
        for palm in looking.PALMS:
            centre = (pose[list(palm), :2] * size).mean(axis=0)
            made += self._eager.in_crop(picture, centre, side)
        return made

    @staticmethod
    def _sided(
        spotted: Sequence[list[Spotted]], poses: Points, size: NDArray[np.float64]
    ) -> Points:
        made = no_hands(len(spotted))
        for number, (hands, pose) in enumerate(zip(spotted, poses, strict=True)):
            made[number] = looking.by_body(hands, pose, size, _FARTHEST)
        return made

    def _followed(
        self, images: Sequence[Picture], hands: Points
    ) -> tuple[Points, NDArray[np.float64]]:
        """Go on from each hand of Holistic into the frames before and after it that lack it."""
        made, scores = no_hands(len(images)), np.zeros(hands.shape[:2])
        size = np.array(images[0].shape[1::-1], dtype=np.float64)
        for order in (range(len(images)), range(len(images) - 1, -1, -1)):
            for side in range(looking.SIDES):
                last = None
                for number in order:
                    if present(hands[number, side]):
                        last = hands[number, side]
                        continue
                    if last is None:
                        continue
                    last, score = self._fitter.around(images[number], last)
                    if score < _LEAST_ON or looking.same_hand(last, hands[number, 1 - side], size):
                        last = None
                    elif score > scores[number, side]:
                        made[number, side], scores[number, side] = last, score
        return made, np.where(present(made), scores, np.nan)

    def _try_regions(self, found: Found, pictures: Sequence[Picture]) -> None:
        """Where Holistic has no hand, try regions of several sizes that its pose suggests."""
        made = no_hands(len(pictures))
        scores = np.full(made.shape[:2], np.nan)
        for number, side in np.argwhere(~present(found.hands["holistic"])):
            points, score = self._fitter.at_pose(
                pictures[number], found.pose[number], int(side), SCALES
            )
            if present(points):
                made[number, side], scores[number, side] = points, score
        found.hands["regions"], found.scores["regions"] = made, scores


def _run(extractor: MediapipeExtractor, images: Sequence[Picture]) -> tuple[Points, Points]:
    """Return hands (frames, 2, 21, 3) and poses (frames, 33, 4) of a recipe."""
    rows = extractor.rows(images)
    sides = [rows.values[:, PART_SLICES[part]] for part in ("left_hand", "right_hand")]
    pose = rows.values[:, PART_SLICES["pose"]]
    visibility = rows.companions["visibility"][..., None]
    return np.stack(sides, axis=1), np.concatenate([pose, visibility], axis=2)


def _filled(poses: Points) -> Points:
    """Return poses; where there is none, that of the nearest frame that has one."""
    there = np.flatnonzero(np.isfinite(poses[:, 0, 0]))
    if not len(there):
        return poses
    every = np.arange(len(poses))
    nearest = there[np.abs(every[:, None] - there).argmin(axis=1)]
    return poses[nearest]
