"""The ingest that test_kill.py kills; run as a script, it logs every acknowledged commit."""

from __future__ import annotations

import os
import sys

import dask

from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.report import Progress
from kpstore.ingest.run import run_ingest
from tests.fakes import FakeExtractor, FakeSource

LENGTHS = {f"video-{n:03d}": 3 + (n * 37) % 60 for n in range(120)}


def source() -> FakeSource:
    return FakeSource(LENGTHS, broken={"video-007": [2], "video-100": [0, 1]})


def extractor(sleep_s: float = 0.0) -> FakeExtractor:
    return FakeExtractor(chunk_rows=64, sleep_s=sleep_s)


class CommitLog(SilentObserver):
    """Writes the id of each commit to a file, to the disk, before the run goes on."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        with open(self.path, "a") as log:
            log.write(snapshot + "\n")
            log.flush()
            os.fsync(log.fileno())


if __name__ == "__main__":
    store, log = sys.argv[1:3]
    options = Options(workers=2, checkpoint_s=0.2, task_frames=100)
    # Workers are forked from one process that has imported Dask, which saves half of the test's CPU
    # time.
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        run_ingest(source(), store, extractor(0.012), options, observer=CommitLog(log))
