"""Models of MediaPipe: pictures in, points in fractions of the picture out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from kpstore.errors import InvalidError
from kpstore.extractors.elementwise import sigmoid
from kpstore.extractors.mediapipe import models_folder, pose_model
from kpstore.extractors.mediapipe_crops import CropKind, float32
from kpstore.extractors.mediapipe_points import anchors, best_detections, refined
from kpstore.extractors.tflite_network import TfliteNetwork, load_tflite

POSE_POINTS, FACE_POINTS, HAND_POINTS, IRIS_POINTS = 33, 468, 21, 5
MESH_POINTS = FACE_POINTS + 2 * IRIS_POINTS
_LID_POINTS = 16
"""Points around an eye, the first of those that are refined with it."""

Found = tuple[Tensor, Tensor]
"""Points (rows, *shape) and scores, (rows,) or (rows, detections)."""


class MediapipeModel(nn.Module):
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
    shape: ClassVar[tuple[int, ...]]
    """Of the points: how many, and numbers of each."""
    n_scores: ClassVar[tuple[int, ...]] = ()
    """Shape of the scores of a row."""

    def __init__(self, network: TfliteNetwork) -> None:
        super().__init__()
        self.network = network
        self.numbers = torch.float32

    def compute_in(self, numbers: torch.dtype) -> None:
        """Let the network compute in another type of numbers than float32."""
        self.numbers = numbers
        self.network.to(numbers)

    @classmethod
    def load(cls, folder: Path, file: str = "") -> Self:
        """Return the model of a folder, on the CPU; errors as of :func:`load_tflite`.

        Parameters
        ----------
        file : another file of the same kind.
        """
        path = folder / (file or cls.file)
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


class _Detector(MediapipeModel):
    """The best detections, as of :func:`~kpstore.extractors.mediapipe_points.best_detections`."""

    strides: ClassVar[tuple[int, ...]]
    least: float = 0.5
    """Score from which on something is detected."""

    def __init__(self, network: TfliteNetwork) -> None:
        super().__init__(network)
        self.register_buffer("centres", anchors(self.kind.side, self.strides))

    def _meant(self, *outputs: Tensor) -> Found:
        boxes, logits = outputs
        centres = cast("Tensor", self.centres)
        return best_detections(boxes, logits, centres, self.kind.side, self.least, self.n_scores[0])


class PoseDetector(_Detector):
    """Four keypoints of a person: the hips' centre, a point above the head, and two unused."""

    file = "pose_detection/pose_detection.tflite"
    kind = CropKind(224, low=-1.0, zero_border=True)
    strides = (8, 16, 32, 32, 32)
    shape, n_scores = (1, 2 + 4, 2), (1,)
    outputs, sizes = (0, 1), (2254 * 12, 2254)


class FaceDetector(_Detector):
    """Six keypoints of a face: eyes, nose, mouth, ears."""

    file = "face_detection/face_detection_short_range.tflite"
    kind = CropKind(128, low=-1.0, zero_border=True)
    strides = (8, 16, 16, 16)
    shape, n_scores = (1, 2 + 6, 2), (1,)
    outputs, sizes = (0, 1), (896 * 16, 896)


class PalmDetector(_Detector):
    """Two palms, each of seven keypoints: wrist, knuckles and two of the thumb."""

    file = "palm_detection/palm_detection_full.tflite"
    kind = CropKind(192, zero_border=True)
    strides = (8, 16, 16, 16)
    shape, n_scores = (2, 2 + 7, 2), (2,)
    outputs, sizes = (0, 1), (2016 * 18, 2016)


class PoseModel(MediapipeModel):
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


class HandRecropModel(MediapipeModel):
    """Two points: the centre of a hand, and the direction and distance of its side; score 1."""

    file = "holistic_landmark/hand_recrop.tflite"
    kind = CropKind(256)
    outputs, sizes = (0,), (4,)
    shape = (2, 3)

    def _meant(self, *outputs: Tensor) -> Found:
        xy = outputs[0].reshape(-1, 2, 2) / self.kind.side
        return torch.cat([xy, torch.zeros_like(xy[..., :1])], 2), torch.ones_like(xy[:, 0, 0])


class HandModel(MediapipeModel):
    """21 points, each x, y, z; left and right hands alike."""

    file = "hand_landmark/hand_landmark_full.tflite"
    kind = CropKind(224)
    outputs: ClassVar[tuple[int, ...]] = (0, 1)
    sizes: ClassVar[tuple[int, ...]] = (21 * 3, 1)
    shape: ClassVar[tuple[int, ...]] = (HAND_POINTS, 3)

    def _meant(self, *outputs: Tensor) -> Found:
        points = outputs[0].reshape(-1, HAND_POINTS, 3) / self.kind.side
        depth = points[..., 2:] / float32(0.4)
        return torch.cat([points[..., :2], depth], 2), outputs[1].reshape(-1)


class SidedHandModel(HandModel):
    """21 points, each x, y, z, and how much the hand is one that MediaPipe calls left, 0 to 1."""

    outputs, sizes = (0, 1, 2), (21 * 3, 1, 1)
    shape = (HAND_POINTS, 4)

    def _meant(self, *outputs: Tensor) -> Found:
        points, scores = super()._meant(*outputs[:2])
        left = outputs[2].reshape(-1, 1, 1).expand(-1, HAND_POINTS, 1)
        return torch.cat([points, left], 2), scores


class FaceModel(MediapipeModel):
    """468 points, each x, y, z."""

    file = "face_landmark/face_landmark.tflite"
    kind = CropKind(192, keep_aspect=False)
    outputs, sizes = (0, 1), (468 * 3, 1)
    shape = (FACE_POINTS, 3)

    def _meant(self, *outputs: Tensor) -> Found:
        points = outputs[0].reshape(-1, FACE_POINTS, 3) / self.kind.side
        return points, sigmoid(outputs[1].reshape(-1))


class MeshModel(MediapipeModel):
    """468 points of a face and 5 of each iris, each x, y, z; lips and eyes are looked at again."""

    file = "face_landmark/face_landmark_with_attention.tflite"
    kind = CropKind(192, keep_aspect=False)
    outputs = tuple(range(7))
    sizes = (468 * 3, 80 * 2, 71 * 2, 71 * 2, 5 * 2, 5 * 2, 1)
    shape = (MESH_POINTS, 3)

    def __init__(self, network: TfliteNetwork) -> None:
        super().__init__(network)
        if [len(part) * 2 for part in self._parts] != list(self.sizes[1:4]):
            raise InvalidError(f"{self.file}: other parts of the face than in MediaPipe 0.10.14")

    @property
    def _parts(self) -> list[Tensor]:
        """Points of each part that the network looks at again, which are those that it refines."""
        return [cast("Tensor", part.subset) for part in self.network.parts]

    def _meant(self, *outputs: Tensor) -> Found:
        # From LandmarksRefinementCalculator: parts replace x and y, an iris is as deep as its lid.
        mesh = outputs[0].reshape(-1, FACE_POINTS, 3)
        parts = [one.reshape(len(mesh), -1, 2) for one in outputs[1:6]]
        whole = torch.cat([mesh, mesh.new_zeros(len(mesh), 2 * IRIS_POINTS, 3)], 1) / self.kind.side
        for part, points in zip(self._parts, parts[:3], strict=True):
            whole[:, part, :2] = points / self.kind.side
        for number, (part, points) in enumerate(zip(self._parts[1:], parts[3:], strict=True)):
            lid = whole[:, part[:_LID_POINTS], 2].double().mean(1).float()
            here = slice(FACE_POINTS + number * IRIS_POINTS, None)
            whole[:, here][:, :IRIS_POINTS, :2] = points / self.kind.side
            whole[:, here][:, :IRIS_POINTS, 2] = lid[:, None]
        return whole, sigmoid(outputs[6].reshape(-1))


class MediapipeModels(nn.Module):
    """Base: the models of one graph, on the CPU.

    Parameters
    ----------
    folder : a folder ``modules`` of MediaPipe's wheel; None for that of the installed one, which
        is not imported.
    model_complexity : of the pose.
    min_detection_confidence : score from which on a person is detected, and what else the graph
        compares with it.

    Raises
    ------
    MissingExtraError
        If no folder is given and MediaPipe is not installed, or the reader of such files is not.
    InvalidError, NotFoundError, UnsupportedError
        As of :func:`~kpstore.extractors.tflite_network.load_tflite`.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        model_complexity: int = 1,
        min_detection_confidence: float = 0.5,
    ) -> None:
        super().__init__()
        where = models_folder() if folder is None else folder
        self.pose_detector = PoseDetector.load(where)
        self.pose = PoseModel.load(where, pose_model(model_complexity))
        self.face_detector = FaceDetector.load(where)
        self._load_others(where)
        for detector in self._compared():
            detector.least = min_detection_confidence

    @abstractmethod
    def _load_others(self, folder: Path) -> None:
        """Load the models that only this graph has."""

    @abstractmethod
    def _compared(self) -> Sequence[_Detector]:
        """Return the detectors whose scores are compared with ``min_detection_confidence``."""

    def compute_in(self, numbers: torch.dtype) -> None:
        """See :meth:`MediapipeModel.compute_in`."""
        for module in self.children():
            cast("MediapipeModel", module).compute_in(numbers)

    def pack(self, rows: int) -> None:
        """See :meth:`~kpstore.extractors.tflite_network.TfliteNetwork.pack`."""
        for module in self.modules():
            if isinstance(module, TfliteNetwork):
                module.pack(rows)


class HolisticModels(MediapipeModels):
    """The six models of Holistic."""

    def _load_others(self, folder: Path) -> None:
        self.hand_recrop = HandRecropModel.load(folder)
        self.hand = HandModel.load(folder)
        self.face = FaceModel.load(folder)

    def _compared(self) -> Sequence[_Detector]:
        return (self.pose_detector,)


class PartsModels(MediapipeModels):
    """The six models of FaceMesh, Hands and Pose."""

    def _load_others(self, folder: Path) -> None:
        self.mesh = MeshModel.load(folder)
        self.palm_detector = PalmDetector.load(folder)
        self.hand = SidedHandModel.load(folder)

    def _compared(self) -> Sequence[_Detector]:
        return (self.pose_detector, self.face_detector, self.palm_detector)


ALL_MODELS: tuple[type[MediapipeModel], ...] = (
    PoseDetector,
    PoseModel,
    HandRecropModel,
    HandModel,
    FaceDetector,
    FaceModel,
    PalmDetector,
    SidedHandModel,
    MeshModel,
)
