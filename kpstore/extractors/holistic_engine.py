"""Holistic's engine in torch as a recipe uses it: opened, tried out, and with one size of call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, MissingExtraError
from kpstore.extractors.devices import WithTf32, find_device, is_out_of_memory
from kpstore.extractors.libraries import library_versions
from kpstore.extractors.mediapipe import model_hashes
from kpstore.extractors.torch_model import TorchModel
from kpstore.schema.feature import FeatureSpec

if TYPE_CHECKING:
    from kpstore.extractors.holistic_torch import HolisticRows, HolisticTorch

_NEEDED = ("holistic with the engine torch", "holistic-torch", "torch", "tflite")
"""What :func:`~kpstore.extractors.libraries.library_versions` is asked for."""

T = TypeVar("T")
Image = NDArray[np.uint8]


class HolisticEngine(TorchModel):
    """Holistic in torch; see :mod:`kpstore.extractors.holistic_torch`.

    Parameters
    ----------
    spec : of the keypoints, for messages.
    folder : of MediaPipe's models; None for that of the installed MediaPipe.
    names : their paths in it.
    rows_per_call : rows of each call of a model, 0 for the default: 1 on a CPU, where more are not
        faster, and 64 on a GPU. It belongs to the feature.
    batch_videos : videos at once; 0 for as many as rows of a call. It changes no result.
    least_detection, least_tracking : scores from which on a person is detected and a pose is kept.
    precision : of the models; see :class:`~kpstore.extractors.holistic_torch.HolisticTorch`.
    """

    at_once_option = "rows_per_call"
    default_at_once: ClassVar[Mapping[str, int]] = {"cpu": 1, "cuda": 64}
    extractor_name = "holistic"

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        folder: Path | None,
        names: Sequence[str],
        rows_per_call: int,
        batch_videos: int,
        least_detection: float,
        least_tracking: float,
        precision: WithTf32 = "fp32",
    ) -> None:
        self._spec, self._folder, self._names = spec, folder, tuple(names)
        self._asked_videos = batch_videos
        self._least = least_detection, least_tracking
        self.rows_per_call, self.precision = rows_per_call, precision
        self._take_option()

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The keypoints."""
        return (self._spec,)

    @property
    def videos_at_once(self) -> int:
        """Number of videos that are computed together."""
        return self._asked_videos or self.rows_per_call

    @property
    def about(self) -> dict[str, Any]:
        """What changes the values beside the recipe's options, for the provenance.

        Raises
        ------
        MissingExtraError
            If torch, or what reads the models, is not installed.
        NotFoundError
            If the folder lacks a model.
        """
        versions = library_versions(*_NEEDED)
        return {
            "torch": versions["torch"],
            "parameters": {"engine": "torch", "precision": self.precision, **self._on_record},
            "models": model_hashes(self._names, self._folder),
        }

    def open(self, device: str) -> None:
        """Load the models to a device, and try them out there."""
        self._device = find_device(device, "holistic")
        self._build()
        self._opened(device)
        if self._model is not None and self._model.rows_per_call != self.rows_per_call:
            self._build()

    def _build(self) -> None:
        from kpstore.extractors.holistic_models import load_models
        from kpstore.extractors.holistic_torch import HolisticTorch

        least_detection, least_tracking = self._least
        self._model = HolisticTorch(
            load_models(self._folder, min_detection_confidence=least_detection),
            rows=self.videos_at_once,
            rows_per_call=self.rows_per_call,
            device=self._device,
            min_tracking_confidence=least_tracking,
            precision=self.precision,
        )

    def _trial(self) -> NDArray[np.float32]:
        if self._engine.rows_per_call != self.rows_per_call:  # memory did not suffice for more
            self._build()
        noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
        try:
            found = self._engine.step([noise] * self.videos_at_once)
        except RuntimeError as error:
            # Fewer rows of a call, which belong to the feature, would not help.
            if self._asked_videos > self.rows_per_call and is_out_of_memory(error):
                raise self._no_memory(error) from None
            raise
        return np.where(found.finite, np.float32(0), np.float32(np.nan))

    @property
    def _rows_per_call(self) -> int:
        return self.rows_per_call

    # -- frames ------------------------------------------------------------------------------------

    @property
    def _engine(self) -> HolisticTorch:
        self._require_open()
        engine: HolisticTorch = self._model
        return engine

    @property
    def not_finite(self) -> str:
        """What to say of a frame of which a model's numbers are not finite."""
        return self._not_finite()

    def start_video(self, row: int) -> None:
        """Forget the frames of a row, whose next frame is the first of another video."""
        self._engine.start_video(row)

    def step(self, images: Sequence[Image | None]) -> HolisticRows:
        """Return one row per image; :class:`ExtractorError` if the models fail."""
        return self._told(self._engine.step, images)

    def independent(self, images: Sequence[Image]) -> HolisticRows:
        """Return one row per image, each as if it were the first of a video."""
        return self._told(self._engine.independent, images)

    def one_by_one(self, images: Sequence[Image]) -> HolisticRows:
        """Return one row per image of the video in the first row; at least one image."""
        others = [None] * (self.videos_at_once - 1)
        made = [self.step([image, *others]).first(1) for image in images]
        return made[0].joined(made)

    def _no_memory(self, error: RuntimeError) -> ExtractorError:
        remedy = "use fewer --workers-per-gpu, or a GPU with more memory"
        if self._asked_videos > 1:
            remedy = f"give fewer: --set batch_videos={self._asked_videos // 2}"
        elif self.rows_per_call > 1:
            remedy += (
                f"; or make the feature again: --overwrite --set rows_per_call="
                f"{self.rows_per_call // 2}"
            )
        return ExtractorError(
            f"{self._name} needs more GPU memory than is free for {self.videos_at_once} videos at "
            f"once and {self.rows_per_call} rows of a call; {remedy} "
            f"({' '.join(str(error).split())[:160]})"
        )

    def _told(self, compute: Callable[[Any], T], images: object) -> T:
        try:
            return compute(images)
        except RuntimeError as error:
            # Pictures were looked at before: what fails now would fail for all frames after them.
            raise (
                self._no_memory(error) if is_out_of_memory(error) else self._failed(error)
            ) from error


def missing_for_torch() -> str:
    """Return what is not installed that the engine needs; ``""`` if nothing is missing."""
    try:
        library_versions(*_NEEDED)
    except MissingExtraError as error:
        return str(error)
    return ""


def engine_of(made: Mapping[str, Any]) -> str:
    """Return the engine that made a feature, by its provenance."""
    return str(made.get("parameters", {}).get("engine", "mediapipe"))
