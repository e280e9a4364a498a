"""What commits cost, in time and on the disk: ``python -m benchmarks.bench_commit``.

Commits of a video of keypoints, with and without waiting for the disk in turn; medians in ms
(docs/decisions/013). Then a small commit beside Zarr and Icechunk alone, which append the same rows
to a copy of the same store, one array after another, and commit; they keep no checksums by place
and never wait for the disk. Then the size of stores of many small commits (docs/decisions/003).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray

import kpstore
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import keypoints_spec

ROWS = (10, 1_000, 20_000)
SMALL_COMMITS, SMALL_ROWS = 120, 10
_WAITING = {
    ".kps": ("icechunk_changes.sync_disk", "icechunk.sync_disk"),
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


def _rows_to_append(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the rows of the first video, by array."""
    with kpstore.open(path, mode="a").transaction("nothing") as tx:
        lengths = {"video": 1, "frame": int(tx.read_index().n_frames[0])}
        n_rows = {name: lengths.get(tx.session.meta(name).dims[0]) for name in tx.session.names()}
        return {name: tx.session.read(name, 0, n) for name, n in n_rows.items() if n}


def _bare_commit_s(path: Path, rows: dict[str, NDArray[np.generic]]) -> float:
    """Return how long Zarr and Icechunk take to append rows and commit, seconds."""
    start = time.perf_counter()
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    session = repository.writable_session("main")
    # By default, Zarr would not write the columns of which nothing is known.
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.open_group(session.store, mode="r+")
        for name, values in rows.items():
            group[name].append(values)
    session.commit("rows")
    return time.perf_counter() - start


def _count(path: Path) -> int:
    return sum(file.is_file() for file in path.rglob("*"))


def beside_bare(runs: int) -> tuple[list[list[float]], int, list[int]]:
    """Return what a small commit costs, with and without waiting, and without kpstore.

    Returns
    -------
    tuple
        Seconds of each run, by kind of commit; number of arrays to append to; number of files that
        a commit makes, with kpstore and without.
    """
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder, bare = Path(name), Path(name) / "bare"
        _make(folder, ".kps")
        _commit_s(folder, ".kps", 0, SMALL_ROWS)
        shutil.copytree(folder / "s.kps", bare)
        rows = _rows_to_append(folder / "s.kps")
        found: list[list[float]] = [[], [], []]
        before = [_count(folder / "s.kps"), _count(bare)]
        for number in range(1, 2 * runs + 1, 2):
            found[0].append(_commit_s(folder, ".kps", number, SMALL_ROWS))
            with _not_waiting(".kps"):
                found[1].append(_commit_s(folder, ".kps", number + 1, SMALL_ROWS))
            found[2].append(_bare_commit_s(bare, rows))
        after = [_count(folder / "s.kps"), _count(bare)]
    made = [(after[0] - before[0]) // (2 * runs), (after[1] - before[1]) // runs]
    return found, len(rows), made


def _print_beside_bare(runs: int) -> None:
    (waiting, others, bare), n_arrays, files = beside_bare(runs)
    print(
        f"| {SMALL_ROWS} rows of {n_arrays} arrays | Icechunk | without waiting | bare |\n"
        "|---|---|---|---|"
    )
    ms = [1e3 * statistics.median(seconds) for seconds in (waiting, others, bare)]
    print(f"| ms | {' | '.join(f'{one:.0f}' for one in ms)} |")
    ratios = [
        statistics.median(own / other for own, other in zip(ours, bare, strict=True))
        for ours in (waiting, others)
    ]
    print(f"| times as long as bare | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | 1 |")
    print(f"| files made | {files[0]} | {files[0]} | {files[1]} |", flush=True)


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
    _print_beside_bare(runs)
    sizes = ", ".join(f"{suffix} {grown_bytes(suffix) / 1e6:.1f} MB" for suffix in _WAITING)
    print(f"{SMALL_COMMITS} commits of {SMALL_ROWS} rows: {sizes}")


if __name__ == "__main__":
    main()
