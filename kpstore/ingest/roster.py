"""Who does what in one run on a cluster, which workers are fit, and whose results are taken.

Bookkeeping only: nothing here talks to Dask, reads a file or waits.
:class:`kpstore.ingest.crew.Crew` says what happened and carries out the orders that are open.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kpstore.errors import KpstoreError, WorkersError
from kpstore.ingest.doubts import Opinion, blindness, doubted_videos, is_blind, weakness
from kpstore.ingest.job import Job, failed_video
from kpstore.ingest.plan import OnDeath, Task, long_first
from kpstore.ingest.sight import Look
from kpstore.ingest.worker import TaskResult, collect
from kpstore.visible import logger

_log = logger(__name__)

MAX_TRIES = 10
"""How often a task may lose its worker before its videos are recorded as failed.

From the second try on a frame cannot take the worker with it, so later deaths are not the data's
fault (a batch system that takes nodes back, the kernel out of memory).
"""

MAX_STRIKES = 2
"""A worker that failed this often where others did not is left out; once may be a slow disk."""

PROOF_S = 120.0
"""How long a worker may take to prove itself: a slow network disk may delay its first imports."""

OPINION_S = 1800.0
"""How long to wait for another worker's opinion, which comes after what that worker has begun."""

MAX_DEATHS_IN_PROOF = 3
"""A worker, by its name, that died this often while it proved itself is left out."""

MAX_HELD = 2
"""A worker gets no further task while the failures of this many of its tasks are in doubt."""


@dataclass(eq=False)
class Worker:
    """One worker process.

    Parameters
    ----------
    address : Dask's address for it; a restarted worker usually has another one.
    name : its name in messages.
    gpu : the only GPU that it may use; ``""`` does not restrict it.
    at : key of the order that it has begun and not ended, as far as the driver knows.
    strikes : times that it failed where others did not, or broke off.
    held : number of its tasks whose failures are in doubt.
    """

    address: str
    name: str
    gpu: str = ""
    state: Literal["new", "asked", "fit", "out"] = "new"
    at: str = ""
    strikes: int = 0
    held: int = 0


@dataclass(eq=False)
class Work:
    """A task, and what happened to it so far.

    Parameters
    ----------
    losses : times that its worker was lost.
    deaths : times that its worker may have died of it, and 1 if one had in an earlier run.
    avoid : addresses of workers that failed at it.
    """

    task: Task
    losses: int = 0
    deaths: int = 0
    avoid: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Claim:
    """A result in which something failed, until it is decided whose fault that is.

    Parameters
    ----------
    waits : whether the driver or another worker is trying the frames that failed.
    asked : addresses of workers that were asked for an opinion.
    """

    worker: Worker
    work: Work
    result: TaskResult
    waits: bool
    asked: set[str] = field(default_factory=set)


@dataclass(eq=False)
class Order:
    """Something that a worker was asked to do and has not answered yet.

    Parameters
    ----------
    about : the task to do, the claim to give an opinion on, or None for the worker's proof.
    """

    key: str
    worker: Worker
    about: Work | Claim | None = None
    since: float = field(default_factory=time.monotonic)


class Roster:
    """The workers of one run, their open orders, and the results that are in doubt.

    Parameters
    ----------
    tasks : what has to be done.
    notes : receives the reason for each worker that is left out, by its name.
    on_death : called with a task at which a worker may have died.
    wait_s : how long to wait for workers to come (back) when none is left.

    Attributes
    ----------
    workers : by address.
    orders : open ones, by key.
    claims : results in doubt.
    taken : results that count and that nobody has collected yet.
    """

    def __init__(
        self,
        job: Job,
        tasks: Sequence[Task],
        notes: dict[str, str],
        on_death: OnDeath,
        *,
        wait_s: float,
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.orders: dict[str, Order] = {}
        self.claims: list[Claim] = []
        self.taken: list[TaskResult] = []
        self._job, self._notes, self._on_death = job, notes, on_death
        self._wait_s = wait_s
        works = (Work(task, deaths=int(task.after_death)) for task in long_first(tasks))
        self._waiting = deque(works)
        self._numbers = itertools.count()
        self._alone_since = math.inf
        self._has_lost = False
        self._errors: list[KpstoreError] = []
        self._deaths_in_proof = 0
        self._died_in_proof: Counter[str] = Counter()

    # -- workers -----------------------------------------------------------------------------------

    @property
    def has_hope(self) -> bool:
        """Whether some worker is fit, or may still prove that it is."""
        return any(worker.state != "out" for worker in self.workers.values())

    def enlist(self, address: str, name: str, gpu: str = "") -> None:
        """Add a worker that has just appeared."""
        self.workers[address] = Worker(address, name, gpu)

    def lose(self, address: str) -> None:
        """Remove a worker that is gone; others get its orders."""
        worker = self.workers.pop(address)
        _log.info("worker %s is gone", worker.name)
        self._has_lost = self._has_lost or worker.state != "out"
        for order in self._take_back(worker):
            self.lost(order)

    def ask_for_proofs(self) -> None:
        """Order every new worker to prove itself."""
        for worker in self.workers.values():
            if worker.state != "new":
                continue
            if self._died_in_proof[worker.name] >= MAX_DEATHS_IN_PROOF:
                self.leave_out(
                    worker, f"it died {MAX_DEATHS_IN_PROOF} times while it proved that it can work"
                )
            else:
                worker.state = "asked"
                self._order(worker)

    def judge(self, worker: Worker, flaws: Sequence[str]) -> None:
        """Admit a worker that was asked to prove itself and has no flaws; leave out any other."""
        if worker.state != "asked":
            return
        if flaws:
            self.leave_out(worker, "; ".join(flaws))
            return
        worker.state, self._deaths_in_proof = "fit", 0
        del self._died_in_proof[worker.name]
        _log.info("worker %s is fit to work", worker.name)

    def leave_out(self, worker: Worker, reason: str) -> None:
        """Give a worker nothing more, and its orders and doubtful results to others."""
        worker.state = "out"
        if worker.name not in self._notes:
            _log.warning("worker %s is left out: %s", worker.name, reason)
        self._notes[worker.name] = reason
        for order in self._take_back(worker):
            self.redo(order)
        for claim in [claim for claim in self.claims if claim.worker is worker]:
            self._reject(claim)

    def expire(self, now: float, answered: Collection[str]) -> None:
        """Stop waiting for workers that do not prove themselves or give no opinion in time.

        Parameters
        ----------
        now : time in seconds, as of ``time.monotonic``.
        answered : keys of orders whose answers are here and were not handled yet.
        """
        for order in list(self.orders.values()):
            if order.key not in self.orders or order.key in answered:
                continue  # its worker has just been left out; or the answer is here
            if order.about is None and now - order.since > PROOF_S:
                self.leave_out(order.worker, f"it did not answer within {PROOF_S:g} s")
            elif isinstance(order.about, Claim) and now - order.since > OPINION_S:
                self.redo(self.orders.pop(order.key))

    def check_hope(self, now: float) -> None:
        """Raise if no worker can do anything, and none will come back.

        Raises
        ------
        KpstoreError
            What all workers say, if they all refuse in the same words: that is not their fault.
        WorkersError
            In every other case.
        """
        if self.has_hope:
            self._alone_since = math.inf
            return
        self._alone_since = min(self._alone_since, now)
        if (self._has_lost or not self.workers) and now - self._alone_since < self._wait_s:
            return
        if len(self._errors) == len(self._notes) and len({str(e) for e in self._errors}) == 1:
            raise self._errors[0]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self._notes.items():
            by_reason.setdefault(reason, []).append(name)
        reasons = "; ".join(
            f"{why} (worker {', '.join(names)})" for why, names in by_reason.items()
        )
        if self.workers:
            raise WorkersError(f"none of {len(self._notes)} workers is fit to work: {reasons}")
        raise WorkersError(
            "all workers are gone, and none came back, as those started with --no-nanny never do"
            f"{f'; {reasons}' if reasons else ''}"
        )

    # -- orders ------------------------------------------------------------------------------------

    def hand_out(self) -> None:
        """Give every fit worker a task, and have failures confirmed.

        While there are many tasks, a worker gets one ahead, which is only lost if it dies.
        """
        for claim in [claim for claim in self.claims if not claim.waits]:
            self._consult(claim)
        fit = [w for w in self.workers.values() if w.state == "fit" and w.held < MAX_HELD]
        for ahead in (0, 1):
            for worker in fit:
                if ahead and len(self._waiting) <= len(fit):
                    return
                if self._busy(worker) <= ahead:
                    self._give(worker, fit)

    def _busy(self, worker: Worker) -> int:
        return sum(order.worker is worker for order in self.orders.values())

    def _give(self, worker: Worker, fit: Sequence[Worker]) -> None:
        """Give a worker the first task at which it has not failed, or at which all have."""
        for work in self._waiting:
            if worker.address not in work.avoid or all(w.address in work.avoid for w in fit):
                self._waiting.remove(work)
                self._order(worker, work)
                return

    def _order(self, worker: Worker, about: Work | Claim | None = None) -> None:
        order = Order(f"kpstore-{self._job.run_id}-{next(self._numbers)}", worker, about)
        self.orders[order.key] = order

    def _take_back(self, worker: Worker) -> list[Order]:
        """Remove all orders that a worker has not answered."""
        keys = [key for key, order in self.orders.items() if order.worker is worker]
        return [self.orders.pop(key) for key in keys]

    def lost(self, order: Order) -> None:
        """Have an order done again whose worker was lost."""
        about = order.about
        if about is None:
            order.worker.state = "new"
            self._deaths_in_proof += 1
            self._died_in_proof[order.worker.name] += 1
            is_any_fit = any(worker.state == "fit" for worker in self.workers.values())
            if self._deaths_in_proof > MAX_TRIES and not is_any_fit:
                raise WorkersError(
                    f"{self._deaths_in_proof} workers died while they proved that they can work"
                )
        elif isinstance(about, Claim):
            about.waits = False
        else:
            about.losses += 1
            # An order that only waited on its worker did not kill it.
            if order.worker.at in ("", order.key):
                about.deaths += 1
                self._on_death(about.task)
            _log.info("task %d lost its worker (%d)", about.task.number, about.losses)
            if about.losses < MAX_TRIES:
                self._waiting.appendleft(about)
            else:
                self.taken.append(self._given_up(about))

    def _given_up(self, work: Work) -> TaskResult:
        reason = f"its worker process died {work.losses} times"
        rows = ((v, failed_video(self._job, v.record, reason)) for v in work.task.videos)
        return collect(self._job, work.task, None, rows)

    def redo(self, order: Order) -> None:
        """Have an order done elsewhere that its worker could not do."""
        if isinstance(order.about, Claim):
            order.about.waits = False
        elif order.about is not None:
            order.about.avoid.add(order.worker.address)
            self._waiting.appendleft(order.about)

    def refused(self, order: Order, reason: str, error: KpstoreError | None = None) -> None:
        """Leave out a worker that cannot do an order, or whose result cannot be trusted."""
        self._errors += [error] if error else []
        self.leave_out(order.worker, reason)
        self.redo(order)

    def broken_off(self, order: Order, reason: str) -> None:
        """Note that an order ended in an exception outside of kpstore."""
        self.prove_again(order)
        self._strike(order.worker, reason)
        self.redo(order)

    def prove_again(self, order: Order) -> None:
        """Ask a worker for a proof, unless a later one is on its way."""
        if order.about is None or order.worker.state == "fit":
            order.worker.state = "new"

    def _strike(self, worker: Worker, reason: str) -> None:
        worker.strikes += 1
        _log.info("worker %s failed where others did not: %s", worker.name, reason)
        if worker.strikes >= MAX_STRIKES:
            self.leave_out(worker, reason)

    # -- results -----------------------------------------------------------------------------------

    def take(self, order: Order, result: TaskResult, *, has_unread: bool) -> Claim | None:
        """Take a result, or return a claim if some of its failures are in doubt.

        Parameters
        ----------
        has_unread : whether the driver has yet to read what the worker could not read; the claim
            then waits for :meth:`compare`.
        """
        assert isinstance(order.about, Work)
        if not has_unread and not doubted_videos(result):
            self.taken.append(result)
            return None
        claim = Claim(order.worker, order.about, result, waits=has_unread)
        self.claims.append(claim)
        order.worker.held += 1
        return claim

    def compare(self, claim: Claim, looks: Mapping[int, Look]) -> None:
        """Compare what a worker could not read with what the driver can read.

        Parameters
        ----------
        looks : the driver's, by position of each video.
        """
        claim.waits = False
        reason = blindness(claim.result, looks)
        if reason:
            self._discredit(claim, reason)

    def _consult(self, claim: Claim) -> None:
        """Ask another worker about frames at which the model failed, as soon as one is fit.

        If there is no other worker, the result is taken as it is.
        """
        host = _host(claim.worker)
        doubted = doubted_videos(claim.result)
        others = [worker for worker in self.workers.values() if worker is not claim.worker]
        able = [w for w in others if w.state == "fit" and w.address not in claim.asked]
        if doubted and able:
            other = min(able, key=lambda worker: (_host(worker) == host, self._busy(worker)))
            claim.asked.add(other.address)
            claim.waits = True
            self._order(other, claim)
        elif not doubted or all(worker.state in ("fit", "out") for worker in others):
            self._accept(claim)

    def decide(self, order: Order, opinion: Opinion) -> None:
        """Decide a claim by the opinion of another worker."""
        claim = order.about
        if not isinstance(claim, Claim) or claim not in self.claims:
            return
        doubted = doubted_videos(claim.result)
        reason = weakness(doubted, opinion)
        if reason:
            self._discredit(claim, reason)
        elif is_blind(doubted, opinion):
            self._strike(order.worker, "it could not read what another worker could")
            claim.waits = False
        else:
            self._accept(claim)

    def _discredit(self, claim: Claim, reason: str) -> None:
        self._reject(claim)
        self._strike(claim.worker, reason)

    def _reject(self, claim: Claim) -> None:
        self._close(claim)
        claim.work.avoid.add(claim.worker.address)
        self._waiting.appendleft(claim.work)

    def _accept(self, claim: Claim) -> None:
        self._close(claim)
        self.taken.append(claim.result)

    def _close(self, claim: Claim) -> None:
        self.claims.remove(claim)
        claim.worker.held -= 1


def _host(worker: Worker) -> str:
    return worker.address.rpartition(":")[0]
