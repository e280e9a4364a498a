"""Memory for the results of reads, used again when the result is no longer referenced.

Touching fresh memory costs as much as gathering rows into it, and memory that is freed in one
thread and allocated in another is often returned to the system in between: without this, a loader
spent half of its time on zeroing pages.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_BYTES, _MOST_BYTES = 2**16, 2**24
"""Sizes of results: malloc keeps memory of smaller ones anyway, and larger ones are too much."""
_MOST_KEPT = 64
"""Buffers: each that is kept is looked at before the next result."""
_STEPS = 8
"""Sizes between two powers of two: batches of nearly the same size share memory."""


def _is_alone(buffer: NDArray[np.uint8]) -> bool:
    """Whether only the caller refers to the buffer; arrays and tensors on it hold a reference."""
    return sys.getrefcount(buffer) <= _REFERENCES


def _references_of_one() -> int:
    """Return the count that :func:`_is_alone` sees for one reference: it depends on the Python."""
    seen: list[int] = []

    def count(buffer: NDArray[np.uint8]) -> None:
        seen.append(sys.getrefcount(buffer))

    buffer = np.empty(1, dtype=np.uint8)
    count(buffer)
    return seen[0]


_REFERENCES = min(3, _references_of_one())
"""A debugger adds references while this counts; one too many would share memory in use."""


class Buffers:
    """Allocates arrays. Safe to use from several threads and after a fork: it has no lock.

    Parameters
    ----------
    limit_bytes : of all memory that is kept for reuse. The oldest is dropped first, and freed like
        the memory of any array.
    """

    def __init__(self, limit_bytes: int = 2**26) -> None:
        self._limit = limit_bytes
        self._kept: deque[NDArray[np.uint8]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an uninitialized array, as :func:`numpy.empty` does."""
        n_bytes = dtype.itemsize
        for length in shape:
            n_bytes *= length
        if dtype.hasobject or not _LEAST_BYTES <= n_bytes <= _MOST_BYTES:
            return np.empty(shape, dtype=dtype)
        buffer = self._buffer(n_bytes)
        found: NDArray[Any] = np.ndarray(shape, dtype, buffer)
        self._kept.append(buffer)
        return found

    def _buffer(self, n_bytes: int) -> NDArray[np.uint8]:
        """Return memory that is not in use, taken from the memory that is kept if it fits."""
        step = (1 << (n_bytes.bit_length() - 1)) // _STEPS
        size = -(-n_bytes // step) * step
        passed, found = [], None
        while found is None:
            try:
                buffer = self._kept.popleft()
            except IndexError:
                break
            if len(buffer) == size and _is_alone(buffer):
                found = buffer
            else:
                passed.append(buffer)
        left = self._limit - size
        for buffer in passed[: -_MOST_KEPT - 1 : -1]:  # the newest first
            left -= len(buffer)
            if left < 0:
                break
            self._kept.appendleft(buffer)
        return np.empty(size, dtype=np.uint8) if found is None else found
