"""How fast an lz4 store reads without a cache, beside others that hold the same rows under lz4.

``python -m benchmarks.bench_compressed [--scale 0.25] [--runs 9] [--location STORE]``

Needs ``tensorstore`` and ``hdf5plugin``. Keypoints move (:mod:`benchmarks.motion`), so that nothing
repeats; with ``--location``, those of a store of your own. Everything is checked before it is
measured, pages are in memory, and all subjects read the same rows in turn in one process.

- *random frames*: 256 rows. *clips*: 32 runs of 64 frames, as ``ClipView`` reads them.
  TensorStore's blocks have as many rows as kpstore's strips.
- *one video*: by its id, the median and the slowest in a hundred.
- *shuffled epoch*: the second and later ones of ``kpstore.loader``, beside a simple loader that
  mixes blocks of what it reads.

*Decoder* is what no reader of these blocks can do without: they are in memory, encoded as in the
store, and one thread decodes those that hold the rows, and copies the rows; *decoder, threads* has
a thread for each core, as kpstore has, which is the least by the clock.

A ratio above 1 says how many times as fast kpstore is: by the clock, and in CPU time of all
threads, which says more where the machine has other work. Medians of ratios within a run.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

import kpstore
from benchmarks import record
from benchmarks.bench_read import FEATURE, make_store
from benchmarks.cases import rotated, timed
from kpstore.backends.icechunk_strips import rows_per_strip
from kpstore.bench.measure import BATCH, CLIP_FRAMES, CLIPS, SCAN_ROWS
from kpstore.bench.peers import PeerSubject
from kpstore.bench.subjects import KpstoreSubject, MemorySubject, Subject
from kpstore.machine import usable_cores
from kpstore.schema.index import VideoIndex

OURS, PEERS = "kpstore", ("tensorstore-lz4", "h5py-lz4")
BATCHES, VIDEOS = 12, 200
_THREADS = (1, max(2, min(8, usable_cores())))
_WARM = 4
"""Batches that are not counted: memory is touched for the first time."""
_Times = list[tuple[float, float]]
"""Of each call, by the clock and in CPU time, in seconds."""


def _times(calls: Sequence[Callable[[], object]]) -> _Times:
    return [timed(call) for call in calls]


class _Decoder(Subject):
    """Blocks of rows under lz4 in memory, decoded whenever they are read.

    Parameters
    ----------
    threads : number of threads that decode.
    """

    how = "blocks in memory, decoded"

    def __init__(self, values: NDArray[np.float32], block_rows: int, threads: int = 1) -> None:
        super().__init__(len(values), values)
        self.name = "decoder" if threads == 1 else "decoder, threads"
        self._rows, self._threads = block_rows, threads
        self._pool = ThreadPoolExecutor(threads)
        self._blocks = [
            numcodecs.blosc.compress(
                np.ascontiguousarray(values[start : start + block_rows]),
                b"lz4",
                5,
                numcodecs.blosc.SHUFFLE,
            )
            for start in range(0, len(values), block_rows)
        ]
        self._decoded = np.zeros((0, block_rows, *values.shape[1:]), dtype=values.dtype)

    def reopen(self) -> None:
        """Do nothing: there is nothing to open."""

    def _decode(self, numbers: list[int]) -> NDArray[np.float32]:
        if len(numbers) > len(self._decoded):
            self._decoded = np.zeros((len(numbers), *self._decoded.shape[1:]), np.float32)
        places = list(enumerate(numbers))
        if self._threads == 1:
            self._decode_some(places)
        else:
            parts = [places[part :: self._threads] for part in range(self._threads)]
            wait([self._pool.submit(self._decode_some, part) for part in parts])
        return self._decoded.reshape(-1, *self._decoded.shape[2:])

    def _decode_some(self, places: list[tuple[int, int]]) -> None:
        for place, number in places:
            n_rows = min(self._rows, self.n_rows - number * self._rows)
            numcodecs.blosc.decompress(self._blocks[number], self._decoded[place, :n_rows])

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Decode each block once, and gather by numpy."""
        numbers, turn = np.unique(rows // self._rows, return_inverse=True)
        values = self._decode(numbers.tolist())
        np.take(values, turn * self._rows + rows % self._rows, axis=0, out=out, mode="clip")

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode blocks, and copy."""
        first = start // self._rows
        values = self._decode(list(range(first, -(-stop // self._rows))))
        out[...] = values[start - first * self._rows : stop - first * self._rows]

    clips = Subject.clips_at_once


class _Reads:
    """The same reads of any subject.

    Parameters
    ----------
    index : the videos.
    n_rows : how many rows there are.
    row_shape : of each.
    """

    def __init__(self, index: VideoIndex, n_rows: int, row_shape: tuple[int, ...]) -> None:
        self._index, self._n_rows = index, n_rows
        longest = int(index.n_frames.max())
        self._batch, self._clips, self._video, self._scan = (
            np.zeros((*rows, *row_shape), dtype=np.float32)
            for rows in ((BATCH,), (CLIPS, CLIP_FRAMES), (longest,), (SCAN_ROWS,))
        )

    def of(self, subject: Subject, seed: int) -> dict[str, _Times]:
        """Return the times of all reads, in a subject that has read everything once."""
        subject.reopen()
        for start in range(0, self._n_rows, SCAN_ROWS):
            stop = min(start + SCAN_ROWS, self._n_rows)
            subject.read(start, stop, self._scan[: stop - start])
        rng = np.random.default_rng(seed)
        rows = [rng.integers(self._n_rows, size=BATCH) for _ in range(BATCHES)]
        last = self._n_rows - CLIP_FRAMES
        starts = [rng.integers(last, size=CLIPS) for _ in range(BATCHES)]
        videos = rng.integers(len(self._index), size=VIDEOS).tolist()
        return {
            "random frames": _times([lambda r=r: subject.gather(r, self._batch) for r in rows]),  # type: ignore[misc]
            "clips": _times(
                [lambda s=s: subject.clips(s, CLIP_FRAMES, self._clips) for s in starts]  # type: ignore[misc]
            ),
            "one video": _times(
                [lambda v=v: subject.video(self._index, v, self._video) for v in videos]  # type: ignore[misc]
            ),
        }


def _summary(times: dict[str, _Times], which: int) -> dict[str, float]:
    """Return seconds by workload, by the clock (0) or in CPU time (1)."""
    seconds = {name: [both[which] for both in found] for name, found in times.items()}
    return {
        "random frames": statistics.fmean(seconds["random frames"][_WARM:]),
        "clips": statistics.fmean(seconds["clips"][_WARM:]),
        "one video, median": float(np.median(seconds["one video"])),
        "one video, 99 %": float(np.quantile(seconds["one video"], 0.99)),
    }


def _epoch(subject: Subject, seed: int) -> list[float]:
    """Return the times of an epoch, by the clock and in CPU time, in seconds."""
    rng = np.random.default_rng(seed)
    return list(timed(lambda: sum(map(len, subject.epoch(BATCH, rng)))))


def run(location: str, *, runs: int, folder: Path) -> dict[str, Any]:
    """Measure; return medians in ms by clock, workload and subject, and of our ratios to others."""
    store = kpstore.open(location, cache="off")
    values = store.reader.read_slice(FEATURE, 0, len(store[FEATURE]))
    subjects: list[Subject] = [
        KpstoreSubject(location, store.snapshot, FEATURE, len(values), cache="off", name=OURS),
        MemorySubject(values),
        *(_Decoder(values, rows_per_strip(store.session.meta(FEATURE)), n) for n in _THREADS),
        *(PeerSubject(name, values, folder) for name in PEERS),
    ]
    reads = _Reads(store.index, len(values), values.shape[1:])
    found: dict[str, Any] = {}
    seconds: dict[str, list[dict[str, dict[str, float]]]] = defaultdict(list)
    for seed in range(runs):
        times = {one.name: reads.of(one, seed) for one in rotated(subjects, seed)}
        for which, clock in enumerate(("wall", "cpu")):
            seconds[clock].append({name: _summary(one, which) for name, one in times.items()})
    for subject in subjects:
        _epoch(subject, runs)  # memory is touched for the first time
    for seed in range(runs):
        epochs = {one.name: _epoch(one, seed) for one in rotated(subjects, seed)}
        for which, measured in enumerate(seconds.values()):
            for name, both in epochs.items():
                measured[seed][name]["shuffled epoch"] = both[which]
    for clock, measured in seconds.items():
        found[clock] = {}
        for work in measured[0][OURS]:
            found[clock][work] = {
                subject.name: {
                    "ms": statistics.median(1e3 * one[subject.name][work] for one in measured),
                    "times_as_fast": statistics.median(
                        one[subject.name][work] / one[OURS][work] for one in measured
                    ),
                }
                for subject in subjects
            }
    return found


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of times for each clock, and one of ratios."""
    subjects = list(next(iter(found["cpu"].values())))
    made: dict[str, record.Table] = {}
    for clock, name in (("cpu", "CPU time"), ("wall", "time")):
        made[name] = [
            (f"{name}, ms", *subjects),
            *(
                (work, *(record.short(one["ms"]) for one in each.values()))
                for work, each in found[clock].items()
            ),
        ]
    ratios = [
        (
            f"{other}: {work}",
            *(record.short(found[clock][work][other]["times_as_fast"]) for clock in found),
        )
        for other in subjects
        if other != OURS
        for work in found["cpu"]
    ]
    made["ratios"] = [("times as fast as", "by the clock", "in CPU time"), *ratios]
    return made


def main() -> None:
    """Parse, run, print tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=0.25, help="share of the 947,756 frames")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--location", help="a store of your own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-compressed-") as name:
        folder = Path(name)
        location = args.location or make_store(folder, "lz4", scale=args.scale, lists=())
        found = run(location, runs=args.runs, folder=folder)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
