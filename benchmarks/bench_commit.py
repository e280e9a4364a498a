"""What commits cost, in time and on the disk: ``python -m benchmarks.bench_commit``.

Commits of a video of keypoints, with and without waiting for the disk in turn; medians in ms
(docs/decisions/013). Then the size of stores of many small commits (docs/decisions/003).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

import kpstore
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import keypoints_spec

ROWS = (10, 1_000, 20_000)
SMALL_COMMITS, SMALL_ROWS = 120, 10
_WAITING = {
    ".kps": ("icechunk_sessions.sync_disk", "icechunk.sync_disk"),
    ".h5": ("hdf5_file.make_durable",),
}
"""Functions of ``kpstore.backends`` that wait, by the ending of a store."""


@contextmanager
def _not_waiting(suffix: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name in _WAITING[suffix]:
            stack.enter_context(patch(f"kpstore.backends.{name}", lambda path: None))
        yield


def _commit_s(folder: Path, suffix: str, number: int, n_rows: int) -> float:
    """Return how long a commit of one video takes, seconds."""
    video = VideoRecord(f"v{number}", "train", tuple(f"v{number}/{k}.png" for k in range(n_rows)))
    values = np.random.default_rng(number).random((n_rows, 143, 3), dtype=np.float32)
    start = time.perf_counter()
    with kpstore.open(folder / f"s{suffix}", mode="a").transaction("rows") as tx:
        tx.add_videos([video])
        tx.write("keypoints", video.id, values)
    return time.perf_counter() - start


def _make(folder: Path, suffix: str) -> None:
    with kpstore.create(folder / f"s{suffix}").transaction("feature") as tx:
        tx.add_feature(keypoints_spec(), {"extractor": "noise"})


def grown_bytes(suffix: str) -> int:
    """Return the size of a store of many small commits; a file of several names counts once."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        _make(folder, suffix)
        for number in range(SMALL_COMMITS):
            _commit_s(folder, suffix, number, SMALL_ROWS)
        found = [path.stat() for path in folder.rglob("*") if path.is_file()]
        return sum({about.st_ino: about.st_size for about in found}.values())


def measure(suffix: str, n_rows: int, runs: int) -> tuple[float, float]:
    """Return the median time of a commit with and without waiting, seconds."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        _make(folder, suffix)
        waiting, others = [], []
        for number in range(0, 2 * runs, 2):
            waiting.append(_commit_s(folder, suffix, number, n_rows))
            with _not_waiting(suffix):
                others.append(_commit_s(folder, suffix, number + 1, n_rows))
    return statistics.median(waiting), statistics.median(others)


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=12)
    runs = parser.parse_args().runs
    print("| rows in a commit | Icechunk | without waiting | HDF5 | without waiting |")
    print("|---|---|---|---|---|")
    for n_rows in ROWS:
        found = [1e3 * s for suffix in _WAITING for s in measure(suffix, n_rows, runs)]
        print(f"| {n_rows:,} | {' | '.join(f'{ms:.0f}' for ms in found)} |", flush=True)
    sizes = ", ".join(f"{suffix} {grown_bytes(suffix) / 1e6:.1f} MB" for suffix in _WAITING)
    print(f"{SMALL_COMMITS} commits of {SMALL_ROWS} rows: {sizes}")


if __name__ == "__main__":
    main()
