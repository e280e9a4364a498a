"""Workloads, and how they are measured: all subjects take turns on the same rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np

from kpstore.bench.subjects import Rows, Subject
from kpstore.schema.index import VideoIndex

T = TypeVar("T")

BATCH = 256
CLIPS, CLIP_FRAMES = 32, 64
SCAN_ROWS = 1024


@dataclass(frozen=True)
class BenchSettings:
    """How much to measure.

    Parameters
    ----------
    runs : how often each subject does each workload.
    seconds : longest time of a workload and run.
    seed : random seed for the rows to read.
    """

    runs: int = 5
    seconds: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """One measurement over several runs.

    Parameters
    ----------
    median, lowest, highest : over the runs, in ``unit``.
    """

    subject: str
    workload: str
    unit: str
    median: float
    lowest: float
    highest: float

    @property
    def higher_is_better(self) -> bool:
        """Whether this is a rate and not a time."""
        return self.unit != "ms"


class Turn(NamedTuple):
    """One subject's turn at a workload.

    Parameters
    ----------
    seconds : longest time to measure.
    rng : equal for all subjects of a run, so that all of them read the same rows.
    """

    subject: Subject
    seconds: float
    rng: np.random.Generator


@dataclass(frozen=True)
class Workload:
    """One way of reading.

    Parameters
    ----------
    units : units of the figures, by name.
    run : measures one turn, and returns a value for each figure, in the order of ``units``.
    """

    units: dict[str, str]
    run: Callable[[Turn], Sequence[float]]


def measure(
    subjects: Sequence[Subject],
    workloads: Sequence[Workload],
    settings: BenchSettings,
    on_step: Callable[[str], None] = lambda step: None,
) -> Iterator[Figure]:
    """Yield figures, workload by workload; in each run all subjects read the same rows.

    Parameters
    ----------
    on_step : called with the name of the next measurement.
    """
    for workload in workloads:
        values: dict[tuple[str, str], list[float]] = {}
        for run in range(settings.runs):
            for subject in subjects:
                on_step(f"{subject.name}: {next(iter(workload.units))}")
                rng = np.random.default_rng((settings.seed, run))
                found = workload.run(Turn(subject, settings.seconds, rng))
                for name, value in zip(workload.units, found, strict=True):
                    values.setdefault((subject.name, name), []).append(value)
        for (subject_name, name), seen in values.items():
            unit = workload.units[name]
            yield Figure(subject_name, name, unit, statistics.median(seen), min(seen), max(seen))


def workloads_for(index: VideoIndex, rows: Rows) -> list[Workload]:
    """Return the workloads for the first rows of an array.

    Parameters
    ----------
    index : the videos that the rows belong to.
    rows : (rows, *row shape), the rows to read.
    """
    runs = _Workloads(index, rows)
    found = [
        Workload({"open to the first row": "ms"}, runs.opening),
        Workload({"random frames": "frames/s"}, runs.random_frames),
        Workload({"clips": "frames/s"}, runs.clips),
    ]
    if len(runs.whole):
        found.append(Workload({"one video, median": "ms", "one video, 99 %": "ms"}, runs.videos))
    if len(rows) >= 2 * SCAN_ROWS:
        found.append(Workload({"scan": "GB/s"}, runs.scan))
    return [*found, Workload({"shuffled epoch": "frames/s"}, runs.epoch)]


class _Workloads:
    """Reads the same rows of any subject."""

    def __init__(self, index: VideoIndex, rows: Rows) -> None:
        self._index, self._n_rows, self._like = index, len(rows), rows
        self.whole = np.flatnonzero((index.n_frames > 0) & (index.offsets[1:] <= len(rows)))

    def _buffer(self, *shape: int) -> Rows:
        return np.zeros((*shape, *self._like.shape[1:]), dtype=self._like.dtype)

    def opening(self, turn: Turn) -> list[float]:
        row, out = int(turn.rng.integers(self._n_rows)), self._buffer(1)
        began = time.perf_counter()
        turn.subject.reopen()
        turn.subject.read(row, row + 1, out)
        return [(time.perf_counter() - began) * 1e3]

    def random_frames(self, turn: Turn) -> list[float]:
        out = self._buffer(BATCH)
        parts = (turn.rng.integers(self._n_rows, size=BATCH) for _ in count())
        rate = _rate(lambda rows: turn.subject.gather(rows, out), parts, turn.seconds)
        return [rate * BATCH]

    def clips(self, turn: Turn) -> list[float]:
        length = min(CLIP_FRAMES, self._n_rows)
        out = self._buffer(CLIPS, length)
        parts = (turn.rng.integers(self._n_rows - length + 1, size=CLIPS) for _ in count())
        rate = _rate(lambda starts: turn.subject.clips(starts, length, out), parts, turn.seconds)
        return [rate * CLIPS * length]

    def videos(self, turn: Turn) -> list[float]:
        out = self._buffer(int(self._index.n_frames[self.whole].max()))
        times: list[float] = []
        ends = time.perf_counter() + turn.seconds
        while not times or (time.perf_counter() < ends and len(times) < 5000):
            position = int(turn.rng.choice(self.whole))
            began = time.perf_counter()
            turn.subject.video(self._index, position, out)
            times.append((time.perf_counter() - began) * 1e3)
        return [float(np.median(times)), float(np.quantile(times, 0.99))]

    def scan(self, turn: Turn) -> list[float]:
        out = self._buffer(SCAN_ROWS)
        starts = iter(range(0, self._n_rows - SCAN_ROWS + 1, SCAN_ROWS))
        rate = _rate(lambda at: turn.subject.read(at, at + SCAN_ROWS, out), starts, turn.seconds)
        return [rate * out.nbytes / 1e9]

    def epoch(self, turn: Turn) -> list[float]:
        seen, began = 0, time.perf_counter()
        for batch in turn.subject.epoch(BATCH, turn.rng):
            seen += len(batch)
            if time.perf_counter() - began > 3 * turn.seconds:
                break
        return [seen / (time.perf_counter() - began)]


def _rate(work: Callable[[T], None], parts: Iterator[T], seconds: float) -> float:
    """Return how many parts are done per second, after a first one that does not count."""
    work(next(parts))
    n_done, began = 0, time.perf_counter()
    ends = began + seconds
    for part in parts:
        work(part)
        n_done += 1
        if time.perf_counter() > ends:
            break
    return n_done / (time.perf_counter() - began) if n_done else float("nan")
