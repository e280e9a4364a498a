"""MediaPipe's FaceMesh, Hands and Pose in torch, on many frames at once.

It computes what the three do with ``static_image_mode=True`` in MediaPipe 0.10.14, where no frame
depends on another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kpstore.extractors import mediapipe_regions as regions
from kpstore.extractors.handedness import Hand, Handedness, assign_hands
from kpstore.extractors.mediapipe_crops import Frames
from kpstore.extractors.mediapipe_models import HAND_POINTS, PartsModels
from kpstore.extractors.mediapipe_points import (
    projected,
    projected_keypoints,
    repeated,
    without_padding,
)
from kpstore.extractors.mediapipe_torch import FoundRows, Part, Scene, TorchGraph


class PartsTorch(TorchGraph[PartsModels]):
    """Finds the parts of one person in each frame.

    Parameters
    ----------
    handedness : as of :func:`~kpstore.extractors.handedness.assign_hands`.
    **options : of :class:`~kpstore.extractors.mediapipe_torch.TorchGraph`; ``rows`` are frames, and
        ``min_tracking_confidence`` is of faces and hands as well.
    """

    def __init__(
        self,
        models: PartsModels,
        *,
        handedness: Handedness = "subject",
        **options: Any,
    ) -> None:
        super().__init__(models, **options)
        self._handedness: Handedness = handedness

    def _looked_anew(self, frames: Frames, has_frame: Tensor) -> FoundRows:
        scene = Scene.of(frames)
        self._odd = self._none_odd()
        pose = self._pose(scene, has_frame)
        left, right = self._sides(self._hands(scene, has_frame))
        face = self._face(scene, has_frame)
        return FoundRows.of(face, left, right, pose, self._odd)

    def _face(self, scene: Scene, has_frame: Tensor) -> Part:
        whole = self._whole.expand(self.rows, 5)
        found = self._looked(self._models.face_detector, scene, whole, has_frame)
        places = projected_keypoints(found.points[:, 0], found.regions, whole[:, 4], scene.sizes)
        wanted = has_frame & (found.scores[:, 0] > 0)
        rects = regions.mesh_region_of_detection(places, scene.sizes)
        answer = self._looked(self._models.mesh, scene, rects, wanted)
        return Part(projected(answer.points, rects), wanted & (answer.scores > self._least))

    def _hands(self, scene: Scene, has_frame: Tensor) -> Part:
        """Return all first hands, then all second ones, with MediaPipe's side as a fourth number.

        If both are one hand, the first is missing.
        """
        whole = self._whole.expand(self.rows, 5)
        found = self._looked(self._models.palm_detector, scene, whole, has_frame)
        palms = torch.cat([found.points[:, 0], found.points[:, 1]])
        places = without_padding(palms, torch.cat([found.padding] * 2))
        twice = scene.twice()
        rects = regions.hand_region_of_palm(places, twice.sizes)
        first, second = (has_frame & (found.scores[:, number] > 0) for number in (0, 1))
        same = repeated(torch.stack(rects.chunk(2), 1))
        wanted = torch.cat([first & ~(second & same), second])
        answer = self._looked(self._models.hand, twice, rects, wanted)
        points = projected(without_padding(answer.points, answer.padding), rects)
        return Part(points, wanted & (answer.scores > self._least))

    def _sides(self, hands: Part) -> tuple[Part, Part]:
        """Return left and right hands."""
        points, found = hands.points.cpu(), hands.found.cpu()
        sides = [Part.none(self.rows, (HAND_POINTS, 3), points.device) for _ in range(2)]
        for row in found.reshape(2, -1).any(0).nonzero()[:, 0].tolist():
            there = [_hand(points[place]) for place in (row, row + self.rows) if bool(found[place])]
            for side, given in zip(sides, assign_hands(there, self._handedness), strict=True):
                if given is not None:
                    side.points[row], side.found[row] = given, True
        return sides[0], sides[1]


def _hand(points: Tensor) -> Hand:
    left = float(points[0, 3])
    label, score = ("Left", left) if left >= 0.5 else ("Right", 1 - left)
    return Hand(label, score, points[:, :3])
