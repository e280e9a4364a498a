"""Executors run tasks in this process, or on Dask workers, and yield results as tasks end."""

from __future__ import annotations

import gc
import importlib.util
import logging
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Self

from kpstore.errors import (
    ExtractorError,
    KpstoreError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    WorkersError,
    one_line,
)
from kpstore.extractors.base import is_settling
from kpstore.ingest.crew import Crew, MakeFork, ask_for_workers
from kpstore.ingest.gpus import gpu_of_worker, own_gpus
from kpstore.ingest.job import Job, OnFrames, try_out
from kpstore.ingest.options import DEFAULT_WAIT_S, Options
from kpstore.ingest.plan import OnDeath, Task
from kpstore.ingest.scheduler_errors import gone, scheduler_told
from kpstore.ingest.scheduler_file import address_in, is_file
from kpstore.ingest.watch import MAX_LIMIT_S
from kpstore.ingest.worker import TaskResult, run_task

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

_CLUSTER_TRIES = 5
_CLOSE_S = 30.0
TRY_S = 1800.0
"""How long workers may take to try how many frames a model takes at once: loading may be slow."""

SILENT_S = 300.0
"""How long a worker may send no sign of life; longer, if a frame may take longer."""

# A model may hold Python's lock, which keeps a worker silent, for as long as a frame may take
_REPLACED_S = 60.0

# One thread per worker: workers share the cores, and other numbers of threads give other sums
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# By default Dask gives a worker up for good that was not restarted within 15 seconds, which a busy
# machine may take for the imports alone; a run then ended with "none came back".
_PATIENCE = {"distributed.deploy.lost-worker-timeout": "30 days"}

# Dask's settings while a run starts its cluster; the user's own come back afterwards
_SETTINGS = {
    # A task whose worker died comes straight back: the next worker finds the frame at fault,
    # instead of three more workers dying first.
    "distributed.scheduler.allowed-failures": 0,
    # Workers keep their memory: by default Dask has malloc hand freed pages back at once, and
    # faulting them in again for every frame cost MediaPipe a fifth of its speed.
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(_ONE_THREAD, "1"),
    "distributed.admin.log-format": "%(message)s",
    # Dask measures itself in every process, 50 to 100 times a second, for pages that no one opens
    # here. Tasks take seconds: measuring rarely gave 6 % of a busy core back to the model.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.scheduler.work-stealing-interval": "1s",
}


class Executor(ABC):
    """Runs tasks; a context manager that starts and stops what it needs.

    Attributes
    ----------
    n_workers : how many tasks run at once, or ran at most: more workers may come.
    """

    n_workers: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def gather(self, on_note: Callable[[str], None]) -> None:
        """Wait until a worker is there.

        Parameters
        ----------
        on_note : called with a line about the workers.

        Raises
        ------
        NotFoundError
            If none comes in time.
        """
        return None

    @property
    def notes(self) -> Sequence[str]:
        """Problems with workers that did not end the run."""
        return ()

    def fix_at_once(self, job: Job) -> None:
        """Fix how many frames the extractor takes at once: the least number of all workers.

        Nothing is tried on a CPU, or if the number is given or recorded already.
        """
        extractor = job.extractor
        if is_settling(extractor) and not extractor.settled:
            extractor.keep(extractor.at_once if job.device == "cpu" else min(self.try_out(job)))

    @abstractmethod
    def try_out(self, job: Job) -> list[int]:
        """Return how many frames the extractor takes at once, on each worker where it works."""

    @abstractmethod
    def run(
        self,
        job: Job,
        tasks: Sequence[Task],
        make_fork: MakeFork,
        on_frames: OnFrames,
        on_death: OnDeath,
    ) -> Iterator[TaskResult]:
        """Yield results in the order in which tasks end.

        In between, tell of frames that are done, and of tasks at which a worker may have died.
        """


class SerialExecutor(Executor):
    """Runs tasks one after another in this process; a frame that kills it ends the run."""

    n_workers = 1

    def try_out(self, job: Job) -> list[int]:
        """Return the answer of this process."""
        return [try_out(job)]

    def run(
        self,
        job: Job,
        tasks: Sequence[Task],
        make_fork: MakeFork,
        on_frames: OnFrames,
        on_death: OnDeath,
    ) -> Iterator[TaskResult]:
        """Yield results in plan order."""
        for task in tasks:
            yield run_task(job, task, make_fork(task), report=on_frames)


class DaskExecutor(Executor):
    """Runs tasks on the workers of a Dask cluster.

    Parameters
    ----------
    n_workers : processes to start on this machine; ignored with ``scheduler``.
    scheduler : address of a running scheduler (``tcp://host:8786``) whose workers have kpstore
        installed, or the file that it writes.
    gpus : number of GPUs of this machine to share among the workers. If each worker gets one and
        dask-cuda is installed, that pins them: it also puts a worker on the cores near its GPU.
    frame_timeout_s : how long a frame may take, and, a little longer, a worker be silent.
    wait_s : how long to wait for a worker while there is none.
    """

    def __init__(
        self,
        n_workers: int,
        *,
        scheduler: str | None = None,
        gpus: int = 0,
        frame_timeout_s: float = 0.0,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> None:
        self._wait_s = wait_s
        # A frame that may take any time may also hold Python's lock, and its worker's heartbeat.
        silent_s = max(SILENT_S, frame_timeout_s + _REPLACED_S)
        self._silent_s = silent_s if frame_timeout_s else 0.0
        self.n_workers, self._scheduler, self._address = n_workers, scheduler, scheduler or ""
        found = own_gpus(gpus) if scheduler is None else ()
        is_one_each = scheduler is None and gpus > 0 and gpus == n_workers
        by_dask_cuda = is_one_each and importlib.util.find_spec("dask_cuda") is not None
        # GPUs that dask-cuda pins, and those to share among the workers by their numbers.
        self._pinned = found if by_dask_cuda else ()
        self._shared = () if by_dask_cuda else found
        self._left_out: dict[str, str] = {}
        self._cluster: LocalCluster | None = None
        self._at_exit = ExitStack()
        self._client: Client

    def __enter__(self) -> Self:
        try:
            import dask
            import distributed
        except ImportError:
            raise MissingExtraError("--workers and --scheduler", extra="dask") from None
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] == "distributed":  # each has a level of its own
                logging.getLogger(name).setLevel(logging.CRITICAL)
        if self._scheduler is not None:
            self._client = self._connect()
            return self
        # A worker that sends no heartbeat, stopped by a debugger say, is killed and replaced.
        ttl = f"{self._silent_s:g}s" if self._silent_s else None
        silence = {"distributed.scheduler.worker-ttl": ttl}
        with ExitStack() as stack:
            # Not one of _SETTINGS: Dask asks for it each time that a worker dies.
            stack.enter_context(dask.config.set(_PATIENCE))
            with _sigint_blocked(), dask.config.set(_SETTINGS | silence):
                self._cluster = self._start_cluster()
                self._address = self._cluster.scheduler_address
                self._client = distributed.Client(self._cluster)
            self._at_exit = stack.pop_all()
        return self

    def gather(self, on_note: Callable[[str], None]) -> None:
        """Wait until a worker is there, and count those that are."""
        if self._client.dashboard_link:
            on_note(f"Dask shows the workers at {self._client.dashboard_link}")
        if self._scheduler is None:
            return
        if not self._count():
            start = "--scheduler-file " if is_file(self._scheduler) else ""
            how = f"start one: dask worker {start}{self._scheduler}"
            on_note(
                f"the Dask scheduler at {self._scheduler} has no workers yet; waiting "
                f"{self._wait_s:g} s for one ({how})"
            )
            wanted = ask_for_workers(self._client, self._address)
            try:
                wanted.result(timeout=min(self._wait_s, MAX_LIMIT_S))
            except CancelledError:
                raise gone(self._address) from None
            except TimeoutError:
                pass
            if not self._count():
                raise NotFoundError(
                    f"the Dask scheduler at {self._scheduler} has no workers, and none came within "
                    f"{self._wait_s:g} s (--wait-for-workers); {how}"
                )

    def _count(self) -> int:
        with scheduler_told(self._address):
            self.n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        return self.n_workers

    def _start_cluster(self) -> LocalCluster:
        from distributed import LocalCluster

        cluster: Callable[..., LocalCluster] = LocalCluster
        if self._pinned:
            from dask_cuda import LocalCUDACluster

            # Without names it would take the first GPUs of the machine, not those the user has
            # chosen.
            cluster = partial(LocalCUDACluster, CUDA_VISIBLE_DEVICES=list(self._pinned))
        for tries_left in reversed(range(_CLUSTER_TRIES)):
            try:
                # One thread per worker: models are not thread-safe. No memory limit: Dask would
                # pause or kill a worker for what the model itself needs. Any free port for Dask's
                # own pages: by default it takes 8787, and warns if that is taken.
                return cluster(
                    n_workers=self.n_workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                    preload=[__name__],
                )
            except RuntimeError as error:
                # Dask gives up the whole cluster if one worker dies while it starts; it restarts
                # those that die later.
                if tries_left == 0:
                    raise UnsupportedError(
                        f"worker processes do not start on this machine ({error}); try workers=0 "
                        "(--workers 0)"
                    ) from error
        raise AssertionError("unreachable")

    def _connect(self) -> Client:
        from distributed import Client
        from distributed.versions import VersionMismatchWarning

        given = str(self._scheduler)
        address = address_in(given) if is_file(given) else given
        try:
            with warnings.catch_warnings():
                # The run itself says which worker it leaves out for which version.
                warnings.simplefilter("ignore", VersionMismatchWarning)
                return Client(address, timeout="10s")
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            reason = one_line(error)
        # Dask closes the client that could not connect when it is collected. If that came while the
        # next one starts, in a notebook say, each would wait for the other.
        gc.collect()
        where = repr(address) if address == given else f"{address!r}, which {given} names"
        raise NotFoundError(
            f"no Dask scheduler answers at {where} ({reason}); start one with 'dask scheduler'"
        )

    def __exit__(self, *_: object) -> None:
        with self._at_exit:
            for part in (self._client, self._cluster):
                if part is not None:
                    # Closing takes long on a busy machine, and what is left ends with this process.
                    with suppress(TimeoutError):
                        part.close(timeout=_CLOSE_S)

    @property
    def notes(self) -> list[str]:
        """Workers that were left out, and why."""
        return [f"worker {name} was left out: {reason}" for name, reason in self._left_out.items()]

    def try_out(self, job: Job) -> list[int]:
        """Return the answers of all workers, which try at the same time, as in a run.

        Raises
        ------
        KpstoreError
            The first worker's, if none can work. If some can, the others are left out with their
            first task.
        WorkersError
            If no worker answers.
        """
        with scheduler_told(self._address):
            answers = self._try_all(job)
        found = [answer for answer in answers if isinstance(answer, int)]
        if not found:
            errors = (answer for answer in answers if isinstance(answer, KpstoreError))
            raise next(errors, WorkersError("no worker is left to try the model"))
        return found

    def _try_all(self, job: Job) -> list[int | KpstoreError]:
        from distributed import wait

        # Another worker may answer for one that has gone meanwhile.
        futures = [
            self._client.submit(
                try_out,
                replace(job, gpu=gpu_of_worker(self._shared, str(about["name"]))),
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
        return [_trial(future) for future in futures]

    def run(
        self,
        job: Job,
        tasks: Sequence[Task],
        make_fork: MakeFork,
        on_frames: OnFrames,
        on_death: OnDeath,
    ) -> Iterator[TaskResult]:
        """Yield results as tasks end; see :class:`~kpstore.ingest.crew.Crew`."""
        crew = Crew(
            self._client,
            self._address,
            job,
            tasks,
            make_fork,
            gpus=self._shared,
            pinned=self._pinned,
            ours=self._scheduler is None,
            # The scheduler that was started above has the same limit, and its workers a nanny.
            silent_s=0.0 if self._scheduler is None else self._silent_s,
            notes=self._left_out,
            on_death=on_death,
            wait_s=self._wait_s,
        )
        for result in crew.run(on_frames):
            self.n_workers = max(self.n_workers, crew.n_fit)
            yield result


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes started here: the driver alone decides how a run ends.

    A terminal sends it to all of them. Child processes inherit the mask; for workers that Dask
    restarts later, :func:`dask_setup` does the same.
    """
    # The tracker unblocks SIGINT when it starts its helper process, so it has to start before.
    resource_tracker.ensure_running()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def dask_setup(worker: object) -> None:
    """Prepare a worker process; Dask finds this function by its name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _trial(future: Future[int]) -> int | KpstoreError:
    """Return a worker's answer, or an error that says why it gave none."""
    if not future.done():
        future.cancel()
        return WorkersError(f"a worker did not try the model within {TRY_S:g} s")
    try:
        return future.result(timeout=_CLOSE_S)
    except (CancelledError, TimeoutError) as error:
        return WorkersError(
            f"the scheduler or a worker went before the model was tried: {one_line(error)}"
        )
    except KpstoreError as error:
        return error
    except Exception as error:  # a worker that died, or that has other code
        return ExtractorError(f"a worker could not try the model: {one_line(str(error))}")


def make_executor(options: Options, *, frame_timeout_s: float) -> Executor:
    """Return the executor for what a user asks for."""
    if options.in_this_process:
        return SerialExecutor()
    return DaskExecutor(
        options.n_workers,
        scheduler=options.scheduler,
        gpus=options.gpus,
        frame_timeout_s=frame_timeout_s,
        # Those of this process come back by themselves; a user has nothing to do with it.
        wait_s=max(options.wait_for_workers_s, 0.0 if options.scheduler else DEFAULT_WAIT_S),
    )
