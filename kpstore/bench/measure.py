"""Workloads, and how they are measured: all subjects take turns on the same rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.bench.subjects import Subject
from kpstore.schema.index import VideoIndex

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


@dataclass(frozen=True)
class Workload:
    """One way of reading.

    Parameters
    ----------
    units : of what :attr:`run` returns, by the name of the figure.
    run : does it once, and returns a value for each figure.
    """

    units: dict[str, str]
    run: Callable[[Subject, BenchSettings, np.random.Generator], dict[str, float]]


def measure(
    subjects: Sequence[Subject],
    workloads: Sequence[Workload],
    settings: BenchSettings,
    on_step: Callable[[str], None] | None = None,
) -> Iterator[Figure]:
    """Yield figures, workload by workload; in each run all subjects read the same rows.

    Parameters
    ----------
    on_step : called with what is measured next.
    """
    for workload in workloads:
        values: dict[tuple[str, str], list[float]] = {}
        for run in range(settings.runs):
            for subject in subjects:
                if on_step is not None:
                    on_step(f"{subject.name}: {next(iter(workload.units))}")
                found = workload.run(subject, settings, np.random.default_rng((settings.seed, run)))
                for name, value in found.items():
                    values.setdefault((subject.name, name), []).append(value)
        for (subject_name, name), seen in values.items():
            unit = workload.units[name]
            yield Figure(subject_name, name, unit, statistics.median(seen), min(seen), max(seen))


def workloads_for(
    index: VideoIndex, n_rows: int, row_shape: tuple[int, ...], dtype: np.dtype[Any]
) -> list[Workload]:
    """Return the workloads for arrays of ``n_rows`` rows of videos."""
    runs = _Workloads(index, n_rows, row_shape, dtype)
    found = [
        Workload({"open to the first row": "ms"}, runs.opening),
        Workload({"random frames": "frames/s"}, runs.random_frames),
        Workload({"clips": "frames/s"}, runs.clips),
    ]
    if len(runs.whole):
        found.append(Workload({"one video, median": "ms", "one video, 99 %": "ms"}, runs.videos))
    if n_rows >= 2 * SCAN_ROWS:
        found.append(Workload({"scan": "GB/s"}, runs.scan))
    return [*found, Workload({"shuffled epoch": "frames/s"}, runs.epoch)]


class _Workloads:
    """Reads the same rows of any subject; each method returns figures by name."""

    def __init__(
        self, index: VideoIndex, n_rows: int, row_shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._index, self._n_rows, self._row_shape, self._dtype = index, n_rows, row_shape, dtype
        self.whole = np.flatnonzero((index.n_frames > 0) & (index.offsets[1:] <= n_rows))

    def _buffer(self, *shape: int) -> NDArray[Any]:
        return np.zeros((*shape, *self._row_shape), dtype=self._dtype)

    def opening(
        self, subject: Subject, settings: BenchSettings, rng: np.random.Generator
    ) -> dict[str, float]:
        row, out = int(rng.integers(self._n_rows)), self._buffer(1)
        began = time.perf_counter()
        subject.reopen()
        subject.read(row, row + 1, out)
        return {"open to the first row": (time.perf_counter() - began) * 1e3}

    def random_frames(
        self, subject: Subject, settings: BenchSettings, rng: np.random.Generator
    ) -> dict[str, float]:
        out = self._buffer(BATCH)
        parts = (rng.integers(self._n_rows, size=BATCH) for _ in range(1_000_000))
        return {
            "random frames": BATCH
            * _rate(lambda rows: subject.gather(rows, out), parts, settings.seconds)
        }

    def clips(
        self, subject: Subject, settings: BenchSettings, rng: np.random.Generator
    ) -> dict[str, float]:
        length = min(CLIP_FRAMES, self._n_rows)
        out = self._buffer(CLIPS, length)
        parts = (rng.integers(self._n_rows - length + 1, size=CLIPS) for _ in range(1_000_000))
        per_part = CLIPS * length
        return {
            "clips": per_part
            * _rate(lambda rows: subject.clips(rows, length, out), parts, settings.seconds)
        }

    def videos(
        self, subject: Subject, settings: BenchSettings, rng: np.random.Generator
    ) -> dict[str, float]:
        out = self._buffer(int(self._index.n_frames[self.whole].max()))
        times: list[float] = []
        ends = time.perf_counter() + settings.seconds
        while not times or (time.perf_counter() < ends and len(times) < 5000):
            position = int(rng.choice(self.whole))
            began = time.perf_counter()
            subject.video(self._index, position, out)
            times.append((time.perf_counter() - began) * 1e3)
        return {
            "one video, median": float(np.median(times)),
            "one video, 99 %": float(np.quantile(times, 0.99)),
        }

    def scan(
        self, subject: Subject, settings: BenchSettings, rng: np.random.Generator
    ) -> dict[str, float]:
        out = self._buffer(SCAN_ROWS)
        starts = iter(range(0, self._n_rows - SCAN_ROWS + 1, SCAN_ROWS))
        rate = _rate(lambda at: subject.read(at, at + SCAN_ROWS, out), starts, settings.seconds)
        return {"scan": rate * SCAN_ROWS * self._buffer(1).nbytes / 1e9}

    def epoch(
        self, subject: Subject, settings: BenchSettings, rng: np.random.Generator
    ) -> dict[str, float]:
        seen, began = 0, time.perf_counter()
        for batch in subject.epoch(BATCH, rng):
            seen += len(batch)
            if time.perf_counter() - began > 3 * settings.seconds:
                break
        return {"shuffled epoch": seen / (time.perf_counter() - began)}


def _rate(work: Callable[[Any], None], parts: Iterator[Any], seconds: float) -> float:
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
