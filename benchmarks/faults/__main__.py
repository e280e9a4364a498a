"""All faults on purpose, one after the other: ``make faults``, or ``python -m benchmarks.faults``.

Random damage to stores on each backend, commands that are killed, interrupted, or meet a full disk
at random steps, random runs on clusters on which something is wrong, and the real MediaPipe on
three workers that others started. What was tried is in journals in the
folder: a run that was stopped goes on where it stood. Ends with 1 if anything was lost or wrong, or
an error was no clear line.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.faults import cluster, corruption, interrupted, real_model

Row = tuple[str, Mapping[str, int]]
COLUMNS = ("attempts", "survived", "lost_or_wrong", "unclear_message")


def run(
    folder: Path, seed: int, *, damages: int, stops: int, runs: int, videos: Path | None
) -> Iterator[Row]:
    """Yield what came of each category.

    Parameters
    ----------
    folder : for stores and journals.
    damages, stops : damaged stores, and stopped commands, on each backend.
    runs : runs on clusters.
    videos : of the real MediaPipe; pictures that scikit-image brings if None.
    """
    for backend in corruption.SUFFIXES:
        yield f"damage, {backend}", corruption.run(backend, damages, seed, folder / "corruption")
    for backend in corruption.SUFFIXES:
        yield f"stopped, {backend}", interrupted.run(backend, stops, seed, folder / "stopped")
    place = folder / "cluster"
    place.mkdir(parents=True, exist_ok=True)
    yield from cluster.run(runs, seed, place, place / f"journal-{seed}.jsonl").items()
    with tempfile.TemporaryDirectory(dir=folder) as here:
        found = real_model.run(real_model.source_of(videos, Path(here)), Path(here))
    is_wrong = bool(found["different"])
    yield (
        "MediaPipe on three workers",
        dict(zip(COLUMNS, (1, int(not is_wrong), int(is_wrong), 0), strict=True)),
    )


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "kpstore-faults"
    )
    parser.add_argument("--damages", type=int, default=1000, help="damaged stores on each backend")
    parser.add_argument("--stops", type=int, default=250, help="stopped commands on each backend")
    parser.add_argument("--runs", type=int, default=200, help="runs on clusters")
    parser.add_argument("--videos", type=Path, help="a folder of video files for MediaPipe")
    parser.add_argument("--short", action="store_true", help="a few of each, in about a minute")
    given = parser.parse_args()
    if given.videos is not None and not given.videos.is_dir():
        parser.error(f"--videos {given.videos}: the folder does not exist")
    damages, stops, runs = (12, 3, 4) if given.short else (given.damages, given.stops, given.runs)
    logging.getLogger("kpstore").setLevel(logging.ERROR)
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'':34}" + "".join(f"{name:>17}" for name in COLUMNS), flush=True)
    rows = []
    for name, counts in run(
        given.folder, given.seed, damages=damages, stops=stops, runs=runs, videos=given.videos
    ):
        rows.append({"category": name, **counts})
        print(f"{name:34}" + "".join(f"{counts[column]:17}" for column in COLUMNS), flush=True)
    (given.folder / f"faults-{given.seed}.json").write_text(json.dumps(rows, indent=2))
    raise SystemExit(any(row["lost_or_wrong"] or row["unclear_message"] for row in rows))


if __name__ == "__main__":
    main()
