"""MediaPipe Holistic, which finds the person, then the face and the hands from the pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.extractors.mediapipe import FoundParts, MediapipeExtractor, check_options, pose_model
from kpstore.options import WHAT, Option
from kpstore.schema.feature import FeatureRows


@dataclass(kw_only=True)
class HolisticExtractor(MediapipeExtractor):
    """Keypoints by MediaPipe Holistic, which finds more faces and hands but keeps state.

    In both modes the values of a frame depend on the frames before it: even in ``"image"`` mode
    MediaPipe keeps the region of the last face, which moves the points of a face by up to 1.6 of
    210 pixels. A video is therefore always processed from its first frame; :meth:`start_video`
    resets the model so that its results are those of a new one, bit for bit.

    Parameters
    ----------
    mode : ``"image"`` detects the person in each frame, ``"video"`` tracks and smooths.
    independent_frames : restart the model before each frame, so that frames do not depend on each
        other; about half as fast, and only with ``mode="image"``.
    min_tracking_confidence : 0 to 1; poses below it are dropped.
    face_list, min_detection_confidence, model_complexity : see :class:`MediapipeExtractor`.
    """

    mode: Annotated[
        Literal["image", "video"],
        Option("Detect the person in each image, or track from image to image.", panel=WHAT),
    ] = "image"
    independent_frames: Annotated[
        bool, Option("Make frames independent of those before them.", panel=WHAT)
    ] = False
    min_tracking_confidence: float = 0.5

    n_mesh_points = 468

    def _check(self) -> None:
        check_options(
            model_complexity=self.model_complexity,
            min_detection_confidence=self.min_detection_confidence,
            min_tracking_confidence=self.min_tracking_confidence,
        )
        if self.mode not in ("image", "video"):
            raise InvalidError(f"mode is 'image' or 'video', found {self.mode!r}")
        if self.independent_frames not in (True, False):
            raise InvalidError(
                f"independent_frames is True or False, found {self.independent_frames!r}"
            )
        if self.independent_frames and self.mode == "video":
            raise InvalidError(
                "mode 'video' tracks from frame to frame; independent_frames needs mode='image'"
            )

    def _recipe(self) -> tuple[str, str, dict[str, object], tuple[str, ...]]:
        frames = "independent frames" if self.independent_frames else f"{self.mode} mode"
        parameters = {
            "mode": self.mode,
            "independent_frames": self.independent_frames,
            **self._options(),
        }
        models = (
            "face_detection/face_detection_short_range.tflite",
            "face_landmark/face_landmark.tflite",
            "hand_landmark/hand_landmark_full.tflite",
            "holistic_landmark/hand_recrop.tflite",
            "pose_detection/pose_detection.tflite",
            pose_model(self.model_complexity),
        )
        return "holistic", f"holistic, {frames}", parameters, models

    def _options(self) -> dict[str, object]:
        return {
            "model_complexity": self.model_complexity,
            "smooth_landmarks": self.mode == "video",
            "refine_face_landmarks": False,
            "min_detection_confidence": float(self.min_detection_confidence),
            "min_tracking_confidence": float(self.min_tracking_confidence),
        }

    def _build(self, solutions: ModuleType) -> tuple[Any, ...]:
        options = {"static_image_mode": self.mode == "image", **self._options()}
        return (solutions.holistic.Holistic(**options),)

    @property
    def typical_fps(self) -> float:
        """About ten frames per second and core, four if the model restarts for each frame."""
        return 4.0 if self.independent_frames else 10.0

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget all frames; results are then those of a new extractor, bit for bit."""
        self._require_open()
        self._restart()
        return {}

    def _find(self, image: NDArray[np.uint8]) -> FoundParts:
        if self.independent_frames:
            self.start_video()
        (found,) = self._process(image)
        return FoundParts(
            found.face_landmarks,
            found.left_hand_landmarks,
            found.right_hand_landmarks,
            found.pose_landmarks,
        )
