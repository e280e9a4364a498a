"""How benchmarks end: tables on the screen, and a file with the machine that they are true for.

The main of each calls :func:`parser` first and :func:`finish` last.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "kpstore",
    "numpy",
    "numcodecs",
    "zarr",
    "icechunk",
    "h5py",
    "hdf5plugin",
    "versioned-hdf5",
    "torch",
    "tensordict",
    "tensorstore",
    "obstore",
    "pylance",
    "mosaicml-streaming",
    "litdata",
    "webdataset",
    "datasets",
    "mediapipe",
    "opencv-python",
    "opencv-contrib-python",
    "transformers",
)
"""Distributions whose versions matter; a result names those that are installed."""
_OF_THIS_MACHINE = ("--out", "--folder", "--plot")
"""Options, each with one value, that say where something is put."""

Table = Sequence[Sequence[object]]
"""Rows; the first of them are the heads, with units."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks have; it notes the load before them."""
    made = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the command is told without certain options
    )
    made.add_argument("--out", type=_new_file, metavar="FILE.json", help="write the result, too")
    made.set_defaults(load_before=os.getloadavg()[0])
    return made


def finish(args: argparse.Namespace, found: Any, tables: Mapping[str, Table]) -> None:
    """Print tables, and write them with all figures if a file is asked for.

    Parameters
    ----------
    args : what :func:`parser` has parsed.
    found : all figures, JSON values.
    tables : by name; their cells are written as they are printed.
    """
    for name, table in tables.items():
        print(f"\n{name}\n")
        _print(table)
    if args.out is None:
        return
    result = {
        "command": command_of(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_before": round(args.load_before, 2),
        "versions": versions(),
        "tables": {name: [list(map(str, row)) for row in table] for name, table in tables.items()},
        "figures": found,
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    args.out.write_text(text + "\n", encoding="utf-8")


def short(value: float) -> str:
    """Return a number with three figures, or all before the point."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def _new_file(text: str) -> Path:
    """Refuse a place that cannot be written to, before hours are spent."""
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; name a file in a folder")
    return path


def _print(table: Table) -> None:
    texts = [[str(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        first, *others = [(cell, width) for cell, width in zip(row, widths, strict=True)]
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print("  ".join(cells).rstrip())


def command_of(argv: Sequence[str]) -> str:
    """Return the command that a reader types: of paths, what is not this machine's alone."""
    module = Path(argv[0]).resolve().relative_to(ROOT).with_suffix("")
    told = ["python", "-m", ".".join(module.parts).removesuffix(".__main__")]
    words = iter(part for word in argv[1:] for part in _parts(word))
    for word in words:
        if word in _OF_THIS_MACHINE:
            next(words, None)
        else:
            told.append(Path(word).name if "/" in word else word)
    return shlex.join(told)


def _parts(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def machine() -> dict[str, Any]:
    """Return what figures depend on, apart from versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return versions of installed packages; kpstore's with the commit, if this is a checkout."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if commit := _git("rev-parse", "--short", "HEAD"):
        code = ("kpstore", "cli", "benchmarks", ":!benchmarks/results")
        changed = _git("status", "--porcelain", "--", *code)
        found["kpstore"] += f" ({commit}{', changed' if changed else ''})"
    return found


def _git(*arguments: str) -> str:
    """Return what git says about this checkout; "" if it is none, or there is no git."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", *arguments]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip()
