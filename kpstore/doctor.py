"""Checks of the installation, this machine, its models, and of stores and data sets."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kpstore._version import __version__
from kpstore.backends.places import FILE_SUFFIXES
from kpstore.errors import KpstoreError
from kpstore.machine import usable_cores

if TYPE_CHECKING:
    from kpstore.sources.base import Listing

EXTRAS: dict[str, tuple[str, ...]] = {
    "mediapipe": ("mediapipe",),
    "holistic-torch": ("torch", "tflite"),
    "video": ("av",),
    "dask": ("dask", "distributed"),
    "torch": ("torch",),
    "train": ("torch", "safetensors"),
    "tensorboard": ("tensorboard",),
    "dinov2": ("torch", "transformers"),
    "insightface": ("insightface", "onnx", "onnxruntime"),
    "hdf5": ("h5py",),
    "objects": ("obstore",),
    "json": ("ijson",),
    "lips": ("PyYAML",),
    "pose": ("pose-format",),
    "bench": ("torch", "h5py", "hdf5plugin", "matplotlib", "pylance", "tensorstore"),
}
"""The optional parts of kpstore, and the distributions that each needs."""

SAME_AS = {"onnxruntime": "onnxruntime-gpu"}
"""Distributions that can replace others."""
EXTRA_ADVICE = {extra: f'pip install "kpstore[{extra}]"' for extra in EXTRAS}
SHOWN_PROBLEMS = 20
CHECKPOINT_ENDINGS = (".pth", ".pth.tar", ".pt", ".safetensors")

State = Literal["ok", "absent", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of a check-up.

    Parameters
    ----------
    area : ``"kpstore"``, ``"extra"``, ``"machine"``, ``"model"`` or ``"path"``.
    name : what was checked.
    state : ``"ok"``; ``"absent"`` if something optional is missing; ``"problem"`` if something
        needed is missing or damaged.
    found : a description of what was found.
    advice : what to do; may be empty.
    """

    area: str
    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Checkup:
    """All findings, in the order to show them."""

    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether there are no problems."""
        return all(finding.state != "problem" for finding in self.findings)

    def to_json(self) -> dict[str, object]:
        """Return the findings as JSON values."""
        return {"sound": self.is_sound, "findings": [asdict(finding) for finding in self.findings]}


def check_up(paths: Iterable[str | os.PathLike[str]] = ()) -> Checkup:
    """Check this installation, this machine, the models on it, and the given paths.

    Parameters
    ----------
    paths : stores, folders of data sets, weights of DINOv2 and of the lip-reading encoder, model
        packs of InsightFace, configurations (``.yml``) of lip-reading data.
    """
    found = [*_installation(), *_extras(), *_machine(), *_models()]
    for path in paths:
        found += _path(Path(path))
    return Checkup(tuple(found))


def _installation() -> Iterator[Finding]:
    yield Finding("kpstore", "python", "ok", platform.python_version())
    yield Finding("kpstore", "kpstore", "ok", f"{__version__}, in {Path(__file__).parent}")


def _absent(area: str, name: str, found: str, advice: str) -> Finding:
    return Finding(area, name, "absent", found, advice)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _installed(distribution: str) -> tuple[str, str | None]:
    """Return name and version of a distribution, or of one that replaces it."""
    other = SAME_AS.get(distribution, distribution)
    found = _version(distribution)
    return (distribution, found) if found or not _version(other) else (other, _version(other))


def _extras() -> Iterator[Finding]:
    for extra, distributions in EXTRAS.items():
        versions = dict(map(_installed, distributions))
        there = ", ".join(
            f"{name} {installed}" for name, installed in versions.items() if installed
        )
        missing = [name for name, installed in versions.items() if not installed]
        if not missing:
            yield Finding("extra", extra, "ok", there)
            continue
        found = f"{there + '; ' if there else ''}{', '.join(missing)} not installed"
        yield _absent("extra", extra, found, EXTRA_ADVICE[extra])


# -- the machine -----------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    usable, all_cores = usable_cores(), os.cpu_count() or 1
    yield Finding(
        "machine", "cores", "ok", str(usable) if usable == all_cores else f"{usable} of {all_cores}"
    )
    yield _gpus()


def _gpus() -> Finding:
    from kpstore.ingest.gpus import count_gpus

    visible = count_gpus()
    if visible == 0:  # then torch, which takes a second to import, cannot see one either
        return _absent("machine", "gpus", "none found", "extraction and training run on the CPU")
    if _version("torch") is None:
        found = f"{visible}, but torch is not installed"
        return _absent("machine", "gpus", found, EXTRA_ADVICE["torch"])
    import torch

    names = Counter(
        torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
    )
    if not names:
        found = f"{visible}, but torch {torch.__version__} sees none"
        return _absent("machine", "gpus", found, "install torch built for CUDA")
    return Finding(
        "machine", "gpus", "ok", ", ".join(f"{count} x {name}" for name, count in names.items())
    )


# -- models ----------------------------------------------------------------------------------------


def _models() -> Iterator[Finding]:
    yield _mediapipe_models()
    yield _dinov2_models()
    yield _face_models()


def _mediapipe_models() -> Finding:
    from kpstore.extractors.mediapipe import POSE_MODELS, bundled_models

    if find_spec("mediapipe") is None:
        advice = f"{EXTRA_ADVICE['mediapipe']} includes them"
        return _absent("model", "mediapipe", "not installed", advice)
    names = bundled_models()
    pose = [
        f"{number} ({kind})"
        for number, kind in enumerate(POSE_MODELS)
        if f"pose_landmark/pose_landmark_{kind}.tflite" in names
    ]
    if not pose:
        found = "not included in this version of MediaPipe"
        return _absent("model", "mediapipe", found, EXTRA_ADVICE["mediapipe"])
    return Finding(
        "model", "mediapipe", "ok", f"{len(names)} bundled; model_complexity {', '.join(pose)}"
    )


def _dinov2_models() -> Finding:
    from kpstore.extractors.dinov2_models import MODELS
    from kpstore.extractors.dinov2_weights import cached_snapshot, hub_cache

    there = [
        name
        for name, model in MODELS.items()
        if model.repository and cached_snapshot(model.repository)
    ]
    if there:
        return Finding("model", "dinov2", "ok", f"{', '.join(there)} in {hub_cache()}")
    advice = "an ingest downloads them from the Hugging Face hub, or use --weights PATH"
    return _absent("model", "dinov2", f"none in {hub_cache()}", advice)


def _face_models() -> Finding:
    from kpstore.extractors.insightface_models import pack_home

    counts = Counter(file.parent.name for file in pack_home().glob("[!.]*/*.onnx"))
    if counts:
        packs = ", ".join(f"{name} ({n} files)" for name, n in sorted(counts.items()))
        return Finding("model", "insightface", "ok", f"{packs} in {pack_home()}")
    advice = "an ingest of faces downloads InsightFace's buffalo_l, or use --model-pack PATH"
    return _absent("model", "insightface", f"no model pack in {pack_home()}", advice)


# -- paths -----------------------------------------------------------------------------------------


def _path(path: Path) -> list[Finding]:
    """Return the findings about a path; an error becomes a finding."""
    try:
        if not path.exists():
            return [_problem(path, "does not exist", "check the name")]
        return _check_of(path)(path)
    except KpstoreError as error:
        return [_problem(path, str(error))]
    except OSError as error:
        return [_problem(path, f"{error.strerror or error}: {error.filename or path}")]


def _check_of(path: Path) -> Callable[[Path], list[Finding]]:
    from kpstore.store.store import backend_for

    if path.suffix in (".yml", ".yaml"):
        return _configuration
    if (path.is_dir() or path.suffix in FILE_SUFFIXES) and backend_for(str(path)).exists():
        return _store
    if path.name.endswith(CHECKPOINT_ENDINGS) and _version("torch") is not None:
        return _weights
    if not path.is_dir():
        return _unknown
    if any(path.glob("*.onnx")):
        return _model_pack
    return _weights if (path / "config.json").is_file() else _data_set


def _problem(path: Path, found: str, advice: str = "") -> Finding:
    return Finding("path", str(path), "problem", found, advice)


def _sound(path: Path, found: str) -> Finding:
    return Finding("path", str(path), "ok", found)


def _unknown(path: Path) -> list[Finding]:
    advice = "kpstore import reads files of other formats"
    return [_problem(path, "not a store, a folder or a .yml file", advice)]


def _store(path: Path) -> list[Finding]:
    from kpstore.api import open as open_store
    from kpstore.inspect.summary import count_states

    store = open_store(path)
    index = store.index
    alike: dict[str, list[str]] = {}
    for name in store.features:
        pending, done, failed = count_states(store, name)
        counts = {"done": done, "failed": failed, "pending": pending}
        told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        alike.setdefault(told or "no videos", []).append(name)
    features = "".join(f"; {', '.join(names)}: {told}" for told, names in alike.items())
    size = f"store of {len(index)} videos, {index.total_frames} frames"
    return [_sound(path, size + (features or "; no features yet"))]


def _weights(path: Path) -> list[Finding]:
    from kpstore.extractors.dinov2_weights import describe_weights
    from kpstore.extractors.lip_weights import is_lip_checkpoint, read_lip_checkpoint

    is_lips = path.is_file() and is_lip_checkpoint(path)
    model = read_lip_checkpoint(path) if is_lips else describe_weights(path)
    return [_sound(path, f"weights of {model}")]


def _model_pack(path: Path) -> list[Finding]:
    from kpstore.extractors.insightface_models import find_detector

    return [_sound(path, f"model pack of InsightFace, detector {find_detector(path).name}")]


def _data_set(path: Path) -> list[Finding]:
    from kpstore.inspect.against_source import find_source

    source = find_source(path)
    listing = source.scan()
    problems = [_problem(path, text) for text in listing.problems[:SHOWN_PROBLEMS]]
    if len(listing.problems) > SHOWN_PROBLEMS:
        problems.append(
            _problem(path, f"and {len(listing.problems) - SHOWN_PROBLEMS} more problems")
        )
    if not listing.videos:
        found = "no store, no videos and no folders of pictures found"
        return [*problems, _problem(path, found, "give the folder of a data set")]
    state: State = "problem" if problems else "ok"
    return [Finding("path", str(path), state, _describe(source.name, listing)), *problems]


def _describe(name: str, listing: Listing) -> str:
    splits = Counter(video.split for video in listing.videos)
    frames = sum(video.n_frames for video in listing.videos)
    told = ", ".join(f"{split or 'no split'} {count}" for split, count in splits.items())
    return f"data set {name}: {len(listing.videos)} videos ({told}), {frames} frames"


def _configuration(path: Path) -> list[Finding]:
    if find_spec("yaml") is None:
        return [_problem(path, "reading a configuration needs PyYAML", EXTRA_ADVICE["lips"])]
    from kpstore.sources.lip_lists import read_lists

    files: dict[str, set[Path]] = {}
    for split, file in read_lists(path, path.resolve().parent):
        files.setdefault(split, set()).add(file)
    if not files:
        return [_problem(path, "its lists name no npz files")]
    return [_listed(path, split, named) for split, named in files.items()]


def _listed(path: Path, split: str, files: set[Path]) -> Finding:
    missing = sorted(file for file in files if not file.is_file())
    if missing:
        found = (
            f"{split}: {len(missing)} of {len(files)} npz files do not exist, first {missing[0]}"
        )
        return _problem(path, found)
    return _sound(path, f"{split}: {len(files)} npz files, all found")
