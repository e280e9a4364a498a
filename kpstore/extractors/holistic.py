"""MediaPipe Holistic, which finds the person, then the face and the hands from the pose.

It runs in MediaPipe itself, or in torch (:mod:`kpstore.extractors.holistic_torch`), which computes
the same for many videos at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.extractors.base import Extracted
from kpstore.extractors.mediapipe import FoundParts, check_options, pose_model
from kpstore.extractors.mediapipe_extractor import MediapipeExtractor
from kpstore.extractors.solutions_engine import SolutionsEngine
from kpstore.extractors.torch_engine import TorchEngine, TorchOptions
from kpstore.options import WHAT, Option
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.layout import FaceList

if TYPE_CHECKING:
    from kpstore.extractors.holistic_torch import HolisticTorch
    from kpstore.extractors.mediapipe_torch import FoundRows, TorchGraph


@dataclass(kw_only=True)
class HolisticExtractor(MediapipeExtractor):
    """Keypoints by MediaPipe Holistic, which finds more faces and hands but keeps state.

    In both modes the values of a frame depend on the frames before it: even in ``"image"`` mode
    MediaPipe keeps the region of the last face, which moves the points of a face by up to 1.6 of
    210 pixels. A video is therefore always processed from its first frame; :meth:`start_video`
    resets the model so that its results are those of a new one, bit for bit.

    Parameters
    ----------
    mode : ``"image"`` detects the person in each frame, ``"video"`` tracks and smooths, which the
        engine torch does not.
    independent_frames : restart the model before each frame, so that frames do not depend on each
        other; about half as fast, and only with ``mode="image"``.
    min_tracking_confidence : 0 to 1; poses below it are dropped.
    batch_videos : videos that the engine torch computes together; 0 is automatic. Results do not
        depend on it.
    face_list, min_detection_confidence, model_complexity, engine, models, rows_per_call, precision
        : see :class:`~kpstore.extractors.mediapipe_extractor.MediapipeExtractor`.
    """

    mode: Annotated[
        Literal["image", "video"],
        Option("Detect the person in each image, or track from image to image.", panel=WHAT),
    ] = "image"
    independent_frames: Annotated[
        bool, Option("Make frames independent of those before them.", panel=WHAT)
    ] = False
    min_tracking_confidence: float = 0.5
    batch_videos: int = 0

    n_mesh_points = 468
    counts: ClassVar[tuple[str, ...]] = ("batch_videos", "rows_per_call")

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

    @property
    def _not_in_torch(self) -> str:
        if self.mode == "image":
            return ""
        return f"engine torch has mode='image' only; {self.mode!r} needs engine='mediapipe'"

    @property
    def _least_tracking(self) -> float:
        return self.min_tracking_confidence

    @property
    def _at_once(self) -> int:
        return self.batch_videos

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

    def _in_mediapipe(self, models: tuple[str, ...]) -> SolutionsEngine:
        options = {"static_image_mode": self.mode == "image", **self._options()}
        return _HolisticSolution(
            self._spec, self._faces, models, options, independent=self.independent_frames
        )

    def _in_torch(self, options: TorchOptions) -> _HolisticTorch:
        return _HolisticTorch(self._spec, self._faces, options, independent=self.independent_frames)

    # -- many videos at once -----------------------------------------------------------------------

    @property
    def videos_at_once(self) -> int:
        """Number of videos that are computed together; 1 for MediaPipe's own engine."""
        return self._engine.videos_at_once

    def start_row(self, row: int) -> None:
        """Forget the frames of a row, whose next frame is the first of another video."""
        cast("_HolisticTorch", self._engine).start_row(row)

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        """Return one row per image; see :class:`kpstore.extractors.base.LockstepExtractor`."""
        return cast("_HolisticTorch", self._engine).step(images)


class _HolisticSolution(SolutionsEngine):
    """MediaPipe's own Holistic.

    Parameters
    ----------
    options : of the solution.
    independent : whether it is restarted before each frame.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        face_list: FaceList,
        models: tuple[str, ...],
        options: dict[str, object],
        *,
        independent: bool,
    ) -> None:
        super().__init__(spec, face_list, models)
        self._options, self._independent = options, independent

    def _build(self, solutions: ModuleType) -> tuple[Any, ...]:
        return (solutions.holistic.Holistic(**self._options),)

    @property
    def typical_fps(self) -> float:
        """About ten frames per second and core, four if it restarts for each frame."""
        return 4.0 if self._independent else super().typical_fps

    def _find(self, image: NDArray[np.uint8]) -> FoundParts:
        if self._independent:
            self.start_video()
        (found,) = self._process(image)
        return FoundParts(
            found.face_landmarks,
            found.left_hand_landmarks,
            found.right_hand_landmarks,
            found.pose_landmarks,
        )


class _HolisticTorch(TorchEngine):
    """Holistic in torch; see :mod:`kpstore.extractors.holistic_torch`.

    Parameters
    ----------
    independent : whether each frame is taken as if it were the first of a video.
    """

    extractor_name = "holistic"
    _model: HolisticTorch

    def __init__(
        self, spec: FeatureSpec, face_list: FaceList, options: TorchOptions, *, independent: bool
    ) -> None:
        super().__init__(spec, face_list, options)
        self._independent = independent

    def _graph(self, models: Mapping[str, Any], options: Mapping[str, Any]) -> TorchGraph[Any]:
        from kpstore.extractors.holistic_torch import HolisticTorch
        from kpstore.extractors.mediapipe_models import HolisticModels

        return HolisticTorch(HolisticModels(**models), **options)

    def _tried_out(self, frames: Sequence[NDArray[np.uint8]]) -> FoundRows:
        return self._model.step(frames)

    def _found(self, images: Sequence[NDArray[np.uint8]]) -> FoundRows:
        if self._independent:
            return self._model.independent(images)
        others = [None] * (self.frames_at_once - 1)
        made = [self._model.step([image, *others]).first(1) for image in images]
        return made[0].joined(made)

    @property
    def batch_size(self) -> int:
        """One, unless frames are independent: else each follows from the one before."""
        return self.frames_at_once if self._independent else 1

    @property
    def videos_at_once(self) -> int:
        """Number of videos of which a frame each is computed together."""
        return self.frames_at_once

    def start_video(self) -> None:
        """Forget the frames of the first row, which takes all frames that are given alone."""
        self.start_row(0)

    def start_row(self, row: int) -> None:
        """Forget the frames of a row, whose next frame is the first of another video."""
        self._require_open()
        self._model.start_video(row)

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        """Return one row per image; see :class:`kpstore.extractors.base.LockstepExtractor`."""
        self._require_open()
        if not self._independent:
            return self._extracted(self._told(self._model.step, images))
        there = [number for number, image in enumerate(images) if image is not None]
        made = self.extract([image for image in images if image is not None])
        rows, given = self._spec.empty_rows(len(images)), made.rows[self._spec.name]
        rows.values[there] = given.values
        for name, array in given.companions.items():
            rows.companions[name][there] = array
        failed = {there[number]: reason for number, reason in made.failed.items()}
        return Extracted({self._spec.name: rows}, failed)
