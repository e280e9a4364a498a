"""Statistics of a feature by split, part and coordinate: read once, kept on the local disk for that version.

What counts is a policy with a name, ``"detected"``: values of frames that are done, in parts that
the presence mask says were detected, that are finite. Everything else in done frames is *missing*;
frames that failed or are pending count for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.moments import Moments, Sketch, measure_runs
from kpstore.schema.feature import FeatureSpec, State, part_names
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

POLICY = "detected"
"""Which values count: finite ones of done frames, in parts that were detected. Stored results are found by it."""
PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
WHOLE = "all"
"""What the one part is called of a feature whose rows have none, and the one column of rows without coordinates."""

OnRows = Callable[[int], None]

_MAX_COLUMNS = 16
_BLOCK_BYTES = 8 * 2**20
"""Read at once by each worker, which takes some ten times as much memory meanwhile."""
_FILE_VERSION = 2


@dataclass(frozen=True)
class Groups:
    """How the values of a row fall into groups, parts × columns.

    Parameters
    ----------
    parts : names, with the points of each; one part ``"all"`` if the spec's ``attrs["parts"]`` says
        nothing.
    columns : labels of the last axis, such as x, y and z; one column ``"all"`` if it has none or
        more than 16.
    mask_columns : by part, which column of the presence mask is its own; parts without one are not
        in it.
    """

    parts: Mapping[str, slice]
    columns: tuple[str, ...]
    mask_columns: Mapping[str, int]

    @classmethod
    def of(cls, spec: FeatureSpec) -> Groups:
        """Return the groups of a feature."""
        columns: tuple[str, ...] = ()
        if spec.dims:
            columns = tuple(spec.labels.get(spec.dims[-1], ()))
        columns = columns if 0 < len(columns) <= _MAX_COLUMNS else (WHOLE,)
        n_points = int(np.prod(spec.shape, dtype=np.int64)) // len(columns)
        given = (
            spec.attrs.get("parts")
            if len(spec.shape) == 2 and len(columns) == spec.shape[1]
            else None
        )
        parts = _parts(given, n_points) or {WHOLE: slice(0, n_points)}
        mask = {name: number for number, name in enumerate(part_names(spec)) if name in parts}
        return cls(parts, columns, mask)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of parts and of columns."""
        return len(self.parts), len(self.columns)


def _parts(given: Any, n_points: int) -> dict[str, slice]:
    """Return parts as an importer may have written them.

    None if any of them is not a run of points.
    """
    try:
        parts = {str(name): slice(int(first), int(stop)) for name, (first, stop) in given.items()}
    except (AttributeError, TypeError, ValueError):
        return {}
    sound = all(0 <= part.start < part.stop <= n_points for part in parts.values())
    return parts if sound else {}


@dataclass(frozen=True)
class Statistics:
    """Statistics of a feature over some videos.

    Arrays are (parts, columns), NaN where nothing was there to measure.

    Parameters
    ----------
    feature, snapshot, policy : of which feature and version, and which values count (module
        docstring).
    splits : names of the splits that the videos were taken from.
    parts, columns : names along the axes of all arrays, such as face and x.
    videos, frames : how many videos were asked for, and how many of their frames are done.
    count, missing : int64, values that count, and values of done frames that do not.
    low, high, mean, std : float64; the deviation is that of the values at hand, divided by n.
    quantiles : (probabilities, parts, columns) float64, each within 0.1 % of a value of that rank
        (numpy's ``method="lower"``); all NaN for a choice of videos, of which only the moments are
        kept.
    """

    feature: str
    snapshot: str
    policy: str
    splits: tuple[str, ...]
    parts: tuple[str, ...]
    columns: tuple[str, ...]
    videos: int
    frames: int
    count: NDArray[np.int64]
    missing: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    probabilities: tuple[float, ...] = PROBABILITIES

    def __repr__(self) -> str:
        splits = ", ".join(self.splits)
        return (
            f"<Statistics of {self.feature} in {splits}: {self.frames} frames, {self.parts} × "
            f"{self.columns}>"
        )

    def range(self, part: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lowest and the highest value of a part by column, (columns,) each: for mapping to [0, 1].

        Raises
        ------
        NotFoundError
            If there is no such part, or none of its values.
        """
        at = self._position(part)
        return self.low[at], self.high[at]

    def standard(self, part: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a part's means and deviations by column, (columns,) each.

        Raises as :meth:`range`.
        """
        at = self._position(part)
        return self.mean[at], self.std[at]

    def _position(self, part: str | None) -> int:
        if part is None and len(self.parts) == 1:
            part = self.parts[0]
        if part not in self.parts:
            raise NotFoundError(
                f"part {part!r} of {self.feature!r} not found; there are {list(self.parts)}"
            )
        at = self.parts.index(part)
        if not self.count[at].all():
            raise NotFoundError(
                f"no {part!r} of {self.feature!r} was detected in "
                f"{', '.join(map(repr, self.splits))}"
            )
        return at

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, by part and column.

        What could not be measured is None.
        """
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        about = {name: value for name, value in plain.items() if not isinstance(value, np.ndarray)}
        about = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in about.items()
        }
        values = {
            part: {column: self._group_json(p, c) for c, column in enumerate(self.columns)}
            for p, part in enumerate(self.parts)
        }
        return {**about, "statistics": values}

    def _group_json(self, part: int, column: int) -> dict[str, Any]:
        numbers = {"min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        shares = zip(self.probabilities, self.quantiles[:, part, column].tolist(), strict=True)
        return {
            "count": int(self.count[part, column]),
            "missing": int(self.missing[part, column]),
            **{name: _number(array[part, column]) for name, array in numbers.items()},
            "quantiles": {
                f"{100 * probability:g}": _number(value) for probability, value in shares
            },
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class KeptMoments:
    """What is kept of a feature of one version.

    Parameters
    ----------
    moments : of every video, groups (videos, parts, columns): those of any choice of videos follow
        without reading.
    frames : (videos,) int64, done frames.
    sketches : by split, part and column.
    """

    groups: Groups
    moments: Moments
    frames: NDArray[np.int64]
    sketches: Mapping[tuple[str, int, int], Sketch]


def statistics(
    store: BaseStore,
    feature: str,
    *,
    split: str | Sequence[str] | None = None,
    videos: Sequence[str] | None = None,
    workers: int | None = None,
    on_rows: OnRows | None = None,
) -> Statistics:
    """Return statistics of a feature.

    The first call for a version reads the feature once, others take no time.

    Parameters
    ----------
    split : only videos of these; all by default. No other video has any influence on the result.
    videos : only these videos; quantiles are then NaN.
    workers : threads that measure, by Dask; by default one per core, or the Dask cluster that a
        client of this process is connected to. One, or without Dask, measures here. The result is
        the same, bit for bit.
    on_rows : told of progress, how many rows were just measured.

    Raises
    ------
    NotFoundError
        If there is no such feature, split or video.
    InvalidError
        If ``workers`` is less than 1.
    """
    spec = store.feature(feature)
    positions = store.index.select(split=split, videos=videos)
    if len(np.unique(positions)) != len(positions):
        raise InvalidError("videos= names a video twice")
    measured = measure(store, feature, workers=workers, on_rows=on_rows)
    moments = measured.moments[positions].total()
    some = moments.count > 0
    names = tuple(dict.fromkeys(store.index.splits[positions].tolist()))
    quantiles = np.full((len(PROBABILITIES), *measured.groups.shape), np.nan)
    if videos is None:
        _fill_quantiles(quantiles, measured, names, moments)
    return Statistics(
        feature=spec.name,
        snapshot=store.snapshot,
        policy=POLICY,
        splits=names,
        parts=tuple(measured.groups.parts),
        columns=measured.groups.columns,
        videos=len(positions),
        frames=int(measured.frames[positions].sum()),
        count=moments.count,
        missing=moments.missing,
        low=np.where(some, moments.low, np.nan),
        high=np.where(some, moments.high, np.nan),
        mean=np.where(some, moments.mean, np.nan),
        std=moments.std,
        quantiles=quantiles,
    )


def statistics_by_split(
    store: BaseStore,
    features: Sequence[str] | None = None,
    *,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
    on_rows: OnRows | None = None,
) -> dict[str, dict[str, Statistics]]:
    """Return statistics by feature and split, each alone.

    All of both by default. See :func:`statistics`.
    """
    wanted = store.splits if splits is None else list(splits)
    names = list(store.features) if features is None else list(dict.fromkeys(features))
    store.index.select(split=wanted)
    for name in names:
        store.feature(name)
    return {
        name: {
            split: statistics(store, name, split=split, workers=workers, on_rows=on_rows)
            for split in wanted
        }
        for name in names
    }


def _fill_quantiles(
    quantiles: NDArray[np.float64], measured: KeptMoments, splits: Sequence[str], moments: Moments
) -> None:
    for part, column in np.ndindex(*measured.groups.shape):
        sketch = Sketch.merge([measured.sketches[split, part, column] for split in splits])
        found = sketch.quantiles(PROBABILITIES)
        low, high = moments.low[part, column], moments.high[part, column]
        quantiles[:, part, column] = np.clip(found, low, high) if high >= low else found


# -- measuring -------------------------------------------------------------------------------------


def measure(
    store: BaseStore, feature: str, *, workers: int | None = None, on_rows: OnRows | None = None
) -> KeptMoments:
    """Return what is kept of a feature, from the local disk if it is there.

    See :func:`statistics`.
    """
    if workers is not None and workers < 1:
        raise InvalidError(f"workers={workers}: use 1 or more")
    store = store.checked()  # the result is kept
    report = on_rows or (lambda n_rows: None)
    cache = store.decoded_cache
    # A store in memory goes with its process, and so would whoever could ask again.
    if cache is None or store.backend.sidecar_dir is None:
        return _measure(store, feature, workers, report)
    path = cache.statistics_path(store.snapshot, f"{feature}_{POLICY}")
    kept = _load(path, store, feature)
    if kept is None:
        kept = _measure(store, feature, workers, report)
        cache.keep_statistics(path, _arrays(store, feature, kept))
    return kept


@dataclass(frozen=True)
class _Block:
    """What one run of rows has to say: of its videos' moments, and of its splits' distributions."""

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
    keys = [
        (split, part, column)
        for split in store.splits
        for part, column in np.ndindex(*groups.shape)
    ]
    sketches = {key: Sketch.merge([]) for key in keys}
    for blocks in _waves(store, feature, _runs(spec, len(store[feature])), workers):
        # In the order of rows, whoever measured them: sums in another order are other sums.
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
    """Yield measured blocks, several at a time, in order; no more than a wave is in memory."""
    n_threads = workers or len(os.sched_getaffinity(0))
    dask = _dask() if n_threads > 1 or workers is None else None
    store.reader.prepare([feature])  # once, not in each thread
    if dask is None or len(runs) < 2:
        for run in runs:
            yield (_measure_block(store, feature, run),)
        return
    task = dask.delayed(_measure_block, pure=False)
    for first in range(0, len(runs), 4 * n_threads):
        wave = runs[first : first + 4 * n_threads]
        # Threads, for reading and numpy leave Python to others; or the cluster that a client is
        # connected to.
        yield dask.compute(*(task(store, feature, run) for run in wave), num_workers=n_threads)


def _dask() -> Any:
    try:
        import dask
    except ImportError:
        return None
    return dask


def _measure_block(store: BaseStore, feature: str, run: slice) -> _Block:
    spec, index = store.feature(feature), store.index
    groups = Groups.of(spec)
    status = store[fmt.status_name(feature) if spec.axis == "frame" else fmt.state_name(feature)][
        run
    ]
    done = np.flatnonzero(status == State.DONE)
    rows = run.start + done
    owners = index.video_of(rows) if spec.axis == "frame" else rows
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    positions, frames = owners[starts], np.diff(np.append(starts, len(owners)))
    if len(done) == 0:
        return _Block(
            run.stop - run.start, positions, frames, Moments.zeros((0, *groups.shape)), {}
        )
    values = store[feature][run][done].reshape(len(done), -1, len(groups.columns))
    mask = store[f"{feature}_detected"][run][done] if groups.mask_columns else None
    sketches: dict[tuple[str, int, int], Sketch] = {}
    by_part = []
    for number, (part, points) in enumerate(groups.parts.items()):
        # Points last: sums over what lies side by side are several times as fast as over every
        # third value.
        found = np.ascontiguousarray(values[:, points].swapaxes(1, 2), dtype=np.float64)
        present = np.isfinite(found)
        if mask is not None and part in groups.mask_columns:
            present &= mask[:, groups.mask_columns[part], None, None]
        by_part.append(measure_runs(found, present, starts))
        for split, here in _split_runs(index.splits[positions], starts, len(done)):
            for column in range(len(groups.columns)):
                there = found[here, column][present[here, column]]
                more = Sketch.of(there)
                key = (split, number, column)
                sketches[key] = Sketch.merge([sketches[key], more]) if key in sketches else more
    return _Block(run.stop - run.start, positions, frames, Moments.stack(by_part), sketches)


def _split_runs(
    splits: NDArray[np.object_], starts: NDArray[np.int64], n_rows: int
) -> Iterator[tuple[str, slice]]:
    """Yield runs of rows that belong to one split."""
    names = splits.tolist()
    changes = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
    bounds = np.append(starts, n_rows)
    for first, stop in pairwise(changes):
        yield names[first], slice(int(bounds[first]), int(bounds[stop]))


# -- keeping ---------------------------------------------------------------------------------------


def _arrays(store: BaseStore, feature: str, kept: KeptMoments) -> dict[str, NDArray[Any]]:
    """Return all that is kept as arrays of numbers and text."""
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


def _about(store: BaseStore, feature: str, groups: Groups) -> dict[str, Any]:
    """Return what a file has to say of itself to be read: files may change places."""
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
    """Return what was kept.

    None if there is nothing, or nothing that can be read, for this feature.
    """
    groups = Groups.of(store.feature(feature))
    wanted = _about(store, feature, groups)
    try:
        # Opened here: numpy leaves a file open that turns out to be no archive.
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
    except Exception:  # zip, numpy and JSON each have several errors for a file that is damaged
        return None
    fits = moments.count.shape == (len(store.index), *groups.shape) and len(sketches) == len(
        store.splits
    ) * np.prod(groups.shape)
    with suppress(OSError):
        os.utime(path)  # what was used longest ago goes first
    return KeptMoments(groups, moments, frames, sketches) if fits else None
