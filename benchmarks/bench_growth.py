"""What a store of more frames costs: opening, one video, the first batch, a commit, memory.

``python -m benchmarks.bench_growth [--most 1000000] [--runs 5] [--folder DIR] [--plot FILE.png]``

Stores of 10,000 frames, ten times as many and so on, up to ``--most``: eight numbers a frame in
chunks of 1,024 rows, as keypoints have them, and videos of 115 frames on average. Of 10,000,000
frames, making the store takes two minutes and 3 GB of memory.

- *first row*: ``kpstore.open`` and a row in the middle.
- *one video*: ``kpstore.open`` and a video in the middle, by its id.
- *first batch*: ``kpstore.open`` and the first batch of ``kpstore.loader(view, 256)``.
- *commit*: ``kpstore.open`` and a version with one more video.
- *names of its files*, by ``os.walk``, and *a permutation by NumPy* of as many numbers: what
  opening a store that may come from anyone takes at least, and an order that is held as a list.

Each is done in a process of its own, by stores in turn, after the same with a small store, so that
imports are not counted; pages are in memory. *Memory* is what the process has more afterwards,
with the pages of files that it has mapped. Figures are medians.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import kpstore
from benchmarks import record
from benchmarks.cases import VIDEO_FRAMES, answer, in_own_process, made_up_videos, seconds
from kpstore.schema.failures import NOTHING_FAILED
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord

BATCH, LEAST, SMALL = 256, 10_000, 1_000
SPEC = FeatureSpec("points", (8,), ("number",), chunk_rows=1024)
_BLOCK_ROWS = 256 * SPEC.chunk_rows
_MODULE = "benchmarks.bench_growth"


def _make(path: Path, n_frames: int) -> dict[str, str]:
    """Make a store; return the id of a video in the middle."""
    rng = np.random.default_rng(0)
    videos = made_up_videos(n_frames, rng)
    values = rng.random((_BLOCK_ROWS, *SPEC.shape), dtype=np.float32)
    states = np.full(_BLOCK_ROWS, State.DONE, dtype=np.uint8)
    with kpstore.create(path).transaction("everything") as tx:
        tx.add_videos(videos)
        tx.add_feature(SPEC, {"extractor": "noise"})
        for start in range(0, n_frames, _BLOCK_ROWS):
            n_rows = min(_BLOCK_ROWS, n_frames - start)
            tx.write_rows(SPEC.name, start, FeatureRows(values[:n_rows]), states[:n_rows])
        tx.set_states(SPEC.name, dict.fromkeys(range(len(videos)), NOTHING_FAILED))
    return {"video": videos[len(videos) // 2].id}


# -- what is measured, each in a process of its own ------------------------------------------------


def _first_row(path: Path, video: str) -> object:
    array = kpstore.open(path)[SPEC.name]
    return array[len(array) // 2]


def _one_video(path: Path, video: str) -> object:
    return kpstore.open(path).video(video)[SPEC.name]


def _first_batch(path: Path, video: str) -> object:
    batches = iter(kpstore.loader(kpstore.open(path).frames(SPEC.name), BATCH))
    return batches, next(batches)


def _commit(path: Path, video: str) -> object:
    n_rows, store = sum(VIDEO_FRAMES) // 2, kpstore.open(path, mode="a")
    new = f"new{len(list(store.history()))}"
    with store.transaction("one more") as tx:
        tx.add_videos([VideoRecord(new, "train", tuple(f"{new}/{k}.png" for k in range(n_rows)))])
        tx.write(SPEC.name, new, np.zeros((n_rows, *SPEC.shape), dtype=np.float32))
    return store


def _names(path: Path, video: str) -> object:
    return [(folder, len(files)) for folder, _, files in os.walk(path)]


def _permutation(path: Path, video: str) -> object:
    return np.random.default_rng(0).permutation(int(path.name))


STEPS: dict[str, Callable[[Path, str], object]] = {
    "first row": _first_row,
    "names of its files": _names,
    "one video": _one_video,
    "first batch": _first_batch,
    "a permutation by NumPy": _permutation,
    "commit": _commit,
}


def _measure(step: str, path: Path, video: str, small: Path) -> dict[str, float]:
    kept = [STEPS[step](small, "v0")]
    me = psutil.Process()
    before = me.memory_info().rss
    took = seconds(lambda: kept.append(STEPS[step](path, video)))
    return {"ms": 1e3 * took, "mib": (me.memory_info().rss - before) / 2**20}


# -- measuring -------------------------------------------------------------------------------------


def run(*, most: int, runs: int, folder: Path | None = None) -> dict[str, Any]:
    """Make the stores and measure; return medians by step and number of frames."""
    sizes = list(itertools.takewhile(lambda n: n <= most, (LEAST * 10**k for k in range(9))))
    took: dict[str, dict[int, list[dict[str, float]]]] = {
        step: {size: [] for size in sizes} for step in STEPS
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix="kpstore-bench-growth-") as made:
        videos = {
            size: in_own_process(_MODULE, "--child", "make", f"{made}/{size}", str(size)).found
            for size in (SMALL, *sizes)
        }
        for _, (step, by_size) in itertools.product(range(runs), took.items()):
            for size, found in by_size.items():
                args = (step, f"{made}/{size}", videos[size]["video"], f"{made}/{SMALL}")
                found.append(in_own_process(_MODULE, "--child", *args).found)
    return {
        step: {
            str(size): {unit: statistics.median(one[unit] for one in found) for unit in found[0]}
            for size, found in by_size.items()
        }
        for step, by_size in took.items()
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of times, and one of memory."""
    sizes = list(found["commit"])
    heads = [f"{int(size):,} frames" for size in sizes]
    return {
        name: [
            (f"{name}, {unit}", *heads),
            *(
                (step, *(record.short(one[key]) for one in each.values()))
                for step, each in found.items()
            ),
        ]
        for name, unit, key in (("time", "ms", "ms"), ("memory", "MiB", "mib"))
    }


def _plot(found: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, unit in zip(figure.subplots(1, 2), ("ms", "mib"), strict=True):
        for step, by_size in found.items():
            values = [one[unit] for one in by_size.values()]
            axes.loglog(list(map(int, by_size)), values, "o-", label=step)
        axes.set(xlabel="frames", ylabel={"ms": "time, ms", "mib": "memory, MiB"}[unit])
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Parse, run, print tables."""
    if sys.argv[1:2] == ["--child"]:
        what, path, *more = sys.argv[2:]
        if what == "make":
            answer(_make(Path(path), int(more[0])))
        else:
            answer(_measure(what, Path(path), more[0], Path(more[1])))
        return
    parser = record.parser(__doc__)
    parser.add_argument("--most", type=int, default=1_000_000, help="frames of the largest store")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to put the stores; a temporary folder by default"
    )
    parser.add_argument("--plot", type=Path, help="save a picture")
    args = parser.parse_args()
    if args.most < LEAST:
        parser.error(f"--most {args.most}: use {LEAST} or more")
    found = run(most=args.most, runs=args.runs, folder=args.folder)
    if args.plot:
        _plot(found, args.plot)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
