"""Batches on their way from a worker process to the one that trains.

PyTorch's workers put each tensor into a new file in ``/dev/shm``, and the process that trains
connects to the worker for every one of them, which takes longer than reading the batch. Here, a
worker writes batches into memory of its own that has no name, and into the same memory again as
soon as a batch was taken out. Batches that go through a user's function are left to PyTorch.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from kpstore.errors import UnsupportedError, one_line

_COLLATE, _FETCH = "torch.utils.data._utils.collate", "torch.utils.data._utils.fetch"
_PASSED = {__name__, "kpstore.views.samples", "kpstore.views.loader", _COLLATE}
"""Modules through which a batch goes on its way to PyTorch's loop."""
SHARED_MEMORY = "/dev/shm"
"""Where PyTorch's workers put tensors: small in many containers (Docker: 64 MB)."""
_FREE, _FULL = b"\0", b"\1"
"""First byte of a block of memory, before the buffers of a batch: whether it may be written."""
_NAME = "kpstore-batch"
"""What the system calls a block, for those who look."""
_blocks: deque[int] = deque()
"""This process's blocks, as file descriptors; those written long ago come first."""

# A child of this process shares the blocks and must not write into them.
os.register_at_fork(after_in_child=_blocks.clear)


def handed(batch: Any) -> Any:
    """Return a batch, in a worker process of PyTorch's in a form that is sent fast, if it may be.

    Raises
    ------
    UnsupportedError
        If PyTorch has to send it, and shared memory lacks the room.
    """
    torch = sys.modules.get("torch.utils.data")
    worker = torch and torch.get_worker_info()
    if worker is None:
        return batch
    if _is_sent_next():
        return Handed(batch)
    _check_room(bytes_of(batch, sys.modules["torch"].Tensor), int(worker.num_workers))
    return batch


def _is_sent_next() -> bool:
    """Whether the loop of a worker process sends what is being made before a user sees it."""
    frame, module, is_collated = sys._getframe(2), "", False
    while frame.f_back is not None and (module := str(frame.f_globals.get("__name__"))) in _PASSED:
        frame, is_collated = frame.f_back, is_collated or module == _COLLATE
    fetcher = frame.f_locals.get("self")
    return (
        module == _FETCH
        and getattr(getattr(fetcher, "collate_fn", None), "__module__", None) == _COLLATE
        and (is_collated or not getattr(fetcher, "auto_collation", True))  # or it will be
        and frame.f_back is not None
        and frame.f_back.f_code.co_name == "_worker_loop"
        and threading.current_thread() is threading.main_thread()  # the worker is no thread
    )


def bytes_of(batch: Any, kind: type = object) -> int:
    """Return the size of all arrays and tensors of a batch, or those of a kind, however nested."""
    if isinstance(batch, Mapping):
        return sum(bytes_of(item, kind) for item in batch.values())
    if isinstance(batch, list | tuple):
        return sum(bytes_of(item, kind) for item in batch)
    return int(getattr(batch, "nbytes", 0)) if isinstance(batch, kind) else 0


def _check_room(n_bytes: int, n_workers: int) -> None:
    """Raise :class:`UnsupportedError` if a worker cannot hand over a batch as PyTorch does.

    It would print a traceback, and whoever waits for its batch would wait for ever.
    """
    free = free_bytes()
    if free is not None and n_workers * n_bytes > free:
        raise UnsupportedError(
            f"workers hand over batches in {SHARED_MEMORY}, where {_mib(free)} are free and a "
            f"batch of {_mib(n_bytes)} from each of {n_workers} workers must fit; use "
            "kpstore.loader, smaller batches, a lower prefetch_factor, or fewer workers, let go of "
            "batches that are kept, or give the container more (docker run --shm-size=8g)"
        )


def free_bytes() -> int | None:
    """Return the free bytes of shared memory; None where it is not a folder (macOS)."""
    try:
        about = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.3g} MiB"


def check_ended(error: Exception) -> None:
    """Raise :class:`UnsupportedError` if a worker ended without a word, instead of PyTorch's."""
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
        raise _ended(error) from None


def _ended(error: Exception) -> UnsupportedError:
    return UnsupportedError(
        "the system ended a worker of the loader: memory ran out (fewer workers need less), or "
        "a file of the store was cut short while it was mapped ('kpstore verify' finds that; "
        f"check='always' maps nothing) ({one_line(error)})"
    )


class Handed:
    """A batch that another process gets when it unpickles this.

    Parameters
    ----------
    batch : anything that can be pickled. Arrays and tensors go through shared memory.
    """

    def __init__(self, batch: Any) -> None:
        end_with_parent()
        stream, self._buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        # Here, and not in the thread that feeds a queue: an error would be lost there.
        _Pickler(stream, 5, buffer_callback=self._buffers.append).dump(batch)
        self._content = stream.getvalue()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        views = [buffer.raw() for buffer in self._buffers]
        if _can_share():
            # An error here would be lost; without further files, the pipe does it.
            with suppress(OSError):
                return _taken, (self._content, _written(views))
        return _taken, (self._content, [bytearray(view) for view in views])


class _Pickler(pickle.Pickler):
    """Pickles tensors as the arrays whose memory they share."""

    def reducer_override(self, value: Any) -> Any:
        """Return how to pickle a value, or NotImplemented for its own way."""
        torch = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor:
            # Tensors that NumPy lacks (sparse, bfloat16, on a GPU) are pickled with their content.
            with suppress(TypeError, RuntimeError):
                return _tensor, (value.numpy(),)
        return NotImplemented


class _Place(NamedTuple):
    """Where the buffers of a batch are: in a file of a process, without a name."""

    process: int
    file: int
    sizes: list[int]

    def take(self) -> list[Any]:
        """Return the buffers in memory of this process, and let the other one write there again.

        Raises
        ------
        UnsupportedError
            If the other process has ended.
        """
        buffers = [np.empty(size, dtype=np.uint8) for size in self.sizes]
        path = f"/proc/{self.process}/fd/{self.file}"
        try:
            if _NAME not in os.readlink(path):  # a later process has the same number
                raise FileNotFoundError(path)
            file = os.open(path, os.O_RDWR)
        except (FileNotFoundError, PermissionError) as error:
            raise _ended(error) from None
        try:
            _each(os.preadv, file, buffers)
            os.pwrite(file, _FREE, 0)
        finally:
            os.close(file)
        return buffers


def _taken(content: bytes, place: _Place | list[bytearray]) -> Any:
    buffers = place.take() if isinstance(place, _Place) else place
    return pickle.loads(content, buffers=buffers)


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)


def _written(buffers: Sequence[memoryview]) -> _Place:
    file = _free_block()
    os.pwrite(file, _FULL, 0)
    _each(os.pwritev, file, buffers)
    _blocks.append(file)
    return _Place(os.getpid(), file, [buffer.nbytes for buffer in buffers])


def _free_block() -> int:
    """Return a block for this thread alone: the oldest that was taken, or a new one."""
    # Not the oldest only: it may never be taken, if an interrupt came while it was.
    for _ in range(len(_blocks)):
        block = _blocks.popleft()
        if os.pread(block, 1, 0) == _FREE:
            return block
        _blocks.append(block)
    return os.memfd_create(_NAME)


def _each(
    transfer: Callable[[int, list[Any], int], int], file: int, buffers: Sequence[Any]
) -> None:
    """Read or write buffers that lie in a file after its first byte."""
    at = 1
    for buffer in buffers:
        rest = memoryview(buffer)
        while rest.nbytes:  # the system does at most 2 GiB at a time
            n_bytes = transfer(file, [rest], at)
            at, rest = at + n_bytes, rest[n_bytes:]


@functools.cache
def _can_share() -> bool:
    """Whether the process that takes batches can open a file of this one that has no name.

    That it may look into this process is assumed where this one may look into it.
    """
    parent = multiprocessing.parent_process()
    try:
        os.readlink(f"/proc/{os.getpid() if parent is None else parent.pid}/exe")
    except OSError:  # macOS, or a system that forbids it
        return False
    return hasattr(os, "memfd_create")


def end_with_parent(_: int = 0) -> None:
    """End this process when the one that started it ends, however it does.

    A fork server is the parent of its processes for the system, and lives as long as one of them:
    they would wait for each other. (The parameter is for PyTorch's ``worker_init_fn``.)
    """
    _watch_parent(os.getpid())


@functools.cache
def _watch_parent(process: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    from multiprocessing.connection import wait

    wait([sentinel])
    os._exit(1)
