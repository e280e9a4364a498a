"""How well the block shuffle mixes, by the memory that it may use, beside a full shuffle.

``python -m benchmarks.bench_shuffle [--lengths LIST.csv …] [--plot shuffle.png]``

No store is needed: 947,756 frames of keypoints in chunks of 1,024 rows, videos as long as those of
PHOENIX-2014-T.

- *distinct*: different videos per batch of 256, over those of a full shuffle.
- *drift*: how much batch means of a value that is the same in a whole video (here: drawn for each)
  follow each other, as the correlation of neighbouring batches. A full shuffle has 0 but for
  chance.
- *order*: milliseconds of CPU time to make the order of one epoch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.cases import phoenix_lengths
from kpstore.backends.base import ArrayMeta
from kpstore.schema.layout import keypoints_spec
from kpstore.views.pool import plan_pool
from kpstore.views.sampling import BlockShuffle

BATCH = 256


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


def run(*, lists: list[Path], scale: float = 1.0, epochs: int = 3) -> dict[str, Any]:
    """Measure pools of several sizes."""
    lengths = np.concatenate(list(phoenix_lengths(lists, scale=scale).values()))
    video_of = np.repeat(np.arange(len(lengths)), lengths)
    value_of = np.random.default_rng(7).normal(size=len(lengths))
    spec = keypoints_spec()
    meta = ArrayMeta(
        (len(video_of), *spec.shape), "float32", spec.chunk_rows, ("frame", "keypoint", "space")
    )
    rngs = [np.random.default_rng(seed) for seed in range(epochs)]
    full = [quality(rng.permutation(len(video_of)), video_of, value_of) for rng in rngs]
    base = {name: float(np.mean([epoch[name] for epoch in full])) for name in full[0]}
    rows = []
    for mib in (16, 32, 64, 128, 192, 256, 384, 512):
        pool = plan_pool({"keypoints": meta}, mib * 2**20, long_samples=False)
        shuffle = BlockShuffle(np.arange(len(video_of)) // pool.block_rows, video_of, pool.window)
        shuffle.order(np.random.default_rng(99))
        found, times = [], []
        for rng in rngs:
            began = time.process_time()
            order = shuffle.order(rng)
            times.append((time.process_time() - began) * 1e3)
            found.append(quality(order, video_of, value_of))
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


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument(
        "--lengths", type=Path, nargs="*", default=[], help="CSV lists with split and num_frames"
    )
    parser.add_argument("--plot", type=Path, help="save a picture")
    args = parser.parse_args()
    found = run(lists=args.lengths)
    if args.plot:
        _plot(found, args.plot)
    record.finish(args, found, tables(found))


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of the pools."""
    heads = ("pool, MiB", "distinct", "distinct at the ends of an epoch", "drift", "order, CPU ms")
    rows = []
    for pool in found["pools"]:
        names = ("distinct_of_full", "distinct_of_full_at_the_edges", "drift")
        shares = (f"{pool[name]:.2f}" for name in names)
        rows.append((pool["pool_mib"], *shares, f"{pool['order_ms']:.0f}"))
    return {"pools": [heads, *rows]}


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
