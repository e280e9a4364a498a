"""Time and memory of commands that read a whole store: stats, verify, diff, convert, merge, ….

``python -m benchmarks.bench_checks [--frames 100000] [--runs 1] [--folder DIR]``

A store as large as PHOENIX-2014-T's keypoints (``--frames 947756``, 8,257 videos), or a share of
it: points that walk at random, so that no two videos are alike, and a hand missing in a tenth of
the frames. All is read for the first time by kpstore (nothing is cached by it), but most of it lies
in the system's memory, as it was just written. Each step is a process of its own; with ``--runs``,
the fastest run of each is given, and the spread.

- *stats*: ``statistics_by_split`` of all features. *splits check*: names, paths, people, values and
  near-copies.
- *read*: every chunk of every array once, compared with its checksum, those of numbers in threads:
  what the others are measured by.
- *verify*: every chunk against the rules of the format.
- *diff*: the store and a copy of it, frame by frame; *diff, changed*: a copy with other values in
  the first rows. *convert*: the store into one HDF5 file; *diff, HDF5*: that beside the store.
- *export npz*, and *np.savez_compressed* of the same arrays.
- *merge*: three stores, one of each split, into one.

Memory is that of the process alone, as seen from outside every 10 ms (Linux), above one that has
only opened the store; *mapped* is what it had with the pages of files that are mapped, which are
the system's. At full size the stores take some 4 GB on the disk.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kpstore
from benchmarks import record
from benchmarks.cases import (
    PHOENIX,
    Measured,
    SyntheticSource,
    answer,
    in_own_process,
    phoenix_lengths,
    summary,
)
from kpstore.backends.base import TEXT
from kpstore.inspect.contents import compare
from kpstore.inspect.leakage import check_splits
from kpstore.inspect.statistics import statistics_by_split
from kpstore.inspect.verify import verify
from kpstore.interop.convert import convert
from kpstore.interop.merge import merge
from kpstore.interop.transfer import export_file, opened
from kpstore.schema.failures import NOTHING_FAILED
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PART_SLICES, keypoints_spec
from kpstore.store.arena import for_each
from kpstore.store.checked import CheckedChunks

FRAMES = sum(frames for _, frames in PHOENIX.values())
STORE, COPY, MERGED = "all.kps", "copy.h5", "merged.kps"
TWIN, CHANGED, NPZ = "twin.kps", "changed.kps", "npz"
_BLOCK_ROWS, _CHANGED_ROWS = 16 * 1024, 100


def make_store(path: Path, videos: Sequence[VideoRecord], seed: int) -> None:
    """Make a store of videos whose points walk at random, in one commit."""
    spec = keypoints_spec()
    with kpstore.create(path, name="made up").transaction("random walks") as tx:
        tx.add_videos(videos)
        tx.add_feature(spec, {"extractor": "random walks"})
        for start, rows in _walks(
            spec, sum(video.n_frames for video in videos), np.random.default_rng(seed)
        ):
            tx.write_rows(spec.name, start, rows, np.full(len(rows), State.DONE, dtype=np.uint8))
        tx.set_states(spec.name, dict.fromkeys(range(len(videos)), NOTHING_FAILED))


def _change(path: Path) -> None:
    """Give the first rows of a store other values."""
    store = kpstore.open(path, mode="a")
    start, rows = next(_walks(store.feature("keypoints"), _CHANGED_ROWS, np.random.default_rng(9)))
    with store.transaction("other values") as tx:
        status = np.full(len(rows), State.DONE, dtype=np.uint8)
        tx.write_rows("keypoints", start, rows, status)


def _walks(
    spec: FeatureSpec, n_frames: int, rng: np.random.Generator
) -> Iterator[tuple[int, FeatureRows]]:
    """Yield rows and where they begin, some chunks at a time.

    Walks start again in each block, as they stay in sight.
    """
    hand = PART_SLICES["left_hand"]
    for start in range(0, n_frames, _BLOCK_ROWS):
        n_rows = min(_BLOCK_ROWS, n_frames - start)
        rows = spec.empty_rows(n_rows)
        rows.values[:] = _walk(rng, n_rows)
        missing = np.arange(n_rows) % 10 == 0
        rows.values[missing, hand] = np.nan
        rows.companions["detected"][:] = True
        rows.companions["detected"][missing, 1] = False
        rows.companions["visibility"][:] = 0.9
        yield start, rows


def _walk(rng: np.random.Generator, n_rows: int) -> NDArray[np.float32]:
    """(rows, points, 3) float32, from places around the middle of the picture."""
    begin = 0.5 + 0.1 * rng.standard_normal((N_POINTS, 3), dtype=np.float32)
    steps = rng.standard_normal((n_rows, N_POINTS, 3), dtype=np.float32)
    return begin + np.cumsum(0.002 * steps, axis=0, dtype=np.float32)


# -- the steps, each in a process of its own -------------------------------------------------------


def _open(folder: Path) -> str:
    return f"{len(kpstore.open(folder / STORE).index):,} videos"


def _stats(folder: Path) -> str:
    return f"{len(statistics_by_split(kpstore.open(folder / STORE))['keypoints'])} splits"


def _check_splits(folder: Path) -> str:
    counts = check_splits(kpstore.open(folder / STORE)).counts()
    return (
        ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
        or "nothing shared"
    )


def _read(folder: Path) -> str:
    store, local = kpstore.open(folder / STORE, cache="off"), threading.local()
    n_chunks = 0
    for name in store.session.names():
        meta = store.session.meta(name)
        n_chunks += meta.n_chunks
        if meta.dtype == TEXT:
            store.session.read(name, 0, meta.n_rows)
            continue
        chunks = CheckedChunks(store.session, name, "always")
        shape, dtype = (meta.chunk_rows, *meta.shape[1:]), meta.dtype

        def look(number: int, chunks: CheckedChunks = chunks, like: Any = (shape, dtype)) -> None:
            if getattr(local, "like", None) != like:
                local.like, local.out = like, np.empty(*like)
            chunks.read_into(number, local.out)

        for_each(look, list(range(meta.n_chunks)))
    return f"{n_chunks:,} chunks"


def _verify(folder: Path) -> str:
    found = verify(kpstore.open(folder / STORE))
    return f"{len(found.problems)} problems"


def _convert(folder: Path) -> str:
    return f"{convert(str(folder / STORE), str(folder / COPY)).versions} version(s)"


def _diff(folder: Path, other: str) -> str:
    with opened(folder / STORE) as one, opened(folder / other) as two:
        found = compare(one, two)
    return f"{found.features['keypoints'].differing:,} rows differ"


def _export(folder: Path) -> str:
    report = export_file(kpstore.open(folder / STORE), folder / NPZ, "npz")
    return f"{len(report.files)} files"


def _savez(folder: Path) -> str:
    store = kpstore.open(folder / STORE)
    for split in store.splits:
        rows = store.index.rows_of(store.index.select(split=split))
        ids = store.index.ids[store.index.video_of(rows)].astype(str)
        paths = store.read("image_path", rows).astype(str)
        values = np.nan_to_num(store.read("keypoints", rows), copy=False)
        (folder / NPZ).mkdir(exist_ok=True)
        np.savez_compressed(
            folder / NPZ / split, keypoints=values, image_paths=paths, video_ids=ids
        )
    return f"{len(store.splits)} files"


def _merge(folder: Path) -> str:
    return f"{merge([folder / _of(split) for split in PHOENIX], folder / MERGED).frames:,} frames"


def _of(split: str) -> str:
    return f"{split}.kps"


STEPS: dict[str, Callable[[Path], str]] = {
    "open": _open,
    "stats": _stats,
    "splits check": _check_splits,
    "read": _read,
    "verify": _verify,
    "diff": partial(_diff, other=TWIN),
    "diff, changed": partial(_diff, other=CHANGED),
    "convert": _convert,
    "diff, HDF5": partial(_diff, other=COPY),
    "export npz": _export,
    "np.savez_compressed": _savez,
    "merge": _merge,
}
MADE: dict[str, str] = {
    "convert": COPY,
    "export npz": NPZ,
    "np.savez_compressed": NPZ,
    "merge": MERGED,
}
"""What a step makes, and another run of it makes again."""


def _child(step: str, folder: Path) -> None:
    began = time.perf_counter()
    found = STEPS[step](folder)
    answer({"seconds": time.perf_counter() - began, "found": found})


# -- measuring -------------------------------------------------------------------------------------


def measure(step: str, folder: Path, runs: int) -> list[Measured]:
    """Take a step some times; no run finds what the one before has made or cached."""
    found = []
    for _ in range(runs):
        remove(folder / MADE[step] if step in MADE else folder / "cache")
        args = ("--child", step, "--folder", str(folder))
        found.append(
            in_own_process(
                "benchmarks.bench_checks", *args, env={"KPSTORE_CACHE": str(folder / "cache")}
            )
        )
        remove(folder / "cache")
    return found


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _figures(measured: Sequence[Measured], base_mib: int) -> dict[str, Any]:
    seconds = summary([one.found["seconds"] for one in measured])
    return {
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
        "memory_mib": max(one.own_mib for one in measured) - base_mib,
        "with_mapped_mib": max(one.peak_mib for one in measured),
        "found": measured[0].found["found"],
    }


def run(*, frames: int, runs: int = 1, folder: Path | None = None) -> dict[str, Any]:
    """Make the stores and measure every step."""
    if frames < 1:
        raise ValueError(f"--frames {frames}: use 1 or more")
    lengths = phoenix_lengths(scale=min(1.0, frames / FRAMES))
    videos = SyntheticSource(lengths).scan().videos
    found: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="kpstore-bench-checks-") as made:
        place = Path(made)
        began = time.perf_counter()
        make_store(place / STORE, videos, seed=0)
        made_s = time.perf_counter() - began
        for name in (TWIN, CHANGED):
            shutil.copytree(place / STORE, place / name)
        _change(place / CHANGED)
        for step in [step for step in STEPS if step != "merge"]:
            found[step] = measure(step, place, runs)
        for name in (STORE, TWIN, CHANGED, COPY, NPZ):
            remove(place / name)
        for seed, split in enumerate(PHOENIX):
            make_store(
                place / _of(split), [video for video in videos if video.split == split], seed
            )
        found["merge"] = measure("merge", place, runs)
    base_mib = min(one.own_mib for one in found["open"])
    return {
        "videos": len(videos),
        "frames": sum(map(sum, lengths.values())),
        "make_s": round(made_s, 1),
        "open_mib": base_mib,
        "steps": {
            step: _figures(measured, base_mib) for step, measured in found.items() if step != "open"
        },
    }


def tables(found: Mapping[str, Any]) -> dict[str, record.Table]:
    """Return a table of the steps, and one of what they were given."""
    rows: list[tuple[object, ...]] = [
        ("", "fastest, s", "slowest, s", "memory, MiB", "mapped, MiB", "found")
    ]
    for step, figures in found["steps"].items():
        seconds = figures["seconds"]
        memory = (figures["memory_mib"], figures["with_mapped_mib"])
        rows.append((step, seconds["min"], seconds["max"], *memory, figures["found"]))
    data = (f"{found['videos']:,}", f"{found['frames']:,}", found["make_s"], found["open_mib"])
    return {
        "data": [("videos", "frames", "made in, s", "memory once it is open, MiB"), data],
        "steps": rows,
    }


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument(
        "--frames", type=int, default=100_000, help=f"about this many; {FRAMES} are all"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where to put the stores; a temporary folder by default"
    )
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.child, args.folder)
        return
    found = run(frames=args.frames, runs=args.runs, folder=args.folder)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
