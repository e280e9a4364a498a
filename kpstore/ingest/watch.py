"""Ends a worker process in which a frame takes too long; what follows is that of any dead worker.

A model may hang in C code that holds Python's lock, or wait for a disk for ever: nothing but the
end of its process helps. The task of a worker that has died is run again in child processes
(:mod:`kpstore.ingest.isolated`), which tell the frame, and a frame that hangs there too fails.
"""

from __future__ import annotations

import faulthandler
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kpstore.extractors.base import takes_videos
from kpstore.ingest.job import Job, OnFrames

MAX_LIMIT_S = 1e8
"""Three years: alarms take no more than the system's largest number of microseconds."""

OPEN_S = 1800.0
"""How long a model may take to start, if a frame may not take longer still."""

_OFTEN = 0.05


_FRAMES_A_LIMIT = 1000


def step_limit(job: Job, n_frames: int) -> float:
    """Return how long a worker may be silent: for a frame or batch, or for whole videos.

    Parameters
    ----------
    n_frames : of the videos. A model that takes whole videos has the limit of a frame for each
        thousand of them, begun or whole.
    """
    if not takes_videos(job.extractor):
        return job.frame_timeout_s
    return video_limit(job, n_frames)


def video_limit(job: Job, n_frames: int) -> float:
    """Return how long a process may be silent that says nothing before a whole video is done."""
    return job.frame_timeout_s * (1 + n_frames // _FRAMES_A_LIMIT)


def opening_limit(frame_limit_s: float) -> float:
    """Return how long a model may take to start; 0 for any time, as for its frames."""
    return frame_limit_s and max(OPEN_S, frame_limit_s)


@contextmanager
def watched(limit_s: float, report: OnFrames) -> Iterator[OnFrames]:
    """End this process if what a block does is not reported for ``limit_s`` seconds; 0 never does.

    Yields
    ------
    callable
        Tells that frames are done, and passes it on to ``report``.
    """
    if not limit_s:
        yield report
        return
    quiet = os.open(os.devnull, os.O_WRONLY)
    # The alarm is a thread in C, which needs no lock of Python's. Setting it costs a thread, so a
    # fast model sets it rarely, and has a little more time instead.
    armed = -math.inf

    def arm() -> None:
        nonlocal armed
        now = time.monotonic()
        if now - armed >= _OFTEN * limit_s:
            armed = now
            faulthandler.dump_traceback_later(limit_s * (1 + _OFTEN), file=quiet, exit=True)

    def done(n_frames: int) -> None:
        arm()
        report(n_frames)

    try:
        arm()
        yield done
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(quiet)
