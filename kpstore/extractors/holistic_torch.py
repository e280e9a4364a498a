"""MediaPipe's Holistic in torch: frame t of many videos at once, with the memory of each video.

It computes what ``Holistic(static_image_mode=True)`` of MediaPipe 0.10.14 does: a person is looked
for in every frame; regions of the face and of the hands follow those of the frame before, if they
moved little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.extractors import mediapipe_regions as regions
from kpstore.extractors.base import check_image
from kpstore.extractors.mediapipe_crops import Frames
from kpstore.extractors.mediapipe_models import (
    FACE_POINTS,
    HAND_POINTS,
    POSE_POINTS,
    HolisticModels,
)
from kpstore.extractors.mediapipe_points import projected, projected_keypoints, without_padding
from kpstore.extractors.mediapipe_torch import NO_FRAME, FoundRows, Part, Scene, TorchGraph

_LEAST_SCORE = 0.5
"""Above which a face or a hand is there; MediaPipe has no option for it."""
_LEAST_VISIBILITY = 0.1
"""Of a wrist, above which its hand is looked for."""
_LEFT, _RIGHT = slice(15, 20, 2), slice(16, 21, 2)
"""Wrist, little finger and index finger of the pose."""


@dataclass(frozen=True)
class _Memory:
    """Face and hands of the last frame; all left hands, then all right hands."""

    face: Part
    hands: Part

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> _Memory:
        return cls(
            Part.none(rows, (FACE_POINTS, 3), device), Part.none(2 * rows, (HAND_POINTS, 3), device)
        )

    def where(self, mask: Tensor, other: _Memory) -> _Memory:
        twice = torch.cat([mask, mask])
        return _Memory(self.face.where(mask, other.face), self.hands.where(twice, other.hands))


class HolisticTorch(TorchGraph[HolisticModels]):
    """Videos in lockstep: each row takes one video after another, and remembers its last frame.

    The parameters are those of :class:`~kpstore.extractors.mediapipe_torch.TorchGraph`; ``rows``
    are videos at once.
    """

    def __init__(self, models: HolisticModels, **options: Any) -> None:
        super().__init__(models, **options)
        with torch.inference_mode():
            self._memory = _Memory.empty(self.rows, self._device)

    def start_video(self, row: int) -> None:
        """Forget the last frame of a row, whose next frame is the first of another video."""
        if not 0 <= row < self.rows:
            raise InvalidError(f"row {row} was started, there are {self.rows}, from 0 on")
        with torch.inference_mode():
            self._memory.face.found[row] = False
            self._memory.hands.found[[row, row + self.rows]] = False

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> FoundRows:
        """Return what is in the next frame of each video.

        Parameters
        ----------
        images : one for each row, (height, width, 3) uint8 RGB of any size; None for a row that has
            none this time, whose results are missing and whose memory stays.
        """
        if len(images) != self.rows:
            raise InvalidError(
                f"{len(images)} images were given for {self.rows} rows; give one for each row, or "
                "None"
            )
        given = np.array([image is not None for image in images])
        if not given.any():
            return self._nothing()
        frames = Frames.of([NO_FRAME if one is None else check_image(one) for one in images])
        with torch.inference_mode(), self._settings():
            has_frame = torch.from_numpy(given).to(self._device)
            found, memory = self._stepped(frames.to(self._device), has_frame, self._memory)
            self._memory = memory.where(has_frame, self._memory)
        return found

    def _nothing(self) -> FoundRows:
        face, hand, pose = (
            Part.none(self.rows, shape, torch.device("cpu"))
            for shape in ((FACE_POINTS, 3), (HAND_POINTS, 3), (POSE_POINTS, 4))
        )
        return FoundRows.of(face, hand, hand, pose, self._none_odd())

    def _looked_anew(self, frames: Frames, has_frame: Tensor) -> FoundRows:
        return self._stepped(frames, has_frame, _Memory.empty(self.rows, self._device))[0]

    # -- one step ----------------------------------------------------------------------------------

    def _stepped(
        self, frames: Frames, has_frame: Tensor, memory: _Memory
    ) -> tuple[FoundRows, _Memory]:
        """Return what is in each row, and the memory for the next frame."""
        scene = Scene.of(frames)
        self._odd = self._none_odd()
        pose = self._pose(scene, has_frame)
        hands = self._hands(scene.twice(), pose, memory.hands)
        face = self._face(scene, pose, memory.face)
        sides = zip(hands.points.chunk(2), hands.found.chunk(2), strict=True)
        left, right = (Part(points, found) for points, found in sides)
        return FoundRows.of(face, left, right, pose, self._odd), _Memory(face, hands)

    def _hands(self, scene: Scene, pose: Part, last: Part) -> Part:
        fingers = torch.cat([pose.points[:, _LEFT], pose.points[:, _RIGHT]])
        wanted = torch.cat([pose.found, pose.found]) & (fingers[:, 0, 3] > _LEAST_VISIBILITY)
        rects = regions.hand_region_of_pose(fingers, scene.sizes)
        found = self._looked(self._models.hand_recrop, scene, rects, wanted)
        points = projected(without_padding(found.points, found.padding), rects)
        fresh = regions.hand_region_of_recrop(points, scene.sizes)
        tracked = regions.hand_region_of_landmarks(last.points, scene.sizes)
        rects = _followed(last, tracked, fresh, scene, regions.HAND_LIMITS)
        answer = self._looked(self._models.hand, scene, rects, wanted)
        points = projected(without_padding(answer.points, answer.padding), rects)
        return Part(points, wanted & (answer.scores > _LEAST_SCORE))

    def _face(self, scene: Scene, pose: Part, last: Part) -> Part:
        rects = regions.face_region_of_pose(pose.points, scene.sizes)
        found = self._looked(self._models.face_detector, scene, rects, pose.found)
        keypoints = projected_keypoints(
            found.points[:, 0, 2:], found.regions, rects[:, 4], scene.sizes
        )
        wanted = pose.found & (found.scores[:, 0] > 0)
        fresh = regions.face_region_of_detection(keypoints, scene.sizes)
        tracked = regions.face_region_of_landmarks(last.points, scene.sizes)
        rects = _followed(last, tracked, fresh, scene, regions.FACE_LIMITS)
        answer = self._looked(self._models.face, scene, rects, wanted)
        return Part(projected(answer.points, rects), wanted & (answer.scores > _LEAST_SCORE))


def _followed(
    last: Part, tracked: Tensor, fresh: Tensor, scene: Scene, limits: regions.TrackingLimits
) -> Tensor:
    """Return regions of the last frame's points where they moved little, else those found anew."""
    keep = last.found & regions.may_track(last.points, tracked, fresh, scene.sizes, limits)
    return torch.where(keep[:, None], tracked, fresh)
