"""The base of MediaPipe's recipes, which compute in MediaPipe itself or in torch."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MismatchError
from kpstore.extractors.base import Extracted, OneFeature, is_whole, not_one_of
from kpstore.extractors.devices import Precision
from kpstore.extractors.mediapipe import load_face_list
from kpstore.extractors.solutions_engine import SolutionsEngine
from kpstore.extractors.torch_engine import (
    TorchEngine,
    TorchOptions,
    engine_of,
    missing_for_torch,
)
from kpstore.options import WHAT, Option
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance
from kpstore.schema.layout import FaceList, keypoints_spec

Engine = Literal["auto", "mediapipe", "torch"]
_MOST_ROWS = 4096


@dataclass(kw_only=True)
class MediapipeExtractor(OneFeature):
    """Options, specification and rows, which both recipes share.

    A pickle holds the options and the face list, but not the models: an unpickled extractor is not
    open.

    Parameters
    ----------
    face_list : which mesh points make the face: a known name, a file (:func:`load_face_list`) or
        the list itself.
    min_detection_confidence : 0 to 1; detections below it are dropped.
    model_complexity : 0, 1 or 2, the pose model; MediaPipe's wheel holds model 1 only.
    engine : ``"mediapipe"``, the reference, computes frame by frame on a CPU. ``"torch"`` runs the
        same models on many frames at once, on a GPU if the run has one; a feature begun by one
        engine is never continued by the other. ``"auto"`` is the one that the feature was begun
        with; for a new feature ``"torch"`` where the run has GPUs, else ``"mediapipe"``.
    models : a folder that holds MediaPipe's models, for the engine torch: ``modules`` of its wheel.
        By default that of the installed MediaPipe, which is not imported.
    rows_per_call : rows of each call of the models in torch; 0 is automatic: 1 on a CPU, 64 on a
        GPU or what fits there. It belongs to the feature, as last bits depend on it.
    precision : in which the engine torch computes: ``"tf32"`` on GPUs that have it, ``"bf16"`` and
        ``"fp16"`` are faster there, and less exact.
    """

    face_list: Annotated[
        str | os.PathLike[str] | FaceList,
        Option("List of the 68 face points: phoenix, ibug, or a file.", kind=str, panel=WHAT),
    ] = "phoenix"
    min_detection_confidence: float = 0.5
    model_complexity: int = 1
    engine: Annotated[
        Engine, Option("What computes: mediapipe on CPUs, or torch, also on GPUs.", panel=WHAT)
    ] = "auto"
    models: Annotated[
        str | os.PathLike[str] | None,
        Option("Folder of MediaPipe's models, for the engine torch.", "DIR", kind=Path, panel=WHAT),
    ] = None
    rows_per_call: int = 0
    precision: Precision = "fp32"
    _engine: SolutionsEngine | TorchEngine = field(init=False, repr=False, compare=False)

    n_mesh_points = 478
    """Number of mesh points of the recipe's face model."""
    counts: ClassVar[tuple[str, ...]] = ("rows_per_call",)
    """Options of the engine torch that are numbers of rows."""

    def __post_init__(self) -> None:
        self._check()
        self._check_engine()
        self.face_list = self._faces = load_face_list(self.face_list)
        highest = max(index for indices in self._faces.indices for index in indices)
        if highest >= self.n_mesh_points:
            raise InvalidError(
                f"face list {self._faces.name!r} asks for mesh point {highest}, but this "
                f"extractor's face model has {self.n_mesh_points}: choose points below that (those "
                "above are of the irises)"
            )
        self._spec = keypoints_spec(self._faces)
        self._engine = self._new_engine(self.engine)

    @abstractmethod
    def _check(self) -> None:
        """Raise :class:`InvalidError` for invalid options of the recipe."""

    @abstractmethod
    def _recipe(self) -> tuple[str, str, dict[str, object], tuple[str, ...]]:
        """Return the extractor's name, its recipe, its parameters and its model files."""

    @abstractmethod
    def _in_mediapipe(self, models: tuple[str, ...]) -> SolutionsEngine:
        """Return the engine that runs MediaPipe's own solutions."""

    @abstractmethod
    def _in_torch(self, options: TorchOptions) -> TorchEngine:
        """Return the engine in torch."""

    @property
    def _least_tracking(self) -> float:
        """Score from which on what was found is kept."""
        return 0.5

    @property
    def _at_once(self) -> int:
        """Frames at once in torch that the options ask for; 0 is automatic."""
        return 0

    @property
    def _not_in_torch(self) -> str:
        """Why the engine torch cannot do what the options ask for; ``""`` if it can."""
        return ""

    def _check_engine(self) -> None:
        if self.engine not in get_args(Engine):
            raise InvalidError(f"engine is auto, mediapipe or torch, found {self.engine!r}")
        models: object = self.models  # whatever came from the command line
        if models is not None and (not isinstance(models, (str, os.PathLike)) or not str(models)):
            raise InvalidError(f"models={models!r} is not the path of a folder")
        for name in self.counts:
            number: object = getattr(self, name)
            if not is_whole(number) or not 0 <= number <= _MOST_ROWS:
                raise InvalidError(
                    f"{name}={number!r} is not a number from 0 (automatic) to {_MOST_ROWS}"
                )
        if problems := not_one_of(self, precision=Precision):
            raise InvalidError(f"{self._recipe()[0]}: {problems[0]}")
        if self.engine == "torch" and self._not_in_torch:
            raise InvalidError(self._not_in_torch)
        if self.engine == "mediapipe" and (ignored := self._given_for_torch()):
            raise InvalidError(f"options of --engine torch alone, not of mediapipe: {ignored}")

    def _given_for_torch(self) -> str:
        """Return the options given that the engine torch alone has."""
        given = [name for name in self.known_otherwise if getattr(self, name)]
        return " and ".join([*given, *["precision"] * (self.precision != "fp32")])

    @property
    def known_otherwise(self) -> tuple[str, ...]:
        """Options that are on record in another way, or change nothing: all of the engine torch."""
        return ("models", *self.counts)

    # -- the engine --------------------------------------------------------------------------------

    def _choose(self, engine: str) -> None:
        """Take an engine, a new one unless it is there; ``"auto"`` begins with MediaPipe's own."""
        if (engine == "torch") != (self._engine.name == "torch"):
            self._engine.close()
            self._engine = self._new_engine(engine)

    def _new_engine(self, engine: str) -> SolutionsEngine | TorchEngine:
        models = self._recipe()[3]
        if engine != "torch":
            return self._in_mediapipe(models)
        return self._in_torch(
            TorchOptions(
                folder=None if self.models is None else Path(self.models).expanduser().absolute(),
                names=models,
                rows_per_call=self.rows_per_call,
                at_once=self._at_once,
                model_complexity=self.model_complexity,
                least_detection=float(self.min_detection_confidence),
                least_tracking=float(self._least_tracking),
                precision=self.precision,
            )
        )

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Choose the engine, and the number of rows with which the feature was begun.

        See :class:`kpstore.extractors.base.Settling`.
        """
        notes: list[str] = []
        self._choose(self.engine)  # another store may have been begun by the other
        begun = made.get(self._spec.name, {})
        if begun.get("extractor") == self._recipe()[0]:
            engine = engine_of(begun)
            if self.engine not in ("auto", engine):
                raise MismatchError(
                    f"feature {self._spec.name!r} was begun with the engine {engine}, this run "
                    f"asks for {self.engine}; leave out --engine to go on, or --overwrite extracts "
                    "all of it again"
                )
            self._choose(engine)
        elif self.engine == "auto" and device.startswith("cuda"):
            reason = self._not_in_torch or missing_for_torch()
            if reason:
                notes.append(f"MediaPipe computes on CPUs, not on the GPUs of this run: {reason}")
            self._choose("mediapipe" if reason else "torch")
        if self._engine.name == "mediapipe" and (ignored := self._given_for_torch()):
            notes.append(f"options of --engine torch have no effect: {ignored}")
        return (*notes, *self._engine.settle(made, device))

    @property
    def at_once(self) -> int:
        """Number of rows that a model takes at once."""
        return self._engine.at_once

    @property
    def settled(self) -> bool:
        """Whether that number is fixed."""
        return self._engine.settled

    def keep(self, number: int) -> None:
        """Fix the number."""
        self._engine.keep(number)

    @property
    def processor(self) -> str:
        """The kind of processor that computes; empty unless the engine torch is open."""
        return self._engine.processor

    @property
    def typical_fps(self) -> float:
        """Rough number of frames per second and process."""
        return self._engine.typical_fps

    @property
    def batch_size(self) -> int:
        """Number of frames of a video that are computed together."""
        return self._engine.batch_size

    # -- extraction --------------------------------------------------------------------------------

    @property
    def spec(self) -> FeatureSpec:
        """The feature ``keypoints``; see :func:`~kpstore.schema.layout.keypoints_spec`."""
        return self._spec

    @property
    def recipe(self) -> Provenance:
        """Everything that changes the values (JSON); imports neither MediaPipe nor torch."""
        extractor, recipe, parameters, _ = self._recipe()
        about = self._engine.about
        return {
            "extractor": extractor,
            "recipe": recipe + (", in torch" if self._engine.name == "torch" else ""),
            **about,
            "parameters": {**parameters, **about["parameters"]},
            "face_list": {"name": self._faces.name, "sha256": self._faces.sha256},
        }

    def open(self, device: str = "cpu") -> None:
        """Load the models; those of MediaPipe's own engine run on the CPU."""
        self._engine.open(device)

    def close(self) -> None:
        """Free the models; the extractor can be opened again."""
        self._engine.close()

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget all frames seen so far."""
        self._engine.start_video()
        return {}

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image; :class:`InvalidError` if one has failed in :meth:`extract`.

        Returns
        -------
        FeatureRows
            ``values`` (images, 143, 3) float32, NaN where a part was not detected; ``detected``
            (images, 4) bool; ``visibility`` (images, 33) float32, NaN where no pose was detected.
        """
        found = self.extract(images)
        for reason in found.failed.values():
            raise InvalidError(reason)
        return found.rows[self._spec.name]

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image; see :meth:`kpstore.extractors.base.Extractor.extract`.

        A frame has failed in the engine torch if a model's numbers are not finite, as may happen
        in half precision.
        """
        return self._engine.extract(images)
