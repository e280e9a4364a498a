"""What the store costs beside MediaPipe itself, and whether two workers do twice the work of one.

``python -m benchmarks.bench_ingest_mediapipe [--data PHOENIX_ROOT] [--copies 8] [--runs 3]``

The plain loop is what a user would write: Pillow, ``Holistic.process``, a ``reset()`` per video, arrays in memory. All
three read the same files, each run in a fresh process, in turn. ``steady`` leaves out imports and model building: it
counts from the first finished frame to the last, which is what hours of extraction look like; ``whole`` is the process
from start to end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
        rows.append([found.face_landmarks, found.left_hand_landmarks, found.right_hand_landmarks, found.pose_landmarks])
        first = first or time.perf_counter()
print(len(rows), time.perf_counter() - first)
"""

_INGEST = """
import sys, time
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.ingest.run import Options, SilentObserver, run_ingest
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


def run(data: Path, *, runs: int) -> dict[str, Any]:
    """Measure the three in turn and relate them."""
    import time

    cases = {"plain loop": (_PLAIN, []), "1 worker": (_INGEST, ["1"]), "2 workers": (_INGEST, ["2"])}
    steady: dict[str, list[float]] = {name: [] for name in cases}
    whole: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            for name, (code, extra) in cases.items():
                script = Path(folder) / "run.py"
                script.write_text(code)
                store = [str(Path(folder) / f"{number}-{name}.kps")] if extra else []
                began = time.perf_counter()
                printed = subprocess.run(
                    [sys.executable, str(script), str(data), *store, *extra], check=True, capture_output=True, text=True
                ).stdout.split()
                frames = int(printed[-2])
                steady[name].append((frames - 1) / float(printed[-1]))
                whole[name].append(frames / (time.perf_counter() - began))
    ratio = {
        "1 worker / plain loop": [a / b for a, b in zip(steady["1 worker"], steady["plain loop"], strict=True)],
        "2 workers / 1 worker": [a / b for a, b in zip(steady["2 workers"], steady["1 worker"], strict=True)],
    }
    return {
        "frames": frames,
        "steady_frames_per_s": {name: summary(values) for name, values in steady.items()},
        "whole_frames_per_s": {name: summary(values) for name, values in whole.items()},
        "ratios_steady": {name: summary(values) for name, values in ratio.items()},
    }


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


def main() -> None:
    """Parse, make data, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a PHOENIX-shaped folder; made up from photographs by default")
    parser.add_argument("--copies", type=int, default=8, help="how often each made-up train video comes")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data
        if data is None:
            from kpstore.sources.demo import write_demo_dataset

            data = write_demo_dataset(Path(folder) / "data")
            repeat_videos(data, args.copies)
        print(json.dumps(run(data, runs=args.runs), indent=2))


if __name__ == "__main__":
    main()
