"""Several features at once, and wide ones: random rows and shuffled epochs, beside memory.

``python -m benchmarks.bench_features [--frames 40000] [--runs 7]``

Needs ``tensorstore`` and ``hdf5plugin``. No values repeat: keypoints move
(:mod:`benchmarks.motion`), what stands for outputs of networks is normal noise. Three stores:

- *several features*: keypoints (143 x 3 float32), 768 numbers in float16 as of DINOv2, and 512 in
  float32 as of lips, all read together.
- *float16*: the 768 numbers alone. *float32*: as many in float32, raw and under lz4.

Without a cache, pages in memory, everything checked before it is measured. All read the same random
rows, in turn in one process; the first turn is not counted, and neither are the first batches of a
turn, before which others were in the processor's memory.

- *256 rows*: ``view.batch`` of random rows, beside ``numpy.take`` of each feature into new memory,
  h5py (ascending rows, each once) and TensorStore, which is asked for all features before the first
  is waited for.
- *epoch*: shuffled, in batches of 256, by a ``kpstore.loader`` that is kept, beside a simple loader
  that mixes 32 blocks of 1,024 rows of memory, h5py or TensorStore. The latter is asked for the
  next blocks while batches are made of the last.

Of decoded rows, kpstore keeps 64 MiB for random reads, and a loader 256 MiB, which are all of this
store up to 87,000 frames; with a *small pool* it keeps 32.

Figures are medians. *Of memory* is the time of memory in the same turn, divided by that of the
subject: above 1 it is faster.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import kpstore
from benchmarks import record
from benchmarks.bench_scripts import WIDE, make_store, write_videos
from benchmarks.cases import made_up_videos, rotated, timed
from benchmarks.motion import Motion
from kpstore.bench.measure import BATCH
from kpstore.bench.peers import PeerSubject
from kpstore.bench.subjects import BLOCK_ROWS, POOL_BLOCKS, Ints, MemorySubject, Rows, Subject
from kpstore.schema.feature import Compression, FeatureSpec
from kpstore.schema.layout import keypoints_spec
from kpstore.schema.lips import lip_spec

_HALF, _FULL = (FeatureSpec("dinov2", (WIDE,), ("feature",), f"float{n}") for n in (16, 32))
STORES: dict[str, tuple[tuple[FeatureSpec, ...], tuple[Compression, ...]]] = {
    "several features": ((keypoints_spec(), _HALF, lip_spec()), ("raw",)),
    "float16": ((_HALF,), ("raw",)),
    "float32": ((_FULL,), ("raw", "lz4")),
}
"""Features and codecs of each store."""
MEMORY, WORKLOADS = "memory", ("256 rows", "epoch")
_BATCHES, _WARM, _SMALL_MIB = 20, 4, 32
_Times = tuple[float, float]
"""Seconds by the clock, and in CPU time of all threads."""


@dataclass(frozen=True)
class Way:
    """One way to read all features together.

    Parameters
    ----------
    batch : returns new arrays, one for each feature, of the rows asked for.
    epoch : returns the batches of an epoch that is shuffled by a seed.
    """

    batch: Callable[[Ints], Sequence[Rows]]
    epoch: Callable[[int], Iterable[Any]]


class Ahead(PeerSubject):
    """TensorStore, which is asked for blocks before they are needed."""

    def ask(self, rows: Ints | slice) -> Any:
        """Return a promise of rows."""
        return self._opened[rows].read()

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Rows]:
        """Return batches in the order of other subjects; the first blocks are asked for now."""
        starts = rng.permutation(np.arange(0, self.n_rows, BLOCK_ROWS))
        pools = np.split(starts, range(POOL_BLOCKS, len(starts), POOL_BLOCKS))
        return self._mixed(self._blocks(pools[0]), pools[1:], batch_size, rng)

    def _blocks(self, starts: Ints) -> list[Any]:
        return [
            self.ask(slice(start, min(start + BLOCK_ROWS, self.n_rows)))
            for start in starts.tolist()
        ]

    def _mixed(
        self, coming: list[Any], later: list[Ints], batch_size: int, rng: np.random.Generator
    ) -> Iterator[Rows]:
        for starts in (*later, np.empty(0, dtype=np.int64)):
            values = np.concatenate([block.result() for block in coming])
            coming = self._blocks(starts)
            order = rng.permutation(len(values))
            for at in range(0, len(values), batch_size):
                yield values[order[at : at + batch_size]]


def _gathered(subject: Subject, rows: Ints, like: Rows) -> Rows:
    out = np.empty((len(rows), *like.shape[1:]), dtype=like.dtype)
    subject.gather(rows, out)
    return out


def _together(subjects: Sequence[Subject]) -> Callable[[int], Iterable[Any]]:
    """Return what makes epochs of several subjects: the same rows of all, as seeds are equal."""
    return lambda seed: zip(
        *[subject.epoch(BATCH, np.random.default_rng(seed)) for subject in subjects], strict=True
    )


def _peers(values: Sequence[Rows], folder: Path, ending: str) -> dict[str, Way]:
    places = [folder / str(number) for number in range(len(values))]
    for place in places:
        place.mkdir(exist_ok=True)
    each = list(zip(values, places, strict=True))
    h5py = [PeerSubject(f"h5py{ending}", *one) for one in each]
    tensorstore = [Ahead(f"tensorstore{ending}", *one) for one in each]
    return {
        f"h5py{ending}": Way(
            lambda rows: [
                _gathered(subject, rows, like) for subject, like in zip(h5py, values, strict=True)
            ],
            _together(h5py),
        ),
        f"tensorstore{ending}": Way(
            lambda rows: [
                asked.result() for asked in [subject.ask(rows) for subject in tensorstore]
            ],
            _together(tensorstore),
        ),
    }


def _ours(location: str, names: list[str], pool_mib: int = 256) -> Way:
    # Each with a store of its own: a loader brings other memory for decoded rows.
    view, loaded = (kpstore.open(location, cache="off").frames(names) for _ in range(2))
    loader = kpstore.loader(loaded, BATCH, pool_mib=pool_mib)
    for part in np.array_split(np.arange(len(view)), -(-len(view) // BLOCK_ROWS)):
        view.batch(part)  # what is read for the first time is checked

    def batch(rows: Ints) -> list[Rows]:
        found = view.batch(rows)
        return [found[name] for name in names]

    return Way(batch, lambda seed: loader)


def _ways(
    specs: Sequence[FeatureSpec], codecs: Sequence[Compression], n_frames: int, folder: Path
) -> dict[str, Way]:
    """Make stores and their copies; return how they are read."""
    rng = np.random.default_rng(0)
    names, values = [spec.name for spec in specs], [_values(spec, n_frames, rng) for spec in specs]
    memory = [MemorySubject(each) for each in values]
    found = {
        MEMORY: Way(
            lambda rows: [np.take(each, rows, axis=0) for each in values], _together(memory)
        )
    }
    videos = made_up_videos(n_frames, rng)
    for codec in codecs:
        coded = [replace(spec, compression=codec) for spec in specs]
        store = make_store(folder / f"{codec}.kps", videos, coded[0])
        with store.transaction("further features") as tx:
            for spec in coded[1:]:
                tx.add_feature(spec, {"extractor": "noise"})
        for name, each in zip(names, values, strict=True):
            write_videos(store, name, each)
        found[f"kpstore, {codec}"] = _ours(store.location, names)
        if codec != "raw":
            found[f"kpstore, {codec}, small pool"] = _ours(store.location, names, _SMALL_MIB)
        found |= _peers(values, folder, "" if codec == "raw" else f"-{codec}")
    expected = found[MEMORY].batch(rows := rng.integers(n_frames, size=BATCH))
    for way in found.values():
        np.testing.assert_equal(way.batch(rows), expected)
    return found


def _values(spec: FeatureSpec, n_frames: int, rng: np.random.Generator) -> Rows:
    if spec.name == keypoints_spec().name:
        return Motion().rows(n_frames).values
    return rng.standard_normal((n_frames, *spec.shape), dtype=np.float32).astype(spec.dtype)


def _measure(ways: dict[str, Way], n_frames: int, runs: int) -> dict[str, Any]:
    """Return figures by way and workload."""
    turns: list[dict[str, dict[str, _Times]]] = []
    for seed in range(1 + runs):
        rng = np.random.default_rng(seed)
        parts = [rng.integers(n_frames, size=BATCH) for _ in range(_BATCHES)]
        # All batches first: epochs leave little of the values in the processor's memory.
        order = rotated(list(ways), seed)
        batches = {name: _batch(ways[name], parts) for name in order}
        epochs = {name: _epoch(ways[name], seed) for name in order}
        turns.append(dict(zip(WORKLOADS, (batches, epochs), strict=True)))
    return {
        name: {
            work: _figures([(turn[work][name], turn[work][MEMORY]) for turn in turns[1:]])
            for work in WORKLOADS
        }
        for name in ways
    }


def _batch(way: Way, parts: list[Ints]) -> _Times:
    took = [timed(lambda r=rows: way.batch(r)) for rows in parts]  # type: ignore[misc]
    wall, cpu = np.median(took[_WARM:], axis=0).tolist()
    return wall, cpu


def _epoch(way: Way, seed: int) -> _Times:
    return timed(lambda: deque(way.epoch(seed), maxlen=0))


def _figures(pairs: list[tuple[_Times, _Times]]) -> dict[str, float]:
    """Return medians of milliseconds, and of the ratios to memory; see the heads of tables."""
    own, memory = np.array(pairs).swapaxes(0, 1)  # each (turns, clocks)
    ms, of_memory = np.median(1e3 * own, axis=0), np.median(memory / own, axis=0)
    figures = dict(zip(("ms", "cpu_ms"), ms.tolist(), strict=True))
    return figures | dict(zip(("of_memory", "of_memory_cpu"), of_memory.tolist(), strict=True))


def run(*, frames: int, runs: int) -> dict[str, Any]:
    """Make one store after the other, and measure."""
    found: dict[str, Any] = {}
    for name, (specs, codecs) in STORES.items():
        with tempfile.TemporaryDirectory(prefix="kpstore-bench-features-") as folder:
            ways = _ways(specs, codecs, frames, Path(folder))
            found[name] = _measure(ways, frames, runs)
    return found


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table for each store."""
    shown = {"ms": "ms", "of_memory": "of memory", "of_memory_cpu": "of memory, CPU time"}
    return {
        name: [
            ("", *(f"{work}, {head}" for work in WORKLOADS for head in shown.values())),
            *(
                (way, *(record.short(one[key]) for one in works.values() for key in shown))
                for way, works in ways.items()
            ),
        ]
        for name, ways in found.items()
    }


def main() -> None:
    """Parse, run, print tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    found = run(frames=args.frames, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
