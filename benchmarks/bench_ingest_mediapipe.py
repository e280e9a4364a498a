"""What the store costs beside MediaPipe itself, and whether two workers do twice the work of one.

``python -m benchmarks.bench_ingest_mediapipe [--data PHOENIX_ROOT] [--copies 8] [--runs 3]``

The plain loop is what a user would write: Pillow, ``Holistic.process``, a ``reset()`` per video,
arrays in memory. All cases read the same files, each run in a fresh process, in turn. ``steady``
leaves out imports and model building: it counts from the first finished frame to the last, which is
what hours of extraction look like; ``whole`` is the process from start to end.

One MediaPipe process left to itself spreads over about 1.25 cores, so on two cores two of anything
cannot be twice as fast as one. Hence every single case also runs on one core, driver and all, and
two plain loops side by side show what the machine can give.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.cases import summary

_PLAIN = """
import sys, time, pathlib
import numpy as np
from PIL import Image
import mediapipe as mp
holistic = mp.solutions.holistic.Holistic(static_image_mode=True, model_complexity=1)
rows, first = [], None
for folder in sorted(p for p in pathlib.Path(sys.argv[1]).glob("features/*/*/*")):
    holistic.reset()
    for path in sorted(folder.glob("*.png")):
        found = holistic.process(np.asarray(Image.open(path).convert("RGB")))
        hands = [found.left_hand_landmarks, found.right_hand_landmarks]
        rows.append([found.face_landmarks, *hands, found.pose_landmarks])
        first = first or time.perf_counter()
print(len(rows), time.perf_counter() - first)
"""

_INGEST = """
import sys, time
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.ingest.options import Options
from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.run import run_ingest
from kpstore.sources.phoenix import PhoenixSource

class Watch(SilentObserver):
    first = None
    def on_progress(self, progress):
        if progress.frames_done and self.first is None:
            self.first = time.perf_counter(), progress.frames_done
        self.last = time.perf_counter()

if __name__ == "__main__":
    watch = Watch()
    # Short tasks, so that this short run does not end with one worker waiting for the other.
    source, options = PhoenixSource(sys.argv[1]), Options(workers=int(sys.argv[3]), task_frames=50)
    report = run_ingest(source, sys.argv[2], HolisticExtractor(), options, observer=watch)
    print(report.frames - watch.first[1] + 1, watch.last - watch.first[0])
"""


@dataclass(frozen=True)
class _Case:
    """One way to extract everything: ``at_once`` processes of a script, on as many cores."""

    code: str
    workers: int = 0
    cores: int | None = None
    at_once: int = 1


_CASES = {
    "plain loop": _Case(_PLAIN),
    "1 worker": _Case(_INGEST, workers=1),
    "2 workers": _Case(_INGEST, workers=2),
    "plain loop, one core": _Case(_PLAIN, cores=1),
    "1 worker, one core": _Case(_INGEST, workers=1, cores=1),
    "2 plain loops at once": _Case(_PLAIN, at_once=2),
}

_RATIOS = (
    ("1 worker", "plain loop"),
    ("1 worker, one core", "plain loop, one core"),
    ("2 workers", "1 worker"),
    ("2 workers", "1 worker, one core"),
    ("2 workers", "2 plain loops at once"),
)


def run(data: Path, *, runs: int) -> dict[str, Any]:
    """Measure all cases in turn and relate them."""
    steady: dict[str, list[float]] = {name: [] for name in _CASES}
    whole: dict[str, list[float]] = {name: [] for name in _CASES}
    for _ in range(runs):
        for name, case in _CASES.items():
            frames, steady_rate, whole_rate = _measure(case, data)
            steady[name].append(steady_rate)
            whole[name].append(whole_rate)
    ratios = {
        f"{a} / {b}": [x / y for x, y in zip(steady[a], steady[b], strict=True)] for a, b in _RATIOS
    }
    return {
        "frames": frames,
        "steady_frames_per_s": {name: summary(values) for name, values in steady.items()},
        "whole_frames_per_s": {name: summary(values) for name, values in whole.items()},
        "ratios_steady": {name: summary(values) for name, values in ratios.items()},
    }


def _measure(case: _Case, data: Path) -> tuple[int, float, float]:
    """Return the frames of one process, and frames/s of all processes, steady and whole."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(case.code)
        command = [
            sys.executable,
            str(script),
            str(data),
            str(Path(folder) / "out.kps"),
            str(case.workers),
        ]
        began = time.perf_counter()
        pin = (
            None
            if case.cores is None
            else lambda: os.sched_setaffinity(0, set(range(case.cores or 1)))
        )
        started = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                preexec_fn=pin,
            )
            for _ in range(case.at_once)
        ]
        printed = [process.communicate()[0].split()[-2:] for process in started]
        took = time.perf_counter() - began
    if any(process.returncode for process in started):
        raise RuntimeError(f"a run failed: {' '.join(command)}")
    frames = int(printed[0][0])
    return (
        frames,
        sum((int(n) - 1) / float(seconds) for n, seconds in printed),
        frames * case.at_once / took,
    )


def repeat_videos(root: Path, copies: int) -> None:
    """Copy every train video of a PHOENIX-shaped folder, so that there is enough to do."""
    csv = root / "annotations/manual/PHOENIX-2014-T.train.corpus.csv"
    lines = csv.read_text(encoding="utf-8").splitlines()
    for row in list(lines[1:]):
        name, rest = row.split("|", 1)
        folder = root / "features/fullFrame-210x260px/train" / name
        for copy in range(1, copies):
            shutil.copytree(folder, folder.with_name(f"{name}-copy{copy}"))
            lines.append(f"{name}-copy{copy}|{rest}")
    csv.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of speeds, and one of their ratios."""
    spread = "lowest–highest"
    return {
        "speed": [
            ("", "frames/s", spread, "whole process, frames/s"),
            *(
                (name, *_spread(one, 1), f"{found['whole_frames_per_s'][name]['median']:.1f}")
                for name, one in found["steady_frames_per_s"].items()
            ),
        ],
        "ratios": [
            ("ratio", "median", spread),
            *((name, *_spread(one, 2)) for name, one in found["ratios_steady"].items()),
        ],
    }


def _spread(one: dict[str, float], digits: int) -> tuple[str, str]:
    low, high = one["min"], one["max"]
    return f"{one['median']:.{digits}f}", f"{low:.{digits}f}–{high:.{digits}f}"


def main() -> None:
    """Parse, make data, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument(
        "--data", type=Path, help="a PHOENIX-shaped folder; made up from photographs by default"
    )
    parser.add_argument(
        "--copies", type=int, default=8, help="how often each made-up train video comes"
    )
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data
        if data is None:
            from kpstore.sources.demo import write_demo_dataset

            data = write_demo_dataset(Path(folder) / "data")
            repeat_videos(data, args.copies)
        found = run(data, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
