"""The real MediaPipe on workers by hand and serially: ``python -m benchmarks.faults.real_model``.

Of three workers one has four threads, one joins late, one is killed in the middle. What they make
has to be what one process makes, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import kpstore
from benchmarks.faults.by_hand import ByHand
from benchmarks.faults.cluster import AtFrame
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.sources.base import Source
from kpstore.sources.demo import write_demo_dataset
from kpstore.sources.phoenix import PhoenixSource
from kpstore.sources.videos import VideosSource

ARRAYS = ("keypoints", "keypoints_detected", "keypoints_visibility", "keypoints_status")


def source_of(videos: Path | None, folder: Path) -> Source:
    """Return a folder of video files as a source, or pictures of scikit-image as a folder."""
    return (
        VideosSource(videos)
        if videos
        else PhoenixSource(write_demo_dataset(folder / "data", videos=4, frames=8))
    )


def run(source: Source, folder: Path, *, task_frames: int = 8) -> dict[str, Any]:
    """Return how many frames came out, and in which arrays any bit differs."""
    run_ingest(source, folder / "one.kps", HolisticExtractor(), Options(workers=0))
    expected = kpstore.open(folder / "one.kps")
    n_frames = int(expected.index.total_frames)
    with ByHand(folder) as hands:
        hands.start("four-threads", threads=4, wait=False)
        hands.start("killed", threads=2)
        hands.workers["four-threads"].wait_for("Registered to:")

        def disturb() -> None:
            hands.kill("killed")
            hands.start("late", threads=1)

        options = Options(scheduler=hands.address, task_frames=task_frames)
        observer = AtFrame(n_frames // 4, disturb)
        report = run_ingest(
            source, folder / "three.kps", HolisticExtractor(), options, observer=observer
        )
    found = kpstore.open(folder / "three.kps")
    return {
        "videos": report.videos_done,
        "frames": n_frames,
        "different": [
            name for name in ARRAYS if found[name][:].tobytes() != expected[name][:].tobytes()
        ],
        "notes": list(report.notes),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos",
        type=Path,
        help="a folder of video files; else pictures that scikit-image brings",
    )
    parser.add_argument("--task-frames", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        source = source_of(args.videos, here)
        print(json.dumps(run(source, here, task_frames=args.task_frames), indent=2))


if __name__ == "__main__":
    main()
