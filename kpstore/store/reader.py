"""Reads rows of the arrays of one version: every read of a store or a view uses :class:`RowReader`.

How it is fast (docs/decisions/005): a chunk is decoded once, directly into the result if all of it
is wanted, else into memory that is reused. Arrays that are in memory already (raw local chunks,
mapped; a decoded copy on the local disk) are gathered from without decoding. Values are checked
before they are returned (:mod:`kpstore.store.checked`).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, ReadSession
from kpstore.backends.checksums import matches
from kpstore.backends.chunks import Strips
from kpstore.backends.scratch import Scratch
from kpstore.errors import CorruptError, InvalidError
from kpstore.schema.fields import shown
from kpstore.schema.index import all_within, distinct
from kpstore.store.arena import ARENA_BYTES, ChunkArena
from kpstore.store.buffers import Buffers
from kpstore.store.cache import DecodedArray, DecodedCache
from kpstore.store.checked import Check, CheckedChunks, CheckedMemory
from kpstore.visible import logger

_log = logger(__name__)

_one_at_a_time = threading.Lock()
"""The thread that finds a damaged copy creates it again, while the others wait."""


def _after_fork() -> None:
    """Replace the lock: one that another thread holds would never open in a forked process."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


_ends = Scratch()
"""Strips of which only a part is asked for."""


class _Array:
    """One array: its shape, its chunks, its memory if it has some, and an arena if not."""

    def __init__(self, chunks: CheckedChunks, arena_bytes: int) -> None:
        self.meta, self.chunks, self.memory = chunks.meta, chunks, chunks.memory()
        self.dtype = np.dtype(object if self.meta.dtype == TEXT else self.meta.dtype)
        self.rows_decoded_again = 0
        self._new_arena(arena_bytes, chunks.strips)

    @property
    def can_be_copied(self) -> bool:
        """Whether a decoded copy would help."""
        return self.memory is None and not self.chunks.is_mapped and self.meta.dtype != TEXT

    def reserve(self, n_bytes: int) -> None:
        """Start with an empty arena of that size for whole chunks."""
        self._new_arena(n_bytes, None)

    def _new_arena(self, n_bytes: int, strips: Strips | None) -> None:
        self.arena_bytes = n_bytes
        self.arena = ChunkArena(
            self.chunks,
            self.meta.shape,
            self.dtype,
            chunk_rows=self.meta.chunk_rows,
            row_bytes=self.meta.row_bytes,
            limit_bytes=n_bytes,
            strips=strips,
        )

    def decode(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode consecutive rows: whole chunks and strips directly into ``out``."""
        arena = self.arena  # a loader may bring another one
        rows = arena.strip_rows
        first, last = -(-start // rows) * rows, stop // rows * rows
        if first >= last:
            arena.gather(np.arange(start, stop), out)
        elif arena.strips is not None:
            self._decode_strips(arena.strips, start, stop, out)
        else:
            self._ask(start, stop)
            for number in self.meta.chunks_of(first, last):
                self.chunks.read_into(number, out[number * rows - start :][:rows])
            ends = np.concatenate([np.arange(start, first), np.arange(last, stop)])
            if len(ends):
                found = np.empty((len(ends), *out.shape[1:]), dtype=out.dtype)
                arena.gather(ends, found)
                out[: first - start], out[last - start :] = np.split(found, [first - start])

    def _ask(self, start: int, stop: int) -> None:
        if self.chunks.are_far:
            self.chunks.ask(np.array(self.meta.chunks_of(start, stop), dtype=np.int64))

    def _decode_strips(self, strips: Strips, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode rows with at least one whole strip.

        Strips at both ends are decoded beside and copied: to look for them among those that were
        decoded before takes longer.
        """
        rows, chunk_rows = strips.rows, self.meta.chunk_rows
        self._ask(start, stop)
        memory = np.frombuffer(_ends.bytes(2 * rows * self.meta.row_bytes), dtype=self.dtype)
        beside = memory.reshape(2, rows, *out.shape[1:])
        for number in self.meta.chunks_of(start, stop):
            begin = number * chunk_rows
            if start <= begin and begin + chunk_rows <= stop:
                self.chunks.read_into(number, out[begin - start :][:chunk_rows])
                continue
            places: dict[int, NDArray[Any]] = {}
            ends: list[tuple[int, int, NDArray[Any]]] = []
            for row in range(max(start // rows * rows, begin), min(stop, begin + chunk_rows), rows):
                if start <= row and row + rows <= stop:
                    places[row - begin] = out[row - start :][:rows]
                else:
                    places[row - begin] = strip = beside[int(row >= start)]
                    here, end = max(row, start), min(row + rows, stop)
                    ends.append((here - start, end - start, strip[here - row : end - row]))
            strips.read_into(number, places)
            for here, end, values in ends:
                out[here:end] = values


_LARGE_BYTES, _WIDE_BYTES, _MANY_ROWS = 2**26, 2**10, 128
"""Arrays beyond any cache, and rows so wide and many that it pays to ask for them ahead."""


def _ask_ahead(memory: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Touch the first number of each row, (rows,), which are about to be read.

    Memory then brings them, and the pages that they lie in, at the same time, while reading row
    after row waits for each.
    """
    width = math.prod(memory.shape[1:])
    if (
        memory.nbytes > _LARGE_BYTES
        and width * memory.itemsize >= _WIDE_BYTES
        and len(rows) >= _MANY_ROWS
    ):
        memory.reshape(-1).take(rows * width, mode="clip")


class RowReader:
    """Reads rows of any array of one version.

    Safe to use from several threads, and after a fork for arrays that were prepared.

    Parameters
    ----------
    session : the version.
    arena_bytes : memory for decoded chunks, for each array.
    cache : decoded arrays on the local disk; None for no cache.
    check : when chunks are checked; see :mod:`kpstore.store.checked`.
    location : of the store, for messages.
    """

    def __init__(
        self,
        session: ReadSession,
        *,
        arena_bytes: int = ARENA_BYTES,
        cache: DecodedCache | None = None,
        check: Check = "first",
        location: str = "",
    ) -> None:
        self._session, self._cache, self._check, self._location = session, cache, check, location
        self._arena_bytes = arena_bytes
        self._arrays: dict[str, _Array] = {}
        self._buffers = Buffers()

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array; :class:`NotFoundError` if it does not exist."""
        return self._arrays[name].meta if name in self._arrays else self._session.meta(name)

    def prepare(self, names: Iterable[str]) -> None:
        """Open these arrays, so that forked processes can read them if they are local."""
        for name in names:
            self._array(name)

    def reserve(self, name: str, n_bytes: int) -> None:
        """Allow an array at least so many bytes of decoded chunks in memory, and decode whole ones.

        That is faster for those of which all is going to be read.
        """
        array = self._array(name)
        by_strips = array.arena.strip_rows < array.meta.chunk_rows
        if array.memory is None and (by_strips or n_bytes > array.arena_bytes):
            array.reserve(max(n_bytes, array.arena_bytes))

    def how(self, name: str) -> str:
        """Return how an array is read, in a few words."""
        array = self._array(name)
        if array.memory is None:
            return (
                f"{array.meta.codec} chunks of {array.meta.chunk_rows} rows, decoded "
                f"{array.chunks.how}"
            )
        if array.chunks.is_mapped:
            return f"raw chunks of {array.meta.chunk_rows} rows, mapped as they lie"
        return "decoded copy on the local disk, mapped"

    def _array(self, name: str) -> _Array:
        array = self._arrays.get(name)
        if array is None:
            chunks = CheckedChunks(self._session, name, self._check, location=self._location)
            array = _Array(chunks, self._arena_bytes)
            if array.can_be_copied and self._cache is not None:
                found = self._cache.open(self._session.snapshot, name, array.meta, chunks.checksums)
                array.memory = None if found is None else self._copied(array, found)
            self._arrays[name] = array
        return array

    def _copied(self, array: _Array, found: DecodedArray) -> CheckedMemory:
        """Return a decoded copy, checked as the store's own chunks are: its disk may fail too."""
        meta = array.meta

        def look(number: int) -> None:
            start, stop = meta.rows_of(number)
            if not matches(meta, found.values[start:stop], int(found.checksums[number])):
                raise CorruptError(f"rows {start}:{stop} are not what was decoded")

        return CheckedMemory(found.values, meta, self._check, look)

    def _memory(
        self, name: str, array: _Array, look: Callable[[CheckedMemory], None]
    ) -> NDArray[Any] | None:
        """Return an array's memory after checking the part to be read; None if it has none."""
        while (memory := array.memory) is not None:
            try:
                look(memory)
            except CorruptError as error:
                if array.chunks.is_mapped:
                    raise
                self._replace(name, array, memory, error)
            else:
                return memory.values
        return None

    def _replace(
        self, name: str, array: _Array, damaged: CheckedMemory, error: CorruptError
    ) -> None:
        """Remove a damaged decoded copy, and create it again."""
        assert self._cache is not None
        with _one_at_a_time:
            if array.memory is not damaged:
                return  # another thread was first
            array.memory = None
            _log.warning("the decoded copy of %r is damaged (%s); creating it again", name, error)
            if self._cache.drop(self._session.snapshot, name):
                self._make_copy(name, array)

    def _make_copy(self, name: str, array: _Array, on_chunk: Any = None) -> None:
        """Decode a whole array to the local disk, if possible."""
        assert self._cache is not None
        chunks = array.chunks.strictly()
        try:
            found = self._cache.build(
                self._session.snapshot,
                name,
                array.meta,
                chunks,
                chunks.checksums,
                on_chunk=on_chunk,
            )
        except CorruptError as error:
            # Reading the damaged chunk raises the error; other reads are only slower.
            self._cache.refusal = str(error)
            _log.warning("%r is read without a cache: %s", name, error)
            return
        array.memory = None if found is None else self._copied(array, found)

    def are_far(self, name: str) -> bool:
        """Whether chunks of an array come from object storage, so that :meth:`ask` helps."""
        array = self._array(name)
        return array.chunks.are_far and (array.memory is None or array.chunks.is_mapped)

    def ask(self, name: str, rows: NDArray[np.int64]) -> None:
        """Begin to bring rows that will be read soon, and return at once.

        Parameters
        ----------
        rows : (rows,) int64, in any order.
        """
        array = self._array(name)
        if self.are_far(name) and len(rows):
            numbers = distinct(rows // array.meta.chunk_rows)
            if array.memory is None:
                array.arena.ask(numbers)
            else:
                array.memory.ask(numbers)

    def read(self, name: str, rows: NDArray[np.int64], out: Any = None) -> NDArray[Any]:
        """Return rows of an array in the order asked for, (len(rows), *row shape).

        Parameters
        ----------
        rows : (rows,) int64, in any order, with repetitions.
        out : array for the result: a C-contiguous numpy array of that shape and type, or a CPU
            tensor, which may be pinned.

        Raises
        ------
        InvalidError
            If a row is out of range, or ``out`` does not fit; the message names both.
        """
        array = self._array(name)
        n_rows = array.meta.n_rows
        if not all_within(rows, n_rows):
            worst = int(rows.max() if rows.max() >= n_rows else rows.min())
            raise InvalidError(f"row {worst} of {name!r} asked for; its last row is {n_rows - 1}")
        found = self._output(name, array, len(rows), out)
        memory = self._memory(name, array, lambda memory: memory.check_rows(rows))
        if memory is not None:
            _ask_ahead(memory, rows)
            # Without mode="clip" numpy gathers into a buffer first; the rows were checked above.
            memory.take(rows, axis=0, out=found, mode="clip")
            return found
        again = array.arena.gather(rows, found)
        if again:
            array.rows_decoded_again += again * array.arena.strip_rows
            self._consider_cache(name, array)
        return found

    def _output(self, name: str, array: _Array, n_rows: int, out: Any) -> NDArray[Any]:
        """Return the array for a result: ``out`` if it fits, or new memory."""
        shape = (n_rows, *array.meta.shape[1:])
        if out is None:
            return self._buffers.empty(shape, array.dtype)
        found: NDArray[Any] = out.numpy() if hasattr(out, "numpy") else out
        if not isinstance(found, np.ndarray):
            raise InvalidError(f"out for {name!r} is an array or a tensor, found {shown(out)}")
        if found.shape != shape or found.dtype != array.dtype or not found.flags.c_contiguous:
            raise InvalidError(
                f"out for {name!r} has shape {found.shape} and type {found.dtype}; "
                f"needed is {shape} {array.dtype}, in C order"
            )
        return found

    def read_slice(self, name: str, start: int, stop: int, out: Any = None) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``; see :meth:`read`."""
        array = self._array(name)
        if start < 0 or stop < start or stop > array.meta.n_rows:
            raise InvalidError(
                f"rows {start}:{stop} of {name!r} asked for; it has {array.meta.n_rows}"
            )
        found = self._output(name, array, stop - start, out)
        memory = self._memory(name, array, lambda memory: memory.check_slice(start, stop))
        if memory is not None:
            found[...] = memory[start:stop]
            return found
        array.decode(start, stop, found)
        return found

    def _consider_cache(self, name: str, array: _Array) -> None:
        """Decode the whole array to the local disk once as many rows were decoded a second time.

        Scattered reads thus cost at most twice as much as the better way, without a setting.
        """
        if (
            self._cache is not None
            and array.can_be_copied
            and array.rows_decoded_again > array.meta.n_rows
        ):
            array.rows_decoded_again = 0
            self._make_copy(name, array)

    @property
    def cache_refusal(self) -> str:
        """Why the last array could not be cached."""
        return "the cache is off" if self._cache is None else self._cache.refusal

    def cache(self, name: str, on_chunk: Any = None) -> bool:
        """Decode an array to the local disk now; return whether it can be mapped then."""
        array = self._array(name)
        if self._cache is not None and array.can_be_copied:
            self._make_copy(name, array, on_chunk)
        return array.memory is not None
