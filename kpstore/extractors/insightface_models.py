"""InsightFace's model packs: finding, downloading, hashing, opening them quietly."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kpstore.errors import (
    ExtractorError,
    InvalidError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.extractors.checkpoint_files import brief, file_sha256
from kpstore.visible import logger

_log = logger(__name__)

DETECTOR_OUTPUTS = 5
"""A file with at least this many outputs is a detector, by InsightFace's own rule."""

_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
LIBRARIES = (
    "faces",
    "insightface",
    "insightface",
    "onnxruntime|onnxruntime-gpu",
    "opencv-python|opencv-python-headless|opencv-contrib-python",
)
"""Recipe, extra, and the libraries that find faces."""


# -- where packs are -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pack:
    """A folder of ONNX files.

    Parameters
    ----------
    folder : of the files.
    detector : the only file that is used.
    """

    folder: Path
    detector: Path

    def sha256(self) -> dict[str, str]:
        """Return the SHA-256 of the detector by its name."""
        return {self.detector.name: file_sha256(self.detector)}


def pack_home() -> Path:
    """Return the folder in which InsightFace stores its packs."""
    return Path("~/.insightface/models").expanduser()


def find_pack(name: str) -> Pack:
    """Return a pack; a pack by name is downloaded if it is not on this machine.

    Parameters
    ----------
    name : of a pack, such as ``buffalo_l``; or a folder of ONNX files, which is never downloaded.

    Raises
    ------
    NotFoundError
        If the folder does not exist, or a pack is neither on this machine nor available for
        download.
    InvalidError
        If the folder holds no detector.
    """
    folder = pack_home() / name if _NAME.match(name) else Path(name).expanduser().absolute()
    if _NAME.match(name) and not folder.is_dir() and Path(name).is_dir():
        folder = Path(name).absolute()
    if not folder.is_dir():
        if not _NAME.match(name):
            raise NotFoundError(
                f"no model pack at {folder}: give a folder of ONNX files, or a pack's name "
                "(buffalo_l)"
            )
        _load_pack(name, folder)
    return Pack(folder, find_detector(folder))


def find_detector(folder: Path) -> Path:
    """Return the file that InsightFace uses as its detector: the first with enough outputs.

    Raises
    ------
    InvalidError
        If no file is a detector, or a file before it cannot be read.
    """
    files = sorted(folder.glob("*.onnx"))
    for file in files:
        if _count_outputs(file) >= DETECTOR_OUTPUTS:
            return file
    held = (
        f"{', '.join(file.name for file in files)}, and none of them is one"
        if files
        else "no ONNX file"
    )
    raise InvalidError(
        f"{folder} needs a face detector, such as det_10g.onnx of buffalo_l, but holds {held}; if "
        "a download was cut short, remove the folder and run again"
    )


@cache
def _onnx() -> ModuleType:
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise MissingExtraError(
            "the recipe 'faces' (onnx is not installed)", extra="insightface"
        ) from None


def _count_outputs(file: Path) -> int:
    try:
        return len(_onnx().load(str(file), load_external_data=False).graph.output)
    except MissingExtraError:
        raise
    except Exception as error:  # protobuf has its own error class
        raise InvalidError(
            f"{file} is not a complete ONNX file ({brief(error)}); remove its folder and run "
            "again, or give another pack"
        ) from None


def _load_pack(name: str, folder: Path) -> None:
    """Download a pack beside its folder: InsightFace takes any folder for a complete pack."""
    _log.info("downloading model pack %s from InsightFace's releases to %s", name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".kpstore-", dir=folder.parent))
    except OSError as error:
        raise NotFoundError(
            f"model pack {name!r} is not in {folder.parent}, which cannot be written: {error}"
        ) from None
    try:
        with silenced():
            storage = importlib.import_module("insightface.utils.storage")
            storage.download("models", name, root=str(aside))
        # Some releases hold a folder within the folder.
        found = sorted((aside / "models" / name).rglob("*.onnx"))
        find_detector(found[0].parent if found else aside)
        with contextlib.suppress(OSError):  # if another process was faster
            found[0].parent.rename(folder)
    # The errors of requests are OSErrors.
    except (OSError, RuntimeError, zipfile.BadZipFile, InvalidError) as error:
        raise NotFoundError(
            f"model pack {name!r} is not in {folder.parent}, and InsightFace's releases do not "
            f"give it ({brief(error)}); run this where the network is, or give a folder of ONNX "
            "files: --set model_pack=PATH"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# -- opening ---------------------------------------------------------------------------------------


def open_detector(pack: Pack, device: str, det_size: int, det_thresh: float) -> Any:
    """Return InsightFace's ``FaceAnalysis`` with the detector alone, for one picture size.

    Raises
    ------
    UnsupportedError
        If the device does not exist.
    InvalidError
        If the pack's detector does not load, finds no landmarks, or takes other sizes only.
    """
    number = _device_number(device)
    with silenced():
        runtime = importlib.import_module("onnxruntime")
        _check_provider(runtime, device, number)
        analysis = importlib.import_module("insightface.app").FaceAnalysis
        options = runtime.SessionOptions()
        # One thread, as in a worker: another number of threads may change the last bits.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        cuda = [] if number is None else [("CUDAExecutionProvider", {"device_id": number})]
        try:
            app = analysis(
                name=str(pack.folder),
                allowed_modules=["detection"],
                providers=[*cuda, "CPUExecutionProvider"],
                sess_options=options,
            )
            app.prepare(
                ctx_id=-1 if number is None else number,
                det_thresh=det_thresh,
                det_size=(det_size, det_size),
            )
        except Exception as error:  # onnxruntime has its own error classes, InsightFace asserts
            raise InvalidError(
                f"{pack.folder} does not load as a pack of InsightFace: {brief(error)}"
            ) from None
    _check_detector(app.det_model, pack, det_size)
    provider, *_ = app.det_model.session.get_providers()
    if number is not None and provider != "CUDAExecutionProvider":
        raise UnsupportedError(
            f"device {device!r}: onnxruntime cannot use it (CUDA's or cuDNN's libraries are "
            "missing, or are not those that it was built for); see 'kpstore doctor', or leave out "
            "--gpus to use the CPU"
        )
    return app


def _check_detector(model: Any, pack: Pack, det_size: int) -> None:
    used = Path(model.model_file)
    if used.name != pack.detector.name:
        raise ExtractorError(
            f"InsightFace took {used.name} of {pack.folder}, {pack.detector.name} was expected"
        )
    if not getattr(model, "use_kps", False):
        raise InvalidError(
            f"{used} finds faces but no landmarks; use a pack whose detector does, such as "
            "buffalo_l"
        )
    fixed = getattr(model, "static_input_size", None)
    if fixed is not None and tuple(fixed) != (det_size, det_size):
        width, height = fixed
        advice = f"use det_size={width}" if width == height else "use another pack"
        raise InvalidError(
            f"{used} takes {width} x {height} pixels only, det_size={det_size} was asked for; "
            f"{advice}"
        )


def _device_number(device: str) -> int | None:
    """Return the number of a GPU; None for the CPU."""
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise UnsupportedError(
            f"device {device!r}: the recipe 'faces' runs on cpu and cuda, such as cuda:0"
        )
    return None if device == "cpu" else int(match[1] or 0)


def _check_provider(runtime: ModuleType, device: str, number: int | None) -> None:
    if number is not None and "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise UnsupportedError(
            f"device {device!r} was asked for, but this onnxruntime {runtime.__version__} is built "
            "without CUDA: pip uninstall onnxruntime, then pip install onnxruntime-gpu; or leave "
            "out --gpus to use the CPU"
        )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress what InsightFace prints: paths, progress bars, notes."""
    quiet = io.StringIO()
    with (
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
