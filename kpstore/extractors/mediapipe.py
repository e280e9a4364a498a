"""The base of the MediaPipe extractors: quiet loading, model hashes, rows from landmarks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError, UnsupportedError
from kpstore.extractors.base import OneFeature, is_number
from kpstore.extractors.base import check_image as check_image
from kpstore.extractors.checkpoint_files import file_sha256
from kpstore.options import WHAT, Option
from kpstore.schema.face_lists import load_face_list as load_face_list
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance
from kpstore.schema.layout import PART_SLICES, PARTS, FaceList, keypoints_spec
from kpstore.visible import logger

_log = logger(__name__)

_NEEDS = "a recipe of MediaPipe (other than holistic with --engine torch --models DIR)"
"""What needs MediaPipe, for messages."""
POSE_MODELS = ("lite", "full", "heavy")
"""MediaPipe's pose models by ``model_complexity``; its wheel holds only ``full``."""

# TensorFlow Lite and absl write these to file descriptor 2 whenever a graph starts, eight lines per
# video. No environment variable stops them (GLOG_minloglevel and TF_CPP_MIN_LOG_LEVEL were tried
# with 0.10.14).
_NATIVE_NOISE = re.compile(
    rb"Created TensorFlow Lite XNNPACK delegate|All log messages before absl::InitializeLog|"
    rb"inference_feedback_manager\.cc|gl_context.*\.cc"
)


def mediapipe_version() -> str:
    """Return the version of the installed MediaPipe without importing it."""
    try:
        return version("mediapipe")
    except PackageNotFoundError as error:
        raise MissingExtraError(_NEEDS, extra="mediapipe") from error


def model_hashes(names: Iterable[str], folder: Path | None = None) -> dict[str, str]:
    """Return the SHA-256 of MediaPipe's model files by name, without importing it.

    Parameters
    ----------
    names : paths inside its ``modules`` folder, such as
        ``"pose_landmark/pose_landmark_full.tflite"``.
    folder : that folder; None for the one of the installed MediaPipe.

    Raises
    ------
    NotFoundError
        If a folder that was given lacks a file.
    UnsupportedError
        If the installed one does. MediaPipe itself would try to download it into site-packages.
    """
    is_given = folder is not None
    folder = models_folder() if folder is None else folder
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and is_given:
        raise NotFoundError(
            f"model file {folder / missing[0]} does not exist; --models names the folder 'modules' "
            "of MediaPipe 0.10.14, which holds it"
        )
    if missing:
        raise UnsupportedError(
            f"model file {missing[0]!r} is needed, but MediaPipe {mediapipe_version()} in {folder} "
            "does not hold it; choose model_complexity=1, the only pose model in its wheel, or "
            "put the file there "
            '(pip install "kpstore[mediapipe]" brings a version that holds all other models)'
        )
    return {Path(name).name: file_sha256(folder / name) for name in names}


def bundled_models() -> list[str]:
    """Return the names of the installed MediaPipe's model files without importing it."""
    folder = models_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tflite"))


def models_folder() -> Path:
    """Return the folder of the installed MediaPipe's models, without importing it."""
    found = importlib.util.find_spec("mediapipe")
    if found is None or found.origin is None:
        raise MissingExtraError(_NEEDS, extra="mediapipe")
    return Path(found.origin).parent / "modules"


def load_solutions() -> ModuleType:
    """Import MediaPipe and return its ``solutions``.

    Raises
    ------
    MissingExtraError
        If MediaPipe is not installed.
    UnsupportedError
        If this MediaPipe is too new: the last version with ``solutions`` is 0.10.21.
    """
    installed = mediapipe_version()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from MediaPipe's dependencies
        module = importlib.import_module("mediapipe")
    if not hasattr(module, "solutions"):
        raise UnsupportedError(
            f"MediaPipe {installed} has no 'solutions', which this extractor runs on; "
            'pip install "kpstore[mediapipe]" brings the last version that works'
        )
    solutions: ModuleType = module.solutions
    return solutions


@contextmanager
def quiet_calls() -> Iterator[None]:
    """Suppress the warning of protobuf 4 for each result of MediaPipe 0.10.14, and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"SymbolDatabase\.GetPrototype\(\) is deprecated", UserWarning
        )
        yield


@contextmanager
def quiet_start() -> Iterator[None]:
    """Suppress the lines that native code writes to standard error while a graph starts.

    Meanwhile, standard error of the whole process goes to a file; afterwards, all lines that are
    not known noise are written.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # this process has no standard error
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            rest = b"".join(line for line in caught if not _NATIVE_NOISE.search(line))
            if rest:
                os.write(2, rest)


def check_options(*, model_complexity: int, **confidences: float) -> None:
    """Raise :class:`InvalidError` that names all options that MediaPipe does not have."""
    problems = [
        f"{name}={value!r} is not a number from 0 to 1"
        for name, value in confidences.items()
        if not is_number(value) or not 0 <= value <= 1
    ]
    if isinstance(model_complexity, bool) or model_complexity not in range(len(POSE_MODELS)):
        problems.append(f"model_complexity={model_complexity!r} is not 0, 1 or 2")
    if problems:
        raise InvalidError(f"MediaPipe options: {'; '.join(problems)}")


def pose_model(model_complexity: int) -> str:
    """Return the path of a pose landmark model inside MediaPipe's ``modules`` folder."""
    return f"pose_landmark/pose_landmark_{POSE_MODELS[model_complexity]}.tflite"


@dataclass(frozen=True)
class FoundParts:
    """MediaPipe's landmark lists of one frame; ``None`` where a part was not detected.

    Parameters
    ----------
    face : 468 or 478 landmarks of the face mesh.
    left_hand, right_hand : 21 landmarks each, the subject's own left and right.
    pose : 33 landmarks.
    """

    face: Any = None
    left_hand: Any = None
    right_hand: Any = None
    pose: Any = None


def landmark_array(landmarks: Any) -> NDArray[np.float32]:
    """Return landmarks as (points, 3) float32: x, y as fractions of the frame, z relative."""
    return np.array([(point.x, point.y, point.z) for point in landmarks.landmark], dtype=np.float32)


def select_face(mesh: NDArray[np.float32], face_list: FaceList) -> NDArray[np.float32]:
    """Return the 68 points of a face list, (…, 68, 3) float32, from mesh points (…, 468, 3).

    There may be 478 points of the mesh.
    """
    # The mean of one float32 in float64 is the same float32: single points keep every bit.
    points = [
        mesh[..., list(indices), :].mean(axis=-2, dtype=np.float64) for indices in face_list.indices
    ]
    return np.stack(points, axis=-2).astype(np.float32)


def fill_row(rows: FeatureRows, number: int, found: FoundParts, face_list: FaceList) -> None:
    """Write the parts of one frame into row ``number``; parts not detected stay missing."""
    for part_number, part in enumerate(PARTS):
        landmarks = getattr(found, part)
        if landmarks is None:
            continue
        points = landmark_array(landmarks)
        selected = select_face(points, face_list) if part == "face" else points
        rows.values[number, PART_SLICES[part]] = selected
        rows.companions["detected"][number, part_number] = True
    if found.pose is not None:
        rows.companions["visibility"][number] = [point.visibility for point in found.pose.landmark]


@dataclass(kw_only=True)
class MediapipeExtractor(OneFeature):
    """Options, specification and rows, which both recipes share.

    The solutions run on the CPU for any device. A pickle holds the options and the face list, but
    not the model: an unpickled extractor is not open.

    Parameters
    ----------
    face_list : which mesh points make the face: a known name, a file (:func:`load_face_list`) or
        the list itself.
    min_detection_confidence : 0 to 1; detections below it are dropped.
    model_complexity : 0, 1 or 2, the pose model; MediaPipe's wheel holds model 1 only.
    """

    face_list: Annotated[
        str | os.PathLike[str] | FaceList,
        Option("List of the 68 face points: phoenix, ibug, or a file.", kind=str, panel=WHAT),
    ] = "phoenix"
    min_detection_confidence: float = 0.5
    model_complexity: int = 1
    _solutions: tuple[Any, ...] = field(default=(), init=False, repr=False, compare=False)
    # Whether no frame was processed since the solutions were started.
    _started: bool = field(default=False, init=False, repr=False, compare=False)

    n_mesh_points = 478
    """Number of mesh points of the recipe's face model."""

    def __post_init__(self) -> None:
        self._check()
        self.face_list = self._faces = load_face_list(self.face_list)
        highest = max(index for indices in self._faces.indices for index in indices)
        if highest >= self.n_mesh_points:
            raise InvalidError(
                f"face list {self._faces.name!r} asks for mesh point {highest}, but this "
                f"extractor's face model has {self.n_mesh_points}: choose points below that (those "
                "above are of the irises)"
            )
        self._spec = keypoints_spec(self._faces)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_solutions": ()}

    @abstractmethod
    def _check(self) -> None:
        """Raise :class:`InvalidError` for invalid options."""

    @abstractmethod
    def _build(self, solutions: ModuleType) -> tuple[Any, ...]:
        """Return the recipe's solutions."""

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> FoundParts:
        """Run the recipe on one frame."""

    @abstractmethod
    def _recipe(self) -> tuple[str, str, dict[str, object], tuple[str, ...]]:
        """Return the extractor's name, its recipe, its parameters and its model files."""

    @property
    def spec(self) -> FeatureSpec:
        """The feature ``keypoints``; see :func:`~kpstore.schema.layout.keypoints_spec`."""
        return self._spec

    @property
    def recipe(self) -> Provenance:
        """Everything that changes the values (JSON).

        Needs MediaPipe's files, but does not import it.
        """
        extractor, recipe, parameters, models = self._recipe()
        return {
            "extractor": extractor,
            "recipe": recipe,
            "mediapipe": mediapipe_version(),
            "parameters": parameters,
            "face_list": {"name": self._faces.name, "sha256": self._faces.sha256},
            "models": model_hashes(models),
        }

    @property
    def batch_size(self) -> int:
        """One: MediaPipe works frame by frame."""
        return 1

    @property
    def typical_fps(self) -> float:
        """About ten frames per second and core at usual frame sizes."""
        return 10.0

    def open(self, device: str = "cpu") -> None:
        """Build the solutions; they run on the CPU, and another device is logged and ignored."""
        model_hashes(self._recipe()[3])  # before MediaPipe tries to download a missing model
        if device != "cpu":
            _log.info("MediaPipe's solutions run on the CPU only; device %r is ignored", device)
        solutions = load_solutions()
        self.close()
        with quiet_start(), quiet_calls():
            self._solutions = self._build(solutions)
            self._wait_until_started()
        self._started = True

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget all frames seen so far."""
        self._require_open()
        return {}

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image; see :meth:`kpstore.extractors.base.Extractor.extract`.

        Returns
        -------
        FeatureRows
            ``values`` (images, 143, 3) float32, NaN where a part was not detected; ``detected``
            (images, 4) bool; ``visibility`` (images, 33) float32, NaN where no pose was detected.
        """
        self._require_open()
        rows = self._spec.empty_rows(len(images))
        for number, image in enumerate(images):
            fill_row(rows, number, self._find(check_image(image)), self._faces)
        return rows

    def close(self) -> None:
        """Free the solutions; the extractor can be opened again."""
        solutions, self._solutions = self._solutions, ()
        for solution in solutions:
            try:
                solution.close()
            except (RuntimeError, ValueError) as error:  # a failed graph fails again when closed
                _log.debug("closing a MediaPipe graph: %s", error)

    def _require_open(self) -> None:
        if not self._solutions:
            raise InvalidError(
                f"{type(self).__name__} is not open; call open() before it gets frames"
            )

    def _process(self, image: NDArray[np.uint8]) -> tuple[Any, ...]:
        """Return each solution's results."""
        self._started = False
        try:
            with quiet_calls():
                return tuple(solution.process(image) for solution in self._solutions)
        except Exception:
            self.open()  # a graph that failed once fails for all frames after it
            raise

    def _restart(self) -> None:
        """Reset the solutions to the state of new ones."""
        if self._started:
            return
        with quiet_start(), quiet_calls():
            for solution in self._solutions:
                solution.reset()
            self._wait_until_started()
        self._started = True

    def _wait_until_started(self) -> None:
        """Wait until the graphs' threads have loaded their models and stop writing to stderr."""
        for solution in self._solutions:
            solution._graph.wait_until_idle()
