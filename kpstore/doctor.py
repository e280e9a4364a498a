"""What this machine has for kpstore, what it lacks and how to get it.

And whether stores and data sets can be used.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kpstore._version import __version__
from kpstore.backends.places import FILE_SUFFIXES
from kpstore.errors import KpstoreError

if TYPE_CHECKING:
    from kpstore.sources.base import Listing

EXTRAS: dict[str, tuple[str, ...]] = {
    "mediapipe": ("mediapipe",),
    "video": ("av",),
    "dask": ("dask", "distributed"),
    "torch": ("torch",),
    "train": ("torch", "safetensors"),
    "tensorboard": ("tensorboard",),
    "dinov2": ("torch", "transformers"),
    "insightface": ("insightface", "onnx", "onnxruntime"),
    "hdf5": ("h5py",),
    "json": ("ijson",),
    "lips": ("PyYAML",),
    "pose": ("pose-format",),
    "bench": ("torch", "h5py", "matplotlib", "pylance", "tensorstore"),
}
"""The optional parts of kpstore, and the distributions that make each."""

SAME_AS = {"onnxruntime": "onnxruntime-gpu"}
"""Distributions that stand in for others."""
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
    name : what was looked for.
    state : ``"ok"``; ``"absent"`` for what is optional and not there; ``"problem"`` for what is
        needed and missing.
    found : what is there, in words.
    advice : what to do; empty if there is nothing.
    """

    area: str
    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Checkup:
    """All findings, in the order in which to show them."""

    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing that is needed is missing."""
        return all(finding.state != "problem" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {"sound": self.is_sound, "findings": [asdict(finding) for finding in self.findings]}


def check_up(paths: Iterable[str | os.PathLike[str]] = ()) -> Checkup:
    """Look at this installation, this machine, the models on it, and at the given paths.

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


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _installed(distribution: str) -> tuple[str, str | None]:
    """Return name and version of a distribution, or of what stands in for it."""
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
        yield Finding("extra", extra, "absent", found, EXTRA_ADVICE[extra])


# -- the machine -----------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    usable, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    yield Finding(
        "machine", "cores", "ok", str(usable) if usable == all_cores else f"{usable} of {all_cores}"
    )
    yield _gpus()


def _gpus() -> Finding:
    from kpstore.ingest.gpus import count_gpus

    visible = count_gpus()
    if visible == 0:  # then torch, which takes a second to import, cannot see one either
        return Finding(
            "machine", "gpus", "absent", "none found", "extraction and training run on the CPU"
        )
    if _version("torch") is None:
        return Finding(
            "machine",
            "gpus",
            "absent",
            f"{visible}, but torch is not installed",
            EXTRA_ADVICE["torch"],
        )
    import torch

    names = Counter(
        torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
    )
    if not names:
        build = f"torch {torch.__version__}"
        return Finding(
            "machine",
            "gpus",
            "absent",
            f"{visible}, but {build} sees none",
            "install torch built for CUDA",
        )
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
        return Finding(
            "model", "mediapipe", "absent", "none", f"{EXTRA_ADVICE['mediapipe']} brings them along"
        )
    names = bundled_models()
    pose = [
        f"{number} ({kind})"
        for number, kind in enumerate(POSE_MODELS)
        if f"pose_landmark/pose_landmark_{kind}.tflite" in names
    ]
    if not pose:
        return Finding(
            "model", "mediapipe", "absent", "this version holds none", EXTRA_ADVICE["mediapipe"]
        )
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
    advice = "an ingest loads them from the Hugging Face hub, or --weights PATH"
    return Finding("model", "dinov2", "absent", f"none in {hub_cache()}", advice)


def _face_models() -> Finding:
    from kpstore.extractors.insightface_models import pack_home

    counts = Counter(file.parent.name for file in pack_home().glob("[!.]*/*.onnx"))
    if counts:
        packs = ", ".join(f"{name} ({n} files)" for name, n in sorted(counts.items()))
        return Finding("model", "insightface", "ok", f"{packs} in {pack_home()}")
    advice = "an ingest of faces loads buffalo_l from InsightFace's releases, or --model-pack PATH"
    return Finding("model", "insightface", "absent", f"no model pack in {pack_home()}", advice)


# -- paths -----------------------------------------------------------------------------------------


def _path(path: Path) -> list[Finding]:
    """Return what there is to say of a path; any error of ours becomes a line."""
    try:
        if not path.exists():
            return [_problem(path, "nothing is there", "check the name")]
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


def _unknown(path: Path) -> list[Finding]:
    return [
        _problem(
            path, "no store, folder or .yml file", "kpstore import reads files of other formats"
        )
    ]


def _store(path: Path) -> list[Finding]:
    from kpstore.api import open as open_store

    store = open_store(path)
    index = store.index
    alike: dict[str, list[str]] = {}
    for name in store.features:
        counts = Counter(store.states(name).tolist())
        states = ((1, "done"), (2, "failed"), (0, "pending"))
        told = (
            ", ".join(f"{counts[state]} {word}" for state, word in states if counts[state])
            or "no videos"
        )
        alike.setdefault(told, []).append(name)
    features = [f"; {', '.join(names)}: {told}" for told, names in alike.items()]
    text = f"store of {len(index)} videos, {index.total_frames} frames{''.join(features) or '; no features yet'}"
    return [Finding("path", str(path), "ok", text)]


def _weights(path: Path) -> list[Finding]:
    from kpstore.extractors.dinov2_weights import describe_weights
    from kpstore.extractors.lip_weights import is_lip_checkpoint, read_lip_checkpoint

    if path.is_file() and is_lip_checkpoint(path):
        return [Finding("path", str(path), "ok", f"weights of {read_lip_checkpoint(path)}")]
    return [Finding("path", str(path), "ok", f"weights of {describe_weights(path)}")]


def _model_pack(path: Path) -> list[Finding]:
    from kpstore.extractors.insightface_models import find_detector

    return [
        Finding(
            "path",
            str(path),
            "ok",
            f"model pack of InsightFace, detector {find_detector(path).name}",
        )
    ]


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
        return [
            *problems,
            _problem(
                path, "no store, no videos, no pictures in folders", "give a data set's own folder"
            ),
        ]
    state: State = "problem" if problems else "ok"
    return [Finding("path", str(path), state, _describe(source.name, listing)), *problems]


def _describe(name: str, listing: Listing) -> str:
    splits = Counter(video.split for video in listing.videos)
    frames = sum(video.n_frames for video in listing.videos)
    told = ", ".join(f"{split or 'no split'} {count}" for split, count in splits.items())
    return f"data set {name}: {len(listing.videos)} videos ({told}), {frames} frames"


def _configuration(path: Path) -> list[Finding]:
    if find_spec("yaml") is None:
        return [_problem(path, "a configuration needs PyYAML to be read", EXTRA_ADVICE["lips"])]
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
        return _problem(
            path,
            f"{split}: {len(missing)} of {len(files)} npz files are not there, first {missing[0]}",
        )
    return Finding("path", str(path), "ok", f"{split}: {len(files)} npz files, all there")
