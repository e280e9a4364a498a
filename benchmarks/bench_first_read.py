"""The cost of checking chunks when they are first read: first row, first epoch, later reads.

``python -m benchmarks.bench_first_read [--scale 0.25] [--runs 5] [--folder DIR]``

Keypoints as many as a share of PHOENIX-2014-T's, in a raw store (mapped) and an lz4 store
(decoded). Everything is read twice as often: with ``check="first"``, the default, and with
``check="never"``, each in a process of its own, in turn; a ratio is the median of those of
neighbouring runs.

- *epoch from the disk*: an epoch of ``kpstore.loader`` over files of which no page is in memory
  (Linux). All other figures are with all pages in memory and nothing done with the batches, where
  nothing hides a cost.
- *open to the first row*: ``kpstore.open`` and one row of one feature, in a process that has read
  nothing before.
- *epoch of kpstore.loader*, *of DataLoader*, *of view.batch*: all frames once, shuffled, in batches
  of 256, by the clock and in CPU time; the second epoch is what reads cost once everything was
  looked at.
- *random rows*: 100,000 single rows in batches of 256, after those epochs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

import kpstore
from benchmarks import record
from benchmarks.bench_read import make_store
from benchmarks.cases import answer, forget_pages, in_own_process, timed
from kpstore.views.frames import FrameView

BATCH = 256
CODECS = ("raw", "lz4")
CHECKS: tuple[Literal["never", "first"], ...] = ("never", "first")
_FEATURE = "keypoints"


def _view(location: str, check: Literal["never", "first"]) -> FrameView:
    return kpstore.open(location, check=check, cache="off").frames(_FEATURE)


def _read_first_row(location: str, check: Literal["never", "first"]) -> dict[str, float]:
    seconds, _ = timed(lambda: kpstore.open(location, check=check, cache="off")[_FEATURE][0])
    return {"open to the first row": seconds}


def _read(location: str, check: Literal["never", "first"]) -> dict[str, float]:
    """Read a store in every way; return seconds by what was read."""
    found: dict[str, float] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        found[name], found[f"{name}, CPU"] = timed(work)

    def epochs(name: str, batches: Callable[[], Iterable[Any]]) -> None:
        for epoch in ("first", "second"):
            measure(f"{epoch} epoch of {name}", lambda: deque(batches(), maxlen=0))

    # Each with an open of its own, so that each meets unchecked chunks.
    forget_pages(Path(location))
    cold = kpstore.loader(_view(location, check), BATCH)
    measure("epoch from the disk", lambda: deque(cold, maxlen=0))
    loader = kpstore.loader(_view(location, check), BATCH)
    epochs("kpstore.loader", lambda: loader)
    view = _view(location, check)
    if kpstore.open(location).features[_FEATURE].spec.compression == "raw":
        # Rows at random from lz4 decode a chunk each, which takes minutes for all and is no way to
        # read it.
        order = np.random.default_rng(0).permutation(len(view))
        parts = np.array_split(order, -(-len(order) // BATCH))
        epochs("view.batch", lambda: map(view.batch, parts))
        rows = [
            np.random.default_rng(1).integers(len(view), size=BATCH)
            for _ in range(100_000 // BATCH)
        ]
        measure("random rows", lambda: deque(map(view.batch, rows), maxlen=0))
        torch.manual_seed(0)
        others = DataLoader(_view(location, check), BATCH, shuffle=True)
        epochs("DataLoader", lambda: others)
    return found


def _ratios(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return medians of each figure for both policies, in ms, and of ratios of adjacent runs."""
    found = {}
    for name in runs["first"][0]:
        never, first = ([run[name] for run in runs[check]] for check in CHECKS)
        found[name] = {
            "never_ms": round(1e3 * statistics.median(never), 2),
            "first_ms": round(1e3 * statistics.median(first), 2),
            "ratio": round(statistics.median(b / a for a, b in zip(never, first, strict=True)), 3),
        }
    return found


def run(*, scale: float, runs: int, folder: Path | None = None) -> dict[str, Any]:
    """Make both stores and measure."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="kpstore-bench-first-read-") as made:
        for codec in CODECS:
            location = make_store(Path(made), codec, scale=scale, lists=())
            measured: dict[str, list[dict[str, float]]] = {check: [] for check in CHECKS}
            for _ in range(runs):
                for check in CHECKS:
                    figures: dict[str, float] = {}
                    for child in ("epochs", "row"):
                        args = ("--child", child, "--location", location, "--check", check)
                        figures |= in_own_process("benchmarks.bench_first_read", *args).found
                    measured[check].append(figures)
            found[codec] = _ratios(measured)
    return found


def tables(found: Mapping[str, Any]) -> dict[str, record.Table]:
    """Return a table for each kind of store."""
    heads = ("", "`never`, ms", "`first`, ms", "ratio")
    return {
        codec: [heads, *((name, *one.values()) for name, one in figures.items())]
        for codec, figures in found.items()
    }


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=0.25, help="share of the 947,756 frames")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to put the stores; a temporary folder by default"
    )
    parser.add_argument("--child", choices=("epochs", "row"), help=argparse.SUPPRESS)
    parser.add_argument("--location", help=argparse.SUPPRESS)
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        answer((_read if args.child == "epochs" else _read_first_row)(args.location, args.check))
        return
    found = run(scale=args.scale, runs=args.runs, folder=args.folder)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
