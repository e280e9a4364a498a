"""The ingest that test_run.py ends with SIGTERM; run as a script."""

import sys

from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from tests.fakes import FakeExtractor, FakeSource

LENGTHS = {f"v{n}": 20 for n in range(20)}


def source() -> FakeSource:
    return FakeSource(LENGTHS)


if __name__ == "__main__":
    options = Options(workers=0, task_frames=20, checkpoint_frames=40)
    report = run_ingest(
        source(), sys.argv[1], FakeExtractor(stop_at=110, stop_file=sys.argv[2]), options
    )
    print("interrupted" if report.interrupted else "whole", report.videos_done)
