"""Shuffled epochs of a small store, beside a simple loader over memory and over h5py.

``python -m benchmarks.bench_small [--frames 1172] [--runs 30]``

Keypoints that move (:mod:`benchmarks.motion`), as many as in a first try of somebody, where what a
loader does once for each epoch and batch counts. All take batches of 256; each keeps its loader,
and does epochs in turn with the others, in one process.

- *simple loader*: reads blocks of 1,024 rows and mixes them in memory; here over an array in memory
  and over h5py.
- *values[rows]*: NumPy alone, of an array in memory.
- *kpstore.loader* and *DataLoader(view)*, of a raw and an lz4 store without a cache.

Figures are medians. *Of memory* is the time of the simple loader over memory in the same turn,
divided by that of the subject: above 1 it is faster.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import kpstore
from benchmarks import record
from benchmarks.bench_scripts import make_store, write_videos
from benchmarks.cases import made_up_videos, timed
from benchmarks.motion import Motion
from kpstore.bench.measure import BATCH
from kpstore.bench.peers import PeerSubject
from kpstore.bench.subjects import MemorySubject, Rows, TorchSubject
from kpstore.schema.layout import keypoints_spec

CODECS = ("raw", "lz4")
PEERS = ("h5py", "h5py-lz4")
MEMORY = "simple loader over memory"
_WARM = 5
"""Turns that are not counted."""


def _epochs(values: Rows, folder: Path) -> dict[str, Callable[[], Iterable[Any]]]:
    """Return what yields the batches of another epoch, by name."""
    spec, videos = keypoints_spec(), made_up_videos(len(values), np.random.default_rng(0))
    rng = np.random.default_rng(1)
    found: dict[str, Callable[[], Iterable[Any]]] = {}
    for name, subject in (
        (MEMORY, MemorySubject(values)),
        *((f"simple loader over {name}", PeerSubject(name, values, folder)) for name in PEERS),
        ("DataLoader(TensorDataset)", TorchSubject(values)),
    ):
        found[name] = lambda subject=subject: subject.epoch(BATCH, rng)  # type: ignore[misc]
    n_batches = -(-len(values) // BATCH)
    found["values[rows]"] = lambda: (
        values[rows] for rows in np.array_split(rng.permutation(len(values)), n_batches)
    )
    for codec in CODECS:
        store = make_store(folder / f"{codec}.kps", videos, replace(spec, compression=codec))
        write_videos(store, spec.name, values)
        view = kpstore.open(store.location, cache="off").frames(spec.name)
        loader = kpstore.loader(view, BATCH)
        torchs = DataLoader(view, BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
        found[f"kpstore.loader, {codec}"] = lambda loader=loader: loader  # type: ignore[misc]
        found[f"DataLoader(view), {codec}"] = lambda torchs=torchs: torchs  # type: ignore[misc]
    return found


def run(*, frames: int, runs: int) -> dict[str, Any]:
    """Measure; return medians of milliseconds by the clock and in CPU time, and of ratios."""
    values = Motion().rows(frames).values
    took: list[dict[str, tuple[float, float]]] = []
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-small-") as folder:
        epochs = _epochs(values, Path(folder))
        for _ in range(_WARM + runs):
            took.append(
                {name: timed(lambda e=epoch: sum(1 for _ in e())) for name, epoch in epochs.items()}  # type: ignore[misc]
            )
    counted = took[_WARM:]
    return {
        name: {
            "ms": 1e3 * statistics.median(one[name][0] for one in counted),
            "cpu_ms": 1e3 * statistics.median(one[name][1] for one in counted),
            "of_memory": statistics.median(one[MEMORY][0] / one[name][0] for one in counted),
            "of_memory_cpu": statistics.median(one[MEMORY][1] / one[name][1] for one in counted),
        }
        for name in epochs
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of epochs."""
    heads = ("epoch", "ms", "CPU ms", "of memory", "of memory, CPU time")
    rows = [(name, *map(record.short, one.values())) for name, one in found.items()]
    return {"epochs": [heads, *rows]}


def main() -> None:
    """Parse, run, print a table."""
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=1172)
    parser.add_argument("--runs", type=int, default=30, help="epochs of each that are counted")
    args = parser.parse_args()
    found = run(frames=args.frames, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
