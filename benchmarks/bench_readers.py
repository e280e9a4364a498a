"""Several processes that read random rows of one store at once, beside other formats.

``python -m benchmarks.bench_readers [--scale 0.25] [--runs 5] [--batches 40]``

Needs ``tensorstore`` and ``hdf5plugin``. Keypoints move (:mod:`benchmarks.motion`), in a raw store
and one under lz4, both without a cache, and in copies of them; pages are in memory. Four processes
open all of them and read everything once, which kpstore checks. Then 1, 2 and 4 of them read at
once, one format after the other: they start together, and each reads a fixed number of batches of
256 random rows of its own (of what is mapped, the raw store and npy, a hundred times as many).

*Frames/s* are the sum over the processes, *scaling* is that sum divided by the speed of one process
in the same run. More processes than cores share the cores. Figures are medians; the first run is
not counted.

*Threads*: what is mapped, and h5py, are read by the thread that asks. Others are held to one thread
in each process, and also measured with their own. (kpstore has no setting for that: the benchmark
changes the number inside.)
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

import kpstore
from benchmarks import record
from benchmarks.bench_read import FEATURE, make_store
from benchmarks.cases import timed
from kpstore.bench.measure import BATCH
from kpstore.bench.peers import PEERS
from kpstore.machine import usable_cores
from kpstore.schema.layout import keypoints_spec
from kpstore.store import arena

PROCESSES = (1, 2, 4)
ONE, OWN = "one", "its own"
_TIMES_MAPPED = 100
_ONE_THREAD = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
"""What TensorStore's threads are limited by."""

_OWN_THREADS = arena._N_THREADS, numcodecs.blosc.get_nthreads()

_Gather = Callable[[NDArray[np.int64], NDArray[Any]], object]
_Found = dict[str, dict[int, list[tuple[float, float]]]]
"""By reader and number of processes, of each run: frames per second, and CPU seconds of a frame."""


@dataclass(frozen=True)
class Reader:
    """One way to read random rows.

    Parameters
    ----------
    threads : how many decode and copy.
    open : opens what is in a folder.
    beside : names of others of the same compression that it is compared with.
    is_mapped : whether it copies rows from mapped files.
    """

    threads: str
    open: Callable[[Path], _Gather]
    beside: tuple[str, ...] = ()
    is_mapped: bool = False


def _kpstore(codec: str) -> Callable[[Path], _Gather]:
    def opened(folder: Path) -> _Gather:
        store = kpstore.open(folder / f"{codec}.kps", cache="off")
        return lambda rows, out: store.read(FEATURE, rows, out)

    return opened


def _peer(name: str) -> Callable[[Path], _Gather]:
    def opened(folder: Path) -> _Gather:
        values = PEERS[name].open(folder / name)
        return lambda rows, out: PEERS[name].gather(values, rows, out)

    return opened


def _tensorstore(name: str) -> Callable[[Path], _Gather]:
    def opened(folder: Path) -> _Gather:
        import tensorstore

        place = {"driver": "file", "path": str(folder / name)}
        spec = {"driver": "zarr3", "kvstore": place, "context": _ONE_THREAD}
        values = tensorstore.open(spec).result()
        return lambda rows, out: PEERS[name].gather(values, rows, out)

    return opened


COPIES = ("npy", "h5py", "tensorstore", "h5py-lz4", "tensorstore-lz4")
READERS = {
    "kpstore, raw": Reader(ONE, _kpstore("raw"), ("npy", "h5py", "tensorstore"), is_mapped=True),
    "npy": Reader(ONE, _peer("npy"), is_mapped=True),
    "h5py": Reader(ONE, _peer("h5py")),
    "tensorstore": Reader(ONE, _tensorstore("tensorstore")),
    "kpstore, lz4": Reader(ONE, _kpstore("lz4"), ("h5py-lz4", "tensorstore-lz4")),
    "h5py-lz4": Reader(ONE, _peer("h5py-lz4")),
    "tensorstore-lz4": Reader(ONE, _tensorstore("tensorstore-lz4")),
    "kpstore, lz4, threads": Reader(OWN, _kpstore("lz4"), ("tensorstore-lz4, threads",)),
    "tensorstore, threads": Reader(OWN, _peer("tensorstore")),
    "tensorstore-lz4, threads": Reader(OWN, _peer("tensorstore-lz4")),
}


# -- in processes of their own ---------------------------------------------------------------------

_together: Barrier


def _share(barrier: Barrier) -> None:
    global _together
    _together = barrier


def _limit_threads(threads: str) -> None:
    """Limit those that kpstore decodes with, and Blosc; TensorStore's are when it is opened."""
    n_decode, n_blosc = (1, 1) if threads == ONE else _OWN_THREADS
    arena._N_THREADS = n_decode
    numcodecs.blosc.set_nthreads(n_blosc)


def _read(number: int, folder: Path, n_rows: int, runs: int, batches: int) -> _Found:
    """Take part in all turns; measure those in which this process is one of the readers."""
    try:
        gathers = {name: reader.open(folder) for name, reader in READERS.items()}
        for gather in gathers.values():
            _gather_all(gather, np.array_split(np.arange(n_rows), -(-n_rows // BATCH)))
        found: _Found = {name: {n: [] for n in PROCESSES if number < n} for name in READERS}
        for run, (name, reader), n in product(range(1 + runs), READERS.items(), PROCESSES):
            n_batches = batches * (_TIMES_MAPPED if reader.is_mapped else 1)
            rng = np.random.default_rng((run, number))
            parts = list(rng.integers(n_rows, size=(n_batches, BATCH)))
            _limit_threads(reader.threads)
            _together.wait()
            if number < n:
                wall, cpu = _gather_all(gathers[name], parts)
                found[name][n].append((n_batches * BATCH / wall, cpu / (n_batches * BATCH)))
            _together.wait()
        return found
    except BaseException:
        _together.abort()  # the others would wait for ever
        raise


def _gather_all(gather: _Gather, parts: list[NDArray[np.int64]]) -> tuple[float, float]:
    """Return the seconds that it takes, by the clock and in CPU time."""
    out = np.zeros((BATCH, *keypoints_spec().shape), dtype=np.float32)

    def work() -> None:
        for rows in parts:
            gather(rows, out[: len(rows)])

    return timed(work)


# -- measuring -------------------------------------------------------------------------------------


def run(*, scale: float, runs: int, batches: int) -> dict[str, Any]:
    """Make stores and copies, and measure; return figures by reader and number of processes."""
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-readers-") as name:
        folder = Path(name)
        stores = [make_store(folder, codec, scale=scale, lists=()) for codec in ("raw", "lz4")]
        values = kpstore.open(stores[0])[FEATURE][:]
        for copy in COPIES:
            PEERS[copy].write(values, folder / copy)
        # Not fork: threads of libraries would be missing in a child.
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(max(PROCESSES))
        with ProcessPoolExecutor(max(PROCESSES), context, _share, (barrier,)) as pool:
            each = (folder, len(values), runs, batches)
            tasks = [pool.submit(_read, number, *each) for number in range(max(PROCESSES))]
            found = [task.result() for task in tasks]
    turns = {
        name: {n: np.array([one[name][n] for one in found[:n]])[:, 1:] for n in PROCESSES}
        for name in READERS
    }  # each (processes, runs, figures)
    sums = {
        name: {n: one[..., 0].sum(axis=0) for n, one in each.items()}
        for name, each in turns.items()
    }
    return {
        "cores": usable_cores(),
        "frames": len(values),
        "readers": {
            name: {
                "threads": reader.threads,
                "frames_per_s": _medians(sums[name]),
                "scaling": _medians({n: rate / sums[name][1] for n, rate in sums[name].items()}),
                "cpu_us_per_frame": _medians(
                    {n: 1e6 * one[..., 1] for n, one in turns[name].items()}
                ),
                "times_as_fast_as": {
                    other: _medians({n: sums[name][n] / sums[other][n] for n in PROCESSES})
                    for other in reader.beside
                },
            }
            for name, reader in READERS.items()
        },
    }


def _medians(figures: dict[int, NDArray[Any]]) -> dict[str, float]:
    return {str(n): float(np.median(one)) for n, one in figures.items()}


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of speeds, and one of ratios."""
    one, *others = PROCESSES
    speeds: list[tuple[str, ...]] = [
        (
            "",
            "threads",
            *(
                f"{n} at once, 1,000 frames/s" if n > 1 else "1 process, 1,000 frames/s"
                for n in PROCESSES
            ),
            *(f"{n} / {one}" for n in others),
            *(f"CPU µs per frame, {n}" for n in (one, others[-1])),
        )
    ]
    ratios: list[tuple[str, ...]] = [
        ("times as fast as", *(f"{n} process{'es' if n > 1 else ''}" for n in PROCESSES))
    ]
    for name, each in found["readers"].items():
        speeds.append(
            (
                name,
                each["threads"],
                *(record.short(rate / 1e3) for rate in each["frames_per_s"].values()),
                *(record.short(each["scaling"][str(n)]) for n in others),
                *(record.short(each["cpu_us_per_frame"][str(n)]) for n in (one, others[-1])),
            )
        )
        for other, medians in each["times_as_fast_as"].items():
            ratios.append((f"{name} / {other}", *map(record.short, medians.values())))
    return {"speed": speeds, "ratios": ratios}


def main() -> None:
    """Parse, run, print tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=0.25, help="share of the 947,756 frames")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="of 256 rows, of each process")
    args = parser.parse_args()
    found = run(scale=args.scale, runs=args.runs, batches=args.batches)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
