"""What the driver calls in a Dask worker: prove yourself, do a task, say what you make of a video."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kpstore.backends.base import Fork
from kpstore.errors import KpstoreError, one_line
from kpstore.ingest.doubts import Doubted, Opinion, second_opinion
from kpstore.ingest.fitness import Question, flaws
from kpstore.ingest.isolated import extract_isolated
from kpstore.ingest.job import Job
from kpstore.ingest.plan import Task
from kpstore.ingest.worker import TaskResult, run_task

T = TypeVar("T")

_log = logging.getLogger(__name__)

THREAD = "kpstore"
"""The executor of a worker in which all tasks run: one thread, however many the worker has.

A model has one state, and may be bound to the thread that made it.
"""

_REPORT_EVERY_S = 0.5

_proved: set[str] = set()
"""Runs for which this process has proved itself."""


@dataclass(frozen=True)
class Refusal:
    """What a worker answers that cannot do its tasks: its GPU is gone, say."""

    reason: str
    error: KpstoreError | None = None


@dataclass(frozen=True)
class Stranger:
    """What a process answers that has proved nothing yet."""


def prove(asked: Question, run_id: str, answer: str) -> list[str]:
    """Return what makes this worker unfit; with nothing, it may do tasks of the run."""
    from distributed import get_worker
    from distributed.threadpoolexecutor import ThreadPoolExecutor

    try:
        found = flaws(asked, answer)
    except (
        Exception
    ) as error:  # a disk that does not answer, say: this worker's own trouble, and nobody else's
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
    topic : where progress is told.
    after_death : whether a worker has died at this task.
    """
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(topic, worker.get_current_task())
    extract = extract_isolated if after_death else None
    with _Throttled(lambda n_frames: worker.log_event(topic, n_frames)) as report:
        return _tried(job, lambda: run_task(job, task, fork, extract=extract, report=report))


def give_opinion(job: Job, doubted: Doubted, isolated: bool) -> Opinion | Refusal | Stranger:
    """Try what has failed elsewhere."""
    return _tried(job, lambda: second_opinion(job, doubted, isolated=isolated))


def _tried(job: Job, do: Callable[[], T]) -> T | Refusal | Stranger:
    if job.run_id not in _proved:
        return Stranger()
    try:
        return do()
    except KpstoreError as error:
        return Refusal(one_line(str(error)), error)
    except (
        Exception
    ) as error:  # videos' own faults are caught below: this is the machine's, a full disk say
        _log.info("this worker cannot do its task", exc_info=True)
        return Refusal(one_line(error))


class _Throttled:
    """Adds up small reports, so that a fast extractor does not spend its time telling of its progress."""

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self._waiting = 0
        self._sent = time.monotonic()

    def __enter__(self) -> Callable[[int], None]:
        return self._add

    def __exit__(self, *_: object) -> None:
        if self._waiting:
            self._send(self._waiting)

    def _add(self, n_frames: int) -> None:
        self._waiting += n_frames
        if time.monotonic() - self._sent >= _REPORT_EVERY_S:
            self._send(self._waiting)
            self._waiting, self._sent = 0, time.monotonic()
