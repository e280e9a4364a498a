"""Rows out of the arrays of one version: every read of a store and every view comes through :class:`RowReader`.

Where time goes, and what is done about it (docs/decisions/005): a chunk is decoded once, straight into the result if
all of it is wanted, else into memory that is used again; arrays that lie in memory already (raw local chunks, mapped;
a decoded copy on the local disk) are gathered from without any of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, Chunks, ReadView
from kpstore.errors import InvalidError
from kpstore.store.arena import ARENA_BYTES, ChunkArena
from kpstore.store.cache import DecodedCache


class _Array:
    """One array: its shape, its chunks, its memory where it has one, and else an arena for decoded chunks."""

    def __init__(self, meta: ArrayMeta, chunks: Chunks, memory: NDArray[Any] | None, arena_bytes: int) -> None:
        self.meta, self.chunks, self.memory = meta, chunks, memory
        self.dtype = np.dtype(object if meta.dtype == TEXT else meta.dtype)
        self.rows_decoded_again = 0
        self.reserve(arena_bytes)

    def reserve(self, n_bytes: int) -> None:
        """Have an arena of so many bytes, empty."""
        self.arena_bytes = n_bytes
        self.arena = ChunkArena(
            self.chunks,
            self.meta.shape,
            self.dtype,
            chunk_rows=self.meta.chunk_rows,
            row_bytes=self.meta.row_bytes,
            limit_bytes=n_bytes,
        )


class RowReader:
    """Reads rows of any array of one version. Safe to use from several threads, and after a fork for arrays in use.

    Parameters
    ----------
    view : the version.
    arena_bytes : of decoded chunks kept in memory, for each array.
    cache : decoded arrays on the local disk; None to do without.
    """

    def __init__(self, view: ReadView, *, arena_bytes: int = ARENA_BYTES, cache: DecodedCache | None = None) -> None:
        self._view, self._cache = view, cache
        self._arena_bytes = arena_bytes
        self._arrays: dict[str, _Array] = {}

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array; :class:`NotFoundError` if there is none."""
        return self._arrays[name].meta if name in self._arrays else self._view.meta(name)

    def prepare(self, names: Iterable[str]) -> None:
        """Learn all that reading these arrays needs; local arrays then work in forked processes too."""
        for name in names:
            self._array(name)

    def reserve(self, name: str, n_bytes: int) -> None:
        """Keep up to so many bytes of an array's decoded chunks in memory, if that is more than until now."""
        array = self._array(name)
        if array.memory is None and n_bytes > array.arena_bytes:
            array.reserve(n_bytes)

    def how(self, name: str) -> str:
        """Return the way that reads of an array take, in a few words."""
        array = self._array(name)
        if array.memory is None:
            return f"{array.meta.codec} chunks of {array.meta.chunk_rows} rows, decoded {array.chunks.how}"
        if array.chunks.mapped is not None:
            return f"raw chunks of {array.meta.chunk_rows} rows, mapped as they lie"
        return "decoded copy on the local disk, mapped"

    def _array(self, name: str) -> _Array:
        array = self._arrays.get(name)
        if array is None:
            meta, chunks = self._view.meta(name), self._view.chunks(name)
            memory = chunks.mapped
            if memory is None and self._cache is not None and meta.dtype != TEXT:
                memory = self._cache.open(self._view.snapshot, name, meta)
            array = self._arrays[name] = _Array(meta, chunks, memory, self._arena_bytes)
        return array

    def read(self, name: str, rows: NDArray[np.int64], out: Any = None) -> NDArray[Any]:
        """Return rows of an array in the order asked for, (len(rows), *row shape).

        Parameters
        ----------
        rows : (rows,) int64, in any order; the same row may come several times.
        out : where to put them: a C-contiguous numpy array of that shape and type, or a CPU tensor (pinned, say).

        Raises
        ------
        InvalidError
            If a row lies outside the array, or ``out`` does not fit; the message names both.
        """
        array = self._array(name)
        n_rows = array.meta.n_rows
        if len(rows) and (rows.min() < 0 or rows.max() >= n_rows):
            worst = int(rows.max() if rows.max() >= n_rows else rows.min())
            raise InvalidError(f"row {worst} of {name!r} asked for; its last row is {n_rows - 1}")
        found = _output(name, array, len(rows), out)
        if array.memory is not None:
            # Without mode="clip" numpy gathers into memory of its own first; the rows were checked above.
            np.take(array.memory, rows, axis=0, out=found, mode="clip")
            return found
        again = array.arena.gather(rows, found)
        if again:
            array.rows_decoded_again += again * array.meta.chunk_rows
            self._consider_cache(name, array)
        return found

    def read_slice(self, name: str, start: int, stop: int, out: Any = None) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``; see :meth:`read`."""
        array = self._array(name)
        if start < 0 or stop < start or stop > array.meta.n_rows:
            raise InvalidError(f"rows {start}:{stop} of {name!r} asked for; it has {array.meta.n_rows}")
        found = _output(name, array, stop - start, out)
        if array.memory is not None:
            found[...] = array.memory[start:stop]
            return found
        size = array.meta.chunk_rows
        for number in range(start // size, -(-stop // size) if stop > start else 0):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            part = found[first - start : last - start]
            if last - first == size:
                array.chunks.read_into(number, part)
            else:
                array.arena.gather(np.arange(first, last), part)
        return found

    def _consider_cache(self, name: str, array: _Array) -> None:
        """Decode the whole array to the local disk once as much was decoded that had been decoded before.

        So reading here and there never costs more than twice what the better way would have: nobody has to say
        beforehand whether it will be worth while.
        """
        if self._cache is not None and array.meta.dtype != TEXT and array.rows_decoded_again > array.meta.n_rows:
            array.rows_decoded_again = 0
            array.memory = self._cache.build(self._view.snapshot, name, array.meta, array.chunks)

    @property
    def cache_refusal(self) -> str:
        """Why the last array that was to be cached was not."""
        return "the cache is off" if self._cache is None else self._cache.refusal

    def cache(self, name: str, on_chunk: Any = None) -> bool:
        """Have an array decoded on the local disk now; return whether it is in memory's reach then."""
        array = self._array(name)
        if array.memory is None and self._cache is not None and array.meta.dtype != TEXT:
            array.memory = self._cache.build(self._view.snapshot, name, array.meta, array.chunks, on_chunk=on_chunk)
        return array.memory is not None


def _output(name: str, array: _Array, n_rows: int, out: Any) -> NDArray[Any]:
    shape = (n_rows, *array.meta.shape[1:])
    if out is None:
        return np.empty(shape, dtype=array.dtype)
    found: NDArray[Any] = out.numpy() if hasattr(out, "numpy") else out
    if found.shape != shape or found.dtype != array.dtype or not found.flags.c_contiguous:
        raise InvalidError(
            f"out for {name!r} has shape {found.shape} and type {found.dtype}; "
            f"needed is {shape} {array.dtype}, in C order"
        )
    return found
