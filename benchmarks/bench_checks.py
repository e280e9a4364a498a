"""Time and memory of commands that read a whole store: stats, verify, diff, convert, merge, ….

``python -m benchmarks.bench_checks [--frames 100000] [--runs 1] [--folder DIR] [--out FILE.json]``

A store as large as PHOENIX-2014-T's keypoints (``--frames 947756``, 8,257 videos), or a share of
it: points that walk at random, so that no two videos are alike, and a hand missing in a tenth of
the frames. All is read for the first time by kpstore (nothing is cached by it), but most of it lies
in the system's memory, as it was just written. Each step is a process of its own; with ``--runs``,
the fastest run of each is given, and the spread.

- *stats*: ``statistics_by_split`` of all features. *splits check*: names, paths, people, values and
  near-copies.
- *verify*: every chunk against the rules of the format.
- *convert*: the store into one HDF5 file. *diff*: that copy beside the store, frame by frame.
- *merge*: three stores, one of each split, into one.

Memory is that of the process alone, as seen from outside every 10 ms (Linux), above one that has
only opened the store; *mapped* is what it had with the pages of files that are mapped, which are
the system's. At full size the stores take some 4 GB on the disk.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kpstore
from benchmarks.cases import (
    PHOENIX,
    Measured,
    SyntheticSource,
    in_own_process,
    phoenix_lengths,
    print_table,
    report,
    summary,
    write_json,
)
from kpstore.inspect.contents import compare
from kpstore.inspect.leakage import check_splits
from kpstore.inspect.statistics import statistics_by_split
from kpstore.inspect.verify import verify
from kpstore.interop.convert import convert
from kpstore.interop.merge import merge
from kpstore.interop.transfer import opened
from kpstore.schema.failures import NOTHING_FAILED
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PART_SLICES, keypoints_spec

FRAMES = sum(frames for _, frames in PHOENIX.values())
STORE, COPY, MERGED = "all.kps", "copy.h5", "merged.kps"
_BLOCK_ROWS = 16 * 1024


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


def _verify(folder: Path) -> str:
    found = verify(kpstore.open(folder / STORE))
    return f"{len(found.problems)} problems"


def _convert(folder: Path) -> str:
    return f"{convert(str(folder / STORE), str(folder / COPY)).versions} version(s)"


def _diff(folder: Path) -> str:
    with opened(folder / STORE) as one, opened(folder / COPY) as other:
        return "differ" if compare(one, other) else "no difference"


def _merge(folder: Path) -> str:
    return f"{merge([folder / _of(split) for split in PHOENIX], folder / MERGED).frames:,} frames"


def _of(split: str) -> str:
    return f"{split}.kps"


STEPS: dict[str, Callable[[Path], str]] = {
    "open": _open,
    "stats": _stats,
    "splits check": _check_splits,
    "verify": _verify,
    "convert": _convert,
    "diff": _diff,
    "merge": _merge,
}
MADE: dict[str, str] = {"convert": COPY, "merge": MERGED}
"""What a step makes, and another run of it makes again."""


def _child(step: str, folder: Path) -> None:
    began = time.perf_counter()
    found = STEPS[step](folder)
    report({"seconds": time.perf_counter() - began, "found": found})


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
        for step in ("open", "stats", "splits check", "verify", "convert", "diff"):
            found[step] = measure(step, place, runs)
        remove(place / STORE)
        remove(place / COPY)
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


def _print(found: Mapping[str, Any]) -> None:
    print(f"{found['videos']:,} videos, {found['frames']:,} frames, made in {found['make_s']} s")
    rows: list[tuple[object, ...]] = [
        ("", "fastest, s", "slowest, s", "memory, MiB", "mapped, MiB", "found")
    ]
    for step, figures in found["steps"].items():
        seconds = figures["seconds"]
        memory = (figures["memory_mib"], figures["with_mapped_mib"])
        rows.append((step, seconds["min"], seconds["max"], *memory, figures["found"]))
    print_table(rows)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frames", type=int, default=100_000, help=f"about this many; {FRAMES} are all"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where to put the stores; a temporary folder by default"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.child, args.folder)
        return
    found = run(frames=args.frames, runs=args.runs, folder=args.folder)
    _print(found)
    write_json(found, args.out)


if __name__ == "__main__":
    main()
