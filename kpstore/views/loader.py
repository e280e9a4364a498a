"""Batches of a view, read ahead by threads or processes, for a training loop."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from kpstore.errors import InvalidError, KpstoreError
from kpstore.main_guard import require_main_guard
from kpstore.schema.fields import check_whole
from kpstore.views.ahead import asked_ahead
from kpstore.views.base import Batch, View, check_function
from kpstore.views.batch_sampler import POOL_MIB, BatchSampler
from kpstore.views.handed import bytes_of, check_ended, end_with_parent, handed
from kpstore.views.runs import Ints
from kpstore.views.sampling import Batches, Shuffle, largest
from kpstore.views.sent import Sent

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_RUN_ROWS = 4096
"""Rows that a thread reads together: with fewer, handing over batches costs more than reading."""
_RUN_BYTES = 16 * 2**20
"""Most memory of one run's batches: pictures drawn from rows take more than the rows."""
_AHEAD_BYTES = 256 * 2**20
"""Most memory of the batches that worker processes make ahead."""

Collate = Callable[[list[Any]], Any]


class BatchDataset:
    """A view as a data set of batches: ``dataset[indices]`` is one batch.

    ``DataLoader(loader.dataset, sampler=loader.sampler, batch_size=None)`` yields the same batches
    as the loader.

    Parameters
    ----------
    view, tensors, collate
        As in :func:`kpstore.loader`.
    pool_bytes : memory for decoded chunks, in each process.
    """

    def __init__(
        self, view: View, *, tensors: bool, collate: Collate | None, pool_bytes: int
    ) -> None:
        check_function("collate", collate, "a list of samples")
        self.view, self.tensors, self.collate, self.pool_bytes = view, tensors, collate, pool_bytes
        self._ready = False

    def __len__(self) -> int:
        return len(self.view)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": False}

    def __getitem__(self, indices: Ints) -> Any:
        """Return one batch.

        Raises
        ------
        UnsupportedError
            If a worker process of PyTorch's lacks the shared memory to hand it over.
        """
        return handed(self.batches([indices])[0])

    def prepare(self) -> None:
        """Reserve memory for decoded chunks, once in each process."""
        if not self._ready:
            for name, n_bytes in self.view.plan_pool(self.pool_bytes).n_bytes.items():
                self.view.store.reader.reserve(name, n_bytes)
            self._ready = True

    def is_copied(self) -> bool:
        """Whether making a batch is copying rows that are mapped into memory, and nothing else.

        Rows are decoded to the local disk first, unless the store was opened with ``cache="off"``.
        """
        plain = self.view.transform is None and self.collate is None and not self.view.draws
        return self.view.cache() and plain

    def batches(self, parts: Sequence[Ints]) -> list[Any]:
        """Return several batches, read together."""
        self.prepare()
        if self.view.transform is None and self.collate is None:
            found = self.view.batches(parts)
            return [_tensors(batch) for batch in found] if self.tensors else list(found)
        samples = iter(self.view.samples(np.concatenate([np.empty(0, dtype=np.int64), *parts])))
        return [self._collated(list(islice(samples, len(part)))) for part in parts]

    def _collated(self, samples: list[Any]) -> Any:
        if self.view.transform is not None:
            samples = [self.view.transform(sample) for sample in samples]
        if self.collate is not None:
            return self.collate(samples)
        from torch.utils.data import default_collate

        return default_collate(samples)


def _tensors(batch: Batch) -> dict[str, Any]:
    return {name: as_tensor(array) for name, array in batch.items()}


def as_tensor(array: Any) -> Any:
    """Return an array as a tensor that shares its memory; text as a list of str."""
    import torch

    return array.tolist() if array.dtype == object else torch.from_numpy(array)


class Loader:
    """Iterates over the batches of a view, an epoch each time; :func:`kpstore.loader` makes one.

    Parameters
    ----------
    sampler : which samples each batch holds.
    dataset : makes the batches.
    workers, threads, prefetch, pin_memory
        As in :func:`kpstore.loader`.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        dataset: BatchDataset,
        *,
        workers: int = 0,
        threads: int = 2,
        prefetch: int = 64,
        pin_memory: bool = False,
    ) -> None:
        self.sampler, self.dataset = sampler, dataset
        self.workers = check_whole("workers", workers)
        self.threads = check_whole("threads", threads)
        self.prefetch = check_whole("prefetch", prefetch)
        self.pin_memory = pin_memory and _can_pin()
        self._processes: tuple[DataLoader[Any], _Parts] | None = None
        self._n_started = 0

    def __repr__(self) -> str:
        sampler = self.sampler
        size = (
            f"batch_frames={sampler.batch_frames}"
            if sampler.batch_frames
            else f"batch_size={sampler.batch_size}"
        )
        how = f"{self.workers} workers" if self.workers else f"{self.threads} threads"
        return f"<Loader of {sampler.view!r}: {size}, shuffle={sampler.shuffle!r}, {how}>"

    def __len__(self) -> int:
        """Return the number of batches of this rank's epoch; after loading a state, of the rest."""
        return len(self.sampler)

    @property
    def epoch(self) -> int:
        """The running epoch, or else the next."""
        return self.sampler.epoch

    @property
    def padding(self) -> int:
        """Samples (with ``batch_frames``, batches) that come twice in the epoch, over all ranks."""
        return self.sampler.padding

    @property
    def padding_share(self) -> float:
        """Padded frames as a share of all frames in the epoch's batches."""
        return self.sampler.padding_share

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``iter()`` start this epoch."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch; see :meth:`BatchSampler.state_dict`."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a state was taken; see :meth:`BatchSampler.load_state_dict`."""
        self.sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:
        plan = self.sampler.start()
        n_threads = max(self.threads, self.workers)
        if self.workers and not self.dataset.is_copied():
            batches = self._from_processes(plan)
        elif n_threads:
            batches = self._from_threads(plan, n_threads)
        else:
            batches = (self._read([part])[0] for part in asked_ahead(self.dataset.view, plan))
        for batch in batches:
            self.sampler.given()
            yield batch

    # -- threads -----------------------------------------------------------------------------------

    def _from_threads(self, plan: Batches, n_threads: int) -> Iterator[Any]:
        if not len(plan):
            return
        parts = asked_ahead(self.dataset.view, plan)
        # The first batch alone shows how much memory batches take.
        first = self._read([next(parts)])
        runs = self._runs(plan, bytes_of(first[0]), n_threads)
        pool = ThreadPoolExecutor(n_threads, thread_name_prefix="kpstore-loader")
        coming: deque[tuple[int, Future[list[Any]]]] = deque()
        n_ahead = 0
        try:
            # Start reading before the first batch is yielded.
            for start, stop in runs:
                run = list(islice(parts, stop - start))
                coming.append((stop - start, pool.submit(self._read, run)))
                n_ahead += stop - start
                if first:
                    yield first.pop()
                while n_ahead > self.prefetch or len(coming) > n_threads:
                    n_batches, read = coming.popleft()
                    n_ahead -= n_batches
                    yield from read.result()
            yield from first
            while coming:
                yield from coming.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _runs(self, plan: Batches, batch_bytes: int, n_threads: int) -> Iterator[tuple[int, int]]:
        """Yield runs of batches after the first that a thread reads together: first and stop."""
        # About so many: looking at the length of each sample would take longer than the order.
        view = self.dataset.view
        n_rows = (1.0 if view.are_frames else float(view.lengths.mean())) * plan.n_samples
        per_run = int(_RUN_ROWS * len(plan) / max(1, n_rows))
        step = max(
            1, min(per_run, self.prefetch // (n_threads + 1), _RUN_BYTES // max(1, batch_bytes))
        )
        return ((first, min(first + step, len(plan))) for first in range(1, len(plan), step))

    def _read(self, parts: list[Ints]) -> list[Any]:
        batches = self.dataset.batches(parts)
        return [_pinned(batch) for batch in batches] if self.pin_memory else batches

    # -- processes ---------------------------------------------------------------------------------

    def _from_processes(self, plan: Batches) -> Iterator[Any]:
        self._n_started += 1
        mine, batches = self._n_started, self._begun(plan)
        while True:
            if mine != self._n_started:
                raise InvalidError(
                    "another iteration over this loader has begun; its worker processes serve one "
                    "at a time: make a second loader, or use workers=0"
                )
            try:
                yield next(batches)
            except StopIteration:
                return
            except KeyboardInterrupt:
                self._processes = None  # PyTorch's loader may have been left in any state
                raise
            except Exception as error:
                self._processes = None  # e.g. a worker died: the next iteration starts new ones
                if isinstance(error, KpstoreError):
                    # PyTorch puts a worker's traceback in front of the message.
                    kind = type(error)
                    head = f"\n{kind.__module__}.{kind.__qualname__}: "
                    raise kind(error.args[0].rpartition(head)[2].strip()) from None
                check_ended(error)
                raise

    def _begun(self, plan: Batches) -> Iterator[Any]:
        """Return batches of the running processes, or of new ones if some have ended since."""
        if self._processes is not None:
            (data_loader, parts), self._processes = self._processes, None
            parts.plan = plan
            with suppress(RuntimeError):  # PyTorch's
                batches = iter(data_loader)
                self._processes = data_loader, parts  # unless an interrupt came in between
                return batches
        self._processes = self._start_processes(plan)
        return iter(self._processes[0])

    def _start_processes(self, plan: Batches) -> tuple[DataLoader[Any], _Parts]:
        from torch.utils.data import DataLoader

        require_main_guard("a loader with workers", "use threads: workers=0")
        n_ahead = self.prefetch
        if len(plan):
            view = self.dataset.view
            batch = self.dataset[plan[0 if view.are_frames else largest(plan, view.lengths)]]
            n_ahead = min(n_ahead, _AHEAD_BYTES // max(1, bytes_of(batch)))
        parts = _Parts(plan, self.dataset.view)
        data_loader: DataLoader[Any] = DataLoader(
            Sent(self.dataset, self.workers),  # type: ignore[arg-type]
            sampler=parts,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=max(1, n_ahead // self.workers),
            pin_memory=self.pin_memory,
            persistent_workers=True,
            multiprocessing_context=_context(),
            worker_init_fn=end_with_parent,
        )
        return data_loader, parts

    def close(self) -> None:
        """Stop worker processes; the next ``iter()`` starts new ones."""
        self._processes = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processes": None}


def loader(
    view: View,
    batch_size: int | None = None,
    *,
    shuffle: Shuffle = "block",
    seed: int = 0,
    epoch: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = False,
    pad: bool = True,
    batch_frames: int | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 64,
    pin_memory: bool = False,
    tensors: bool = True,
    collate: Collate | None = None,
    pool_mib: float = POOL_MIB,
) -> Loader:
    """Return batches of a view, read ahead: what a training loop iterates over.

    The order follows from ``seed``, the epoch, ``shuffle``, ``pool_mib`` and the view alone: it is
    the same with any number of threads and workers, with and without a cache. Every ``iter()``
    starts the next epoch.

    Parameters
    ----------
    batch_size : samples per batch; with ``batch_frames`` a limit, and not needed.
    shuffle : ``"block"`` reads storage block by block and mixes as many blocks as fit into
        ``pool_mib``, which hardly differs from a full shuffle; see
        :class:`kpstore.views.order.BlockShuffle`. ``"full"`` draws from all samples: slow from a
        compressed store without a cache. None keeps the view's order.
    seed, epoch : what the order follows from; ``epoch`` is the first one.
    rank, world_size : this process among those that train together; by default taken from
        ``torch.distributed``, or else from ``torchrun`` (``RANK``, ``WORLD_SIZE``), when an epoch
        begins. So a loader may be made before a trainer starts its processes.
    drop_last : leave out the last samples, so that all batches on all ranks are full.
    pad : give all ranks equally many samples by giving the first few twice; see
        :attr:`Loader.padding`. Otherwise each sample comes exactly once, and some ranks have one
        more than others.
    batch_frames : for samples of different lengths: most frames of a batch of similar samples,
        padded to the longest. A longer sample is a batch of its own. See
        :attr:`Loader.padding_share`.
    workers : processes that read, transform and collate. They are started with ``forkserver``, so a
        script needs ``if __name__ == "__main__":``. The arrays are decoded to the local disk first,
        unless the store was opened with ``cache="off"``. Where batches are then only copied from
        mapped files (no transform, no ``collate``, no pictures to draw), threads do that instead,
        at least as many: they are faster, and start at once.
    threads : threads that do so when ``workers=0``; 0 reads a batch when it is requested.
    prefetch : most batches to make ahead.
    pin_memory : put batches into pinned memory, if there is a GPU.
    tensors : return tensors (text as lists of str) instead of numpy arrays.
    collate : makes a batch of a list of samples. By default, samples of a view with a transform are
        stacked by PyTorch's ``default_collate``; without a transform, batches are read as a whole.
    pool_mib : memory for decoded chunks, in MiB, in each process.

    Raises
    ------
    InvalidError
        If a number is out of its range; the message names it.
    UnsupportedError
        When it is iterated over: if the system ended a worker process.

    Examples
    --------
    >>> loader = kpstore.loader(store.frames("keypoints", split="train"), 256)  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     batch["keypoints"]  # (256, 143, 3) float32

    With PyTorch's own loader: ``DataLoader(loader.dataset, sampler=loader.sampler, batch_size=None,
    num_workers=2, multiprocessing_context="forkserver")``.
    """
    sampler = BatchSampler(
        view,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        pad=pad,
        batch_frames=batch_frames,
        pool_mib=pool_mib,
    )
    dataset = BatchDataset(view, tensors=tensors, collate=collate, pool_bytes=int(pool_mib * 2**20))
    return Loader(
        sampler, dataset, workers=workers, threads=threads, prefetch=prefetch, pin_memory=pin_memory
    )


class _Parts:
    """Passes the batches of a plan to PyTorch's DataLoader; each epoch sets another plan."""

    def __init__(self, plan: Batches, view: View) -> None:
        self.plan, self._view = plan, view

    def __iter__(self) -> Iterator[Ints]:
        return asked_ahead(self._view, self.plan)

    def __len__(self) -> int:
        return len(self.plan)


def _context() -> multiprocessing.context.BaseContext:
    """Return how worker processes are started: with what this process has imported, if possible."""
    # Not fork: a child lacks the threads of this process, including Icechunk's.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    packages = ("kpstore.backends.", "kpstore.store.", "kpstore.views.")
    reading = [name for name in sys.modules if name.startswith(packages)]
    context.set_forkserver_preload(["__main__", "torch.utils.data", *reading])
    return context


def _can_pin() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _pinned(batch: Any) -> Any:
    from torch.utils.data._utils.pin_memory import pin_memory

    return pin_memory(batch)  # type: ignore[no-untyped-call]
