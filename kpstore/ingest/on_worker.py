"""Functions that the driver calls in a Dask worker: the proof, a task, an opinion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from kpstore.backends.base import Fork
from kpstore.errors import KpstoreError, one_line
from kpstore.ingest.doubts import Doubted, Opinion, second_opinion
from kpstore.ingest.fitness import Question, flaws
from kpstore.ingest.isolated import extract_isolated
from kpstore.ingest.job import Job, OnFrames, opened_extractor
from kpstore.ingest.plan import Task
from kpstore.ingest.watch import opening_limit, step_limit, watched
from kpstore.ingest.worker import TaskResult, run_task
from kpstore.visible import logger

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_log = logger(__name__)

THREAD = "kpstore"
"""The executor of a worker in which all tasks run: one thread, however many the worker has.

A model has one state, and may be bound to the thread that made it.
"""

_REPORT_EVERY_S = 0.5

# Runs for which this process has proved itself
_proved: set[str] = set()


@dataclass(frozen=True)
class Refusal:
    """The answer of a worker that cannot do its tasks: its GPU is gone, say."""

    reason: str
    error: KpstoreError | None = None


@dataclass(frozen=True)
class Stranger:
    """The answer of a process that has not proved itself."""


def prove(asked: Question, run_id: str, answer: str) -> list[str]:
    """Return what makes this worker unfit; if nothing does, it may do tasks of the run."""
    from distributed import get_worker
    from distributed.threadpoolexecutor import ThreadPoolExecutor

    try:
        found = flaws(asked, answer)
    except Exception as error:  # a disk that does not answer, say: this worker's own trouble
        _log.info("this worker cannot prove itself", exc_info=True)
        found = [one_line(error)]
    if not found:
        executors = get_worker().executors
        if THREAD not in executors:
            executors[THREAD] = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        _proved.add(run_id)
    return found


def run_on_worker(
    job: Job, task: Task, fork: Fork | None, topic: str, after_death: bool
) -> TaskResult | Refusal | Stranger:
    """Run one task.

    Parameters
    ----------
    topic : of Dask, where progress is reported.
    after_death : whether a worker has died at this task.
    """
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(topic, worker.get_current_task())
    with _throttled(lambda n_frames: worker.log_event(topic, n_frames)) as report:
        if after_death:
            return _tried(
                job, lambda: run_task(job, task, fork, extract=extract_isolated, report=report)
            )
        return _tried(
            job, lambda: _watched(job, task.n_frames, report, partial(run_task, job, task, fork))
        )


def give_opinion(job: Job, doubted: Doubted, isolated: bool) -> Opinion | Refusal | Stranger:
    """Try videos that have failed elsewhere."""
    if isolated:
        return _tried(job, lambda: second_opinion(job, doubted, extract=extract_isolated))
    n_frames = sum(video.record.n_frames for video, _ in doubted)
    ask = partial(second_opinion, job, doubted)
    return _tried(job, lambda: _watched(job, n_frames, lambda _: None, ask))


class _Reporting(Protocol[T_co]):
    def __call__(self, *, report: OnFrames) -> T_co: ...


def _watched(job: Job, n_frames: int, report: OnFrames, do: _Reporting[T]) -> T:
    """Return what ``do`` returns; a frame that takes too long ends this process."""
    with watched(opening_limit(job.frame_timeout_s), report):
        opened_extractor(job)
    with watched(step_limit(job, n_frames), report) as report:
        return do(report=report)


def _tried(job: Job, do: Callable[[], T]) -> T | Refusal | Stranger:
    if job.run_id not in _proved:
        return Stranger()
    try:
        return do()
    except KpstoreError as error:
        return Refusal(one_line(str(error)), error)
    except Exception as error:  # the machine's, a full disk say: those of videos are caught below
        _log.info("this worker cannot do its task", exc_info=True)
        return Refusal(one_line(error))


@contextmanager
def _throttled(send: OnFrames) -> Iterator[OnFrames]:
    """Add up small reports, so that a fast extractor does not spend its time on reporting."""
    waiting, sent = 0, time.monotonic()

    def report(n_frames: int) -> None:
        nonlocal waiting, sent
        waiting += n_frames
        if time.monotonic() - sent >= _REPORT_EVERY_S:
            send(waiting)
            waiting, sent = 0, time.monotonic()

    try:
        yield report
    finally:
        if waiting:
            send(waiting)
