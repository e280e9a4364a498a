"""Rows on their way into a store, gathered into whole chunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, WriteSession


@dataclass
class _Chunk:
    """The chunk of an array that is being filled: its rows ``start`` to ``stop`` are here.

    Parameters
    ----------
    rows : (chunk rows, *row shape), used for one chunk after another.
    """

    rows: NDArray[Any]
    start: int = 0
    stop: int = 0

    @property
    def given(self) -> NDArray[Any]:
        """The rows that are here."""
        first = self.start % len(self.rows)
        return self.rows[first : first + self.stop - self.start]


class RowBuffer:
    """Gathers rows that follow each other, so that a chunk is encoded once, not for each write.

    It holds one chunk of each array. Who reads from the session flushes before.

    Parameters
    ----------
    session : where the rows go.
    """

    def __init__(self, session: WriteSession) -> None:
        self._session = session
        self._chunks: dict[str, _Chunk] = {}

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Take rows of an array; they are copied."""
        meta = self._session.meta(name)
        meta.check_values(name, start, values)
        if name in self._chunks and self._chunks[name].stop != start:
            self._flush(name)
        size = meta.chunk_rows
        while len(values):
            n_rows = len(values) // size * size
            if n_rows and not start % size:
                self._session.write(name, start, values[:n_rows])
            else:
                n_rows = min(len(values), size - start % size)
                self._gather(name, meta, start, values[:n_rows])
            start, values = start + n_rows, values[n_rows:]

    def _gather(self, name: str, meta: ArrayMeta, start: int, values: NDArray[Any]) -> None:
        """Take rows of one chunk, which is written when its last row is there."""
        if name not in self._chunks:
            dtype = object if meta.dtype == TEXT else meta.dtype
            self._chunks[name] = _Chunk(np.empty((meta.chunk_rows, *meta.shape[1:]), dtype))
        chunk, first, stop = self._chunks[name], start % meta.chunk_rows, start + len(values)
        chunk.rows[first : first + len(values)] = values
        if chunk.start == chunk.stop:
            chunk.start = start
        chunk.stop = stop  # once the rows are there, as not all values can be converted
        if not stop % meta.chunk_rows:
            self._flush(name)

    def flush(self) -> None:
        """Write what is gathered."""
        for name in self._chunks:
            self._flush(name)

    def drop(self, names: Iterable[str]) -> None:
        """Forget the rows of arrays that are deleted."""
        for name in names:
            self._chunks.pop(name, None)

    def _flush(self, name: str) -> None:
        chunk = self._chunks[name]
        if len(chunk.given):
            self._session.write(name, chunk.start, chunk.given)
        chunk.start = chunk.stop
