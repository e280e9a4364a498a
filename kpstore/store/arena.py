"""Decoded chunks of one array in contiguous memory, up to a limit.

The least recently used ones are replaced first.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Chunks
from kpstore.schema.index import distinct

ARENA_BYTES = 64 * 2**20
_WORTH_SHARING = 8
"""Fewer chunks are decoded by the calling thread: for a loader's threads, with some chunks each,
handing them over costs more."""
_N_THREADS = min(8, os.cpu_count() or 1)
_PARTS = 4
"""Parts of the work per thread: handing over one chunk costs as much as checking a small one."""

_arenas: weakref.WeakSet[ChunkArena] = weakref.WeakSet()


class ChunkArena:
    """Slots for decoded chunks in one piece of memory, so that one gather reads from all of them.

    The memory is reused: touching fresh memory costs more than decoding into it. Safe to use from
    several threads, which decode and copy in parallel; a chunk that several need is decoded once.

    Parameters
    ----------
    chunks : where chunks come from.
    shape : of the array, rows first.
    limit_bytes : of all slots; there is always at least one.
    row_bytes : memory of one row.
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
        """Free all slots. A forked child has to, as it does not have its parent's threads."""
        self._slot_of = np.full(self._n_chunks, -1, dtype=np.int64)
        self._chunk_in = np.full(self._n_slots, -1, dtype=np.int64)
        self._ready = np.zeros(self._n_slots, dtype=bool)
        self._used = np.zeros(self._n_slots, dtype=np.int64)
        self._seen = np.zeros(self._n_chunks, dtype=bool)
        self._now = 0
        # The slots that each running read needs, and the read that decodes into a slot. Reads enter
        # and leave these in single steps, so that an interrupt leaves nothing behind.
        self._claims: dict[object, NDArray[np.int64]] = {}
        self._decoding: dict[int, object] = {}
        # Slots that are being written, perhaps for a read that was interrupted.
        self._busy: set[int] = set()
        # Guards all of the above, and is notified when slots become free or ready.
        self._changed = threading.Condition()

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> int:
        """Copy rows into ``out`` in the order asked for.

        Return the number of chunks decoded here that had been decoded before.
        """
        numbers = rows // self._chunk_rows
        needed = distinct(numbers)
        again = 0
        for first in range(0, len(needed), self._n_slots):
            wave = needed[first : first + self._n_slots]
            with self._held(wave) as (memory, n_again):
                again += n_again
                if len(wave) == len(needed):
                    self._copy(memory, rows, numbers, out)
                else:
                    here = np.flatnonzero((numbers >= wave[0]) & (numbers <= wave[-1]))
                    part = np.empty((len(here), *out.shape[1:]), dtype=out.dtype)
                    self._copy(memory, rows[here], numbers[here], part)
                    out[here] = part
        return again

    def _copy(
        self,
        memory: NDArray[Any],
        rows: NDArray[np.int64],
        numbers: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        places = rows + (self._slot_of[numbers] - numbers) * self._chunk_rows
        # Without mode="clip" numpy gathers into a buffer first; all of these places exist.
        np.take(memory, places, axis=0, out=out, mode="clip")

    @contextmanager
    def _held(self, wave: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], int]]:
        """Decode all chunks of a wave, at most as many as there are slots, and hold them."""
        claim = object()
        try:
            memory = self._claim(claim, wave)
            yield memory, self._fill(claim, memory)
        finally:
            with self._changed:
                self._claims.pop(claim, None)
                for slot in [slot for slot, decoder in self._decoding.items() if decoder is claim]:
                    del self._decoding[slot]
                self._changed.notify_all()

    def _claim(self, claim: object, wave: NDArray[np.int64]) -> NDArray[Any]:
        """Give every chunk of a wave a slot, which no other read uses until it is released."""
        with self._changed:
            missing, free = wave[self._slot_of[wave] < 0], np.empty(0, dtype=np.int64)
            while len(missing):
                free = self._free_slots(wave)
                if len(free) >= len(missing):
                    break
                self._changed.wait()
                missing = wave[self._slot_of[wave] < 0]
            if self._memory is None:
                self._memory = np.empty(self._shape, dtype=self._dtype)
            for chunk, slot in zip(missing.tolist(), free.tolist(), strict=False):
                self._ready[slot] = False
                if self._chunk_in[slot] >= 0:
                    self._slot_of[self._chunk_in[slot]] = -1
                self._slot_of[chunk], self._chunk_in[slot] = slot, chunk
            slots: NDArray[np.int64] = self._slot_of[wave]
            self._now += 1
            self._used[slots] = self._now
            self._claims[claim] = slots
            return self._memory

    def _free_slots(self, wave: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return slots that neither a read nor ``wave`` needs, the least recently used first."""
        free = np.ones(self._n_slots, dtype=bool)
        there = self._slot_of[wave]
        free[there[there >= 0]] = False
        for slots in self._claims.values():
            free[slots] = False
        free[list(self._busy)] = False
        found = np.flatnonzero(free)
        return found[np.argsort(self._used[found], kind="stable")]

    def _fill(self, claim: object, memory: NDArray[Any]) -> int:
        """Decode the missing chunks of a claim, and wait for those that others decode.

        Return the number of chunks that had been decoded before. If another read fails, this one
        tries again: its own chunks may be sound.
        """
        slots = self._claims[claim]
        again = 0
        while True:
            with self._changed:
                while True:
                    missing = slots[~self._ready[slots]].tolist()
                    todo = [
                        slot
                        for slot in missing
                        if slot not in self._decoding and slot not in self._busy
                    ]
                    if todo:
                        self._decoding.update(dict.fromkeys(todo, claim))
                        again += int(np.count_nonzero(self._seen[self._chunk_in[todo]]))
                        break
                    if self._ready[slots].all():
                        return again
                    self._changed.wait()
            try:
                for_each(lambda slot: self._decode(slot, claim, memory), todo)
            finally:
                with self._changed:
                    for slot in todo:
                        self._decoding.pop(slot, None)
                    self._changed.notify_all()

    def _decode(self, slot: int, claim: object, memory: NDArray[Any]) -> None:
        first, mine = slot * self._chunk_rows, False
        try:
            with self._changed:
                if self._decoding.get(slot) is not claim:
                    return  # the read was interrupted before this chunk was started
                mine = True
                self._busy.add(slot)
                chunk = int(self._chunk_in[slot])
            self._chunks.read_into(chunk, memory[first : first + self._chunk_rows])
            self._ready[slot] = self._seen[chunk] = True
        finally:
            with self._changed:
                if mine:
                    self._busy.discard(slot)
                self._changed.notify_all()


_threads: ThreadPoolExecutor | None = None


def for_each(work: Callable[[int], None], items: list[int]) -> None:
    """Call ``work`` with each of some numbers of chunks, in several threads if there are many."""
    global _threads
    if len(items) < _WORTH_SHARING or _N_THREADS == 1:
        _each(work, items)
        return
    pool = _threads = _threads or ThreadPoolExecutor(
        _N_THREADS, thread_name_prefix="kpstore-decode"
    )
    futures: list[Future[None]] = []
    n_parts, stop = min(len(items), _PARTS * _N_THREADS), threading.Event()
    try:
        for part in range(n_parts):
            futures.append(pool.submit(_each, work, items[part::n_parts], stop))
        # All of them, even if one fails: they write to slots that others get afterwards.
        wait(futures)
    except BaseException:
        # An interrupt while a thread starts may leave a pool that takes work and never does it.
        _threads = None
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancel()])
        raise
    for future in futures:
        future.result()


def _each(
    work: Callable[[int], None], items: list[int], stop: threading.Event | None = None
) -> None:
    for item in items:
        if stop is not None and stop.is_set():
            return
        work(item)


def _after_fork() -> None:
    global _threads
    _threads = None
    for arena in _arenas:
        arena.forget()


os.register_at_fork(after_in_child=_after_fork)
