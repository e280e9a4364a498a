"""Where tasks run: in this process, or on Dask workers. Both hand results to the driver as they come."""

from __future__ import annotations

import importlib.util
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Protocol, Self

from kpstore.backends.base import Fork
from kpstore.errors import ExtractorError, KpstoreError, MissingExtraError, NotFoundError, UnsupportedError, one_line
from kpstore.ingest.isolated import extract_isolated
from kpstore.ingest.job import Job, failed_video, try_out
from kpstore.ingest.plan import Task
from kpstore.ingest.worker import TaskResult, collect, run_task

_log = logging.getLogger(__name__)

MakeFork = Callable[[Task], Fork | None]
OnFrames = Callable[[int], None]

MAX_TRIES = 10
"""How often a task may lose its worker before its videos are recorded as failed.

From the second try on a frame cannot take the worker with it, so later deaths are not the data's fault (a batch system
that takes nodes back, the kernel out of memory); Dask also counts tasks that only waited on the worker that died.
"""

_CLUSTER_TRIES = 5

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Workers share out the cores among themselves; and sums in another number of threads are other sums."""

_SETTINGS = {
    # A task whose worker died comes straight back: it goes on in a mode that finds the frame at fault, instead of
    # killing three more workers first.
    "distributed.scheduler.allowed-failures": 0,
    # Workers keep their memory: by default Dask has malloc hand freed pages back at once, and faulting them in again
    # for every frame cost MediaPipe a fifth of its speed.
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(_ONE_THREAD, "1"),
    "distributed.admin.log-format": "%(message)s",
    # Dask looks at itself, in every process, 50 to 100 times a second, for pages that nobody opens here. Tasks take
    # seconds: looking rarely gave 6 % of a busy core back to the model.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.work-stealing-interval": "1s",
}
"""How Dask is set up for the cluster that a run starts; the user's own settings come back afterwards."""

_REPORT_EVERY_S = 0.5


class Executor(Protocol):
    """Runs tasks; a context manager that starts and stops whatever it needs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def n_workers(self) -> int:
        """How many tasks run at once."""

    @property
    def pins_gpus(self) -> bool:
        """Whether each worker sees its own GPU as the first one."""

    @property
    def notes(self) -> Sequence[str]:
        """What went wrong with workers, and did not end the run."""

    def try_out(self, job: Job) -> list[int]:
        """Return how many frames at once the job's extractor takes, where it works, on each worker."""

    def run(self, job: Job, tasks: Sequence[Task], make_fork: MakeFork, on_frames: OnFrames) -> Iterator[TaskResult]:
        """Yield results in the order in which tasks end; ``on_frames(n)`` is told of progress in between."""


class SerialExecutor:
    """Runs tasks one after another in this process: no start-up cost, but what kills the process ends the run."""

    n_workers = 1
    pins_gpus = False
    notes: Sequence[str] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def try_out(self, job: Job) -> list[int]:
        """Return the one answer."""
        return [try_out(job)]

    def run(self, job: Job, tasks: Sequence[Task], make_fork: MakeFork, on_frames: OnFrames) -> Iterator[TaskResult]:
        """Yield results in plan order."""
        for task in tasks:
            yield run_task(job, task, make_fork(task), report=on_frames)


@dataclass
class _Submitted:
    """A task under way.

    Parameters
    ----------
    tries : times that it was given to a worker that lived long enough to say what became of it, or died.
    deaths : times that its worker died.
    """

    task: Task
    tries: int = 1
    deaths: int = 0


@dataclass(frozen=True)
class _Unfit:
    """What a worker answers that cannot do its tasks: its GPU is gone, say."""

    worker: str
    address: str
    error: KpstoreError


class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster.

    Parameters
    ----------
    n_workers : processes to start on this machine; ignored with ``scheduler``.
    scheduler : address of a running scheduler (``tcp://host:8786``) whose workers have kpstore installed.
    gpus : of this machine, to be shared out among the workers. One for each is dask-cuda's business, where that is
        installed: it also puts a worker on the cores that are near its GPU.
    """

    def __init__(self, n_workers: int, *, scheduler: str | None = None, gpus: int = 0) -> None:
        self._n_workers, self._scheduler = n_workers, scheduler
        found = gpus and gpus == n_workers and scheduler is None and importlib.util.find_spec("dask_cuda")
        self._cuda_gpus = gpus if found else 0
        self._unfit: dict[str, KpstoreError] = {}
        self._cluster: Any = None
        self._client: Any = None

    def __enter__(self) -> Self:
        try:
            import dask
            import distributed
        except ImportError:
            raise MissingExtraError("--workers and --scheduler", extra="dask") from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        if self._scheduler is not None:
            self._client = self._connect(distributed)
            self._n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
            if self._n_workers == 0:
                self._client.close()
                raise NotFoundError(
                    f"the Dask scheduler at {self._scheduler} has no workers; start one: dask worker {self._scheduler}"
                )
            return self
        with _sigint_blocked(), dask.config.set(_SETTINGS):
            self._cluster = self._start_cluster(distributed)
            self._client = distributed.Client(self._cluster)
        return self

    def _start_cluster(self, distributed: Any) -> Any:
        for tries_left in reversed(range(_CLUSTER_TRIES)):
            try:
                # One thread per worker: models are not thread-safe. No memory limit: Dask would pause or kill a worker
                # for what the model itself needs. Any free port of this machine for Dask's own pages: with none
                # given it takes 8787, and warns if that is taken.
                return self._cluster_class(distributed)(
                    n_workers=self._n_workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                    preload=[__name__],
                )
            except RuntimeError as error:
                # Dask gives up the whole cluster if one worker dies while it starts; once it runs, it restarts them.
                if tries_left == 0:
                    raise UnsupportedError(
                        f"worker processes do not start on this machine ({error}); try --workers 0"
                    ) from error
        raise AssertionError("unreachable")

    def _cluster_class(self, distributed: Any) -> Any:
        if not self._cuda_gpus:
            return distributed.LocalCluster
        import dask_cuda

        return partial(dask_cuda.LocalCUDACluster, CUDA_VISIBLE_DEVICES=list(range(self._cuda_gpus)))

    def _connect(self, distributed: Any) -> Any:
        try:
            return distributed.Client(self._scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise NotFoundError(
                f"no Dask scheduler answers at {self._scheduler!r} ({error}); start one with 'dask scheduler'"
            ) from None

    def __exit__(self, *_: object) -> None:
        for part in (self._client, self._cluster):
            if part is not None:
                part.close(timeout=5)

    @property
    def n_workers(self) -> int:
        """Worker processes."""
        return self._n_workers

    @property
    def pins_gpus(self) -> bool:
        """Whether dask-cuda, or whoever started the scheduler's workers, gives each its own GPU."""
        return bool(self._cuda_gpus) or self._scheduler is not None

    @property
    def notes(self) -> list[str]:
        """Which workers are not fit to work, and why."""
        return [f"worker {name} was left out: {one_line(str(error))}" for name, error in self._unfit.items()]

    def try_out(self, job: Job) -> list[int]:
        """Return the answers of all workers, which try at the same time, as they will work; see :class:`Executor`.

        Raises
        ------
        KpstoreError
            The first worker's, if none can work. Where some can, the others are left out with their first task.
        """
        from distributed import KilledWorker, wait
        from distributed.client import FutureCancelledError

        addresses = list(self._client.scheduler_info(n_workers=-1)["workers"])
        # Another may answer for a worker that has gone meanwhile; nobody would otherwise.
        futures = [
            self._client.submit(_try_on_worker, job, workers=[address], allow_other_workers=True, pure=False)
            for address in addresses
        ]
        wait(futures)
        answers: list[int | KpstoreError] = []
        for future in futures:
            try:
                answers.append(future.result())
            except (KilledWorker, FutureCancelledError) as error:
                answers.append(ExtractorError(f"a worker died when its model was tried: {one_line(str(error))}"))
        found = [answer for answer in answers if isinstance(answer, int)]
        for answer in answers:
            if not found and isinstance(answer, KpstoreError):
                raise answer
        return found

    def run(self, job: Job, tasks: Sequence[Task], make_fork: MakeFork, on_frames: OnFrames) -> Iterator[TaskResult]:
        """Yield results as tasks end.

        A task whose worker died is run again, frame by frame. A worker that cannot work is closed; the others do its
        tasks, and the run ends when there are none left.
        """
        from distributed import as_completed

        topic = f"kpstore-{job.run_id}"
        self._client.subscribe_topic(topic, lambda event: on_frames(event[1]))
        try:
            waiting = iter(tasks)
            running: dict[str, _Submitted] = {}
            done = as_completed(with_results=False)

            def submit(entry: _Submitted) -> None:
                future = self._submit(job, entry, make_fork, topic)
                running[future.key] = entry
                done.add(future)

            # One task ahead of each worker keeps it busy; more would only be lost when it dies.
            for task in _take(waiting, 2 * self._n_workers):
                submit(_Submitted(task))
            for future in done:
                entry = running.pop(future.key)
                outcome = self._outcome(job, entry, future)
                future.release()
                if outcome is None:
                    submit(_Submitted(entry.task, entry.tries + 1, entry.deaths + 1))
                    continue
                if isinstance(outcome, _Unfit):
                    self._leave_out(outcome)
                    submit(_Submitted(entry.task, entry.tries + 1, entry.deaths))
                    continue
                for task in _take(waiting, 1):
                    submit(_Submitted(task))
                yield outcome
        finally:
            self._client.unsubscribe_topic(topic)

    def _submit(self, job: Job, entry: _Submitted, make_fork: MakeFork, topic: str) -> Any:
        key = f"kpstore-{job.run_id}-{entry.task.number}-{entry.tries}"
        return self._client.submit(
            _run_on_worker,
            job,
            entry.task,
            make_fork(entry.task),
            topic,
            entry.deaths > 0,
            key=key,
            pure=False,
        )

    def _leave_out(self, outcome: _Unfit) -> None:
        if outcome.worker not in self._unfit:
            _log.warning("worker %s is left out: %s", outcome.worker, outcome.error)
        self._unfit[outcome.worker] = outcome.error
        if len(self._unfit) >= self._n_workers:
            raise outcome.error
        # It is closed, and what it had waiting goes to the others. To bind tasks to those would not do: one of them
        # that died and was started again has another address, and Dask would wait for the old one for ever.
        self._client.retire_workers(workers=[outcome.address], close_workers=True)

    def _outcome(self, job: Job, entry: _Submitted, future: Any) -> TaskResult | _Unfit | None:
        """Return the task's result, or None if it lost its worker and should be tried again."""
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        try:
            result: TaskResult | _Unfit = future.result()
            return result
        except (KilledWorker, FutureCancelledError):
            _log.info("task %d lost its worker (try %d)", entry.task.number, entry.tries)
        if entry.deaths + 1 < MAX_TRIES:
            return None
        return _given_up(job, entry.task, f"its worker process died {entry.deaths + 1} times")


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which a terminal sends to all of them: the driver decides how a run ends.

    Child processes inherit the mask; workers that Dask starts again later come to :func:`dask_setup`.
    """
    # It unblocks SIGINT when it starts its own helper process, which would happen in the middle.
    resource_tracker.ensure_running()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def dask_setup(worker: Any) -> None:
    """Prepare a worker process; Dask calls this by its name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take(items: Iterator[Task], count: int) -> list[Task]:
    return [item for _, item in zip(range(count), items, strict=False)]


def _given_up(job: Job, task: Task, reason: str) -> TaskResult:
    results = ((video, failed_video(job, video.record, reason)) for video in task.videos)
    return collect(job, task, None, results, time.perf_counter())


def _run_on_worker(job: Job, task: Task, fork: Fork | None, topic: str, after_death: bool) -> TaskResult | _Unfit:
    """Run one task in a Dask worker."""
    from distributed import get_worker

    worker = get_worker()
    with _Throttled(lambda n_frames: worker.log_event(topic, n_frames)) as report:
        try:
            return run_task(job, task, fork, extract=extract_isolated if after_death else None, report=report)
        except KpstoreError as error:
            return _Unfit(str(worker.name), worker.address, error)


def _try_on_worker(job: Job) -> int | KpstoreError:
    try:
        return try_out(job)
    except KpstoreError as error:
        return error


class _Throttled:
    """Adds up small reports, so that a fast extractor does not spend its time telling of its progress."""

    def __init__(self, send: OnFrames) -> None:
        self._send = send
        self._waiting = 0
        self._sent = time.monotonic()

    def __enter__(self) -> OnFrames:
        return self._add

    def __exit__(self, *_: object) -> None:
        if self._waiting:
            self._send(self._waiting)

    def _add(self, n_frames: int) -> None:
        self._waiting += n_frames
        if time.monotonic() - self._sent >= _REPORT_EVERY_S:
            self._send(self._waiting)
            self._waiting, self._sent = 0, time.monotonic()


def make_executor(workers: int, *, scheduler: str | None = None, gpus: int = 0) -> Executor:
    """Return the executor for a number of workers: none runs in this process."""
    if scheduler is None and workers == 0:
        return SerialExecutor()
    return DaskExecutor(workers, scheduler=scheduler, gpus=gpus)
