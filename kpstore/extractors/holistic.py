"""MediaPipe Holistic, which finds the person, then the face and the hands from the pose.

It runs in MediaPipe itself, or in torch (:mod:`kpstore.extractors.holistic_torch`), which computes
the same for many videos at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MismatchError
from kpstore.extractors.base import Extracted, check_image, is_whole, not_one_of
from kpstore.extractors.devices import WithTf32
from kpstore.extractors.holistic_engine import (
    HolisticEngine,
    engine_of,
    missing_for_torch,
)
from kpstore.extractors.mediapipe import (
    FoundParts,
    MediapipeExtractor,
    check_options,
    pose_model,
    select_face,
)
from kpstore.options import WHAT, Option
from kpstore.schema.feature import FeatureRows, Provenance
from kpstore.schema.layout import PART_SLICES, PARTS

if TYPE_CHECKING:
    from kpstore.extractors.holistic_torch import HolisticRows

Engine = Literal["auto", "mediapipe", "torch"]
_MOST_ROWS = 4096


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
    engine : ``"mediapipe"``, the reference, computes frame by frame on a CPU. ``"torch"`` runs the
        same models for many videos at once, on a GPU if the run has one, with ``mode="image"`` and
        ``model_complexity=1`` alone; a feature begun by one engine is never continued by the other.
        ``"auto"`` is the one that the feature was begun with; for a new feature ``"torch"`` where
        the run has GPUs, else ``"mediapipe"``.
    models : a folder that holds MediaPipe's models, for the engine torch: ``modules`` of its wheel.
        By default that of the installed MediaPipe, which is not imported.
    batch_videos : videos that the engine torch computes together; 0 is automatic. Results do not
        depend on it.
    rows_per_call : rows of each call of its models; 0 is automatic: 1 on a CPU, 64 on a GPU or what
        fits there. It belongs to the feature, as last bits depend on it.
    precision : in which the engine torch computes: ``"tf32"`` on GPUs that have it, ``"bf16"`` and
        ``"fp16"`` are faster there, and less exact.
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
    engine: Annotated[
        Engine, Option("What computes: mediapipe on CPUs, or torch, also on GPUs.", panel=WHAT)
    ] = "auto"
    models: Annotated[
        str | os.PathLike[str] | None,
        Option("Folder of MediaPipe's models, for the engine torch.", "DIR", kind=Path, panel=WHAT),
    ] = None
    batch_videos: int = 0
    rows_per_call: int = 0
    precision: WithTf32 = "fp32"
    _torch: HolisticEngine | None = field(default=None, init=False, repr=False, compare=False)

    n_mesh_points = 468
    known_otherwise: ClassVar[tuple[str, ...]] = ("models", "batch_videos", "rows_per_call")
    """Options that are on record in another way, or change nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose(self.engine == "torch")

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
        if self.engine not in get_args(Engine):
            raise InvalidError(f"engine is auto, mediapipe or torch, found {self.engine!r}")
        for name in ("batch_videos", "rows_per_call"):
            number: object = getattr(self, name)
            if not is_whole(number) or not 0 <= number <= _MOST_ROWS:
                raise InvalidError(
                    f"{name}={number!r} is not a number from 0 (automatic) to {_MOST_ROWS}"
                )
        if problems := not_one_of(self, precision=WithTf32):
            raise InvalidError(f"holistic: {problems[0]}")
        if self.engine == "torch" and (reason := self._not_in_torch()):
            raise InvalidError(reason)
        if self.engine == "mediapipe" and (ignored := self._of_torch_alone()):
            raise InvalidError(f"options of --engine torch alone, not of mediapipe: {ignored}")

    def _of_torch_alone(self) -> str:
        """Return the options given that the engine torch alone has."""
        names = ("models", "batch_videos", "rows_per_call")
        given = [name for name in names if getattr(self, name)]
        return " and ".join([*given, *["precision"] * (self.precision != "fp32")])

    def _not_in_torch(self) -> str:
        """Return why the engine torch cannot do what the options ask for; "" if it can."""
        if self.mode != "image":
            return f"engine torch has mode='image' only; {self.mode!r} needs engine='mediapipe'"
        if self.model_complexity != 1:
            return (
                "engine torch has the pose model of model_complexity=1 only; "
                f"{self.model_complexity} needs engine='mediapipe'"
            )
        return ""

    # -- the engine --------------------------------------------------------------------------------

    def _choose(self, is_torch: bool) -> None:
        if is_torch == (self._torch is not None):
            return
        self._torch = None
        if is_torch:
            self._torch = HolisticEngine(
                self._spec,
                folder=None if self.models is None else Path(self.models).expanduser().absolute(),
                names=self._recipe()[3],
                rows_per_call=self.rows_per_call,
                batch_videos=self.batch_videos,
                least_detection=float(self.min_detection_confidence),
                least_tracking=float(self.min_tracking_confidence),
                precision=self.precision,
            )

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Choose the engine, and the number of rows with which the feature was begun.

        See :class:`kpstore.extractors.base.Settling`.
        """
        notes: list[str] = []
        self._choose(self.engine == "torch")  # another store may have been begun by the other
        begun = made.get(self._spec.name, {})
        if begun.get("extractor") == "holistic":
            engine = engine_of(begun)
            if self.engine not in ("auto", engine):
                raise MismatchError(
                    f"feature {self._spec.name!r} was begun with the engine {engine}, this run "
                    f"asks for {self.engine}; leave out --engine to go on, or --overwrite extracts "
                    "all of it again"
                )
            self._choose(engine == "torch")
        elif self.engine == "auto" and device.startswith("cuda"):
            reason = self._not_in_torch() or missing_for_torch()
            if reason:
                notes.append(f"MediaPipe computes on CPUs, not on the GPUs of this run: {reason}")
            self._choose(not reason)
        if self._torch is not None:
            return self._torch.settle(made, device)
        if ignored := self._of_torch_alone():
            notes.append(f"options of --engine torch have no effect: {ignored}")
        return tuple(notes)

    @property
    def at_once(self) -> int:
        """Number of frames that a model takes at once."""
        return 1 if self._torch is None else self._torch.at_once

    @property
    def settled(self) -> bool:
        """Whether that number is fixed."""
        return self._torch is None or self._torch.settled

    def keep(self, number: int) -> None:
        """Fix the number."""
        if self._torch is not None:
            self._torch.keep(number)

    @property
    def processor(self) -> str:
        """The kind of processor that computes; empty unless the engine torch is open."""
        return "" if self._torch is None else self._torch.processor

    @property
    def recipe(self) -> Provenance:
        """Everything that changes the values (JSON); imports neither MediaPipe nor torch."""
        if self._torch is None:
            return super().recipe
        extractor, recipe, parameters, _ = self._recipe()
        about = self._torch.about
        return {
            "extractor": extractor,
            "recipe": f"{recipe}, in torch",
            **about,
            "parameters": {**parameters, **about["parameters"]},
            "face_list": {"name": self._faces.name, "sha256": self._faces.sha256},
        }

    def open(self, device: str = "cpu") -> None:
        """Load the models; those of MediaPipe's own engine run on the CPU."""
        if self._torch is None:
            super().open(device)
        else:
            self._torch.open(device)

    def close(self) -> None:
        """Free the models; the extractor can be opened again."""
        super().close()
        if self._torch is not None:
            self._torch.close()

    @property
    def batch_size(self) -> int:
        """One, unless frames are independent in torch: else each follows from the one before."""
        if self._torch is None or not self.independent_frames:
            return 1
        return self._torch.videos_at_once

    # -- many videos at once -----------------------------------------------------------------------

    @property
    def videos_at_once(self) -> int:
        """Number of videos that are computed together; 1 for MediaPipe's own engine."""
        return 1 if self._torch is None else self._torch.videos_at_once

    def start_row(self, row: int) -> None:
        """Forget the frames of a row, whose next frame is the first of another video."""
        assert self._torch is not None
        self._torch.start_video(row)

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        """Return one row per image; see :class:`kpstore.extractors.base.LockstepExtractor`."""
        assert self._torch is not None
        if not self.independent_frames:
            return self._extracted(self._torch.step(images))
        there = [number for number, image in enumerate(images) if image is not None]
        found = self._torch.independent([image for image in images if image is not None])
        made, rows = self._extracted(found), self._spec.empty_rows(len(images))
        given = made.rows[self._spec.name]
        rows.values[there] = given.values
        for name, array in given.companions.items():
            rows.companions[name][there] = array
        failed = {there[number]: reason for number, reason in made.failed.items()}
        return Extracted({self._spec.name: rows}, failed)

    def _extracted(self, found: HolisticRows) -> Extracted:
        assert self._torch is not None
        odd = np.flatnonzero(~found.finite).tolist()
        return Extracted(
            {self._spec.name: self._rows_of(found)}, dict.fromkeys(odd, self._torch.not_finite)
        )

    def _rows_of(self, found: HolisticRows) -> FeatureRows:
        rows = self._spec.empty_rows(len(found))
        parts = {name: getattr(found, name) for name in PARTS}
        parts["face"] = select_face(found.face, self._faces)
        for name, points in parts.items():
            rows.values[:, PART_SLICES[name]] = points
        rows.companions["detected"][:] = found.present
        there = found.present[:, PARTS.index("pose")]
        rows.companions["visibility"][there] = found.visibility[there]
        return rows

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image; :class:`InvalidError` if one has failed in :meth:`extract`."""
        if self._torch is None:
            return super().rows(images)
        found = self.extract(images)
        for reason in found.failed.values():
            raise InvalidError(reason)
        return found.rows[self._spec.name]

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image; see :meth:`kpstore.extractors.base.Extractor.extract`.

        A frame has failed in the engine torch if a model's numbers are not finite, as may happen
        in half precision.
        """
        if self._torch is None:
            return super().extract(images)
        if not images:
            return Extracted({self._spec.name: self._spec.empty_rows(0)})
        checked = [check_image(image) for image in images]
        together = self.independent_frames
        return self._extracted(
            self._torch.independent(checked) if together else self._torch.one_by_one(checked)
        )

    # -- MediaPipe's own engine --------------------------------------------------------------------

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
        if self._torch is not None:
            return 500.0 if self._torch.at_once > 1 else 10.0
        return 4.0 if self.independent_frames else 10.0

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget all frames; results are then those of a new extractor, bit for bit."""
        if self._torch is not None:
            self._torch.start_video(0)
            return {}
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
