"""The array in which an Icechunk store keeps checksums by place: a row for each array, a column for each chunk.

It is part of each version, as the chunks are that it speaks of, so going back to a version needs nothing. Its attribute
``arrays`` names its rows; a row whose array was deleted has the name ``""`` and goes to the next new array.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from kpstore.backends.checksums import TABLE, UNWRITTEN

COLUMNS = 2_048
"""Chunks of an array whose checksums are stored together: a small commit writes 16 KiB for each of its arrays."""
_SMALL_CELLS = 2**18
"""A table of so many cells is read at once."""
UNREADABLE = (icechunk.IcechunkError, ValueError, RuntimeError, LookupError, OSError)
"""What Icechunk, Zarr and the codecs raise on damaged files."""
_ROWS = "arrays"
_FREE = ""


class ChecksumTable:
    """The table as a session sees it; what was read stays read, as long as nobody else writes.

    Parameters
    ----------
    array : of Zarr.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self._whole: NDArray[np.uint64] | None = None
        rows: Any = array.attrs[_ROWS]
        self._rows: list[str] = list(rows)

    @staticmethod
    def create(group: zarr.Group) -> None:
        """Make an empty table."""
        group.create_array(
            TABLE,
            shape=(0, COLUMNS),
            chunks=(1, COLUMNS),
            dtype="uint64",
            fill_value=UNWRITTEN,
            compressors=(ZstdCodec(), Crc32cCodec()),
            # No feature has axes of these names: xarray refuses one name for two lengths.
            dimension_names=("checked_array", "checked_chunk"),
            attributes={"long_name": "XXH3-64 of each chunk's decoded rows; 0 if nobody wrote it", _ROWS: []},
        )

    @classmethod
    def open(cls, group: zarr.Group) -> ChecksumTable:
        """Return the table of a store that has one: stores of format 1 have not."""
        array = group[TABLE]
        if not isinstance(array, zarr.Array):
            raise ValueError(f"{TABLE!r} is a group, an array was expected")
        return cls(array)

    def read(self, name: str, n_chunks: int) -> NDArray[np.uint64] | None:
        """Return the checksums of an array's chunks, (n_chunks,); None for an array that other software made."""
        if name not in self._rows:
            return None
        row, n_known = self._rows.index(name), min(n_chunks, self._array.shape[1])
        found = np.full(n_chunks, UNWRITTEN, dtype=np.uint64)
        found[:n_known] = self._block(row, row + 1, 0, n_known)[0]
        return found

    def _block(self, first: int, last: int, begin: int, end: int) -> NDArray[np.uint64]:
        """Return some rows and columns; of a small table all is read, as each call into Zarr takes milliseconds."""
        if self._whole is None and self._array.size <= _SMALL_CELLS:
            # If it is damaged, some of its rows may still be whole.
            with suppress(*UNREADABLE):
                self._whole = np.asarray(self._array[:, :])
        rows = self._array if self._whole is None else self._whole
        return np.array(rows[first:last, begin:end])

    def update(
        self, written: Mapping[str, Mapping[int, int]], created: Collection[str], deleted: Collection[str]
    ) -> None:
        """Take in what a transaction has done.

        Parameters
        ----------
        written : checksum by array and number of the chunk.
        created, deleted : arrays; one that was deleted and made again is in both.
        """
        gone = {*created, *deleted}  # a new array's name may be left from one that other software deleted
        rows = [_FREE if name in gone else name for name in self._rows]
        fresh = set()
        for name in sorted(created):
            if _FREE in rows:
                rows[rows.index(_FREE)] = name
                fresh.add(name)
            else:
                rows.append(name)
        # What other software made has chunks of which nothing is known.
        known = {name: sums for name, sums in written.items() if name in rows and sums}
        n_columns = max([0, *(max(sums) + 1 for sums in known.values())])
        self._reshape(rows, max(self._array.shape[1], -(-n_columns // COLUMNS) * COLUMNS))
        for column in range(self._array.shape[1] // COLUMNS):
            self._update_column(column, known, fresh)

    def _reshape(self, rows: list[str], n_columns: int) -> None:
        shape = (max(len(rows), self._array.shape[0]), n_columns)
        if shape != self._array.shape:
            self._array.resize(shape)
            self._whole = None
        if rows != self._rows:
            self._array.update_attributes({_ROWS: rows})
            self._rows = rows

    def _update_column(self, column: int, written: Mapping[str, Mapping[int, int]], fresh: Collection[str]) -> None:
        begin = column * COLUMNS
        changes: dict[int, dict[int, int]] = {}
        for name, sums in written.items():
            here = {chunk - begin: value for chunk, value in sums.items() if begin <= chunk < begin + COLUMNS}
            if here:
                changes[self._rows.index(name)] = here
        cleared = {self._rows.index(name) for name in fresh}
        changes = {**{row: {} for row in cleared}, **changes}
        for first, last in _runs(sorted(changes)):
            block = np.full((last - first, COLUMNS), UNWRITTEN, dtype=np.uint64)
            if not cleared.issuperset(range(first, last)):
                block[:] = self._block(first, last, begin, begin + COLUMNS)
            for row in range(first, last):
                if row in cleared:
                    block[row - first] = UNWRITTEN
                here = changes[row]
                block[row - first, list(here)] = np.fromiter(here.values(), dtype=np.uint64, count=len(here))
            self._array[first:last, begin : begin + COLUMNS] = block
        self._whole = None


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield numbers that follow each other as (first, one behind the last)."""
    for _, run in itertools.groupby(enumerate(rows), key=lambda item: item[1] - item[0]):
        numbers = [row for _, row in run]
        yield numbers[0], numbers[-1] + 1
