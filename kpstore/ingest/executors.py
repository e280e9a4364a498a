"""Where tasks run: in this process, or on Dask workers. Both hand results to the driver as they come."""

from __future__ import annotations

import importlib.util
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Protocol, Self

from kpstore.errors import (
    ExtractorError,
    KpstoreError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    WorkersError,
    one_line,
)
from kpstore.ingest.crew import Crew, MakeFork
from kpstore.ingest.gpus import gpu_of_worker, own_gpus
from kpstore.ingest.job import Job, OnFrames, try_out
from kpstore.ingest.plan import Task
from kpstore.ingest.worker import TaskResult, run_task

_CLUSTER_TRIES = 5
_CLOSE_S = 30.0
TRY_S = 1800.0
"""How long workers may take to try how many frames their model takes at once.

A big model may be loaded slowly.
"""

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Workers share out the cores among themselves.

And sums in another number of threads are other sums.
"""

_SETTINGS = {
    # A task whose worker died comes straight back: it goes on in a mode that finds the frame at
    # fault, instead of killing three more workers first.
    "distributed.scheduler.allowed-failures": 0,
    # Workers keep their memory: by default Dask has malloc hand freed pages back at once, and
    # faulting them in again for every frame cost MediaPipe a fifth of its speed.
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(_ONE_THREAD, "1"),
    "distributed.admin.log-format": "%(message)s",
    # Dask looks at itself, in every process, 50 to 100 times a second, for pages that nobody opens
    # here. Tasks take seconds: looking rarely gave 6 % of a busy core back to the model.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.work-stealing-interval": "1s",
}
"""How Dask is set up for the cluster that a run starts.

The user's own settings come back afterwards.
"""


class Executor(Protocol):
    """Runs tasks; a context manager that starts and stops whatever it needs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    @property
    def n_workers(self) -> int:
        """How many tasks run at once."""

    @property
    def notes(self) -> Sequence[str]:
        """What went wrong with workers, and did not end the run."""

    def try_out(self, job: Job) -> list[int]:
        """Return how many frames at once the job's extractor takes, where it works, on each worker."""

    def run(
        self, job: Job, tasks: Sequence[Task], make_fork: MakeFork, on_frames: OnFrames
    ) -> Iterator[TaskResult]:
        """Yield results in the order in which tasks end.

        ``on_frames(n)`` is told of progress in between.
        """


class SerialExecutor:
    """Runs tasks one after another in this process: no start-up cost, but what kills the process ends the run."""

    n_workers = 1
    notes: Sequence[str] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def try_out(self, job: Job) -> list[int]:
        """Return the one answer."""
        return [try_out(job)]

    def run(
        self, job: Job, tasks: Sequence[Task], make_fork: MakeFork, on_frames: OnFrames
    ) -> Iterator[TaskResult]:
        """Yield results in plan order."""
        for task in tasks:
            yield run_task(job, task, make_fork(task), report=on_frames)


class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster.

    Parameters
    ----------
    n_workers : processes to start on this machine; ignored with ``scheduler``.
    scheduler : address of a running scheduler (``tcp://host:8786``) whose workers have kpstore
        installed.
    gpus : of this machine, to be shared out among the workers. One for each is dask-cuda's
        business, where that is installed: it also puts a worker on the cores that are near its GPU.
    """

    def __init__(self, n_workers: int, *, scheduler: str | None = None, gpus: int = 0) -> None:
        self._n_workers, self._scheduler = n_workers, scheduler
        self._gpus = own_gpus(gpus) if scheduler is None else ()
        found = (
            gpus
            and gpus == n_workers
            and scheduler is None
            and importlib.util.find_spec("dask_cuda")
        )
        self._by_dask_cuda = bool(found)
        self._left_out: dict[str, str] = {}
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
                    f"the Dask scheduler at {self._scheduler} has no workers; start one: dask "
                    f"worker {self._scheduler}"
                )
            return self
        with _sigint_blocked(), dask.config.set(_SETTINGS):
            self._cluster = self._start_cluster(distributed)
            self._client = distributed.Client(self._cluster)
        return self

    def _start_cluster(self, distributed: Any) -> Any:
        for tries_left in reversed(range(_CLUSTER_TRIES)):
            try:
                # One thread per worker: models are not thread-safe. No memory limit: Dask would
                # pause or kill a worker for what the model itself needs. Any free port of this
                # machine for Dask's own pages: with none given it takes 8787, and warns if that is
                # taken.
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
                # Dask gives up the whole cluster if one worker dies while it starts; once it runs,
                # it restarts them.
                if tries_left == 0:
                    raise UnsupportedError(
                        f"worker processes do not start on this machine ({error}); try --workers 0"
                    ) from error
        raise AssertionError("unreachable")

    def _cluster_class(self, distributed: Any) -> Any:
        if not self._by_dask_cuda:
            return distributed.LocalCluster
        import dask_cuda

        # Without names it would take the first GPUs of the machine, whichever the user has chosen.
        return partial(dask_cuda.LocalCUDACluster, CUDA_VISIBLE_DEVICES=list(self._gpus))

    def _connect(self, distributed: Any) -> Any:
        try:
            with warnings.catch_warnings():
                # Of versions that differ a run says itself which worker it leaves out for which.
                warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
                return distributed.Client(self._scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise NotFoundError(
                f"no Dask scheduler answers at {self._scheduler!r} ({error}); start one with 'dask "
                "scheduler'"
            ) from None

    def __exit__(self, *_: object) -> None:
        for part in (self._client, self._cluster):
            if part is not None:
                # On a busy machine parting takes long, and whatever is left ends with this process.
                with suppress(TimeoutError):
                    part.close(timeout=_CLOSE_S)

    @property
    def _shared_gpus(self) -> Sequence[str]:
        """GPUs that the workers share out among themselves by their numbers."""
        return () if self._by_dask_cuda else self._gpus

    @property
    def n_workers(self) -> int:
        """Worker processes."""
        return self._n_workers

    @property
    def notes(self) -> list[str]:
        """Which workers are not fit to work, and why."""
        return [f"worker {name} was left out: {reason}" for name, reason in self._left_out.items()]

    def try_out(self, job: Job) -> list[int]:
        """Return the answers of all workers, which try at the same time, as they will work.

        See :class:`Executor`.

        Raises
        ------
        KpstoreError
            The first worker's, if none can work. Where some can, the others are left out with their
            first task.
        WorkersError
            If no worker answers.
        """
        try:
            answers = self._try_all(job)
        except (OSError, CancelledError) as error:
            raise WorkersError(f"the Dask scheduler is gone: {one_line(error)}") from None
        found = [answer for answer in answers if isinstance(answer, int)]
        for answer in answers:
            if not found and isinstance(answer, KpstoreError):
                raise answer
        if not found:
            raise WorkersError("no worker is left to try the model")
        return found

    def _try_all(self, job: Job) -> list[int | KpstoreError]:
        from distributed import wait

        # Another may answer for a worker that has gone meanwhile; nobody would otherwise.
        futures = [
            self._client.submit(
                *(
                    _try_on_worker,
                    replace(job, gpu=gpu_of_worker(self._shared_gpus, str(about["name"]))),
                ),
                workers=[address],
                allow_other_workers=True,
                pure=False,
            )
            for address, about in self._client.scheduler_info(n_workers=-1)["workers"].items()
        ]
        if not futures:
            return []
        with suppress(TimeoutError, CancelledError):  # some may have answered all the same
            wait(futures, timeout=TRY_S)
        answers: list[int | KpstoreError] = []
        for future in futures:
            if not future.done():
                future.cancel()
                answers.append(WorkersError(f"a worker did not try the model within {TRY_S:g} s"))
                continue
            try:
                answers.append(future.result(timeout=_CLOSE_S))
            except (CancelledError, TimeoutError) as error:
                answers.append(
                    WorkersError(
                        "the scheduler or a worker went before the model was tried: "
                        f"{one_line(error)}"
                    )
                )
            except (
                Exception
            ) as error:  # a worker that died, or that has other code; it is proved before it works
                answers.append(
                    ExtractorError(f"a worker could not try the model: {one_line(str(error))}")
                )
        return answers

    def run(
        self, job: Job, tasks: Sequence[Task], make_fork: MakeFork, on_frames: OnFrames
    ) -> Iterator[TaskResult]:
        """Yield results as tasks end; see :class:`~kpstore.ingest.crew.Crew`."""
        crew = Crew(
            self._client,
            self._scheduler or self._cluster.scheduler_address,
            job,
            tasks,
            make_fork,
            gpus=self._shared_gpus,
            pinned=self._gpus if self._by_dask_cuda else (),
            ours=self._scheduler is None,
            notes=self._left_out,
        )
        yield from crew.run(on_frames)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which a terminal sends to all of them: the driver decides how a run ends.

    Child processes inherit the mask; workers that Dask starts again later come to
    :func:`dask_setup`.
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


def _try_on_worker(job: Job) -> int | KpstoreError:
    try:
        return try_out(job)
    except KpstoreError as error:
        return error


def make_executor(workers: int, *, scheduler: str | None = None, gpus: int = 0) -> Executor:
    """Return the executor for a number of workers: none runs in this process."""
    if scheduler is None and workers == 0:
        return SerialExecutor()
    return DaskExecutor(workers, scheduler=scheduler, gpus=gpus)
