"""Finished rows, cut at chunk borders: a worker writes whole chunks and sends back the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Fork
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.store.format import row_arrays


@dataclass(frozen=True)
class RowBlock:
    """A run of finished rows of one feature, along the frame axis or the video axis.

    Parameters
    ----------
    start : number of the first row.
    states : (rows,) uint8 of :class:`~kpstore.schema.feature.State`.
    """

    start: int
    rows: FeatureRows
    states: NDArray[np.uint8]

    @property
    def stop(self) -> int:
        """Row after the last one."""
        return self.start + len(self.rows)


class ChunkWriter:
    """Takes rows of one feature in order, writes whole chunks, and keeps the rows around them.

    Parameters
    ----------
    whole : rows ``(first, last)`` of the chunks that may be written; equal if there are none.
    fork : writes them; None keeps all rows.
    """

    def __init__(self, spec: FeatureSpec, whole: tuple[int, int], fork: Fork | None) -> None:
        self._spec, self._fork = spec, fork
        self._first, self._last = whole if fork is not None else (-1, -1)
        self._waiting: list[RowBlock] = []
        self._kept: list[RowBlock] = []
        self.has_written = False

    def add(self, block: RowBlock) -> None:
        """Take the next rows."""
        for piece in _cut(block, (self._first, self._last)):
            if self._first <= piece.start < self._last:
                self._waiting.append(piece)
                self._write_full()
            elif len(piece.rows):
                self._kept.append(piece)

    def _write_full(self) -> None:
        start, stop = self._waiting[0].start, self._waiting[-1].stop
        rest = 0 if stop == self._last else (stop - start) % self._spec.chunk_rows
        whole = stop - start - rest
        if whole == 0 or self._fork is None:
            return
        joined = _joined(self._waiting)
        arrays = row_arrays(self._spec, joined.rows[:whole], joined.states[:whole])
        for name, array in arrays.items():
            self._fork.write(name, start, array)
        self.has_written = True
        left = RowBlock(start + whole, joined.rows[whole:], joined.states[whole:])
        self._waiting = [left] if rest else []

    def finish(self) -> tuple[RowBlock, ...]:
        """Return the rows that were not written."""
        if self._waiting:
            raise AssertionError("rows of a whole chunk were left unwritten")
        return tuple(join_adjacent(self._kept))


def _cut(block: RowBlock, rows: Iterable[int]) -> Iterator[RowBlock]:
    inside = sorted(row for row in set(rows) if block.start < row < block.stop)
    edges = [block.start, *inside, block.stop]
    for start, stop in itertools.pairwise(edges):
        part = slice(start - block.start, stop - block.start)
        yield RowBlock(start, block.rows[part], block.states[part])


def _joined(blocks: list[RowBlock]) -> RowBlock:
    if len(blocks) == 1:
        return blocks[0]
    rows = FeatureRows.concatenate([block.rows for block in blocks])
    return RowBlock(blocks[0].start, rows, np.concatenate([block.states for block in blocks]))


def join_adjacent(blocks: Iterable[RowBlock]) -> list[RowBlock]:
    """Return blocks in row order, adjacent ones joined."""
    runs: list[list[RowBlock]] = []
    for block in sorted(blocks, key=lambda block: block.start):
        if runs and runs[-1][-1].stop == block.start:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [_joined(run) for run in runs]
