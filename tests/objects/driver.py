"""An ingest into object storage that test_stores.py kills."""

from __future__ import annotations

import sys

from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from tests.fakes import FakeExtractor, FakeSource

LENGTHS = {f"video-{number:03d}": 3 + (number * 37) % 30 for number in range(24)}
N_FRAMES = sum(LENGTHS.values())


def extractor(stop_file: str = "") -> FakeExtractor:
    """The extractor, which stops in the middle if a file is given."""
    return FakeExtractor(stop_at=N_FRAMES // 2 if stop_file else 0, stop_file=stop_file)


if __name__ == "__main__":
    run_ingest(
        FakeSource(LENGTHS),
        sys.argv[1],
        extractor(sys.argv[2]),
        Options(workers=0, checkpoint_s=0.05, task_frames=30),
    )
