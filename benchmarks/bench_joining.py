"""Workers that join a run later: ``python -m benchmarks.bench_joining [--runs 3]``.

A scheduler and workers that are started by hand, and an extractor that sleeps for each frame, so
that five workers need hardly more than one core. Some of them are there at the start, the others
are started when the first frames are done, or when the run says that it waits. Frames are counted
for a while from when all have registered: a worker that joins also proves then that it can work.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.faults.by_hand import ByHand
from benchmarks.faults.numbered import NumberedExtractor, NumberedSource
from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.report import Progress
from kpstore.ingest.run import run_ingest

WORKERS = 5
AT_START = (5, 1, 0)
SLEEP_S = 0.02
VIDEO_FRAMES, TASK_FRAMES = 50, 200
_STARTING_S = 60
"""Frames are there for so long before counting begins, on a slow machine too."""


class _EnoughError(Exception):
    """Ends a run that was looked at for long enough."""


class _Watch(SilentObserver):
    """Lets others join when a run has begun, and counts frames from when all are there.

    Parameters
    ----------
    join : returns when all are there.
    seconds : how long to count.
    """

    def __init__(self, join: Callable[[], None], seconds: float) -> None:
        self._joining, self._seconds = threading.Thread(target=join), seconds
        self._begun = False
        self._from: tuple[float, int] | None = None
        self.frames_per_s = 0.0

    def on_note(self, note: str) -> None:
        """Begin if the run waits for workers."""
        if "waiting" in note:
            self._begin()

    def on_progress(self, progress: Progress) -> None:
        """Begin with the first frames, and count later ones."""
        now, done = time.monotonic(), progress.frames_done
        if not done:
            return
        self._begin()
        if self._joining.is_alive() or self.frames_per_s:
            return
        if self._from is None:
            self._from = now, done
        elif now - self._from[0] >= self._seconds:
            self.frames_per_s = (done - self._from[1]) / (now - self._from[0])

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """End the run if it was counted."""
        if self.frames_per_s:
            raise _EnoughError

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._joining.start()


def measure(n_at_start: int, seconds: float) -> float:
    """Return the frames per second of all workers, from when the last has registered."""
    n_frames = int(WORKERS * (seconds + _STARTING_S) / SLEEP_S)
    with tempfile.TemporaryDirectory() as name, ByHand(Path(name)) as hands:
        for number in range(n_at_start):
            hands.start(f"early-{number}")

        def join() -> None:
            others = [f"late-{number}" for number in range(WORKERS - n_at_start)]
            for other in others:
                hands.start(other, wait=False)
            for other in others:
                hands.workers[other].wait_for("Registered to:")

        watch = _Watch(join, seconds)
        with suppress(_EnoughError):
            run_ingest(
                NumberedSource([VIDEO_FRAMES] * (n_frames // VIDEO_FRAMES), Path(name)),
                Path(name, "s.kps"),
                NumberedExtractor(sleep_s=SLEEP_S),
                Options(scheduler=str(hands.file), task_frames=TASK_FRAMES, checkpoint_s=5),
                observer=watch,
            )
    return watch.frames_per_s


def run(*, runs: int, seconds: float) -> dict[str, Any]:
    """Measure each number of workers at the start, in turn."""
    found: dict[str, list[float]] = {str(n_at_start): [] for n_at_start in AT_START}
    for _ in range(runs):
        for n_at_start in AT_START:
            found[str(n_at_start)].append(measure(n_at_start, seconds))
    return {"frames_per_s": found}


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a row for each number of workers at the start."""
    rates = {int(n): statistics.median(each) for n, each in found["frames_per_s"].items()}
    return {
        "joining": [
            ("workers at the start", "that join", "frames/s", f"of {WORKERS} at the start"),
            *(
                (n, WORKERS - n, f"{rate:.0f}", f"{rate / rates[WORKERS]:.2f}")
                for n, rate in rates.items()
            ),
        ]
    }


def main() -> None:
    """Parse, run, print a table."""
    parser = record.parser(__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="how long to count")
    args = parser.parse_args()
    found = run(runs=args.runs, seconds=args.seconds)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
