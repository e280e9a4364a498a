"""Decoded chunks of one array, side by side in memory, up to a limit; the ones used longest ago go first."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Chunks

ARENA_BYTES = 256 * 2**20
_MOST_THREADS = 8

_arenas: weakref.WeakSet[ChunkArena] = weakref.WeakSet()


class ChunkArena:
    """Places for decoded chunks, in one piece of memory: rows out of any of them are a single gather.

    The memory is used again and again. To touch fresh memory for the first time costs more than to decode into it.
    Safe to use from several threads: they take turns, and the chunks that one of them needs are decoded side by side.

    Parameters
    ----------
    chunks : where chunks come from.
    shape : of the array, rows first.
    limit_bytes : of all places; one chunk is kept in any case.
    row_bytes : memory that one row needs.
    """

    def __init__(
        self,
        chunks: Chunks,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        chunk_rows: int,
        row_bytes: int,
        limit_bytes: int = ARENA_BYTES,
    ) -> None:
        self._chunks, self._chunk_rows = chunks, chunk_rows
        n_chunks = max(1, -(-shape[0] // chunk_rows))
        self._n_slots = max(1, min(n_chunks, limit_bytes // max(1, chunk_rows * row_bytes)))
        self._shape, self._dtype = (self._n_slots * chunk_rows, *shape[1:]), dtype
        self._memory: NDArray[Any] | None = None
        self._slot_of = np.full(n_chunks, -1, dtype=np.int64)
        self._chunk_in = np.full(self._n_slots, -1, dtype=np.int64)
        self._used = np.zeros(self._n_slots, dtype=np.int64)
        self._now = 0
        self._lock = threading.Lock()
        _arenas.add(self)

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> int:
        """Copy rows into ``out`` in the order asked for, and return how many chunks had to be decoded."""
        numbers = rows // self._chunk_rows
        with self._lock:
            if (self._slot_of[numbers] >= 0).all():
                self._copy(rows, numbers, out)
                return 0
            needed = np.unique(numbers)
            decoded = 0
            for first in range(0, len(needed), self._n_slots):
                wave = needed[first : first + self._n_slots]
                decoded += self._bring(wave)
                if len(wave) == len(needed):
                    self._copy(rows, numbers, out)
                else:
                    here = np.flatnonzero((numbers >= wave[0]) & (numbers <= wave[-1]))
                    part = np.empty((len(here), *out.shape[1:]), dtype=out.dtype)
                    self._copy(rows[here], numbers[here], part)
                    out[here] = part
            return decoded

    def _copy(self, rows: NDArray[np.int64], numbers: NDArray[np.int64], out: NDArray[Any]) -> None:
        if len(rows) == 0:
            return
        slots = self._slot_of[numbers]
        self._now += 1
        self._used[slots] = self._now
        assert self._memory is not None
        # Without mode="clip" numpy gathers into memory of its own first; these places are all there.
        np.take(self._memory, rows + (slots - numbers) * self._chunk_rows, axis=0, out=out, mode="clip")

    def _bring(self, needed: NDArray[np.int64]) -> int:
        """Have all chunks of a wave decoded, at most as many as there are places."""
        if self._memory is None:
            self._memory = np.empty(self._shape, dtype=self._dtype)
        there = self._slot_of[needed]
        self._now += 1
        self._used[there[there >= 0]] = self._now
        missing = needed[there < 0].tolist()
        places = np.argsort(self._used, kind="stable")[: len(missing)].tolist()
        for slot in places:
            if self._chunk_in[slot] >= 0:
                self._slot_of[self._chunk_in[slot]] = -1
            self._chunk_in[slot], self._used[slot] = -1, 0
        _for_each(self._decode, list(zip(missing, places, strict=True)))
        return len(missing)

    def _decode(self, chunk_and_slot: tuple[int, int]) -> None:
        chunk, slot = chunk_and_slot
        assert self._memory is not None
        self._chunks.read_into(chunk, self._memory[slot * self._chunk_rows : (slot + 1) * self._chunk_rows])
        self._slot_of[chunk], self._chunk_in[slot], self._used[slot] = slot, chunk, self._now

    def renew_lock(self) -> None:
        """Forget who held the lock, in a forked child: a thread that held it does not exist there."""
        self._lock = threading.Lock()


_threads: ThreadPoolExecutor | None = None


def _for_each(work: Callable[[tuple[int, int]], None], items: list[tuple[int, int]]) -> None:
    global _threads
    n_threads = min(_MOST_THREADS, os.cpu_count() or 1)
    if len(items) == 1 or n_threads == 1:
        for item in items:
            work(item)
        return
    if _threads is None:
        _threads = ThreadPoolExecutor(n_threads, thread_name_prefix="kpstore-decode")
    futures = [_threads.submit(work, item) for item in items]
    wait(futures)  # all of them, also if one fails: they write to places that others get once the lock is free
    for future in futures:
        future.result()


def _after_fork() -> None:
    global _threads
    _threads = None
    for arena in _arenas:
        arena.renew_lock()


os.register_at_fork(after_in_child=_after_fork)
