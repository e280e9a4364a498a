"""MediaPipe's FaceMesh, Hands and Pose on single images, as in users' existing files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.extractors.handedness import Hand, Handedness, assign_hands
from kpstore.extractors.mediapipe import FoundParts, check_options, pose_model
from kpstore.extractors.mediapipe_extractor import MediapipeExtractor
from kpstore.extractors.solutions_engine import SolutionsEngine
from kpstore.extractors.torch_engine import TorchEngine, TorchOptions
from kpstore.options import WHAT, Option
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.layout import FaceList

if TYPE_CHECKING:
    from kpstore.extractors.mediapipe_torch import FoundRows, TorchGraph
    from kpstore.extractors.parts_torch import PartsTorch


@dataclass(kw_only=True)
class PartsExtractor(MediapipeExtractor):
    """Keypoints by FaceMesh, Hands and Pose on single images, independent of other frames.

    It misses faces that are small in the frame, which Holistic finds; and if a frame shows several
    people, the face, the hands and the pose can belong to different ones.

    Parameters
    ----------
    handedness : how to tell the left from the right hand, see
        :func:`~kpstore.extractors.handedness.assign_hands`; ``"legacy"`` as in users' existing
        files.
    face_list, min_detection_confidence, model_complexity, engine, models, rows_per_call, precision
        : see :class:`~kpstore.extractors.mediapipe_extractor.MediapipeExtractor`. Users' existing
        files were made with ``model_complexity=2``, whose model is not in MediaPipe's wheel.
    """

    handedness: Annotated[Handedness, Option("How to tell left from right hands.", panel=WHAT)] = (
        "subject"
    )

    def _check(self) -> None:
        check_options(
            model_complexity=self.model_complexity,
            min_detection_confidence=self.min_detection_confidence,
        )
        if self.handedness not in ("subject", "legacy"):
            raise InvalidError(f"handedness is 'subject' or 'legacy', found {self.handedness!r}")

    def _recipe(self) -> tuple[str, str, dict[str, object], tuple[str, ...]]:
        parameters: dict[str, object] = {
            "handedness": self.handedness,
            "static_image_mode": True,
            "refine_landmarks": True,
            "max_num_faces": 1,
            "max_num_hands": 2,
            "hand_model_complexity": 1,
            "model_complexity": self.model_complexity,
            **self._confidences(),
        }
        models = (
            "face_detection/face_detection_short_range.tflite",
            "face_landmark/face_landmark_with_attention.tflite",
            "hand_landmark/hand_landmark_full.tflite",
            "palm_detection/palm_detection_full.tflite",
            "pose_detection/pose_detection.tflite",
            pose_model(self.model_complexity),
        )
        return "parts", "face mesh + hands + pose, single images", parameters, models

    def _confidences(self) -> dict[str, float]:
        # The tracking threshold also drops uncertain landmarks of single images; users' files were
        # made with MediaPipe's 0.5.
        return {
            "min_detection_confidence": float(self.min_detection_confidence),
            "min_tracking_confidence": self._least_tracking,
        }

    def _in_mediapipe(self, models: tuple[str, ...]) -> SolutionsEngine:
        return _PartsSolutions(
            self._spec,
            self._faces,
            models,
            self._confidences(),
            model_complexity=self.model_complexity,
            handedness=self.handedness,
        )

    def _in_torch(self, options: TorchOptions) -> _PartsTorch:
        return _PartsTorch(self._spec, self._faces, options, handedness=self.handedness)


class _PartsSolutions(SolutionsEngine):
    """MediaPipe's own FaceMesh, Hands and Pose."""

    def __init__(
        self,
        spec: FeatureSpec,
        face_list: FaceList,
        models: tuple[str, ...],
        confidences: dict[str, float],
        *,
        model_complexity: int,
        handedness: Handedness,
    ) -> None:
        super().__init__(spec, face_list, models)
        self._shared = {"static_image_mode": True, **confidences}
        self._model_complexity = model_complexity
        self._handedness: Handedness = handedness

    def _build(self, solutions: ModuleType) -> tuple[Any, ...]:
        shared = self._shared
        return (
            solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1, **shared),
            solutions.hands.Hands(max_num_hands=2, model_complexity=1, **shared),
            solutions.pose.Pose(model_complexity=self._model_complexity, **shared),
        )

    def start_video(self) -> None:
        """Do nothing: frames do not depend on each other."""
        self._require_open()

    def _find(self, image: NDArray[np.uint8]) -> FoundParts:
        faces, hands, pose = self._process(image)
        left, right = assign_hands(_hands(hands), self._handedness)
        face = faces.multi_face_landmarks[0] if faces.multi_face_landmarks else None
        return FoundParts(face, left, right, pose.pose_landmarks)


class _PartsTorch(TorchEngine):
    """FaceMesh, Hands and Pose in torch; see :mod:`kpstore.extractors.parts_torch`.

    Parameters
    ----------
    handedness : as of :func:`~kpstore.extractors.handedness.assign_hands`.
    """

    extractor_name = "parts"
    _model: PartsTorch

    def __init__(
        self,
        spec: FeatureSpec,
        face_list: FaceList,
        options: TorchOptions,
        *,
        handedness: Handedness,
    ) -> None:
        super().__init__(spec, face_list, options)
        self._handedness: Handedness = handedness

    def _graph(self, models: Mapping[str, Any], options: Mapping[str, Any]) -> TorchGraph[Any]:
        from kpstore.extractors.mediapipe_models import PartsModels
        from kpstore.extractors.parts_torch import PartsTorch

        return PartsTorch(PartsModels(**models), handedness=self._handedness, **options)

    def _tried_out(self, frames: Sequence[NDArray[np.uint8]]) -> FoundRows:
        return self._model.independent(frames)

    def _found(self, images: Sequence[NDArray[np.uint8]]) -> FoundRows:
        return self._model.independent(images)


def _hands(found: Any) -> list[Hand]:
    if not found.multi_hand_landmarks:
        return []
    best = [hand.classification[0] for hand in found.multi_handedness]
    pairs = zip(best, found.multi_hand_landmarks, strict=True)
    return [Hand(side.label, side.score, landmarks) for side, landmarks in pairs]
