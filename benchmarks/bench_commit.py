"""What commits cost, in time and on the disk: ``python -m benchmarks.bench_commit [--runs 12]``.

Commits of a video of keypoints, with and without waiting for the disk in turn; medians in ms
(docs/decisions/013). Then a small commit beside Zarr and Icechunk alone, which append the same rows
to a copy of the same store, one array after another, and commit; they keep no checksums by place
and never wait for the disk. Then the size of stores of many small commits (docs/decisions/003).
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray

import kpstore
from benchmarks import record
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


def run(*, runs: int) -> dict[str, Any]:
    """Measure commits, small ones beside bare Zarr and Icechunk, and what many of them take."""
    commits = {
        str(n_rows): [1e3 * one for suffix in _WAITING for one in measure(suffix, n_rows, runs)]
        for n_rows in ROWS
    }
    seconds, n_arrays, files = beside_bare(runs)
    ratios = [
        statistics.median(own / other for own, other in zip(ours, seconds[2], strict=True))
        for ours in seconds[:2]
    ]
    return {
        "commit_ms": commits,
        "beside_bare": {
            "arrays": n_arrays,
            "ms": [1e3 * statistics.median(each) for each in seconds],
            "times_as_long": [*ratios, 1.0],
            "files_made": [files[0], *files],
        },
        "grown_mb": {suffix: grown_bytes(suffix) / 1e6 for suffix in _WAITING},
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of each comparison."""
    bare = found["beside_bare"]
    ways = ("Icechunk", "without waiting")
    return {
        "commits": [
            ("rows in a commit", *(f"{way}, ms" for way in (*ways, "HDF5", ways[1]))),
            *(
                (f"{int(n_rows):,}", *(f"{ms:.0f}" for ms in each))
                for n_rows, each in found["commit_ms"].items()
            ),
        ],
        "beside bare": [
            (f"{SMALL_ROWS} rows of {bare['arrays']} arrays", *ways, "bare"),
            ("ms", *(f"{ms:.0f}" for ms in bare["ms"])),
            ("times as long as bare", *(f"{ratio:.2f}" for ratio in bare["times_as_long"])),
            ("files made", *bare["files_made"]),
        ],
        "size": [
            (f"{SMALL_COMMITS} commits of {SMALL_ROWS} rows", "MB"),
            *((suffix, f"{size:.1f}") for suffix, size in found["grown_mb"].items()),
        ],
    }


def main() -> None:
    """Parse, run, print tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--runs", type=int, default=12)
    args = parser.parse_args()
    found = run(runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
