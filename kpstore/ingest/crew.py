"""The workers of one run on a cluster: who is fit, who does what, and whose word is taken.

Every task is given to one certain worker, which has proved itself (:mod:`kpstore.ingest.fitness`).
What it says it wrote is looked at, and what it says has failed is confirmed
(:mod:`kpstore.ingest.doubts`), before it counts.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from kpstore.backends.base import Fork
from kpstore.errors import KpstoreError, WorkersError, one_line
from kpstore.ingest.doubts import (
    Opinion,
    blindness,
    doubted_videos,
    is_blind,
    unread_videos,
    weakness,
)
from kpstore.ingest.fitness import Meeting, Question, question, short_question
from kpstore.ingest.gpus import gpu_of_worker
from kpstore.ingest.isolated import look_isolated
from kpstore.ingest.job import Job, failed_video
from kpstore.ingest.on_worker import THREAD, Refusal, Stranger, give_opinion, prove, run_on_worker
from kpstore.ingest.plan import PlannedVideo, Task
from kpstore.ingest.sight import Look
from kpstore.ingest.worker import TaskResult, check_result, collect
from kpstore.schema.index import VideoRecord

_log = logging.getLogger(__name__)

MakeFork = Callable[[Task], Fork | None]
OnFrames = Callable[[int], None]

MAX_TRIES = 10
"""How often a task may lose its worker before its videos are recorded as failed.

From the second try on a frame cannot take the worker with it, so later deaths are not the data's
fault (a batch system that takes nodes back, the kernel out of memory).
"""

MAX_STRIKES = 2
"""A worker that has failed so often where others did not is left out: once may be a hiccup of a network's disk."""

WAIT_S = 60.0
"""How long a run waits for workers to come (back) when none is left."""

PROOF_S = 120.0
"""How long a worker may take to prove itself: its first imports may come from a slow network's disk."""

OPINION_S = 1800.0
"""How long to wait for another worker's opinion, which comes after what that worker has begun."""

MAX_DEATHS_IN_PROOF = 3
"""A worker, by its name, that has died so often while it proved itself is left out."""

POLL_S = 0.5
_ANSWER_S = 30.0
_AGAIN_S = 1.0
_PICTURES = 3
_PICTURES_TRIED = 12
_HELD = 2
"""A worker with so many tasks whose failures are in doubt gets no more until that is settled."""


@dataclass(eq=False)
class _Worker:
    """One worker process.

    Parameters
    ----------
    address : what Dask calls it; one that is started again mostly has another.
    name : what people call it.
    gpu : the only GPU that it may use; ``""`` leaves that alone.
    sign : what it leaves in the meeting folder.
    at : the order that it has begun and not ended, as far as that is known here.
    strikes : times that it failed where others did not, or broke off.
    held : tasks of it whose failures are in doubt.
    """

    address: str
    name: str
    gpu: str = ""
    state: Literal["new", "asked", "fit", "out"] = "new"
    sign: str = ""
    at: str = ""
    strikes: int = 0
    held: int = 0


@dataclass(eq=False)
class _Work:
    """A task, and what became of it so far.

    Parameters
    ----------
    losses : times that its worker was lost.
    deaths : times that its worker died of it, perhaps.
    avoid : addresses of workers that failed at it.
    """

    task: Task
    losses: int = 0
    deaths: int = 0
    avoid: set[str] = field(default_factory=set)


@dataclass(eq=False)
class _Claim:
    """A result in which something failed, until it is settled whose fault that is.

    Parameters
    ----------
    asked : addresses of workers that were asked for an opinion.
    """

    worker: _Worker
    work: _Work
    result: TaskResult
    asked: set[str] = field(default_factory=set)


@dataclass(eq=False)
class _Order:
    """Something that a worker was asked to do and has not answered yet."""

    kind: Literal["proof", "task", "opinion"]
    key: str
    worker: _Worker
    future: Any
    work: _Work | None = None
    claim: _Claim | None = None
    since: float = field(default_factory=time.monotonic)


class Crew:
    """Runs the tasks of one job on whatever workers a client's scheduler has.

    Parameters
    ----------
    client : connected.
    address : of its scheduler, for people.
    job : what to do.
    make_fork : gives the writer that goes with a task.
    gpus : of this machine, to be shared out by the workers' numbers; none if whoever started them
        has pinned them.
    pinned : of this machine, one of which each worker must have got from whoever pinned them.
    ours : whether this process has started the workers, on this machine.
    notes : gets the reason for each worker that is left out, by its name.
    """

    def __init__(
        self,
        client: Any,
        address: str,
        job: Job,
        make_fork: MakeFork,
        *,
        gpus: Sequence[str],
        pinned: tuple[str, ...],
        ours: bool,
        notes: dict[str, str],
    ) -> None:
        self._client, self._address, self._job, self._make_fork = client, address, job, make_fork
        self._gpus, self._pinned, self._ours, self._notes = gpus, pinned, ours, notes
        self._topic = f"kpstore-{job.run_id}"
        self._workers: dict[str, _Worker] = {}
        self._orders: dict[str, _Order] = {}
        self._again: deque[_Work] = deque()
        self._new: deque[_Work] = deque()
        self._claims: list[_Claim] = []
        self._to_consult: deque[_Claim] = deque()
        self._taken: list[TaskResult] = []
        self._events: queue.SimpleQueue[str | Callable[[], None]] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="kpstore-look")
        self._looked_at, self._alone_since = -math.inf, math.inf
        self._has_lost = False
        self._errors: list[KpstoreError] = []
        self._deaths_in_proof = 0
        self._died_in_proof: Counter[str] = Counter()

    def run(self, tasks: Sequence[Task], on_frames: OnFrames) -> Iterator[TaskResult]:
        """Yield results as they are taken; see :class:`kpstore.ingest.executors.Executor`.

        Raises
        ------
        WorkersError
            If no worker is fit, none comes back, or the scheduler is gone.
        KpstoreError
            If all workers refuse in the same words: the extractor does not start, say.
        """
        self._new.extend(_Work(task) for task in tasks)
        remaining = len(tasks)
        self._client.subscribe_topic(self._topic, partial(self._hear, on_frames))
        try:
            with Meeting(self._job.meeting) as self._meeting:
                self._question = self._ask(tasks)
                while remaining:
                    self._look_around()
                    self._hand_out()
                    self._wait()
                    remaining -= len(self._taken)
                    while self._taken:
                        yield self._taken.pop(0)
        finally:
            self._looker.shutdown(wait=False, cancel_futures=True)
            if self._client.status == "running":
                self._client.unsubscribe_topic(self._topic)

    def _hear(self, on_frames: OnFrames, event: tuple[float, Any]) -> None:
        """Take what a worker tells meanwhile (in a thread of Dask's): frames that are done, or what it begins."""
        told = event[1]
        order = self._orders.get(told) if isinstance(told, str) else None
        if order is not None:
            order.worker.at = told
        elif isinstance(told, int):
            on_frames(told)

    def _wait(self) -> None:
        """Wait for the next thing to happen, and see to it."""
        try:
            event = self._events.get(timeout=POLL_S)
        except queue.Empty:
            return
        if callable(event):
            event()
        elif event in self._orders:  # otherwise its worker was left out, or is gone
            order = self._orders.pop(event)
            answer = self._answer(order)
            if answer is not None and order.worker.at == event:
                order.worker.at = ""
            order.future.release()
            self._see_to(order, answer)

    # -- who is there ------------------------------------------------------------------------------

    def _ask(self, tasks: Sequence[Task]) -> Question:
        if self._ours:
            return short_question(self._job, nonce=self._meeting.nonce, gpus=self._pinned)
        records = [video.record for task in tasks for video in task.videos]
        return question(self._job, nonce=self._meeting.nonce, pictures=self._pictures(records))

    def _pictures(self, records: Sequence[VideoRecord]) -> tuple[tuple[VideoRecord, str], ...]:
        """Return a few videos, from all over the data set, with what the driver sees of them.

        Those that it cannot read itself are no test for a worker.
        """
        tried = [record for record in records if record.n_frames]
        tried = tried[:: max(1, len(tried) // _PICTURES_TRIED)][:_PICTURES_TRIED]
        looks = look_isolated(self._job.source, tried, whole=False)
        seen = [
            (record, found.pixels)
            for record, found in zip(tried, looks, strict=True)
            if found.pixels
        ]
        return tuple(seen[:: max(1, len(seen) // _PICTURES)][:_PICTURES])

    def _look_around(self) -> None:
        """Notice workers that came or went; whoever is new is asked to prove itself."""
        if time.monotonic() - self._looked_at < POLL_S:
            return
        self._looked_at = time.monotonic()
        present = set(self._call(self._client.scheduler.ncores))
        for address in self._workers.keys() - present:
            self._lose(self._workers.pop(address))
        if present - self._workers.keys():
            known = self._call(self._client.scheduler.identity, n_workers=-1)["workers"]
            for address in sorted(known.keys() - self._workers.keys()):
                name = str(known[address]["name"])
                self._workers[address] = _Worker(address, name, gpu_of_worker(self._gpus, name))
        for worker in self._workers.values():
            if worker.state == "new" and self._died_in_proof[worker.name] >= MAX_DEATHS_IN_PROOF:
                self._leave_out(
                    worker, f"it died {MAX_DEATHS_IN_PROOF} times while it proved that it can work"
                )
            elif worker.state == "new":
                worker.state, worker.sign = "asked", f"worker-{next(self._numbers)}"
                self._submit("proof", worker, prove, self._question, self._job.run_id, worker.sign)
        self._check_deadlines()
        self._check_hope()

    def _check_deadlines(self) -> None:
        """Wait no longer for a worker that does not prove itself, or that gives no opinion."""
        now = time.monotonic()
        for order in list(self._orders.values()):
            if order.key not in self._orders or order.future.done():
                # its worker has just been left out; or it answered while this process had other
                # things to do
                continue
            if order.kind == "proof" and now - order.since > PROOF_S:
                self._leave_out(order.worker, f"it did not answer within {PROOF_S:g} s")
            elif order.kind == "opinion" and now - order.since > OPINION_S:
                del self._orders[order.key]
                order.future.cancel()
                self._redo(order)

    def _call(self, ask: Any, **arguments: Any) -> Any:
        """Ask the scheduler something."""
        if self._client.status == "running":
            try:
                return self._client.sync(ask, callback_timeout=_ANSWER_S, **arguments)
            except (OSError, TimeoutError) as error:
                _log.info("the scheduler does not answer: %s", error)
        raise self._gone()

    def _gone(self) -> WorkersError:
        return WorkersError(f"the Dask scheduler at {self._address} is gone")

    def _check_hope(self) -> None:
        """Raise :class:`WorkersError` if no worker can do anything, and none will come back."""
        now = time.monotonic()
        if any(worker.state != "out" for worker in self._workers.values()):
            self._alone_since = math.inf
            return
        self._alone_since = min(self._alone_since, now)
        reasons = self._reasons()
        if (self._has_lost or not self._workers) and now - self._alone_since < WAIT_S:
            return
        if (
            len(self._errors) == len(self._notes)
            and len({str(error) for error in self._errors}) == 1
        ):
            raise self._errors[
                0
            ]  # what is wrong everywhere in one way is not wrong with the workers
        if self._workers:
            raise WorkersError(f"none of {len(self._notes)} workers is fit to work: {reasons}")
        raise WorkersError(
            f"all workers are gone, and none came back{f'; {reasons}' if reasons else ''}"
        )

    def _reasons(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, reason in self._notes.items():
            by_reason.setdefault(reason, []).append(name)
        return "; ".join(
            f"{reason} (worker {', '.join(names)})" for reason, names in by_reason.items()
        )

    # -- who does what -----------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give every fit worker a task.

        And one ahead, which would only be lost when it dies, while there are many.
        """
        for _ in range(len(self._to_consult)):
            self._consult(self._to_consult.popleft())
        fit = [
            worker
            for worker in self._workers.values()
            if worker.state == "fit" and worker.held < _HELD
        ]
        for ahead in (0, 1):
            for worker in fit:
                if ahead and len(self._again) + len(self._new) <= len(fit):
                    return
                if self._busy(worker) <= ahead:
                    self._give(worker, fit)

    def _busy(self, worker: _Worker) -> int:
        return sum(order.worker is worker for order in self._orders.values())

    def _give(self, worker: _Worker, fit: Sequence[_Worker]) -> None:
        for work in self._again:
            if worker.address not in work.avoid or all(
                other.address in work.avoid for other in fit
            ):
                self._again.remove(work)
                break
        else:
            if not self._new:
                return
            work = self._new.popleft()
        task, fork = work.task, self._make_fork(work.task)
        arguments = (self._job_of(worker), task, fork, self._topic, work.deaths > 0)
        self._submit("task", worker, run_on_worker, *arguments, work=work)

    def _job_of(self, worker: _Worker) -> Job:
        return replace(self._job, gpu=worker.gpu) if worker.gpu else self._job

    def _submit(
        self,
        kind: Literal["proof", "task", "opinion"],
        worker: _Worker,
        function: Callable[..., Any],
        *arguments: Any,
        work: _Work | None = None,
        claim: _Claim | None = None,
    ) -> None:
        from dask.base import annotate

        key = f"{self._topic}-{kind}-{next(self._numbers)}"
        # The thread for tasks is made by the proof, which itself runs in any.
        annotations = {} if kind == "proof" else {"executor": THREAD}
        with annotate(**annotations):
            future = self._client.submit(
                function,
                *arguments,
                key=key,
                pure=False,
                workers=[worker.address],
                priority=0 if kind == "task" else 1,
            )
        self._orders[key] = _Order(kind, key, worker, future, work, claim)
        future.add_done_callback(lambda _: self._events.put(key))

    # -- what comes back ---------------------------------------------------------------------------

    def _answer(self, order: _Order) -> Any:
        """Return what a worker answered; an exception that is none of ours.

        Or None if the worker was lost.
        """
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        timeout_s = 5.0
        while True:
            try:
                return order.future.result(timeout=timeout_s)
            except KilledWorker:
                return None
            except FutureCancelledError as error:
                if getattr(error, "reason", None) == "scheduler-connection-lost":
                    raise self._gone() from None
                return None
            except TimeoutError as error:
                if order.future.status == "error":
                    return error  # raised on the worker
                # It has ended, but its worker went before it could hand the result over; or that
                # takes long.
                if order.worker.address not in self._call(self._client.scheduler.ncores):
                    return None
                timeout_s = min(2 * timeout_s, _ANSWER_S)
            except (
                Exception
            ) as error:  # raised by Dask, or while something is unpickled there or here
                self._call(self._client.scheduler.ncores)  # not because the scheduler is gone
                return Stranger() if _is_of_a_stranger(error) else error

    def _see_to(self, order: _Order, answer: Any) -> None:
        worker = order.worker
        if answer is None:
            self._lost(order)
            self._looked_at = -math.inf
        elif isinstance(answer, Exception):
            self._prove_again(order)
            self._strike(worker, one_line(answer))
            self._redo(order)
        elif isinstance(
            answer, Stranger
        ):  # its process died, and one that has proved nothing has its address
            self._prove_again(order)
            self._lost(order)
        elif isinstance(answer, Refusal):
            self._errors += [answer.error] if answer.error else []
            self._leave_out(worker, answer.reason)
            self._redo(order)
        elif isinstance(answer, Opinion):
            self._settle(order, answer)
        elif isinstance(answer, TaskResult):
            self._review(order, answer)
        else:
            self._judge(worker, answer)

    def _prove_again(self, order: _Order) -> None:
        """Ask for a proof, unless one that was asked for since is on its way."""
        if order.kind == "proof" or order.worker.state == "fit":
            order.worker.state = "new"

    def _judge(self, worker: _Worker, flaws: Sequence[str]) -> None:
        """Believe a worker that finds nothing wrong with itself, once what it wrote is here."""
        if flaws:
            self._leave_out(worker, "; ".join(flaws))
            return
        looking = self._looker.submit(self._meeting.flaws, worker.sign)
        looking.add_done_callback(lambda done: self._events.put(partial(self._admit, worker, done)))

    def _admit(self, worker: _Worker, done: Future[list[str]]) -> None:
        if worker.state != "asked":
            return
        try:
            flaws = done.result()
        except (
            OSError,
            ValueError,
        ) as error:  # whatever reading a file on a network's disk may raise
            flaws = [one_line(f"the driver cannot read what it wrote to the store: {error}")]
        if flaws:
            self._leave_out(worker, "; ".join(flaws))
            return
        worker.state, self._deaths_in_proof = "fit", 0
        del self._died_in_proof[worker.name]
        _log.info("worker %s is fit to work", worker.name)

    def _lose(self, worker: _Worker) -> None:
        """See to what a worker had to do that is gone."""
        _log.info("worker %s is gone", worker.name)
        self._has_lost = self._has_lost or worker.state != "out"
        for order in self._orders_of(worker):
            order.future.cancel()
            self._lost(order)

    def _orders_of(self, worker: _Worker) -> list[_Order]:
        """Take back all that a worker has not answered."""
        keys = [key for key, order in self._orders.items() if order.worker is worker]
        return [self._orders.pop(key) for key in keys]

    def _lost(self, order: _Order) -> None:
        work = order.work
        if order.kind == "proof":
            order.worker.state = "new"
            self._deaths_in_proof += 1
            self._died_in_proof[order.worker.name] += 1
            is_any_fit = any(worker.state == "fit" for worker in self._workers.values())
            if self._deaths_in_proof > MAX_TRIES and not is_any_fit:
                raise WorkersError(
                    f"{self._deaths_in_proof} workers died while they proved that they can work"
                )
        elif order.claim is not None:
            self._consult(order.claim)
        elif work is not None:
            work.losses += 1
            # One that only waited on its worker did not kill it.
            work.deaths += order.worker.at in ("", order.key)
            _log.info("task %d lost its worker (%d)", work.task.number, work.losses)
            if work.losses < MAX_TRIES:
                self._again.append(work)
            else:
                self._taken.append(
                    _given_up(self._job, work.task, f"its worker process died {work.losses} times")
                )

    def _redo(self, order: _Order) -> None:
        """Have done elsewhere what a worker could not do."""
        if order.claim is not None:
            self._consult(order.claim)
        elif order.work is not None:
            order.work.avoid.add(order.worker.address)
            self._again.append(order.work)

    def _strike(self, worker: _Worker, reason: str) -> None:
        worker.strikes += 1
        _log.info("worker %s failed where others did not: %s", worker.name, reason)
        if worker.strikes >= MAX_STRIKES:
            self._leave_out(worker, reason)

    def _leave_out(self, worker: _Worker, reason: str) -> None:
        """Give a worker nothing more, and what it had to do, or says has failed, to others."""
        worker.state = "out"
        if worker.name not in self._notes:
            _log.warning("worker %s is left out: %s", worker.name, reason)
        self._notes[worker.name] = reason
        for order in self._orders_of(worker):
            order.future.cancel()
            self._redo(order)
        for claim in [claim for claim in self._claims if claim.worker is worker]:
            self._close(claim)
            claim.work.avoid.add(worker.address)
            self._again.append(claim.work)
        self._looked_at = -math.inf

    # -- whose word is taken -----------------------------------------------------------------------

    def _review(self, order: _Order, result: TaskResult) -> None:
        """Take a result if all that it claims to have written is there, and nothing in it is in doubt."""
        assert order.work is not None
        try:
            check_result(self._job, result)
            if result.fork is not None:
                _check_patiently(result.fork)
        except (
            KpstoreError,
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # whatever reading it may raise
            self._leave_out(order.worker, one_line(str(error)))
            self._redo(order)
            return
        unread = (
            [] if self._ours else unread_videos(result)
        )  # our own workers read what this process reads
        if not unread and not doubted_videos(result):
            self._taken.append(result)
            return
        claim = _Claim(order.worker, order.work, result)
        self._claims.append(claim)
        order.worker.held += 1
        if not unread:
            self._consult(claim)
            return
        look = self._looker.submit(
            look_isolated, self._job.source, [video.record for video in unread], whole=True
        )
        look.add_done_callback(
            lambda done: self._events.put(partial(self._compare, claim, unread, done))
        )

    def _compare(
        self, claim: _Claim, unread: Sequence[PlannedVideo], done: Future[list[Look]]
    ) -> None:
        """Hold what a worker could not read against what the driver can read."""
        if claim not in self._claims:
            return
        try:
            found = done.result()
        except OSError as error:  # no memory for another process, say
            raise WorkersError(
                one_line(
                    f"the driver cannot look at what worker {claim.worker.name} could not read: "
                    f"{error}"
                )
            ) from error
        looks = {video.position: look for video, look in zip(unread, found, strict=True)}
        reason = blindness(claim.result, looks)
        if reason:
            self._discredit(claim, reason)
        else:
            self._consult(claim)

    def _consult(self, claim: _Claim) -> None:
        """Ask another worker about what the model failed at.

        Without another one, that is taken as it is.
        """
        if claim not in self._claims:
            return
        doubted = doubted_videos(claim.result)
        others = [other for other in self._workers.values() if other is not claim.worker]
        able = [
            other for other in others if other.state == "fit" and other.address not in claim.asked
        ]
        if doubted and able:
            other = min(
                able, key=lambda other: (_host(other) == _host(claim.worker), self._busy(other))
            )
            claim.asked.add(other.address)
            arguments = (self._job_of(other), doubted, claim.work.deaths > 0)
            self._submit("opinion", other, give_opinion, *arguments, claim=claim)
        elif doubted and any(other.state in ("new", "asked") for other in others):
            self._to_consult.append(claim)
        else:
            self._close(claim)
            self._taken.append(claim.result)

    def _settle(self, order: _Order, opinion: Opinion) -> None:
        claim = order.claim
        if claim is None or claim not in self._claims:
            return
        doubted = doubted_videos(claim.result)
        reason = weakness(doubted, opinion)
        if reason:
            self._discredit(claim, reason)
        elif is_blind(doubted, opinion):
            self._strike(order.worker, "it could not read what another worker could")
            self._consult(claim)
        else:
            self._close(claim)
            self._taken.append(claim.result)

    def _discredit(self, claim: _Claim, reason: str) -> None:
        self._close(claim)
        claim.work.avoid.add(claim.worker.address)
        self._again.append(claim.work)
        self._strike(claim.worker, reason)

    def _close(self, claim: _Claim) -> None:
        self._claims.remove(claim)
        claim.worker.held -= 1


def _host(worker: _Worker) -> str:
    return worker.address.rpartition(":")[0]


def _check_patiently(fork: Fork) -> None:
    """Check what a worker wrote.

    Once more after a moment, because a network's disk may show it late.
    """
    try:
        fork.check()
    except (KpstoreError, OSError, ValueError, RuntimeError):
        time.sleep(_AGAIN_S)
        fork.check()


def _is_of_a_stranger(error: Exception) -> bool:
    """Whether a process had no thread for tasks: it was started at the address of one that had, and has proved nothing.

    Dask says so before anything of ours runs.
    """
    return isinstance(error, ValueError) and str(error).startswith(f"Invalid executor {THREAD!r}")


def _given_up(job: Job, task: Task, reason: str) -> TaskResult:
    results = ((video, failed_video(job, video.record, reason)) for video in task.videos)
    return collect(job, task, None, results, time.perf_counter())
