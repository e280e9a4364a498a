"""The base of the MediaPipe extractors: quiet loading, model hashes, rows from landmarks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError, UnsupportedError
from kpstore.extractors.base import check_image as check_image
from kpstore.extractors.base import is_number
from kpstore.extractors.checkpoint_files import file_sha256
from kpstore.schema.face_lists import load_face_list as load_face_list
from kpstore.schema.feature import FeatureRows
from kpstore.schema.layout import PART_SLICES, PARTS, FaceList
from kpstore.visible import logger

_log = logger(__name__)

_NEEDS = "a recipe of MediaPipe (without --engine torch --models DIR)"
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

    The parameters and errors are those of :func:`check_models`.
    """
    place = check_models(names, folder)
    return {Path(name).name: file_sha256(place / name) for name in names}


def check_models(names: Iterable[str], folder: Path | None = None) -> Path:
    """Return the folder of MediaPipe's models, in which some are to be.

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
            "put the file there, or with --engine torch into a folder that --models names "
            '(pip install "kpstore[mediapipe]" brings a version that holds all other models)'
        )
    return folder


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
