"""The array of an Icechunk store that holds the checksums of all chunks.

It has a row for each array and a column for each chunk. Like the chunks themselves, it is part of
each version, so that returning to a version needs no extra work. Its attribute ``arrays`` names
its rows; the row of a deleted array is named ``""`` and is used for the next new array.

Its attribute ``seals`` holds checksums of its own chunks. Attributes are part of the version's
snapshot, so a damaged chunk of the table is never mistaken for damage of the arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from kpstore.backends.checksums import TABLE, UNWRITTEN
from kpstore.backends.icechunk_chunks import put_chunks
from kpstore.backends.icechunk_codec import ChunkCodec, ZarrArray
from kpstore.backends.icechunk_manifests import ChunkPlace

COLUMNS = 2_048
"""Checksums in one chunk: a small commit writes 16 KiB for each array that it changes."""
_ROWS = "arrays"
_SEALS = "seals"
_FREE = ""
_Cells = tuple[NDArray[np.int64], NDArray[np.uint64]]
"""Positions in a chunk of a row, and the new values there."""


class ChecksumTable:
    """The table as a session sees it.

    Parameters
    ----------
    array : the table.
    chunks : places of its committed chunks, by row and column; None to read them with Zarr, which
        takes at least a millisecond for each.
    """

    def __init__(
        self, array: ZarrArray, chunks: Mapping[tuple[int, ...], ChunkPlace] | None = None
    ) -> None:
        self._array = array
        # Other software may have rewritten the table in another form.
        known = array.chunks == (1, COLUMNS)
        self._codec = ChunkCodec.of(array, whole_rows=False) if known else None
        self._chunks = None if self._codec is None else chunks
        attrs: dict[str, Any] = array.attrs.asdict()
        self._rows: list[str] = list(attrs[_ROWS])
        self._seals: list[list[str]] = [list(of_row) for of_row in attrs[_SEALS]]
        n_rows, n_seals = len(self._rows), len(self._seals)
        if n_rows != n_seals:
            raise ValueError(
                f"the table of checksums is damaged: {n_rows} rows, but {n_seals} lists of seals"
            )

    @staticmethod
    def create(group: zarr.Group) -> None:
        """Create an empty table."""
        group.create_array(
            TABLE,
            shape=(0, COLUMNS),
            chunks=(1, COLUMNS),
            dtype="uint64",
            fill_value=UNWRITTEN,
            compressors=(ZstdCodec(), Crc32cCodec()),
            # No feature has axes of these names, as xarray refuses one name for two lengths.
            dimension_names=("checked_array", "checked_chunk"),
            attributes={
                "long_name": "XXH3-64 of each chunk's decoded rows; 0 if nobody wrote it",
                _ROWS: [],
                _SEALS: [],
            },
        )

    @classmethod
    def open(
        cls, array: object, chunks: Mapping[tuple[int, ...], ChunkPlace] | None = None
    ) -> ChecksumTable:
        """Return the table of a store, which has it under the name of :data:`TABLE`."""
        if not isinstance(array, zarr.Array):
            raise ValueError(f"{TABLE!r} is no array")
        return cls(array, chunks)

    def read(self, name: str, n_chunks: int) -> NDArray[np.uint64] | None:
        """Return the checksums of an array's chunks, (n_chunks,).

        None for an array without checksums, which other software has created.
        """
        if name not in self._rows:
            return None
        row, n_known = self._rows.index(name), min(n_chunks, self._array.shape[1])
        found = np.full(n_chunks, UNWRITTEN, dtype=np.uint64)
        found[:n_known] = self._sealed(row, 0, -(-n_known // COLUMNS) * COLUMNS)[:n_known]
        return found

    def _sealed(self, row: int, begin: int, end: int) -> NDArray[np.uint64]:
        """Return whole chunks of a row, after comparing each with its seal."""
        cells, seals = self._block(row, begin, end), self._seals[row]
        for at in range(begin, end, COLUMNS):
            column = at // COLUMNS
            if _seal(cells[at - begin : at - begin + COLUMNS]) != (
                seals[column] if column < len(seals) else ""
            ):
                raise ValueError(
                    f"the table of checksums is damaged at {self._rows[row]!r}, chunks {at} to "
                    f"{at + COLUMNS - 1}"
                )
        return cells

    def _block(self, row: int, begin: int, end: int) -> NDArray[np.uint64]:
        """Return whole chunks of a row, as they were before :meth:`update`."""
        if self._codec is None or self._chunks is None:
            return np.array(self._array[row, begin:end], dtype=np.uint64)
        found = np.full(end - begin, UNWRITTEN, dtype=np.uint64)
        for at in range(0, end - begin, COLUMNS):
            place = self._chunks.get((row, (begin + at) // COLUMNS))
            if place is not None:
                self._codec.decode(place.read(), found[at : at + COLUMNS])
        return found

    def update(
        self,
        written: Mapping[str, Mapping[int, int]],
        created: Collection[str],
        deleted: Collection[str],
    ) -> None:
        """Add the changes of a transaction.

        Parameters
        ----------
        written : checksums by array and number of the chunk.
        created, deleted : arrays; one that was deleted and created again is in both.
        """
        # A new array may have the name of one that other software has deleted.
        gone = {*created, *deleted}
        rows = [_FREE if name in gone else name for name in self._rows]
        fresh = set()
        for name in sorted(created):
            if _FREE in rows:
                rows[rows.index(_FREE)] = name
                fresh.add(name)
            else:
                rows.append(name)
        # The chunks of arrays that other software has created stay without checksums.
        known = {name: sums for name, sums in written.items() if name in rows and sums}
        n_columns = max([0, *(max(sums) + 1 for sums in known.values())])
        n_columns = max(self._array.shape[1], -(-n_columns // COLUMNS) * COLUMNS)
        before = self._rows, self._seals
        self._reshape(rows, n_columns, fresh)
        cleared = {rows.index(name) for name in fresh}
        changes = self._by_column(known)
        chunks: dict[tuple[int, ...], NDArray[np.uint64]] = {}
        for column in range(n_columns // COLUMNS) if cleared else sorted(changes):
            chunks.update(self._updated(column, changes.get(column, {}), cleared))
        self._write(chunks)
        if before != (self._rows, self._seals):
            self._array.update_attributes({_ROWS: self._rows, _SEALS: self._seals})

    def _reshape(self, rows: list[str], n_columns: int, fresh: Collection[str]) -> None:
        shape = (max(len(rows), self._array.shape[0]), n_columns)
        if shape != self._array.shape:
            self._array.resize(shape)
        seals = [*self._seals, *([] for _ in range(len(rows) - len(self._seals)))]
        self._seals = [
            [] if name == _FREE or name in fresh else list(of_row)
            for name, of_row in zip(rows, seals, strict=True)
        ]
        self._rows = rows

    def _by_column(self, written: Mapping[str, Mapping[int, int]]) -> dict[int, dict[int, _Cells]]:
        """Return the new cells, by column of chunks and by row."""
        changes: dict[int, dict[int, _Cells]] = {}
        for name, sums in written.items():
            chunks = np.fromiter(sums, dtype=np.int64, count=len(sums))
            values = np.fromiter(sums.values(), dtype=np.uint64, count=len(sums))
            order = np.argsort(chunks)
            columns = chunks[order] // COLUMNS
            for some in np.split(order, np.flatnonzero(np.diff(columns)) + 1):
                column = int(chunks[some[0]]) // COLUMNS
                changes.setdefault(column, {})[self._rows.index(name)] = (
                    chunks[some] % COLUMNS,
                    values[some],
                )
        return changes

    def _updated(
        self, column: int, written: Mapping[int, _Cells], cleared: Collection[int]
    ) -> Iterator[tuple[tuple[int, int], NDArray[np.uint64]]]:
        """Yield the changed chunks of a column by row and column, and set their seals."""
        begin, end = column * COLUMNS, (column + 1) * COLUMNS
        for row in sorted({*written, *cleared}):
            if row in cleared:
                cells = np.full((1, COLUMNS), UNWRITTEN, dtype=np.uint64)
            else:
                cells = self._sealed(row, begin, end).reshape(1, COLUMNS)
            if row in written:
                at, values = written[row]
                cells[0, at] = values
            seals = self._seals[row]
            seals += [""] * (column + 1 - len(seals))
            seals[column] = _seal(cells)
            yield (row, column), cells

    def _write(self, chunks: Mapping[tuple[int, ...], NDArray[np.uint64]]) -> None:
        if self._codec is not None:
            put_chunks(self._array, self._codec, chunks)
            return
        for (row, column), cells in chunks.items():
            self._array[row : row + 1, column * COLUMNS : (column + 1) * COLUMNS] = cells


def _seal(cells: NDArray[np.uint64]) -> str:
    """Return the checksum of a chunk of the table in hex; ``""`` if it was never written."""
    return xxhash.xxh3_64_hexdigest(cells.astype("<u8").tobytes()) if cells.any() else ""
