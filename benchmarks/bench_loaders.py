"""Shuffled epochs by kpstore and by the loaders of other libraries, as their users write them.

``python -m benchmarks.bench_loaders [--frames 100000] [--runs 3] [--environments DIR]
[--folder DIR]``

Keypoints that move (:mod:`benchmarks.motion`), in batches of 256, without workers and with two.
Those of PyTorch start in each epoch, as they do by default; two workers of ``kpstore.loader`` are
threads here.

- ``kpstore.loader(view, 256)`` and ``DataLoader(view, 256, shuffle=True)``, of a raw store.
- ``DataLoader(TensorDataset, 256, shuffle=True)``: everything in memory.
- Other libraries (:mod:`benchmarks.peer_loaders`): tensordict, MosaicML Streaming, litdata,
  WebDataset and HF datasets. Each runs under ``DIR/NAME/bin/python``, if there is such an
  environment, so that it may have a NumPy and a PyTorch of its own; otherwise under this Python, if
  it is installed. ``NAME`` is that of its module.

How well they shuffle differs: ``DataLoader`` draws from all frames, ``kpstore.loader`` and the
streaming libraries mix what they have read.

Each has a process of its own in each run, in turn with the others. The files are in the system's
memory, and modules are imported before the clock starts. *Open* is opening the data set (for
TensorDataset, reading the file), *first batch* the time from making the loader to its first batch,
in the first epoch; frames per second are those of the second. The first epoch must have every frame
exactly once, with its values. Figures are medians; *of TensorDataset* is the speed divided by that
of ``DataLoader(TensorDataset)`` with as many workers in the same run: above 1 it is faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

import kpstore
from benchmarks import peer_loaders, record
from benchmarks.bench_scripts import make_store, write_videos
from benchmarks.cases import made_up_videos, summary
from benchmarks.motion import Motion
from benchmarks.peer_loaders import PEERS, torchs_loader
from kpstore.bench.measure import BATCH
from kpstore.schema.layout import keypoints_spec

WORKERS = (0, 2)
FEATURE, STORE, VALUES = "keypoints", "keypoints.kps", "values.npy"
BESIDE = "DataLoader(TensorDataset)"
_MODULE = "benchmarks.bench_loaders"
_LONGEST_S = 3600
"""Seconds after which a process is taken to hang."""


# -- in processes of their own: kpstore, and PyTorch alone -----------------------------------------


def _view(folder: Path) -> Any:
    return kpstore.open(folder / STORE).frames(FEATURE)


def _tensors(folder: Path) -> Any:
    values = torch.from_numpy(np.load(folder / VALUES))
    return TensorDataset(values, torch.arange(len(values)))


@dataclass(frozen=True)
class Own:
    """What runs under this Python: how it opens its data, and makes a loader."""

    open: Callable[[Path], Any]
    loader: Callable[[Any, int, int], Iterable[Any]]


OURS = {
    "kpstore.loader": Own(
        _view, lambda view, workers, batch: kpstore.loader(view, batch, workers=workers)
    ),
    "DataLoader(view)": Own(_view, torchs_loader),
    BESIDE: Own(_tensors, torchs_loader),
}


def _read(folder: Path, name: str, workers: int) -> dict[str, float]:
    """Measure as a peer is measured."""
    own = OURS[name]
    peer_loaders.bring_in(folder / STORE)
    marks = np.array(np.load(folder / VALUES, mmap_mode="r")[:, 0, 0])
    return peer_loaders.measured(
        lambda: own.open(folder), lambda data: own.loader(data, workers, BATCH), marks, BATCH
    )


# -- measuring -------------------------------------------------------------------------------------


def _python(module: str, environments: Path | None) -> str | None:
    """Return the Python that has a library; None if there is none."""
    if environments is not None:
        there = environments.absolute() / module / "bin" / "python"
        if there.is_file():
            return str(there)  # a link is not followed, or it would leave the environment
    return sys.executable if importlib.util.find_spec(module) else None


def _call(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """Run a command in the checkout; return the last line that it prints."""
    done = subprocess.run(
        command,
        cwd=record.ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=_LONGEST_S,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["killed"]
        raise RuntimeError(f"{' '.join(command[1:])}: {said[-1]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def _prepare(folder: Path, frames: int, pythons: Mapping[str, str]) -> dict[str, list[str]]:
    """Write everything; return the command that reads each, but for the number of workers."""
    values = Motion().rows(frames).values
    np.save(folder / VALUES, values)
    videos = made_up_videos(frames, np.random.default_rng(0))
    write_videos(make_store(folder / STORE, videos, keypoints_spec()), FEATURE, values)
    own = [sys.executable, "-m", _MODULE, "--child", str(folder)]
    found = {name: [*own, name] for name in OURS}
    script = str(Path(peer_loaders.__file__).resolve())
    rest = folder / "rest"  # of what libraries leave behind
    rest.mkdir()
    for name, python in pythons.items():
        written = str(folder / name)
        write = [python, script, "write", name, str(folder / VALUES), written]
        _call(write, {"TMPDIR": str(rest)})
        found[name] = [python, script, "read", name, written]
    return found


def run(
    *, frames: int, runs: int, environments: Path | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Measure; return figures by workers and loader, and the versions of the peers."""
    pythons = {name: _python(peer.module, environments) for name, peer in PEERS.items()}
    there = {name: python for name, python in pythons.items() if python is not None}
    with tempfile.TemporaryDirectory(dir=folder, prefix="kpstore-bench-loaders-") as made:
        commands = _prepare(Path(made).resolve(), frames, there)
        took: dict[tuple[int, str], list[dict[str, Any]]] = {
            (workers, name): [] for workers in WORKERS for name in commands
        }
        for _ in range(runs):
            for (workers, name), found in took.items():
                batch = [str(BATCH)] if name in PEERS else []
                told = _call([*commands[name], str(workers), *batch])
                found.append(json.loads(told))
    own = {"torch": torch.__version__, "numpy": np.__version__}
    own |= {"kpstore": record.versions()["kpstore"], "python": platform.python_version()}
    return {
        "frames": frames,
        "missing": [name for name, python in pythons.items() if python is None],
        "versions": {
            "kpstore": own,
            **{name: took[WORKERS[0], name][0]["versions"] for name in there},
        },
        "workers": {
            str(workers): {
                name: _figures(took[workers, name], took[workers, BESIDE]) for name in commands
            }
            for workers in WORKERS
        },
    }


def _figures(own: list[dict[str, Any]], beside: list[dict[str, Any]]) -> dict[str, Any]:
    speed = "frames_per_s"
    ratios = [one[speed] / other[speed] for one, other in zip(own, beside, strict=True)]
    names = ("open_s", "first_batch_s", speed)
    medians = {name: statistics.median(one[name] for one in own) for name in names}
    return {**medians, "of_tensors": summary(ratios)}


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table for each number of workers, and one of versions."""
    heads = (
        "loader",
        "open, ms",
        "first batch, ms",
        "frames/s",
        "of TensorDataset",
        "lowest–highest",
    )
    made: dict[str, record.Table] = {}
    for workers, figures in found["workers"].items():
        rows: list[tuple[str, ...]] = []
        for name, one in figures.items():
            ratio = one["of_tensors"]
            rows.append(
                (
                    PEERS[name].how if name in PEERS else name,
                    record.short(1e3 * one["open_s"]),
                    record.short(1e3 * one["first_batch_s"]),
                    record.short(one["frames_per_s"]),
                    record.short(ratio["median"]),
                    f"{record.short(ratio['min'])}–{record.short(ratio['max'])}",
                )
            )
        missing = [(PEERS[name].how, "not installed", *[""] * 4) for name in found["missing"]]
        made["2 workers" if workers == "2" else "no workers"] = [heads, *rows, *missing]
    kinds = ("torch", "numpy", "python")
    made["versions"] = [
        ("library", "version", *kinds),
        *_versions(found["versions"], kinds),
    ]
    return made


def _versions(
    found: Mapping[str, Mapping[str, str]], kinds: tuple[str, ...]
) -> list[tuple[str, ...]]:
    """Return a row for each library, which may have several loaders."""
    rows: dict[tuple[str, ...], None] = {}
    for name, one in found.items():
        what = PEERS[name].distribution if name in PEERS else name
        rows[(what, one[what], *(one[kind] for kind in kinds))] = None
    return list(rows)


def main() -> None:
    """Parse, run, print tables."""
    if sys.argv[1:2] == ["--child"]:
        folder, name, workers = sys.argv[2:]
        print(json.dumps(_read(Path(folder), name, int(workers))), flush=True)
        return
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--environments", type=_folder, metavar="DIR", help="has environments of other libraries"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; a temporary folder by default"
    )
    args = parser.parse_args()
    found = run(
        frames=args.frames, runs=args.runs, environments=args.environments, folder=args.folder
    )
    record.finish(args, found, tables(found))


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder")
    return Path(text)


if __name__ == "__main__":
    main()
