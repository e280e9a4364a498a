"""How well the block shuffle mixes, and what the order of many frames costs.

``python -m benchmarks.bench_shuffle [--lengths LIST.csv …] [--most FRAMES] [--plot shuffle.png]``

No store is needed. Mixing is measured by the memory that a shuffle may use, beside a full shuffle:
947,756 frames of keypoints in chunks of 1,024 rows, videos as long as those of PHOENIX-2014-T.

- *distinct*: different videos per batch of 256, over those of a full shuffle.
- *drift*: how much batch means of a value that is the same in a whole video (here: drawn for each)
  follow each other, as the correlation of neighbouring batches. A full shuffle has 0 but for
  chance.
- *order*: milliseconds of CPU time to read the order of one epoch from beginning to end.

The cost of an order is measured for 10,000 frames, ten times as many and so on, up to ``--most``,
in videos of 115 frames and with the default pool, each in a process of its own:

- *first batch*, *from the middle*: milliseconds until the samples of the first batch of an epoch
  are known, and of the first one after a state from its middle was loaded.
- *a sample*: nanoseconds for each, in batches of 256 one after the other.
- *memory*: the most MiB that this takes, of Python and NumPy.
"""

from __future__ import annotations

import itertools
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.cases import answer, in_own_process, phoenix_lengths, seconds
from kpstore.backends.base import ArrayMeta
from kpstore.schema.layout import keypoints_spec
from kpstore.views.base import Batch
from kpstore.views.batch_sampler import BatchSampler
from kpstore.views.frames import RowView
from kpstore.views.order import Blocks, FullShuffle, Order, block_shuffle
from kpstore.views.pool import Pool, plan_pool
from kpstore.views.runs import Runs

BATCH, LEAST = 256, 10_000
_VIDEO, _READ = 115, 4000
"""Frames of a video; batches that are read one after the other."""


def quality(
    order: NDArray[np.int64], video_of: NDArray[np.int64], value_of: NDArray[np.float64]
) -> dict[str, float]:
    """Return mean distinct videos per batch, and the correlation of neighbouring batches' means."""
    n = len(order) // BATCH * BATCH
    videos = video_of[order[:n]].reshape(-1, BATCH)
    distinct = (np.diff(np.sort(videos, axis=1), axis=1) > 0).sum(axis=1) + 1
    means = value_of[videos].mean(axis=1)
    edge = len(distinct) // 50
    return {
        "distinct": float(distinct.mean()),
        "distinct_at_the_edges": float(np.concatenate([distinct[:edge], distinct[-edge:]]).mean()),
        "drift": float(np.corrcoef(means[1:], means[:-1])[0, 1]),
    }


def run(*, lists: list[Path], scale: float = 1.0, epochs: int = 8) -> dict[str, Any]:
    """Measure pools of several sizes."""
    lengths = np.concatenate(list(phoenix_lengths(lists, scale=scale).values()))
    video_of = np.repeat(np.arange(len(lengths)), lengths)
    values = np.random.default_rng(7).normal(size=(epochs, len(lengths)))
    spec = keypoints_spec()
    meta = ArrayMeta(
        (len(video_of), *spec.shape), "float32", spec.chunk_rows, ("frame", "keypoint", "space")
    )
    borders, runs = np.cumsum([0, *lengths]), Runs.up_to(len(video_of))
    orders: list[Order] = [FullShuffle(len(video_of), (epoch,)) for epoch in range(epochs)]
    full = [
        quality(order.at(0, len(order)), video_of, of_video)
        for order, of_video in zip(orders, values, strict=True)
    ]
    base = {name: float(np.mean([epoch[name] for epoch in full])) for name in full[0]}
    rows = []
    for mib in (16, 32, 64, 128, 192, 256, 384, 512):
        pool = plan_pool({"keypoints": meta}, mib * 2**20, long_samples=False)
        blocks = Blocks(runs, pool.block_rows, borders)
        block_shuffle(blocks, pool.window, (99,)).at(0, len(video_of))
        found, times = [], []
        for epoch, of_video in enumerate(values):
            began = time.process_time()
            order = block_shuffle(blocks, pool.window, (epoch,))
            samples = order.at(0, len(order))
            times.append((time.process_time() - began) * 1e3)
            found.append(quality(samples, video_of, of_video))
        mean = {name: float(np.mean([epoch[name] for epoch in found])) for name in base}
        rows.append(
            {
                "pool_mib": mib,
                "blocks": pool.window,
                "distinct_of_full": round(mean["distinct"] / base["distinct"], 3),
                "distinct_of_full_at_the_edges": round(
                    mean["distinct_at_the_edges"] / base["distinct"], 3
                ),
                "drift": round(mean["drift"], 3),
                "order_ms": round(float(np.median(times)), 1),
            }
        )
    return {"frames": len(video_of), "batch": BATCH, "full_shuffle": base, "pools": rows}


# -- the cost of an order --------------------------------------------------------------------------


class _Frames(RowView):
    """A view of many frames of keypoints, which has no store."""

    def __init__(self, n_frames: int) -> None:
        offsets = np.minimum(np.arange(n_frames // _VIDEO + 2) * _VIDEO, n_frames)
        index = SimpleNamespace(offsets=offsets)
        super().__init__(SimpleNamespace(index=index), [])  # type: ignore[arg-type]
        self._runs = Runs.up_to(n_frames)

    def batch(self, indices: Any) -> Batch:
        """Return nothing: orders are measured, not reading."""
        return {}

    def plan_pool(self, n_bytes: int) -> Pool:
        """Return the plan of a store with keypoints."""
        spec = keypoints_spec()
        meta = ArrayMeta(
            (len(self), *spec.shape), "float32", spec.chunk_rows, ("frame", "keypoint", "space")
        )
        return plan_pool({"keypoints": meta}, n_bytes, long_samples=False)


def _cost(view: _Frames, shuffle: Any) -> dict[str, float]:
    sampler, again = (BatchSampler(view, BATCH, shuffle=shuffle) for _ in range(2))
    batches, taken = iter(sampler), list[Any]()
    first = seconds(lambda: taken.append(next(batches)))
    read = seconds(lambda: taken.extend(itertools.islice(batches, _READ)))
    n_read = sum(map(len, taken[1:]))
    state, half = sampler.state_dict(), len(view) // 2 // BATCH * BATCH
    again.load_state_dict(
        {**state, "epoch": 0, "done": [{"world_size": 1, "n_units": half, "drop": False}]}
    )
    middle = seconds(lambda: taken.append(next(iter(again))))
    return {"first_ms": 1e3 * first, "middle_ms": 1e3 * middle, "sample_ns": 1e9 * read / n_read}


def _child(n_frames: int, shuffle: str) -> dict[str, float]:
    """Measure one order, first its time, then its memory: to follow that takes time."""
    _cost(_Frames(LEAST), shuffle)
    found = _cost(_Frames(n_frames), shuffle)
    view = _Frames(n_frames)
    tracemalloc.start()
    _cost(view, shuffle)
    return {**found, "mib": tracemalloc.get_traced_memory()[1] / 2**20}


def costs(most: int) -> dict[str, dict[str, Any]]:
    """Return what orders of more and more frames cost, by shuffle and number of frames."""
    sizes = list(itertools.takewhile(lambda n: n <= most, (LEAST * 10**k for k in range(9))))
    module = "benchmarks.bench_shuffle"
    return {
        shuffle: {str(n): in_own_process(module, "--child", str(n), shuffle).found for n in sizes}
        for shuffle in ("block", "full")
    }


def main() -> None:
    """Parse, run, print."""
    if sys.argv[1:2] == ["--child"]:
        answer(_child(int(sys.argv[2]), sys.argv[3]))
        return
    parser = record.parser(__doc__)
    parser.add_argument(
        "--lengths", type=Path, nargs="*", default=[], help="CSV lists with split and num_frames"
    )
    parser.add_argument("--most", type=int, default=10**9, help="frames of the largest order")
    parser.add_argument("--plot", type=Path, help="save a picture")
    args = parser.parse_args()
    found = {**run(lists=args.lengths), "orders": costs(args.most)}
    if args.plot:
        _plot(found, args.plot)
    record.finish(args, found, tables(found))


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of the pools, and one of the orders."""
    heads = ("pool, MiB", "distinct", "distinct at the ends of an epoch", "drift", "order, CPU ms")
    rows = []
    for pool in found["pools"]:
        names = ("distinct_of_full", "distinct_of_full_at_the_edges", "drift")
        shares = (f"{pool[name]:.2f}" for name in names)
        rows.append((pool["pool_mib"], *shares, f"{pool['order_ms']:.0f}"))
    parts = {
        "first batch, ms": "first_ms",
        "from the middle, ms": "middle_ms",
        "a sample, ns": "sample_ns",
        "memory, MiB": "mib",
    }
    sizes = [f"{int(size):,} frames" for size in found["orders"]["block"]]
    orders = [
        (f"{shuffle}: {what}", *(record.short(one[part]) for one in by_size.values()))
        for shuffle, by_size in found["orders"].items()
        for what, part in parts.items()
    ]
    return {"pools": [heads, *rows], "orders": [("shuffle", *sizes), *orders]}


def _plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    sizes = [row["pool_mib"] for row in found["pools"]]
    axes.plot(
        sizes,
        [row["distinct_of_full"] for row in found["pools"]],
        "o-",
        label="distinct videos, of a full shuffle",
    )
    axes.plot(
        sizes,
        [row["drift"] for row in found["pools"]],
        "s-",
        label="drift: correlation of neighbouring batches",
    )
    axes.axhline(0.95, color="0.7", linestyle=":")
    axes.set(xlabel="pool, MiB", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
