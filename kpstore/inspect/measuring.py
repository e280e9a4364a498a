"""Measures the moments and the distribution of a feature once, and keeps them on the local disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from kpstore.inspect.moments import Moments, Sketch, measure_runs
from kpstore.machine import usable_cores
from kpstore.schema.feature import FeatureSpec, State, part_names, parts_of
from kpstore.schema.fields import check_whole
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

POLICY = "detected"
"""Name of the rule for which values count: finite ones in detected parts of done frames."""

WHOLE = "all"
"""Name of the only part of a feature without parts, and of the only column without coordinates."""

OnRows = Callable[[int], None]

_MAX_COLUMNS = 16
_BLOCK_BYTES = 8 * 2**20
"""Bytes that a worker reads at once; it uses about ten times as much memory."""
_FILE_VERSION = 2


@dataclass(frozen=True)
class Groups:
    """How the values of a row fall into groups, parts × columns.

    Parameters
    ----------
    parts : names, with the points of each; one part ``"all"`` without ``attrs["parts"]``.
    columns : labels of the last axis, such as x, y and z; one column ``"all"`` if it has none or
        more than 16.
    mask_columns : columns of the presence mask, by part, for parts that have one.
    """

    parts: Mapping[str, slice]
    columns: tuple[str, ...]
    mask_columns: Mapping[str, int]

    @classmethod
    def of(cls, spec: FeatureSpec) -> Groups:
        """Return the groups of a feature."""
        columns = tuple(spec.labels.get(spec.dims[-1], ())) if spec.dims else ()
        columns = columns if 0 < len(columns) <= _MAX_COLUMNS else (WHOLE,)
        n_points = int(np.prod(spec.shape, dtype=np.int64)) // len(columns)
        is_table = len(spec.shape) == 2 and len(columns) == spec.shape[1]
        given = spec.attrs.get("parts") if is_table else None
        parts: Mapping[str, slice] = parts_of(given, n_points) or {WHOLE: slice(0, n_points)}
        mask = {name: number for number, name in enumerate(part_names(spec)) if name in parts}
        return cls(parts, columns, mask)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of parts and of columns."""
        return len(self.parts), len(self.columns)


@dataclass(frozen=True)
class KeptMoments:
    """Moments and distributions of a feature in one version, as they are kept.

    Parameters
    ----------
    moments : of every video, groups (videos, parts, columns). Those of any selection of videos
        follow from them.
    frames : (videos,) int64, done frames.
    sketches : by split, part and column.
    """

    groups: Groups
    moments: Moments
    frames: NDArray[np.int64]
    sketches: Mapping[tuple[str, int, int], Sketch]


def measure(
    store: BaseStore, feature: str, *, workers: int | None = None, on_rows: OnRows | None = None
) -> KeptMoments:
    """Return moments and distributions of a feature, from the local disk if they are there.

    See :func:`kpstore.inspect.statistics.statistics`.
    """
    if workers is not None:
        check_whole("workers", workers, 1)
    store = store.checked()  # the result is kept
    report = on_rows or (lambda n_rows: None)
    cache = store.decoded_cache
    # A store in memory ends with its process, so that nothing could use the file.
    if cache is None or store.backend.sidecar is None:
        return _measure(store, feature, workers, report)
    path = cache.statistics_path(store.snapshot, f"{feature}_{POLICY}")
    kept = _load(path, store, feature)
    if kept is None:
        kept = _measure(store, feature, workers, report)
        cache.keep_statistics(path, _arrays(store, feature, kept))
    return kept


@dataclass(frozen=True)
class _Block:
    """The moments by video, and the distributions by split, of one run of rows."""

    n_rows: int
    positions: NDArray[np.int64]
    frames: NDArray[np.int64]
    moments: Moments
    sketches: dict[tuple[str, int, int], Sketch]


def _measure(store: BaseStore, feature: str, workers: int | None, on_rows: OnRows) -> KeptMoments:
    spec, n_videos = store.feature(feature), len(store.index)
    groups = Groups.of(spec)
    moments = Moments.zeros((n_videos, *groups.shape))
    frames = np.zeros(n_videos, dtype=np.int64)
    sketches = {
        (split, part, column): Sketch.merge([])
        for split in store.splits
        for part, column in np.ndindex(*groups.shape)
    }
    for blocks in _waves(store, feature, _runs(spec, len(store[feature])), workers):
        # In the order of rows, whichever worker measured them: floating-point sums depend on it.
        for block in blocks:
            moments.put(block.positions, moments[block.positions].merged(block.moments))
            frames[block.positions] += block.frames
        for key in {key for block in blocks for key in block.sketches}:
            more = [block.sketches[key] for block in blocks if key in block.sketches]
            sketches[key] = Sketch.merge([sketches[key], *more])
        on_rows(sum(block.n_rows for block in blocks))
    return KeptMoments(groups, moments, frames, sketches)


def _runs(spec: FeatureSpec, n_rows: int) -> list[slice]:
    step = spec.chunk_rows * max(1, _BLOCK_BYTES // max(1, spec.chunk_rows * spec.row_bytes))
    return [slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


def _waves(
    store: BaseStore, feature: str, runs: Sequence[slice], workers: int | None
) -> Iterator[tuple[_Block, ...]]:
    """Yield measured blocks in order, several at a time; one such wave is in memory at once."""
    n_threads = workers or usable_cores()
    dask = _dask() if n_threads > 1 or workers is None else None
    store.reader.prepare([feature])  # once, not in each thread
    if dask is None or len(runs) < 2:
        for run in runs:
            yield (_measure_block(store, feature, run),)
        return
    task = dask.delayed(_measure_block, pure=False)
    for first in range(0, len(runs), 4 * n_threads):
        wave = runs[first : first + 4 * n_threads]
        # Threads, as reading and numpy release the GIL; or the cluster that a client is
        # connected to.
        yield dask.compute(*(task(store, feature, run) for run in wave), num_workers=n_threads)


def _dask() -> ModuleType | None:
    try:
        import dask
    except ImportError:
        return None
    return dask


def _measure_block(store: BaseStore, feature: str, run: slice) -> _Block:
    spec, index = store.feature(feature), store.index
    groups = Groups.of(spec)
    status = store[fmt.row_state_name(spec)][run]
    done = np.flatnonzero(status == State.DONE)
    rows = run.start + done
    owners = index.video_of(rows) if spec.axis == "frame" else rows
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    positions, frames = owners[starts], np.diff(np.append(starts, len(owners)))
    n_rows = run.stop - run.start
    if len(done) == 0:
        return _Block(n_rows, positions, frames, Moments.zeros((0, *groups.shape)), {})
    values = store[feature][run][done].reshape(len(done), -1, len(groups.columns))
    detected = store.detected(feature) if groups.mask_columns else None
    mask = None if detected is None else detected[run][done]
    sketches: dict[tuple[str, int, int], list[Sketch]] = {}
    by_part = []
    for number, (part, points) in enumerate(groups.parts.items()):
        # Points last: sums over contiguous values are several times as fast as over every third.
        found = np.ascontiguousarray(values[:, points].swapaxes(1, 2), dtype=np.float64)
        present = np.isfinite(found)
        if mask is not None and part in groups.mask_columns:
            present &= mask[:, groups.mask_columns[part], None, None]
        by_part.append(measure_runs(found, present, starts))
        for split, here in _split_runs(index.splits[positions], starts, len(done)):
            for column in range(len(groups.columns)):
                there = found[here, column][present[here, column]]
                sketches.setdefault((split, number, column), []).append(Sketch.of(there))
    merged = {key: Sketch.merge(several) for key, several in sketches.items()}
    return _Block(n_rows, positions, frames, Moments.stack(by_part), merged)


def _split_runs(
    splits: NDArray[np.object_], starts: NDArray[np.int64], n_rows: int
) -> Iterator[tuple[str, slice]]:
    """Yield runs of rows that belong to one split."""
    names = splits.tolist()
    changes = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    bounds = np.append(starts, n_rows)
    for first, stop in pairwise(changes):
        yield names[first], slice(int(bounds[first]), int(bounds[stop]))


def _arrays(store: BaseStore, feature: str, kept: KeptMoments) -> dict[str, NDArray[np.generic]]:
    """Return moments and distributions as arrays, for a file."""
    sketches = list(kept.sketches.values())
    about = _about(store, feature, kept.groups)
    return {
        "about": np.array(json.dumps(about)),
        "frames": kept.frames,
        "keys": np.array(json.dumps(list(kept.sketches))),
        "lengths": np.array([len(sketch.bins) for sketch in sketches], dtype=np.int64),
        "bins": np.concatenate(
            [np.empty(0, dtype=np.uint32), *(sketch.bins for sketch in sketches)]
        ),
        "counts": np.concatenate(
            [np.empty(0, dtype=np.int64), *(sketch.counts for sketch in sketches)]
        ),
        **{field.name: getattr(kept.moments, field.name) for field in fields(Moments)},
    }


def _about(store: BaseStore, feature: str, groups: Groups) -> dict[str, object]:
    """Return what a file says it holds, as files of a folder may be exchanged."""
    parts = {name: [points.start, points.stop] for name, points in groups.parts.items()}
    return {
        "version": _FILE_VERSION,
        "snapshot": store.snapshot,
        "feature": feature,
        "splits": store.splits,
        "parts": parts,
        "columns": list(groups.columns),
        "mask_columns": dict(groups.mask_columns),
    }


def _load(path: Path, store: BaseStore, feature: str) -> KeptMoments | None:
    """Return what a file keeps of this feature; None if it cannot be read or is not for it."""
    groups = Groups.of(store.feature(feature))
    wanted = _about(store, feature, groups)
    try:
        # Opened here, as numpy does not close a file that turns out not to be an archive.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            if json.loads(str(file["about"])) != wanted:
                return None
            moments = Moments(*(file[field.name] for field in fields(Moments)))
            ends = np.cumsum(file["lengths"])
            bins, counts = np.split(file["bins"], ends[:-1]), np.split(file["counts"], ends[:-1])
            keys = [
                (str(split), int(part), int(column))
                for split, part, column in json.loads(str(file["keys"]))
            ]
            sketches = {key: Sketch(b, c) for key, b, c in zip(keys, bins, counts, strict=True)}
            frames = file["frames"]
    except Exception:  # zip, numpy and JSON raise several errors each for a damaged file
        return None
    n_sketches = len(store.splits) * np.prod(groups.shape)
    fits = moments.count.shape == (len(store.index), *groups.shape) and len(sketches) == n_sketches
    with suppress(OSError):
        os.utime(path)  # the least recently used files are removed first
    return KeptMoments(groups, moments, frames, sketches) if fits else None
