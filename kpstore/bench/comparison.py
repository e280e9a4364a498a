"""A whole benchmark of one store: its subjects, figures and circumstances."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kpstore._version import __version__
from kpstore.bench.measure import BenchSettings, Figure, measure, workloads_for
from kpstore.bench.peak import PeakMemory, peak_of_epoch
from kpstore.bench.peers import PeerSubject, check_peers
from kpstore.bench.subjects import (
    KpstoreSubject,
    MemorySubject,
    Subject,
    TorchSubject,
    filesystem_of,
)
from kpstore.errors import InvalidError
from kpstore.store.store import BaseStore

_MEMORY_SHARE = 0.25
"""Part of the machine's memory that the array to compare with may take."""
_VERSIONS = ("numpy", "zarr", "icechunk", "torch", "h5py", "tensorstore", "pylance")


@dataclass(frozen=True)
class BenchReport:
    """What was measured, where and how.

    Parameters
    ----------
    n_rows : how many of the store's frames were read.
    how : how each subject reads, in a few words, by its name.
    peak : memory of a whole epoch; None without torch, or where it cannot be measured.
    """

    location: str
    feature: str
    n_rows: int
    total_rows: int
    filesystem: str
    how: dict[str, str]
    figures: list[Figure]
    peak: PeakMemory | None
    settings: BenchSettings
    machine: str
    versions: dict[str, str]

    def of(self, subject: str, workload: str) -> Figure | None:
        """Return one figure; None if it was not measured."""
        return next(
            (f for f in self.figures if (f.subject, f.workload) == (subject, workload)), None
        )

    def ratio(self, figure: Figure, to: str = "memory") -> float | None:
        """Return how much better a figure is than another subject's: above 1 is faster."""
        other = self.of(to, figure.workload)
        if other is None or not other.median or not figure.median:
            return None
        return (
            figure.median / other.median
            if figure.higher_is_better
            else other.median / figure.median
        )

    def to_json(self) -> dict[str, object]:
        """Return plain values, with each figure's ratio to an array in memory."""
        figures = [
            {**asdict(figure), "ratio_to_memory": self.ratio(figure)} for figure in self.figures
        ]
        return {**asdict(self), "figures": figures}


def bench(
    store: BaseStore,
    feature: str,
    *,
    against: Sequence[str] = (),
    cache: str = "auto",
    n_rows: int | None = None,
    settings: BenchSettings | None = None,
    scratch: Path | None = None,
    on_step: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measure how fast a feature reads.

    This compares an array in memory, the store without a cache, the store as :func:`kpstore.open`
    opens it (where a cache makes a difference), PyTorch's ``DataLoader(TensorDataset)`` (where
    torch is installed), and the formats ``against``.

    Parameters
    ----------
    feature : an array of numbers on the frame axis.
    against : other formats, which get copies of the same rows; see
        :data:`kpstore.bench.peers.PEERS`.
    cache : as for :func:`kpstore.open`; ``"off"`` leaves the cache out.
    n_rows : number of frames to read, from the first; by default all that fit into a quarter of the
        memory.
    scratch : folder for the copies, removed at the end; the system's temporary folder by default.
    on_step : called with the name of each step before it begins.

    Raises
    ------
    InvalidError
        If the feature is not of numbers on the frame axis, has no rows, or a format is unknown.
    MissingExtraError
        If a format is not installed.
    """
    check_peers(against)
    _check_feature(store, feature)
    rows = _rows_to_read(store, feature, n_rows)
    settings = settings or BenchSettings()
    say = on_step or (lambda step: None)
    say("reading everything once")
    in_memory = MemorySubject(store.reader.read_slice(feature, 0, rows))
    subjects: list[Subject] = [in_memory, *_of_store(store, feature, rows, cache, say)]
    torch_is_there = _installed("torch")
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-", dir=scratch) as folder:
        for name in against:
            say(f"writing a copy for {name}")
            subjects.append(PeerSubject(name, in_memory.array, Path(folder)))
        *workloads, epoch = workloads_for(store.index, in_memory.array)
        figures = list(measure(subjects, workloads, settings, say))
        if torch_is_there:
            import torch.utils.data  # noqa: F401 - outside of the first epoch measured

            subjects.append(TorchSubject(in_memory.array))
        else:
            subjects = [subject for subject in subjects if not isinstance(subject, KpstoreSubject)]
        figures += measure(subjects, [epoch], settings, say)
    say("peak memory of an epoch")
    return BenchReport(
        location=store.location,
        feature=feature,
        n_rows=rows,
        total_rows=store[feature].shape[0],
        filesystem=filesystem_of(store.location),
        how={subject.name: subject.how for subject in subjects},
        figures=figures,
        peak=peak_of_epoch(store, feature, cache, rows) if torch_is_there else None,
        settings=settings,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        versions={
            "kpstore": __version__,
            **{name: version(name) for name in _VERSIONS if _installed(name)},
        },
    )


def _check_feature(store: BaseStore, feature: str) -> None:
    array = store[feature]
    if array.dims[0] != "frame" or array.dtype.kind == "O":
        known = sorted(
            name for name, stored in store.features.items() if stored.spec.axis == "frame"
        )
        raise InvalidError(
            f"{feature!r} cannot be measured; choose numbers on the frame axis: "
            f"{known or 'none here'}"
        )


def _rows_to_read(store: BaseStore, feature: str, asked: int | None) -> int:
    total = store[feature].shape[0]
    if asked is not None and asked < 1:
        raise InvalidError(f"{asked} frames asked for: use at least 1")
    row_bytes = max(1, store.reader.meta(feature).row_bytes)
    fits = int(_MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / row_bytes)
    n_rows = min(total, asked if asked is not None else fits)
    if n_rows == 0:
        raise InvalidError(f"{store.location} has no frames of {feature!r} to read")
    return n_rows


def _of_store(
    store: BaseStore, feature: str, rows: int, cache: str, say: Callable[[str], None]
) -> list[Subject]:
    plain = KpstoreSubject(store.location, store.snapshot, feature, rows, cache="off")
    if cache == "off" or "mapped" in plain.how:
        return [plain]
    say("decoding to the cache")
    cached = KpstoreSubject(
        store.location, store.snapshot, feature, rows, cache=cache, name="kpstore, cache"
    )
    return [plain, cached]


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
