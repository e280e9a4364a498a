"""Decoded chunks of one array, or strips of them, in contiguous memory, up to a limit.

The least recently used ones are replaced first.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.chunks import Chunks, Strips
from kpstore.machine import usable_cores
from kpstore.schema.index import distinct

T = TypeVar("T")

ARENA_BYTES = 64 * 2**20
_IN_USE = np.iinfo(np.int64).max
"""A time of use after all others: of slots that are not free."""
_WORTH_SHARING = 8
"""Fewer are decoded by the calling thread: for a loader's threads, with some chunks each,
handing them over costs more."""
_N_THREADS = min(8, usable_cores())
_PARTS = 4
"""Parts of the work per thread: handing over one chunk costs as much as checking a small one."""

_arenas: weakref.WeakSet[ChunkArena] = weakref.WeakSet()


class _Claim:
    """A read of the thread that makes this."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class ChunkArena:
    """Slots for decoded strips in one piece of memory, so that one gather reads from all of them.

    A strip is what is decoded without the rest of its chunk, or a whole chunk. The memory is
    reused: touching fresh memory costs more than decoding into it. Safe to use from several
    threads, which decode and copy in parallel; a strip that several need is decoded once.

    Parameters
    ----------
    chunks : where chunks come from.
    shape : of the array, rows first.
    limit_bytes : of all slots; there is always at least one.
    row_bytes : memory of one row.
    strips : parts of the chunks, of which only those that are needed are decoded; None to decode
        whole chunks, which is faster for those of which all is going to be read.
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
        strips: Strips | None = None,
    ) -> None:
        self._chunks, self.strips = chunks, strips
        self.strip_rows = chunk_rows if strips is None else strips.rows
        self._per_chunk = chunk_rows // self.strip_rows
        self._n_strips = max(1, -(-shape[0] // self.strip_rows))
        n_slots = limit_bytes // max(1, self.strip_rows * row_bytes)
        self._n_slots = max(1, min(self._n_strips, n_slots))
        self._shape, self._dtype = (self._n_slots * self.strip_rows, *shape[1:]), dtype
        self._memory: NDArray[Any] | None = None
        self.forget()
        _arenas.add(self)

    def forget(self) -> None:
        """Free all slots. A forked child has to, as it does not have its parent's threads."""
        self._slot_of = np.full(self._n_strips, -1, dtype=np.int64)
        self._strip_in = np.full(self._n_slots, -1, dtype=np.int64)
        self._ready = np.zeros(self._n_slots, dtype=bool)
        self._used = np.zeros(self._n_slots, dtype=np.int64)
        self._seen = np.zeros(self._n_strips, dtype=bool)
        self._now = 0
        # The slots that each running read needs, and the read that decodes into a slot.
        self._claims: dict[_Claim, NDArray[np.int64]] = {}
        self._decoding: dict[int, _Claim] = {}
        # Slots that are being written, perhaps for a read that was interrupted, and by which
        # thread. What an interrupt leaves in these three is forgotten when its thread reads again.
        self._busy: dict[int, int] = {}
        # Guards all of the above. Entered by itself, as an interrupt may come while Python's own
        # code enters a condition, and would leave it locked.
        self._lock = threading.RLock()
        # Notified when slots become free or ready.
        self._changed = threading.Condition(self._lock)
        self._n_waiting = 0

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> int:
        """Copy rows into ``out`` in the order asked for.

        Return the number of strips decoded here that had been decoded before.
        """
        numbers = rows // self.strip_rows
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

    def ask(self, numbers: NDArray[np.int64]) -> None:
        """Begin to bring chunks that will be read soon, of which nothing is here.

        Parameters
        ----------
        numbers : of chunks, each once.
        """
        first = numbers * self._per_chunk
        self._chunks.ask(numbers[self._slot_of[first] < 0])

    def _copy(
        self,
        memory: NDArray[Any],
        rows: NDArray[np.int64],
        numbers: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        places = rows + (self._slot_of[numbers] - numbers) * self.strip_rows
        # Without mode="clip" numpy gathers into a buffer first; all of these places exist.
        np.take(memory, places, axis=0, out=out, mode="clip")

    @contextmanager
    def _held(self, wave: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], int]]:
        """Decode all strips of a wave, at most as many as there are slots, and hold them."""
        claim = _Claim()
        try:
            memory = self._claim(claim, wave)
            yield memory, self._fill(claim, memory)
        finally:
            with self._lock:
                self._leave(claim.thread)
                self._changed.notify_all()

    def _leave(self, thread: int) -> None:
        """Forget the reads of a thread, which has none that goes on."""
        for claim in [claim for claim in self._claims if claim.thread == thread]:
            del self._claims[claim]
        for slot in [slot for slot, claim in self._decoding.items() if claim.thread == thread]:
            del self._decoding[slot]
        for slot in [slot for slot, writer in self._busy.items() if writer == thread]:
            del self._busy[slot]

    def _wait(self) -> None:
        self._n_waiting += 1
        try:
            self._changed.wait()
        finally:
            self._n_waiting -= 1

    def _claim(self, claim: _Claim, wave: NDArray[np.int64]) -> NDArray[Any]:
        """Give every strip of a wave a slot, which no other read uses until it is released."""
        with self._lock:
            self._leave(claim.thread)
            while True:
                missing = wave[self._slot_of[wave] < 0]
                taken = self._free_slots(wave, len(missing))
                if taken is not None:
                    break
                self._wait()
            if self._memory is None:
                self._memory = np.empty(self._shape, dtype=self._dtype)
            replaced = self._strip_in[taken]
            self._ready[taken] = False
            self._slot_of[replaced[replaced >= 0]] = -1
            self._slot_of[missing], self._strip_in[taken] = taken, missing
            slots: NDArray[np.int64] = self._slot_of[wave]
            self._now += 1
            self._used[slots] = self._now
            self._claims[claim] = slots
            return self._memory

    def _free_slots(self, wave: NDArray[np.int64], n_slots: int) -> NDArray[np.int64] | None:
        """Return the least recently used slots that neither a read nor ``wave`` needs.

        None if there are fewer than ``n_slots``.
        """
        if not n_slots:
            return np.empty(0, dtype=np.int64)
        used = self._used.copy()
        there = self._slot_of[wave]
        used[there[there >= 0]] = _IN_USE
        for slots in self._claims.values():
            used[slots] = _IN_USE
        used[list(self._busy)] = _IN_USE
        found: NDArray[np.int64] = np.argpartition(used, n_slots - 1)[:n_slots]
        return None if (used[found] == _IN_USE).any() else found

    def _fill(self, claim: _Claim, memory: NDArray[Any]) -> int:
        """Decode the missing strips of a claim, and wait for those that others decode.

        Return the number of strips that had been decoded before. If another read fails, this one
        tries again: its own strips may be sound.
        """
        slots = self._claims[claim]
        again = 0
        while True:
            with self._lock:
                while True:
                    missing = slots[~self._ready[slots]].tolist()
                    todo = [
                        slot
                        for slot in missing
                        if slot not in self._decoding and slot not in self._busy
                    ]
                    if todo:
                        self._decoding.update(dict.fromkeys(todo, claim))
                        again += int(np.count_nonzero(self._seen[self._strip_in[todo]]))
                        break
                    if self._ready[slots].all():
                        return again
                    self._wait()
            try:
                by_chunk = self._by_chunk(todo)
                if self._chunks.are_far:
                    first = np.array([next(iter(part)) for part in by_chunk])
                    self._chunks.ask(first // self._per_chunk)
                for_parts(lambda parts, stop: self._decode(parts, claim, memory, stop), by_chunk)
            finally:
                with self._lock:
                    for slot in todo:
                        self._decoding.pop(slot, None)
                    self._changed.notify_all()

    def _by_chunk(self, slots: list[int]) -> list[dict[int, int]]:
        """Return strips to decode and their slots, those of one chunk together.

        Parameters
        ----------
        slots : in the order of their strips.
        """
        strips = zip(self._strip_in[slots].tolist(), slots, strict=True)
        return [dict(part) for _, part in groupby(strips, lambda both: both[0] // self._per_chunk)]

    def _decode(
        self,
        parts: list[dict[int, int]],
        claim: _Claim,
        memory: NDArray[Any],
        stop: threading.Event,
    ) -> None:
        """Decode strips of some chunks into their slots.

        Parameters
        ----------
        parts : as of :meth:`_by_chunk`.
        """
        slots = [slot for part in parts for slot in part.values()]
        mine = False
        try:
            with self._lock:
                if self._decoding.get(slots[0]) is not claim:
                    return  # the read was interrupted before these strips were started
                mine = True
                self._busy.update(dict.fromkeys(slots, threading.get_ident()))
            for slot_of in parts:
                if stop.is_set():
                    return
                self._decode_chunk(slot_of, memory)
                self._ready[list(slot_of.values())] = True
                self._seen[list(slot_of)] = True
                # Who begins to wait just now is told at the end.
                if self._n_waiting:
                    with self._lock:
                        self._changed.notify_all()
        finally:
            with self._lock:
                if mine:
                    for slot in slots:
                        self._busy.pop(slot, None)
                self._changed.notify_all()

    def _decode_chunk(self, slot_of: dict[int, int], memory: NDArray[Any]) -> None:
        rows, chunk = self.strip_rows, next(iter(slot_of)) // self._per_chunk
        places = {
            (strip - chunk * self._per_chunk) * rows: memory[slot * rows : (slot + 1) * rows]
            for strip, slot in slot_of.items()
        }
        if self.strips is None:
            self._chunks.read_into(chunk, places[0])
        else:
            self.strips.read_into(chunk, places)


_threads: ThreadPoolExecutor | None = None


def for_each(work: Callable[[T], None], items: list[T]) -> None:
    """Call ``work`` with each of some items, in several threads if there are many."""

    def each(part: list[T], stop: threading.Event) -> None:
        for item in part:
            if stop.is_set():
                return
            work(item)

    for_parts(each, items)


def for_parts(work: Callable[[list[T], threading.Event], None], items: list[T]) -> None:
    """Call ``work`` with parts of some items, in several threads if there are many.

    Parameters
    ----------
    work : is also given an event; once that is set, it is to return soon.
    """
    global _threads
    stop = threading.Event()
    if len(items) < _WORTH_SHARING or _N_THREADS == 1:
        work(items, stop)
        return
    pool = _threads = _threads or ThreadPoolExecutor(
        _N_THREADS, thread_name_prefix="kpstore-decode"
    )
    futures: list[Future[None]] = []
    n_parts = min(len(items), _PARTS * _N_THREADS)
    try:
        for part in range(n_parts):
            futures.append(pool.submit(work, items[part::n_parts], stop))
        # All of them, even if one fails: they write to slots that others get afterwards.
        wait(futures)
    except BaseException:
        # An interrupt while a thread starts may leave a pool that takes work and never does it.
        # Other reads may still use it, so that only this one's work is cancelled.
        _threads = None
        stop.set()
        wait([future for future in futures if not future.cancel()])
        raise
    for future in futures:
        future.result()


def _after_fork() -> None:
    global _threads
    _threads = None
    for arena in _arenas:
        arena.forget()


os.register_at_fork(after_in_child=_after_fork)
