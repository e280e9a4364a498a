"""MediaPipe's own engine: its solutions, which compute frame by frame on a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.extractors.base import Extracted
from kpstore.extractors.mediapipe import (
    FoundParts,
    check_image,
    check_models,
    fill_row,
    load_solutions,
    mediapipe_version,
    model_hashes,
    quiet_calls,
    quiet_start,
)
from kpstore.schema.feature import FeatureSpec, Provenance
from kpstore.schema.layout import FaceList
from kpstore.visible import logger

_log = logger(__name__)


class SolutionsEngine(ABC):
    """Base: solutions that are built, restarted and closed.

    They run on the CPU for any device. A pickle holds no solutions: what is unpickled is not open.

    Parameters
    ----------
    spec, face_list : of the keypoints.
    models : files of the models, inside MediaPipe's folder ``modules``.
    """

    name: ClassVar[Literal["mediapipe"]] = "mediapipe"
    at_once: ClassVar[int] = 1
    settled: ClassVar[bool] = True
    batch_size: ClassVar[int] = 1
    videos_at_once: ClassVar[int] = 1
    processor: ClassVar[str] = ""

    def __init__(self, spec: FeatureSpec, face_list: FaceList, models: tuple[str, ...]) -> None:
        self._spec, self._faces, self._models = spec, face_list, models
        self._solutions: tuple[Any, ...] = ()
        # Whether no frame was processed since the solutions were started.
        self._started = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_solutions": ()}

    @abstractmethod
    def _build(self, solutions: ModuleType) -> tuple[Any, ...]:
        """Return the recipe's solutions."""

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> FoundParts:
        """Return what is in one frame."""

    @property
    def typical_fps(self) -> float:
        """About ten frames per second and core at usual frame sizes."""
        return 10.0

    @property
    def about(self) -> dict[str, Any]:
        """What changes the values beside the recipe's options, for the provenance.

        Needs MediaPipe's files, but does not import it.
        """
        return {
            "mediapipe": mediapipe_version(),
            "parameters": {},
            "models": model_hashes(self._models),
        }

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Do nothing: there is one frame at once."""
        return ()

    def keep(self, number: int) -> None:
        """Do nothing: one frame at once is all there is."""
        del number

    def open(self, device: str) -> None:
        """Build the solutions; they run on the CPU, and another device is logged and ignored."""
        check_models(self._models)  # before MediaPipe tries to download a missing model
        if device != "cpu":
            _log.info("MediaPipe's solutions run on the CPU only; device %r is ignored", device)
        solutions = load_solutions()
        self.close()
        with quiet_start(), quiet_calls():
            self._solutions = self._build(solutions)
            self._wait_until_started()
        self._started = True

    def close(self) -> None:
        """Free the solutions."""
        solutions, self._solutions = self._solutions, ()
        for solution in solutions:
            try:
                solution.close()
            except (RuntimeError, ValueError) as error:  # a failed graph fails again when closed
                _log.debug("closing a MediaPipe graph: %s", error)

    def start_video(self) -> None:
        """Reset the solutions to the state of new ones."""
        self._require_open()
        if self._started:
            return
        with quiet_start(), quiet_calls():
            for solution in self._solutions:
                solution.reset()
            self._wait_until_started()
        self._started = True

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image, one after another."""
        self._require_open()
        rows = self._spec.empty_rows(len(images))
        for number, image in enumerate(images):
            fill_row(rows, number, self._find(check_image(image)), self._faces)
        return Extracted({self._spec.name: rows})

    def _require_open(self) -> None:
        if not self._solutions:
            raise InvalidError("the extractor is not open; call open() before it gets frames")

    def _process(self, image: NDArray[np.uint8]) -> tuple[Any, ...]:
        """Return each solution's results."""
        self._started = False
        try:
            with quiet_calls():
                return tuple(solution.process(image) for solution in self._solutions)
        except Exception:
            self.open("cpu")  # a graph that failed once fails for all frames after it
            raise

    def _wait_until_started(self) -> None:
        """Wait until the graphs' threads have loaded their models and stop writing to stderr."""
        for solution in self._solutions:
            solution._graph.wait_until_idle()
