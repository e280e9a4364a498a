"""Memory for the results of reads, used again when nobody has the result any more.

Memory that was never touched costs as much as gathering rows into it, and what is freed in one
thread and allocated in another is often given back to the system in between: a loader spent half of
its time on pages of zeros.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_BYTES, _MOST_BYTES = 2**16, 2**24
"""Of a result: smaller ones lie in memory that malloc keeps anyway, and larger ones are too much to keep."""
_STEPS = 8
"""Sizes between two powers of two: batches of nearly the same size use the same memory."""


def _is_alone(buffer: NDArray[np.uint8]) -> bool:
    """Whether only the caller has the buffer: arrays and tensors made of it refer to it as their base."""
    return sys.getrefcount(buffer) <= _REFERENCES


def _references_of_one() -> int:
    """Return how many references :func:`_is_alone` sees if there is one: newer interpreters count fewer."""
    seen: list[int] = []

    def count(buffer: NDArray[np.uint8]) -> None:
        seen.append(sys.getrefcount(buffer))

    buffer = np.empty(1, dtype=np.uint8)
    count(buffer)
    return seen[0]


_REFERENCES = _references_of_one()


class Buffers:
    """Gives out arrays. Safe to use from several threads and after a fork: nothing is locked.

    Parameters
    ----------
    limit_bytes : of all memory that is remembered; what was given out longest ago is forgotten, and
        is then freed as any array's memory is.
    """

    def __init__(self, limit_bytes: int = 2**26) -> None:
        self._limit = limit_bytes
        self._kept: deque[NDArray[np.uint8]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of whatever the memory holds, as :func:`numpy.empty` does."""
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
        """Return memory that nobody has, taken out of what is kept."""
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
        for buffer in reversed(passed):
            left -= len(buffer)
            if left < 0:
                break
            self._kept.appendleft(buffer)
        return np.empty(size, dtype=np.uint8) if found is None else found
