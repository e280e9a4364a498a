"""What versions in one HDF5 file cost, here and in versioned-hdf5 (docs/decisions/006).

``python -m benchmarks.bench_hdf5 [--frames 200192] [--runs 5] [--folder DIR]``

Keypoints, (frames, 143, 3) float32 in chunks of 1,024 frames, with a state and a path for each.
Each step is done by a process of its own, on the file that the one before has left:

- *create*: a first version with the paths, and nothing else written.
- *open*: opens the file and begins changes; its memory is what the next steps are measured against.
- *write all*: one transaction writes all keypoints, 16,384 frames at a time.
- *commit*: transactions of one chunk each; the median, and the lowest and highest of the runs.
- *read*: a block of the newest version.

Memory is the process's own, without mapped files, as seen from outside (Linux). kpstore flushes
every commit to the disk; versioned-hdf5 does not, and is measured as it is and with a flush after
each commit. Without versioned-hdf5 (``pip install versioned-hdf5``) only kpstore is measured.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.cases import Measured, answer, in_own_process, summary
from kpstore.backends.base import MAIN, TEXT, ArrayMeta
from kpstore.backends.hdf5 import HDF5Backend

CHUNK_ROWS = 1024
BLOCK_ROWS = 16 * CHUNK_ROWS
PATH_ROWS = 4096
SHAPE = (143, 3)
STEPS = ("create", "open", "write all", "commit", "read")
OURS = "kpstore"
PEER = "versioned_hdf5"

Put = Callable[[str, int, NDArray[Any]], None]
"""Writes rows of an array from a row on."""


class Subject(Protocol):
    """One way to keep versions in a file."""

    def create(self, path: Path, paths: NDArray[np.object_]) -> None:
        """Make a file with one version."""

    def change(self, path: Path, works: list[Callable[[Put], None]]) -> list[float]:
        """Open the file, make a version by each work, and return the seconds of each."""

    def read(self, path: Path, n_rows: int) -> NDArray[np.float32]:
        """Return the first keypoints of the newest version."""


class Kpstore:
    """The backend of this library."""

    def create(self, path: Path, paths: NDArray[np.object_]) -> None:
        """Make a file with one version."""
        backend = HDF5Backend(str(path))
        backend.create({}, "made")
        changes = backend.begin()
        frames = len(paths)
        keypoints = ArrayMeta(
            (frames, *SHAPE),
            "float32",
            CHUNK_ROWS,
            ("frame", "point", "axis"),
            float("nan"),
            codec="raw",
        )
        changes.create("keypoints", keypoints)
        changes.create("status", ArrayMeta((frames,), "uint8", CHUNK_ROWS, ("frame",)))
        changes.create("image_path", ArrayMeta((frames,), TEXT, PATH_ROWS, ("frame",)))
        changes.write("image_path", 0, paths)
        changes.commit("paths")

    def change(self, path: Path, works: list[Callable[[Put], None]]) -> list[float]:
        """Make a version by each of the works."""
        backend = HDF5Backend(str(path))
        backend.session(backend.branches()[MAIN]).names()
        took = []
        for number, work in enumerate(works):
            began = time.perf_counter()
            changes = backend.begin()
            work(changes.write)
            changes.commit(f"change {number}")
            took.append(time.perf_counter() - began)
        return took

    def read(self, path: Path, n_rows: int) -> NDArray[np.float32]:
        """Return the first keypoints of the newest version."""
        backend = HDF5Backend(str(path))
        return backend.session(backend.branches()[MAIN]).read("keypoints", 0, n_rows)


class VersionedHDF5:
    """versioned-hdf5, as its manual has it.

    Parameters
    ----------
    flush : whether each commit is brought to the disk.
    """

    def __init__(self, *, flush: bool) -> None:
        self._flush = flush
        self._file_of = importlib.import_module(PEER).VersionedHDF5File

    def create(self, path: Path, paths: NDArray[np.object_]) -> None:
        """Make a file with one version."""
        frames, grows = len(paths), {"maxshape": (None,)}
        with h5py.File(path, "w") as file, self._file_of(file).stage_version("paths") as group:
            group.create_dataset(
                "keypoints",
                shape=(frames, *SHAPE),
                dtype="f4",
                chunks=(CHUNK_ROWS, *SHAPE),
                maxshape=(None, *SHAPE),
                data=None,
                fillvalue=np.nan,
            )
            group.create_dataset(
                "status", shape=(frames,), dtype="u1", chunks=(CHUNK_ROWS,), fillvalue=0, **grows
            )
            group.create_dataset(
                "image_path", data=paths, dtype=h5py.string_dtype(), chunks=(PATH_ROWS,), **grows
            )

    def change(self, path: Path, works: list[Callable[[Put], None]]) -> list[float]:
        """Make a version by each of the works."""
        took = []
        with h5py.File(path, "r+") as file:
            versions = self._file_of(file)
            for work in works:
                began = time.perf_counter()
                # Named by the time: another process has made versions before.
                with versions.stage_version(f"at {time.time_ns()}") as group:
                    work(lambda name, start, rows, group=group: _put(group[name], start, rows))  # type: ignore[misc]
                if self._flush:
                    file.flush()
                    os.fsync(int(file.id.get_vfd_handle()))
                took.append(time.perf_counter() - began)
        return took

    def read(self, path: Path, n_rows: int) -> NDArray[np.float32]:
        """Return the first keypoints of the newest version."""
        with h5py.File(path, "r") as file:
            versions = self._file_of(file)
            return np.asarray(versions[versions.current_version]["keypoints"][:n_rows])


def _put(array: Any, start: int, rows: NDArray[Any]) -> None:
    array[start : start + len(rows)] = rows


SUBJECTS: dict[str, Callable[[], Subject]] = {
    OURS: Kpstore,
    "versioned-hdf5": lambda: VersionedHDF5(flush=False),
    "versioned-hdf5, flushed": lambda: VersionedHDF5(flush=True),
}


class _Rows:
    """Rows to write, of one buffer: what a step takes above *open* is then due to the file."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._noise = np.random.default_rng(0).standard_normal(
            (BLOCK_ROWS, *SHAPE), dtype=np.float32
        )
        self._buffer = self._noise.copy()
        self._done = np.ones(BLOCK_ROWS, dtype=np.uint8)

    def write_all(self, put: Put) -> None:
        """Write every row."""
        for start in range(0, self.frames, BLOCK_ROWS):
            self._write(put, start, min(BLOCK_ROWS, self.frames - start), start)

    def write_chunk(self, number: int) -> Callable[[Put], None]:
        """Return what rewrites a chunk; each number is another chunk."""
        start = number * CHUNK_ROWS % (self.frames - CHUNK_ROWS + 1) // CHUNK_ROWS * CHUNK_ROWS
        return lambda put: self._write(put, start, CHUNK_ROWS, -1 - number)

    def _write(self, put: Put, start: int, n_rows: int, shift: float) -> None:
        np.add(self._noise[:n_rows], shift, out=self._buffer[:n_rows])
        put("keypoints", start, self._buffer[:n_rows])
        put("status", start, self._done[:n_rows])


def work(subject: Subject, step: str, path: Path, rows: _Rows, runs: int) -> dict[str, Any]:
    """Do one step; return how long it took, each run of it."""
    if step == "create":
        names = [
            f"train/video{row // 115:05d}/images{row % 115:04d}.png" for row in range(rows.frames)
        ]
        began = time.perf_counter()
        subject.create(path, np.array(names, dtype=object))
        return {"seconds": [time.perf_counter() - began]}
    if step == "read":
        began = time.perf_counter()
        found = subject.read(path, min(rows.frames, BLOCK_ROWS))
        if not np.isfinite(found).all():
            raise RuntimeError(f"{path.name} does not hold what was written")
        return {"seconds": [time.perf_counter() - began]}
    works: dict[str, list[Callable[[Put], None]]] = {
        "open": [],
        "write all": [rows.write_all],
        "commit": [rows.write_chunk(number) for number in range(runs)],
    }
    return {"seconds": subject.change(path, works[step])}


def measure(name: str, folder: Path, frames: int, runs: int) -> dict[str, Any]:
    """Take all steps with one subject, each in a process of its own."""
    path = folder / f"{name}.h5"
    args = ("--folder", str(folder), "--frames", str(frames), "--runs", str(runs))
    steps: dict[str, Measured] = {}
    sizes = {}
    for step in STEPS:
        steps[step] = in_own_process("benchmarks.bench_hdf5", "--child", name, step, *args)
        sizes[step] = path.stat().st_size
    with h5py.File(path, "r") as file:
        at_root = sorted(file)
    path.unlink()
    commit = summary(steps["commit"].found["seconds"])
    return {
        "own_mib": {step: measured.own_mib for step, measured in steps.items()},
        "transaction_mib": steps["write all"].own_mib - steps["open"].own_mib,
        "read_s": round(steps["read"].found["seconds"][0], 3),
        "write_all_s": round(steps["write all"].found["seconds"][0], 3),
        "commit_s": {key: round(value, 4) for key, value in commit.items()},
        "commit_s_per_gb": round(commit["median"] / (sizes["write all"] / 1e9), 3),
        "size_mb": {step: round(size / 1e6, 1) for step, size in sizes.items()},
        "names_at_root": at_root,
    }


def run(*, frames: int, runs: int, folder: Path | None = None) -> dict[str, Any]:
    """Measure kpstore, and versioned-hdf5 if it is there."""
    if frames < 2 * CHUNK_ROWS:
        raise ValueError(f"--frames {frames}: use {2 * CHUNK_ROWS} or more")
    names = list(SUBJECTS) if importlib.util.find_spec(PEER) else [OURS]
    with tempfile.TemporaryDirectory(dir=folder, prefix="kpstore-bench-hdf5-") as made:
        found = {name: measure(name, Path(made), frames, runs) for name in names}
    return {
        "frames": frames,
        "values_mb": round(frames * 4 * int(np.prod(SHAPE)) / 1e6),
        "subjects": found,
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table with a row for each library, and one of what h5py finds in their files."""
    rows: list[tuple[object, ...]] = [
        (
            "",
            "write all, s",
            "memory, MiB",
            "commit of a chunk, ms",
            "lowest–highest",
            "size, MB",
            "after the commits",
        )
    ]
    for name, figures in found["subjects"].items():
        commit = {key: round(value * 1e3, 1) for key, value in figures["commit_s"].items()}
        sizes = figures["size_mb"]
        spread = f"{commit['min']}–{commit['max']}"
        start = (name, figures["write_all_s"], figures["transaction_mib"])
        rows.append((*start, commit["median"], spread, sizes["write all"], sizes["commit"]))
    names = [
        (name, ", ".join(figures["names_at_root"])) for name, figures in found["subjects"].items()
    ]
    return {
        f"{found['values_mb']} MB of keypoints": rows,
        "names at the root": [("", "h5py finds"), *names],
    }


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=200_192)
    parser.add_argument("--runs", type=int, default=5, help="commits of one chunk")
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; a temporary folder by default"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, step = args.child
        rows = _Rows(args.frames)  # kept to the end, so that every step has them
        answer(work(SUBJECTS[name](), step, args.folder / f"{name}.h5", rows, args.runs))
        return
    found = run(frames=args.frames, runs=args.runs, folder=args.folder)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
