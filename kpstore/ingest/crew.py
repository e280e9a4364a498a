"""The workers of one run on a cluster: sends them orders, and checks what they answer.

Each task goes to one worker, which has proved that it is fit (:mod:`kpstore.ingest.fitness`).
Before a result counts, the chunks that the worker wrote are checked, and its failures are confirmed
(:mod:`kpstore.ingest.doubts`). :mod:`kpstore.ingest.roster` decides what follows from each event.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from kpstore.backends.base import Fork
from kpstore.errors import KpstoreError, UnreachableError, WorkersError, one_line
from kpstore.ingest.doubts import Opinion, doubted_videos, unread_videos
from kpstore.ingest.fitness import Meeting, Question, question, short_question
from kpstore.ingest.gpus import gpu_of_worker
from kpstore.ingest.isolated import look_isolated
from kpstore.ingest.job import Job, OnFrames
from kpstore.ingest.on_worker import THREAD, Refusal, Stranger, give_opinion, prove, run_on_worker
from kpstore.ingest.plan import OnDeath, PlannedVideo, Task
from kpstore.ingest.roster import Claim, Order, Roster, Work, Worker
from kpstore.ingest.scheduler_errors import gone, scheduler_told
from kpstore.ingest.sight import Look
from kpstore.ingest.worker import TaskResult, check_result
from kpstore.schema.index import VideoRecord
from kpstore.visible import logger

if TYPE_CHECKING:
    from distributed import Client
    from distributed import Future as DaskFuture

_log = logger(__name__)

T = TypeVar("T")
MakeFork = Callable[[Task], Fork | None]

POLL_S = 0.5
_LOOKS = 20
"""How often workers' signs of life are looked at in the time that one may be silent."""
_ANSWER_S = 30.0
_AGAIN_S = 1.0
_PICTURES = 3
_PICTURES_TRIED = 12


def ask_for_workers(client: Client, address: str) -> DaskFuture[int]:
    """Return a task for any worker, which an adaptive cluster starts workers for.

    All other tasks are for certain workers, so that without any the cluster would see no work.
    """
    with scheduler_told(address):
        return client.submit(int, pure=False)


class Crew:
    """Runs the tasks of one job on the workers of a client's scheduler.

    Parameters
    ----------
    client : a connected client.
    address : address of its scheduler, for messages.
    job : what all tasks share.
    tasks : the tasks of the run.
    make_fork : returns the writer for a task.
    gpus : GPUs of this machine to share among the workers, by the workers' numbers; empty if the
        workers were pinned when they started.
    pinned : GPUs of this machine of which each worker must see one first; empty if it may see any.
    ours : whether this process started the workers, on this machine.
    notes : receives the reason for each worker that is left out, by its name.
    on_death : called with a task at which a worker may have died.
    wait_s : how long to wait for workers to come (back) when none is left.
    silent_s : a worker that sends no sign of life for so long counts as gone until it does; 0 for
        any time.
    """

    def __init__(
        self,
        client: Client,
        address: str,
        job: Job,
        tasks: Sequence[Task],
        make_fork: MakeFork,
        *,
        gpus: Sequence[str],
        pinned: tuple[str, ...],
        ours: bool,
        notes: dict[str, str],
        on_death: OnDeath,
        wait_s: float,
        silent_s: float = 0.0,
    ) -> None:
        self._client, self._address, self._make_fork = client, address, make_fork
        self._job, self._tasks = job, tasks
        self._gpus, self._pinned, self._ours = gpus, pinned, ours
        self._silent_s, self._notes = silent_s, notes
        self._signs: dict[str, tuple[float, float]] = {}
        """By address, the scheduler's time of a worker's last sign of life, and when we saw it."""
        self._signs_at = -math.inf
        self._topic = f"kpstore-{job.run_id}"
        self._roster = Roster(job, tasks, notes, on_death, wait_s=wait_s)
        self._wanted: DaskFuture[int] | None = None
        """A task for any worker, while there is none."""
        self._futures: dict[str, DaskFuture[object]] = {}
        self._events: queue.SimpleQueue[str | Callable[[], None]] = queue.SimpleQueue()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="kpstore-look")
        self._polled_at = -math.inf

    @property
    def n_fit(self) -> int:
        """Number of workers that have proved themselves and are there."""
        return sum(worker.state == "fit" for worker in self._roster.workers.values())

    def run(self, on_frames: OnFrames) -> Iterator[TaskResult]:
        """Yield results as they are taken; see :class:`kpstore.ingest.executors.DaskExecutor`.

        Raises
        ------
        WorkersError
            If no worker is fit, none comes back, or the scheduler is gone.
        KpstoreError
            If all workers refuse for the same reason, for example that the extractor does not
            start.
        """
        remaining = len(self._tasks)
        with scheduler_told(self._address):
            self._client.subscribe_topic(self._topic, partial(self._hear, on_frames))
        try:
            with Meeting(self._job.meeting) as self._meeting:
                self._question = self._ask()
                while remaining:
                    self._poll()
                    self._roster.hand_out()
                    self._carry_out()
                    if not self._roster.taken:
                        self._wait()
                    remaining -= len(self._roster.taken)
                    while self._roster.taken:
                        yield self._roster.taken.pop(0)
        finally:
            self._reader.shutdown(wait=False, cancel_futures=True)
            if self._client.status == "running":
                with suppress(WorkersError), scheduler_told(self._address):
                    self._client.unsubscribe_topic(self._topic)

    def _hear(self, on_frames: OnFrames, event: tuple[float, object]) -> None:
        """Take progress from a worker, in a thread of Dask's: frames done, or an order begun."""
        told = event[1]
        if isinstance(told, int):
            on_frames(told)
        elif isinstance(told, str) and (order := self._roster.orders.get(told)):
            order.worker.at = told

    def _wait(self) -> None:
        """Wait for the next event and handle it."""
        try:
            event = self._events.get(timeout=POLL_S)
        except queue.Empty:
            return
        if callable(event):
            event()
        elif event in self._roster.orders:  # otherwise its worker was left out, or is gone
            order, future = self._roster.orders.pop(event), self._futures.pop(event)
            answer = self._answer(order, future)
            if answer is not None and order.worker.at == event:
                order.worker.at = ""
            future.release()
            self._handle(order, answer)

    # -- the scheduler -----------------------------------------------------------------------------

    def _poll(self) -> None:
        """Notice workers that came or went, and answers that are overdue."""
        roster = self._roster
        if roster.has_hope and time.monotonic() - self._polled_at < POLL_S:
            return
        self._polled_at = time.monotonic()
        present = self._alive()
        if present:
            self._wanted = None
        elif self._wanted is None:
            self._wanted = ask_for_workers(self._client, self._address)
        for address in roster.workers.keys() - present:
            roster.lose(address)
        if present - roster.workers.keys():
            known = self._call("identity", n_workers=-1)["workers"]
            for address in sorted(known.keys() - roster.workers.keys()):
                name = str(known[address]["name"])
                roster.enlist(address, name, gpu_of_worker(self._gpus, name))
        roster.ask_for_proofs()
        now, futures = time.monotonic(), self._futures.items()
        roster.expire(now, {key for key, future in futures if future.done()})
        roster.check_hope(now)

    def _alive(self) -> set[str]:
        """Return the addresses of the workers that are there, without those that are silent.

        The scheduler may wait for a stopped worker for ever.
        """
        now = time.monotonic()
        if self._silent_s and now - self._signs_at > self._silent_s / _LOOKS:
            self._signs_at, before = now, self._signs
            found = self._call("identity", n_workers=-1)["workers"]
            seen = {address: float(about["last_seen"]) for address, about in found.items()}
            self._signs = {
                address: before[address] if before.get(address, (math.nan,))[0] == at else (at, now)
                for address, at in seen.items()
            }
        silent = {a for a, (_, since) in self._signs.items() if now - since > self._silent_s}
        for address in silent & self._roster.workers.keys():
            name = self._roster.workers[address].name
            self._notes[name] = f"it sent no sign of life for {self._silent_s:g} s"
        return set(self._call("ncores")) - silent

    def _carry_out(self) -> None:
        """Submit orders that are new, and cancel those that were taken back."""
        orders = self._roster.orders
        for key in self._futures.keys() - orders.keys():
            self._futures.pop(key).cancel()
        for key in [key for key in orders if key not in self._futures]:
            self._futures[key] = self._submit(orders[key])

    def _submit(self, order: Order) -> DaskFuture[object]:
        from dask.base import annotate

        about, worker = order.about, order.worker
        job = replace(self._job, gpu=worker.gpu) if worker.gpu else self._job
        call: tuple[object, ...]
        if about is None:
            call = prove, self._question, job.run_id, order.key
        elif isinstance(about, Work):
            fork = self._make_fork(about.task)
            call = run_on_worker, job, about.task, fork, self._topic, about.deaths > 0
        else:
            call = give_opinion, job, doubted_videos(about.result), about.work.deaths > 0
        # The proof creates the thread for tasks, and so runs in any other.
        thread = {} if about is None else {"executor": THREAD}
        with scheduler_told(self._address), annotate(**thread):
            future = self._client.submit(
                *call,
                key=order.key,
                pure=False,
                workers=[worker.address],
                priority=0 if isinstance(about, Work) else 1,
            )
        future.add_done_callback(lambda _: self._events.put(order.key))
        return future

    def _call(self, operation: str, **arguments: object) -> Any:
        """Return what the scheduler answers to one of its operations."""
        if self._client.status != "running":
            raise gone(self._address)
        with scheduler_told(self._address):
            ask = getattr(self._client.scheduler, operation)
            return self._client.sync(ask, callback_timeout=_ANSWER_S, **arguments)

    # -- answers -----------------------------------------------------------------------------------

    def _answer(self, order: Order, future: DaskFuture[object]) -> object:
        """Return a worker's answer, an exception that is not kpstore's, or None if it was lost."""
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        timeout_s = 5.0
        while True:
            try:
                return future.result(timeout=timeout_s)
            except KilledWorker:
                return None
            except FutureCancelledError as error:
                if getattr(error, "reason", None) == "scheduler-connection-lost":
                    raise gone(self._address) from None
                return None
            except TimeoutError as error:
                if future.status == "error":
                    return error  # raised on the worker
                # The task has ended, but its worker went before it could hand the result over; or
                # that takes long.
                if order.worker.address not in self._alive():
                    return None
                timeout_s = min(2 * timeout_s, _ANSWER_S)
            except Exception as error:  # raised by Dask, or while something is unpickled
                self._call("ncores")  # raises if the scheduler is gone
                return Stranger() if _is_of_a_stranger(error) else error

    def _handle(self, order: Order, answer: object) -> None:
        roster = self._roster
        if answer is None:
            roster.lost(order)
            self._polled_at = -math.inf
        elif isinstance(answer, Exception):
            roster.broken_off(order, one_line(answer))
        elif isinstance(answer, Stranger):  # a new process at the address of one that died
            roster.prove_again(order)
            roster.lost(order)
        elif isinstance(answer, Refusal):
            roster.refused(order, answer.reason, answer.error)
        elif isinstance(answer, Opinion):
            roster.decide(order, answer)
        elif isinstance(answer, TaskResult):
            self._review(order, answer)
        elif isinstance(answer, list) and answer:
            roster.judge(order.worker, answer)
        else:
            # A worker that finds no flaw in itself is admitted once what it wrote has arrived here.
            arrived = partial(self._meeting.flaws, order.key)
            self._read(arrived, partial(self._admit, order.worker))

    def _read(self, do: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Read from a disk in a thread; ``then`` takes the outcome in this one."""
        reading = self._reader.submit(do)
        reading.add_done_callback(lambda done: self._events.put(partial(then, done)))

    def _admit(self, worker: Worker, done: Future[list[str]]) -> None:
        try:
            flaws = done.result()
        except (OSError, ValueError, UnreachableError) as error:  # a network disk, for example
            flaws = [one_line(f"the driver cannot read what it wrote to the store: {error}")]
        self._roster.judge(worker, flaws)

    def _review(self, order: Order, result: TaskResult) -> None:
        """Check that a result is complete and written, and have its failures confirmed."""
        try:
            check_result(self._job, result)
            if result.fork is not None:
                _check_patiently(result.fork)
        except (KpstoreError, OSError, ValueError, RuntimeError) as error:
            self._roster.refused(order, one_line(str(error)))
            return
        # Workers that this process started read what it reads.
        unread = [] if self._ours else unread_videos(result)
        claim = self._roster.take(order, result, has_unread=bool(unread))
        if claim is not None and unread:
            records = [video.record for video in unread]
            look = partial(look_isolated, self._job, records, whole=True)
            self._read(look, partial(self._compare, claim, unread))

    def _compare(
        self, claim: Claim, unread: Sequence[PlannedVideo], done: Future[list[Look]]
    ) -> None:
        if claim not in self._roster.claims:
            return
        try:
            found = done.result()
        except OSError as error:  # no memory for another process, say
            raise WorkersError(
                one_line(
                    f"the driver cannot check what worker {claim.worker.name} could not read: "
                    f"{error}"
                )
            ) from error
        looks = {video.position: look for video, look in zip(unread, found, strict=True)}
        self._roster.compare(claim, looks)

    # -- the question ------------------------------------------------------------------------------

    def _ask(self) -> Question:
        if self._ours:
            return short_question(self._job, nonce=self._meeting.nonce, gpus=self._pinned)
        records = [video.record for task in self._tasks for video in task.videos]
        return question(self._job, nonce=self._meeting.nonce, pictures=self._pictures(records))

    def _pictures(self, records: Sequence[VideoRecord]) -> tuple[tuple[VideoRecord, str], ...]:
        """Return a few videos, from all over the data set, with a hash of the driver's pixels.

        Videos that the driver cannot read are no test for a worker.
        """
        tried = [record for record in records if record.n_frames]
        tried = tried[:: max(1, len(tried) // _PICTURES_TRIED)][:_PICTURES_TRIED]
        looks = look_isolated(self._job, tried, whole=False)
        seen = [(one, look.pixels) for one, look in zip(tried, looks, strict=True) if look.pixels]
        return tuple(seen[:: max(1, len(seen) // _PICTURES)][:_PICTURES])


def _check_patiently(fork: Fork) -> None:
    """Check what a worker wrote, twice if need be: a network disk may show it late."""
    try:
        fork.check()
    except (KpstoreError, OSError, ValueError, RuntimeError):
        time.sleep(_AGAIN_S)
        fork.check()


def _is_of_a_stranger(error: Exception) -> bool:
    """Whether a process had no thread for tasks, and so has not proved itself.

    Dask says so before any code of kpstore runs.
    """
    return isinstance(error, ValueError) and str(error).startswith(f"Invalid executor {THREAD!r}")
