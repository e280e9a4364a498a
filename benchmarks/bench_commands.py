"""How long commands take from their start to their end.

``python -m benchmarks.bench_commands [--frames 235000] [--runs 11]``

``kpstore --help``, and ``kpstore info`` of a small and of a larger store of keypoints, beside
Python that does nothing and Python that only imports Zarr and Icechunk. Each is a process, in turn
with the others, by the clock and in CPU time; modules and stores are in the system's memory, and
compiled (the first turn is not counted). Figures are medians, for targets of what was measured in
the same turn.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import kpstore
from benchmarks import record
from benchmarks.bench_read import make_store
from benchmarks.cases import PHOENIX, seconds

SMALL = 1_000
HELP, NOTHING, IMPORT = "kpstore --help", "python -c pass", 'python -c "import zarr, icechunk"'
CLOCKS = ("s", "cpu_s")
_Turn = dict[str, dict[str, float]]
"""Seconds of each command, by the clock and in CPU time."""
_ALL_FRAMES = sum(frames for _, frames in PHOENIX.values())


def _commands(folder: Path, frames: int) -> dict[str, list[str]]:
    """Make both stores; return the words of each command."""
    program = str(Path(sysconfig.get_path("scripts")) / "kpstore")
    found = {
        NOTHING: [sys.executable, "-c", "pass"],
        IMPORT: [sys.executable, "-c", "import zarr, icechunk"],
        HELP: [program, "--help"],
    }
    for size in (SMALL, frames):
        place = folder / str(size)
        place.mkdir(exist_ok=True)
        location = make_store(place, "raw", scale=size / _ALL_FRAMES, lists=())
        exact = kpstore.open(location).index.total_frames
        found[f"kpstore info, {exact:,} frames"] = [program, "info", location]
    return found


def _timed(command: list[str]) -> dict[str, float]:
    # Without compiled modules every process would compile them again.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(lambda: subprocess.run(command, env=env, capture_output=True, check=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"s": wall, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def run(*, frames: int, runs: int) -> dict[str, Any]:
    """Measure; return seconds of each command, and what was reached of each target."""
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-commands-") as folder:
        commands = _commands(Path(folder), frames)
        turns = [
            {name: _timed(command) for name, command in commands.items()} for _ in range(1 + runs)
        ][1:]
    figures = {name: _figures(name, turns) for name in commands}
    targets = {HELP: {**figures[HELP], "target": 0.25}}
    for name, one in figures.items():
        if name.startswith("kpstore info"):
            longer = {clock: one[f"{clock}_longer"] for clock in CLOCKS}
            targets[f"{name}, longer than the import"] = {**longer, "target": 0.15}
    return {"commands": figures, "targets": targets}


def _figures(name: str, turns: list[_Turn]) -> dict[str, float]:
    """Return medians: of seconds, and beside those of the import in the same turn."""
    found = {}
    for clock in CLOCKS:
        pairs = [(turn[name][clock], turn[IMPORT][clock]) for turn in turns]
        found[clock] = statistics.median(own for own, _ in pairs)
        found[f"{clock}_of_import"] = statistics.median(own / other for own, other in pairs)
        found[f"{clock}_longer"] = statistics.median(own - other for own, other in pairs)
    return found


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of commands, and one of targets."""
    commands = [
        (
            name,
            *(
                record.short(one[f"{clock}{what}"])
                for what in ("", "_of_import")
                for clock in CLOCKS
            ),
        )
        for name, one in found["commands"].items()
    ]
    targets = [
        (name, *(record.short(one[clock]) for clock in CLOCKS), f"{one['target']:g}")
        for name, one in found["targets"].items()
    ]
    return {
        "commands": [("", "s", "CPU s", "of the import", "of the import, CPU time"), *commands],
        "targets": [("", "s", "CPU s", "target, s"), *targets],
    }


def main() -> None:
    """Parse, run, print tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=235_000, help="of the larger store")
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    found = run(frames=args.frames, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
