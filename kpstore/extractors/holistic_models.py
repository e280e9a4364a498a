"""The six models of MediaPipe's Holistic: pictures in, points in fractions of the picture out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from kpstore.errors import InvalidError
from kpstore.extractors.holistic_crops import CropKind, float32
from kpstore.extractors.holistic_points import anchors, best_detection, refined
from kpstore.extractors.mediapipe import models_folder
from kpstore.extractors.tflite_network import TfliteNetwork, load_tflite
from kpstore.extractors.tflite_operations import sigmoid

POSE_POINTS, FACE_POINTS, HAND_POINTS = 33, 468, 21

Found = tuple[Tensor, Tensor]
"""Points (rows, points, numbers) and the score of each row, (rows,)."""


class HolisticModel(nn.Module):
    """Base: a network, the crops that it takes, and what its outputs mean.

    Parameters
    ----------
    network : as in :attr:`file`.
    """

    file: ClassVar[str]
    """Path inside MediaPipe's folder ``modules``."""
    kind: ClassVar[CropKind]
    outputs: ClassVar[tuple[int, ...]]
    """Outputs that are used, by number in the file."""
    sizes: ClassVar[tuple[int, ...]]
    """How many numbers each of them has."""
    shape: ClassVar[tuple[int, int]]
    """Of the points: how many, and numbers of each."""

    def __init__(self, network: TfliteNetwork) -> None:
        super().__init__()
        self.network = network
        self.numbers = torch.float32

    def compute_in(self, numbers: torch.dtype) -> None:
        """Let the network compute in another type of numbers than float32."""
        self.numbers = numbers
        self.network.to(numbers)

    @classmethod
    def load(cls, folder: Path) -> HolisticModel:
        """Return the model of a folder, on the CPU; errors as of :func:`load_tflite`."""
        path = folder / cls.file
        network = load_tflite(path, cls.outputs)
        found = tuple(math.prod(shape) for shape in network.output_shapes)
        if network.side != cls.kind.side or found != cls.sizes:
            raise InvalidError(
                f"{path} takes pictures of {network.side} pixels and gives {found} numbers, "
                f"{cls.kind.side} and {cls.sizes} are needed; use the models of MediaPipe 0.10.14"
            )
        return cls(network)

    def forward(self, crops: Tensor) -> Found:
        """Return points and scores for crops (rows, 3, side, side)."""
        outputs = self.network(crops.to(self.numbers))
        return self._meant(*(output.float() for output in outputs))

    @abstractmethod
    def _meant(self, *outputs: Tensor) -> Found:
        """Return what outputs of the network mean."""


class _Detector(HolisticModel):
    """A detector: keypoints of the best detection, and its score, 0 if it is too low."""

    strides: ClassVar[tuple[int, ...]]
    least: float = 0.5
    """Score from which on something is detected."""

    def __init__(self, network: TfliteNetwork) -> None:
        super().__init__(network)
        self.register_buffer("centres", anchors(self.kind.side, self.strides))

    def _meant(self, *outputs: Tensor) -> Found:
        boxes, logits = outputs
        centres = cast("Tensor", self.centres)
        return best_detection(boxes, logits, centres, self.kind.side, self.least)


class PoseDetector(_Detector):
    """Four keypoints of a person: the hips' centre, a point above the head, and two unused."""

    file = "pose_detection/pose_detection.tflite"
    kind = CropKind(224, low=-1.0, zero_border=True)
    strides = (8, 16, 32, 32, 32)
    shape = (4, 2)
    outputs, sizes = (0, 1), (2254 * 12, 2254)


class FaceDetector(_Detector):
    """Six keypoints of a face: eyes, nose, mouth, ears."""

    file = "face_detection/face_detection_short_range.tflite"
    kind = CropKind(128, low=-1.0, zero_border=True)
    strides = (8, 16, 16, 16)
    shape = (6, 2)
    outputs, sizes = (0, 1), (896 * 16, 896)


class PoseModel(HolisticModel):
    """33 points, each x, y, z and visibility."""

    file = "pose_landmark/pose_landmark_full.tflite"
    kind = CropKind(256)
    outputs, sizes = (0, 1, 3), (39 * 5, 1, 64 * 64 * 39)
    shape = (POSE_POINTS, 4)

    def _meant(self, *outputs: Tensor) -> Found:
        numbers, score, heat = outputs
        points = numbers.view(-1, 39, 5)[:, :POSE_POINTS]
        xyz = refined(points[..., :3] / self.kind.side, heat[:, :POSE_POINTS])
        return torch.cat([xyz, sigmoid(points[..., 3:4])], 2), score.reshape(-1)


class HandRecropModel(HolisticModel):
    """Two points: the centre of a hand, and the direction and distance of its side; score 1."""

    file = "holistic_landmark/hand_recrop.tflite"
    kind = CropKind(256)
    outputs, sizes = (0,), (4,)
    shape = (2, 3)

    def _meant(self, *outputs: Tensor) -> Found:
        xy = outputs[0].reshape(-1, 2, 2) / self.kind.side
        return torch.cat([xy, torch.zeros_like(xy[..., :1])], 2), torch.ones_like(xy[:, 0, 0])


class HandModel(HolisticModel):
    """21 points, each x, y, z; left and right hands alike."""

    file = "hand_landmark/hand_landmark_full.tflite"
    kind = CropKind(224)
    outputs, sizes = (0, 1), (21 * 3, 1)
    shape = (HAND_POINTS, 3)

    def _meant(self, *outputs: Tensor) -> Found:
        points = outputs[0].reshape(-1, HAND_POINTS, 3) / self.kind.side
        depth = points[..., 2:] / float32(0.4)
        return torch.cat([points[..., :2], depth], 2), outputs[1].reshape(-1)


class FaceModel(HolisticModel):
    """468 points, each x, y, z."""

    file = "face_landmark/face_landmark.tflite"
    kind = CropKind(192, keep_aspect=False)
    outputs, sizes = (0, 1), (468 * 3, 1)
    shape = (FACE_POINTS, 3)

    def _meant(self, *outputs: Tensor) -> Found:
        points = outputs[0].reshape(-1, FACE_POINTS, 3) / self.kind.side
        return points, sigmoid(outputs[1].reshape(-1))


class HolisticModels(nn.Module):
    """All six models.

    Parameters
    ----------
    models : by class.
    """

    pose_detector: PoseDetector

    def __init__(self, models: Mapping[type[HolisticModel], HolisticModel]) -> None:
        super().__init__()
        self.pose_detector = cast("PoseDetector", models[PoseDetector])
        self.pose = models[PoseModel]
        self.hand_recrop = models[HandRecropModel]
        self.hand = models[HandModel]
        self.face_detector = models[FaceDetector]
        self.face = models[FaceModel]

    def compute_in(self, numbers: torch.dtype) -> None:
        """See :meth:`HolisticModel.compute_in`."""
        for module in self.children():
            cast("HolisticModel", module).compute_in(numbers)

    def pack(self, rows: int) -> None:
        """See :meth:`~kpstore.extractors.tflite_network.TfliteNetwork.pack`."""
        for module in self.modules():
            if isinstance(module, TfliteNetwork):
                module.pack(rows)


ALL_MODELS: tuple[type[HolisticModel], ...] = (
    PoseDetector,
    PoseModel,
    HandRecropModel,
    HandModel,
    FaceDetector,
    FaceModel,
)


def load_models(
    folder: Path | None = None, *, min_detection_confidence: float = 0.5
) -> HolisticModels:
    """Return the models of a folder, on the CPU.

    Parameters
    ----------
    folder : a folder ``modules`` of MediaPipe's wheel; None for that of the installed one, which
        is not imported.
    min_detection_confidence : score from which on a person is detected.

    Raises
    ------
    MissingExtraError
        If no folder is given and MediaPipe is not installed, or the reader of such files is not.
    InvalidError, NotFoundError, UnsupportedError
        As of :func:`~kpstore.extractors.tflite_network.load_tflite`.
    """
    where = models_folder() if folder is None else folder
    models = HolisticModels({kind: kind.load(where) for kind in ALL_MODELS})
    models.pose_detector.least = min_detection_confidence
    return models
