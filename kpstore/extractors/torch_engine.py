"""MediaPipe's graphs in torch as recipes use them: opened, tried out, with one size of call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, MissingExtraError
from kpstore.extractors.base import Extracted, check_image
from kpstore.extractors.devices import Precision, find_device, is_out_of_memory
from kpstore.extractors.libraries import library_versions
from kpstore.extractors.mediapipe import check_models, model_hashes, select_face
from kpstore.extractors.torch_model import TorchModel
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.layout import PART_SLICES, PARTS, FaceList

if TYPE_CHECKING:
    from kpstore.extractors.mediapipe_torch import FoundRows, TorchGraph

_NEEDED = ("the engine torch", "holistic-torch", "torch", "tflite")
"""What :func:`~kpstore.extractors.libraries.library_versions` is asked for."""

T = TypeVar("T")
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class TorchOptions:
    """What a recipe asks of its graph.

    Parameters
    ----------
    folder : of MediaPipe's models; None for that of the installed MediaPipe.
    names : their paths in it.
    rows_per_call : rows of each call of a model, 0 for the default: 1 on a CPU, where more are not
        faster, and 64 on a GPU. It belongs to the feature.
    at_once : frames at once; 0 for as many as rows of a call. It changes no result.
    model_complexity : of the pose.
    least_detection, least_tracking : scores from which on something is detected and kept.
    precision : of the models; see :class:`~kpstore.extractors.mediapipe_torch.TorchGraph`.
    """

    folder: Path | None
    names: tuple[str, ...]
    rows_per_call: int
    at_once: int
    model_complexity: int
    least_detection: float
    least_tracking: float
    precision: Precision


class TorchEngine(TorchModel):
    """Base: a graph, which finds the parts of people in frames.

    Parameters
    ----------
    spec, face_list : of the keypoints.
    """

    name: ClassVar[Literal["torch"]] = "torch"
    at_once_option = "rows_per_call"
    default_at_once: ClassVar[Mapping[str, int]] = {"cpu": 1, "cuda": 64}

    def __init__(self, spec: FeatureSpec, face_list: FaceList, options: TorchOptions) -> None:
        self._spec, self._faces, self._options = spec, face_list, options
        self.rows_per_call, self.precision = options.rows_per_call, options.precision
        self._take_option()

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The keypoints."""
        return (self._spec,)

    @property
    def frames_at_once(self) -> int:
        """Number of frames that are computed together."""
        return self._options.at_once or self.rows_per_call

    @property
    def batch_size(self) -> int:
        """Number of frames of one video that are computed together."""
        return self.frames_at_once

    @property
    def videos_at_once(self) -> int:
        """Number of videos of which a frame each is computed together."""
        return 1

    @property
    def typical_fps(self) -> float:
        """Hundreds of frames per second on a GPU (estimated), ten on a CPU."""
        return 500.0 if self.at_once > 1 else 10.0

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
            "parameters": {"engine": self.name, "precision": self.precision, **self._on_record},
            "models": model_hashes(self._options.names, self._options.folder),
        }

    @abstractmethod
    def _graph(self, models: Mapping[str, Any], options: Mapping[str, Any]) -> TorchGraph[Any]:
        """Return the graph; see :class:`~kpstore.extractors.mediapipe_torch.TorchGraph`.

        Parameters
        ----------
        models : arguments of its models.
        options : its own options.
        """

    @abstractmethod
    def _tried_out(self, frames: Sequence[Image]) -> FoundRows:
        """Return what is found in as many frames as are computed together."""

    @abstractmethod
    def _found(self, images: Sequence[Image]) -> FoundRows:
        """Return what is in consecutive frames of one video, at least one."""

    def open(self, device: str) -> None:
        """Load the models to a device, and try them out there."""
        check_models(self._options.names, self._options.folder)
        self._device = find_device(device, self.extractor_name)
        self._build()
        self._opened(device)
        if self._model is not None and self._model.rows_per_call != self.rows_per_call:
            self._build()

    def _build(self) -> None:
        options = self._options
        self._model = self._graph(
            {
                "folder": options.folder,
                "model_complexity": options.model_complexity,
                "min_detection_confidence": options.least_detection,
            },
            {
                "rows": self.frames_at_once,
                "rows_per_call": self.rows_per_call,
                "device": self._device,
                "min_tracking_confidence": options.least_tracking,
                "precision": self.precision,
            },
        )

    def _trial(self) -> NDArray[np.float32]:
        if self._model.rows_per_call != self.rows_per_call:  # memory did not suffice for more
            self._build()
        noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
        try:
            found = self._tried_out([noise] * self.frames_at_once)
        except RuntimeError as error:
            # Fewer rows of a call, which belong to the feature, would not help.
            if self._options.at_once > self.rows_per_call and is_out_of_memory(error):
                raise self._no_memory(error) from None
            raise
        return np.where(found.finite, np.float32(0), np.float32(np.nan))

    @property
    def _rows_per_call(self) -> int:
        return self.rows_per_call

    # -- frames ------------------------------------------------------------------------------------

    def start_video(self) -> None:
        """Do nothing: frames do not depend on each other."""
        self._require_open()

    def extract(self, images: Sequence[Image]) -> Extracted:
        """Return one row per image; :class:`ExtractorError` if the models fail.

        A frame has failed if a model's numbers are not finite, as may happen in half precision.
        """
        self._require_open()
        if not images:
            return Extracted({self._spec.name: self._spec.empty_rows(0)})
        return self._extracted(self._told(self._found, [check_image(image) for image in images]))

    def _extracted(self, found: FoundRows) -> Extracted:
        odd = np.flatnonzero(~found.finite).tolist()
        return Extracted(
            {self._spec.name: self._rows_of(found)}, dict.fromkeys(odd, self._not_finite())
        )

    def _rows_of(self, found: FoundRows) -> FeatureRows:
        rows = self._spec.empty_rows(len(found))
        parts = {name: getattr(found, name) for name in PARTS}
        parts["face"] = select_face(found.face, self._faces)
        for name, points in parts.items():
            rows.values[:, PART_SLICES[name]] = points
        rows.companions["detected"][:] = found.present
        there = found.present[:, PARTS.index("pose")]
        rows.companions["visibility"][there] = found.visibility[there]
        return rows

    def _no_memory(self, error: RuntimeError) -> ExtractorError:
        remedy = "use fewer --workers-per-gpu, or a GPU with more memory"
        if self._options.at_once > 1:
            remedy = f"give fewer: --set batch_videos={self._options.at_once // 2}"
        elif self.rows_per_call > 1:
            remedy += (
                f"; or make the feature again: --overwrite --set rows_per_call="
                f"{self.rows_per_call // 2}"
            )
        return ExtractorError(
            f"{self._name} needs more GPU memory than is free for {self.frames_at_once} frames at "
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
    return str((made.get("parameters") or {}).get("engine", "mediapipe"))
