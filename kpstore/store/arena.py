"""Decoded chunks of one array, side by side in memory, up to a limit; the ones used longest ago go first."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Chunks

ARENA_BYTES = 64 * 2**20
_WORTH_SHARING = 8
"""Chunks: fewer are decoded by who wants them. A loader's threads want some each, and handing those over costs more."""
_N_THREADS = min(8, os.cpu_count() or 1)

_arenas: weakref.WeakSet[ChunkArena] = weakref.WeakSet()


class ChunkArena:
    """Places for decoded chunks, in one piece of memory: rows out of any of them are a single gather.

    The memory is used again and again. To touch fresh memory for the first time costs more than to decode into it.
    Safe to use from several threads, which decode and copy side by side; a chunk that several need is decoded once.

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
        self._n_chunks = max(1, -(-shape[0] // chunk_rows))
        self._n_slots = max(1, min(self._n_chunks, limit_bytes // max(1, chunk_rows * row_bytes)))
        self._shape, self._dtype = (self._n_slots * chunk_rows, *shape[1:]), dtype
        self._memory: NDArray[Any] | None = None
        self.forget()
        _arenas.add(self)

    def forget(self) -> None:
        """Start anew, all places free: what a forked child has to do, as its parent's threads do not exist there."""
        self._slot_of = np.full(self._n_chunks, -1, dtype=np.int64)
        self._chunk_in = np.full(self._n_slots, -1, dtype=np.int64)
        self._used = np.zeros(self._n_slots, dtype=np.int64)
        self._holders = np.zeros(self._n_slots, dtype=np.int64)
        self._coming: dict[int, Future[None]] = {}
        self._now = 0
        # Guards all of the above, and is told when places become free.
        self._freed = threading.Condition()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> int:
        """Copy rows into ``out`` in the order asked for, and return how many chunks had to be decoded."""
        numbers = rows // self._chunk_rows
        needed = np.unique(numbers)
        decoded = 0
        for first in range(0, len(needed), self._n_slots):
            wave = needed[first : first + self._n_slots]
            with self._held(wave) as (memory, n_decoded):
                decoded += n_decoded
                if len(wave) == len(needed):
                    self._copy(memory, rows, numbers, out)
                else:
                    here = np.flatnonzero((numbers >= wave[0]) & (numbers <= wave[-1]))
                    part = np.empty((len(here), *out.shape[1:]), dtype=out.dtype)
                    self._copy(memory, rows[here], numbers[here], part)
                    out[here] = part
        return decoded

    def _copy(
        self, memory: NDArray[Any], rows: NDArray[np.int64], numbers: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        places = rows + (self._slot_of[numbers] - numbers) * self._chunk_rows
        # Without mode="clip" numpy gathers into memory of its own first; these places are all there.
        np.take(memory, places, axis=0, out=out, mode="clip")

    @contextmanager
    def _held(self, wave: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], int]]:
        """Have all chunks of a wave decoded, at most as many as there are places, and keep them there meanwhile."""
        memory, slots, mine, others = self._hold(wave)
        try:
            _for_each(self._decode, mine)
            for future in others:
                future.result()  # raises what the thread that decodes that chunk met
            yield memory, len(mine)
        finally:
            with self._freed:
                for item in mine:
                    if not item.done.done():
                        self._give_up(item, InterruptedError(f"reading chunk {item.chunk} was interrupted"))
                self._holders[slots] -= 1
                self._now += 1
                self._used[slots] = self._now
                self._freed.notify_all()

    def _hold(
        self, wave: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64], list[_ToDecode], list[Future[None]]]:
        """Return the places of a wave's chunks, which of them are to be decoded now, and which others are at."""
        with self._freed:
            missing, free = wave[self._slot_of[wave] < 0], np.empty(0, dtype=np.int64)
            while len(missing) > len(free):
                free = self._free_slots(wave)
                if len(missing) > len(free):
                    self._freed.wait()
                    missing = wave[self._slot_of[wave] < 0]
            if self._memory is None:
                self._memory = np.empty(self._shape, dtype=self._dtype)
            others = [self._coming[chunk] for chunk in wave.tolist() if chunk in self._coming] if self._coming else []
            mine = []
            for chunk, slot in zip(missing.tolist(), free.tolist(), strict=False):
                if self._chunk_in[slot] >= 0:
                    self._slot_of[self._chunk_in[slot]] = -1
                self._slot_of[chunk], self._chunk_in[slot] = slot, chunk
                done: Future[None] = Future()
                self._coming[chunk] = done
                mine.append(_ToDecode(chunk, slot, done))
            slots: NDArray[np.int64] = self._slot_of[wave]
            self._holders[slots] += 1
            return self._memory, slots, mine, others

    def _free_slots(self, wave: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places that nobody holds and ``wave`` does not need, the ones used longest ago first."""
        there = self._slot_of[wave]
        free = self._holders == 0
        free[there[there >= 0]] = False
        slots = np.flatnonzero(free)
        return slots[np.argsort(self._used[slots], kind="stable")]

    def _decode(self, item: _ToDecode) -> None:
        assert self._memory is not None
        first = item.slot * self._chunk_rows
        try:
            self._chunks.read_into(item.chunk, self._memory[first : first + self._chunk_rows])
        except BaseException as error:
            with self._freed:
                self._give_up(item, error)
            raise
        with self._freed:
            del self._coming[item.chunk]
        item.done.set_result(None)

    def _give_up(self, item: _ToDecode, error: BaseException) -> None:
        del self._coming[item.chunk]
        self._slot_of[item.chunk] = self._chunk_in[item.slot] = -1
        item.done.set_exception(error)


@dataclass(frozen=True)
class _ToDecode:
    chunk: int
    slot: int
    done: Future[None]


_threads: ThreadPoolExecutor | None = None


def _for_each(work: Callable[[_ToDecode], None], items: list[_ToDecode]) -> None:
    global _threads
    if len(items) < _WORTH_SHARING or _N_THREADS == 1:
        for item in items:
            work(item)
        return
    if _threads is None:
        _threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="kpstore-decode")
    futures = [_threads.submit(work, item) for item in items]
    try:
        wait(futures)  # all of them, also if one fails: they write to places that others get once they are given up
    except BaseException:  # Ctrl-C
        wait(futures)
        raise
    for future in futures:
        future.result()


def _after_fork() -> None:
    global _threads
    _threads = None
    for arena in _arenas:
        arena.forget()


os.register_at_fork(after_in_child=_after_fork)
