"""Run benchmarks, each in a process of its own, and write their results.

``python -m benchmarks [NAME …] [--results FOLDER] [--quick]``

Without names, all are run, which takes an hour or two. ``NAME`` is that of a module without
``bench_``, and of its result. An error of one does not stop the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.record import RESULTS, ROOT

BENCHMARKS: dict[str, tuple[str, str]] = {
    "checks": ("--frames 947756 --runs 3", "--frames 10000"),
    "cold": ("", "--scale 0.01 --runs 1"),
    "commands": ("", "--frames 2000 --runs 1"),
    "commit": ("", "--runs 1"),
    "compressed": ("", "--scale 0.01 --runs 1"),
    "extract": ("", "--frames 16 --runs 1"),
    "features": ("--frames 160000", "--frames 2000 --runs 1"),
    "first_read": ("", "--scale 0.01 --runs 1"),
    "gpu": ("", "--device cpu --frames 16 --workers 1"),
    "growth": ("--most 10000000", "--most 10000 --runs 1"),
    "hands": ("", "--frames 2"),
    "hdf5": ("", "--frames 8192 --runs 1"),
    "holistic": ("", "--frames 2"),
    "import": ("", "--scale 0.01"),
    "ingest_mediapipe": ("--copies 25", "--copies 1 --runs 1"),
    "ingest_scale": ("", "--scale 0.01"),
    "joining": ("", "--runs 1 --seconds 1"),
    "loaders": ("", "--frames 2000 --runs 1"),
    "objects": ("", "--frames 12000 --runs 1"),
    "old_training": ("--runs 3", "--frames 400 --image-size 32 --steps 4"),
    "read": ("", "--scale 0.01 --runs 1 --seconds 0.1"),
    "readers": ("", "--scale 0.01 --runs 1 --batches 4"),
    "render": ("", "--frames 32 --runs 1"),
    "scripts": ("", "--frames 2000 --videos 10 --runs 1"),
    "shuffle": ("", "--most 100000"),
    "small": ("", "--runs 1"),
    "train": ("", "--image-size 32 --steps 8"),
}
"""Options of each at full size, and at a size that shows that it runs, but not how fast."""


def run(name: str, options: str, results: Path | None) -> bool:
    """Run one benchmark; return whether it came to its end."""
    print(f"\n== {name} {options}".rstrip(), flush=True)
    command = [sys.executable, "-m", f"benchmarks.bench_{name}", *options.split()]
    if results is not None:
        command += ["--out", str(results / f"{name}.json")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main() -> None:
    """Run those that are asked for, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="small data, no results by default")
    parser.add_argument("--results", type=Path, help=f"{RESULTS.relative_to(ROOT)} by default")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    results = args.results or (None if args.quick else RESULTS)
    if results is not None:
        results = results.resolve()
        results.mkdir(parents=True, exist_ok=True)
    names = args.names or list(BENCHMARKS)
    failed = [name for name in names if not run(name, BENCHMARKS[name][args.quick], results)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
