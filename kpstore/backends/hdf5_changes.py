"""Changes to a version of an HDF5 store, in a copy of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import hdf5_layout as layout
from kpstore.backends import refusals
from kpstore.backends.asides import hold_room, system_error
from kpstore.backends.base import TEXT, ArrayMeta, plain
from kpstore.backends.checksums import checksum
from kpstore.backends.chunks import Chunks
from kpstore.backends.gathered import Touched
from kpstore.backends.hdf5_file import Session, StoreFile
from kpstore.backends.hdf5_items import has_item, item_of, remove_item
from kpstore.backends.hdf5_records import (
    CONTINUED,
    DAMAGE,
    HOME,
    NEWEST_FORMAT,
    ArrayDelta,
    Delta,
    Table,
    damage_told,
    has_checksums,
    set_format,
)
from kpstore.backends.hdf5_tree import Checksums, DataSet, StoredArray
from kpstore.backends.locks import SharedLock
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError, ExistsError, InvalidError

OPEN = {
    # allows attributes of more than 64 KiB, and every HDF5 since 2008 reads it
    "libver": ("v108", "v114"),
    "rdcc_nbytes": 16 * 2**20,
    # chunks begin at a page, so that raw ones can be mapped into memory
    "alignment_threshold": 4096,
    "alignment_interval": 4096,
}

Step = Callable[["Changes", "Changes"], None]
"""Repeats a change, which the first session made, in a session on a newer version.

It holds no session, which would keep its files open until Python collects cycles.
"""


class Changes(Session):
    """Changes in a copy of the file, which the first change creates.

    Parameters
    ----------
    hold : keeps garbage collection, which the copy would undo, away until the end of the session.
    """

    def __init__(
        self, home: StoreFile, file: h5py.File, snapshot: str, hold: SharedLock | None = None
    ) -> None:
        super().__init__(home, file, snapshot)
        self._hold = hold
        with damage_told(home.location):
            self._has_tables = has_checksums(file)
        self._work: tuple[Path, h5py.File] | None = None
        self._spent = False
        self._delta = Delta()
        self._touched: set[Touched] = set()
        self._steps: list[Step] = []
        self._before: dict[str, StoredArray] = {}
        self._kept_checksums: Table | None = None
        self._tables: dict[str, Table] = {}
        # One chunk of each array that was written in part, as it is now. Its checksum is computed
        # when nothing more is written to it: many videos, written in turn, share a chunk.
        self._part_written: dict[str, tuple[int, NDArray[np.generic]]] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, read through this session."""
        return SessionChunks(self, name)

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows as they are after the changes so far."""
        self._sum_up(name)
        return super().read(name, start, stop)

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk as it is after the changes so far."""
        self._sum_up(name)
        return super().checksums(name)

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return that every chunk may be stored: the file's index lags behind what is written."""
        return np.ones(self.meta(name).n_chunks, dtype=np.bool_)

    # -- the copy ----------------------------------------------------------------------------------

    def _copy(self) -> h5py.File:
        """Return the copy, open for writing; its arrays take the place of the original's."""
        if self._spent:
            raise refusals.spent(self._home.location)
        if self._work is None:
            path = self._home.copy_aside(self._file)
            with self._writing():
                file = h5py.File(path, "r+", **OPEN)
                self._work = path, file
                self._tree = self._read_tree(file)
                self._before = dict(self._tree.arrays)
                delta = item_of(file, f"{HOME}/versions/{self._snapshot}").create_group("delta")
                delta.create_group("chunks")
                delta.create_group("arrays")
        return self._work[1]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn damage that HDF5's library finds while it writes into :class:`CorruptError`.

        Errors of the system, as a full disk, keep their numbers.
        """
        try:
            yield
        except DAMAGE as error:
            if isinstance(error, UnicodeEncodeError):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                doing = "nothing was committed"  # HDF5's own text is long, and names no file
                raise system_error(error.errno, self._home.location, doing) from error
            with damage_told(self._home.location):
                raise

    def _kept(self) -> h5py.Group:
        return item_of(self._copy(), f"{HOME}/versions/{self._snapshot}/delta")

    def _array_delta(self, name: str) -> ArrayDelta | None:
        """Return how an array of the version before differs; None if that has no such array."""
        if name not in self._delta.arrays:
            meta = self.meta(name)
            self._delta.arrays[name] = ArrayDelta(meta.n_rows, dict(meta.attrs))
        found = self._delta.arrays[name]
        return None if found is None or found.whole else found

    def _note(self, step: Step, touched: set[Touched]) -> None:
        self._steps.append(step)
        self._touched |= touched

    def _put(self, name: str, meta: ArrayMeta) -> None:
        """Describe an array as it is now in the copy."""
        now = StoredArray(DataSet(self._copy(), name, meta, meta.n_rows), meta)
        if name in self._tables:
            now.checksums = Checksums(partial(self._tables.__getitem__, name))
        elif name in self._tree.arrays:
            before = self._tree.arrays[name]
            now.checksums, now.table_digest = before.checksums, before.table_digest
        self._tree.arrays[name] = now

    def _table(self, name: str) -> Table | None:
        """Return the checksums of an array, to change them; None in a file of format 1."""
        if self._has_tables and name not in self._tables:
            found = super().checksums(name)
            assert found is not None
            self._tables[name] = found
            self._put(name, self.meta(name))
        return self._tables.get(name)

    # -- changes -----------------------------------------------------------------------------------

    def set_attrs(self, attrs: Mapping[str, object]) -> None:
        """Replace the store's attributes."""
        file, kept = self._copy(), plain(attrs)
        if self._delta.attrs is None:
            self._delta.attrs = self._tree.attrs
        with self._writing():
            layout.set_attrs(file, kept, self._tree.attrs)
        self._tree.attrs = kept
        again = plain(kept)
        self._note(lambda _, newer: newer.set_attrs(again), {("", "meta")})

    def set_array_attrs(self, name: str, attrs: Mapping[str, object]) -> None:
        """Replace the attributes of one array."""
        file, kept = self._copy(), plain(attrs)
        self._array_delta(name)
        meta = self.meta(name)
        with self._writing():
            layout.set_attrs(item_of(file, name), kept, meta.attrs)
        self._put(name, replace(meta, attrs=kept))
        self._note(lambda _, newer: newer.set_array_attrs(name, kept), {(name, "meta")})

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Create an array of unwritten rows."""
        file = self._copy()
        if "/" in name:
            raise InvalidError(
                f"{name!r} lies in a group, which no store of kpstore has; remove the group first"
            )
        if name in self._tree.arrays:
            raise refusals.array_taken(name)
        if has_item(file, name):
            raise ExistsError(
                f"{name!r} is taken in {self._home.location} by something that is not kpstore's"
            )
        self._delta.arrays.setdefault(name, None)
        with self._writing():
            layout.create_array(file, name, meta)
        stored = layout.stored_meta(meta)
        if self._has_tables:
            self._tables[name] = np.zeros(stored.n_chunks, np.uint64)
        self._put(name, stored)
        self._note(lambda _, newer: newer.create(name, meta), {(name, "meta")})

    def resize(self, name: str, n_rows: int) -> None:
        """Append unwritten rows up to ``n_rows``."""
        file = self._copy()
        meta = self.meta(name)
        longer = meta.extended(name, n_rows)
        if n_rows == meta.n_rows:
            return
        self._sum_up(name)
        self._array_delta(name)
        table = self._table(name)
        with self._writing():
            item_of(file, name).resize(n_rows, axis=0)
        if table is not None:
            added = np.zeros(longer.n_chunks - len(table), np.uint64)
            self._tables[name] = np.concatenate([table, added])
        self._put(name, longer)
        self._note(lambda _, newer: newer.resize(name, n_rows), {(name, "meta")})

    def delete(self, name: str) -> None:
        """Remove an array; the version before keeps it."""
        file = self._copy()
        delta = self._array_delta(name)
        with self._writing():
            if delta is None:
                remove_item(file, name)
                if self._delta.arrays[name] is None:
                    del self._delta.arrays[name]
            else:
                delta.whole = True
                meta = layout.with_rows(self.meta(name), delta.n_rows, delta.attrs)
                self._delta.metas[name] = layout.meta_to_json(meta)
                file.move(name, f"{self._kept().name}/arrays/{name}")
        del self._tree.arrays[name]
        self._tables.pop(name, None)
        self._part_written.pop(name, None)
        self._note(lambda _, newer: newer.delete(name), {(name, "meta")})

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Write any run of rows; overwritten chunks are kept for the version before.

        Raises
        ------
        CorruptError
            If only a part of a chunk is given, and its other rows are damaged.
        """
        file, meta = self._copy(), self.meta(name)
        meta.check_values(name, start, values)
        if not len(values):
            return
        values = np.asarray(values, dtype=object if meta.dtype == TEXT else meta.dtype)
        if meta.dtype == TEXT:
            layout.check_text(name, values)
        chunks = meta.chunks_of(start, start + len(values))
        n_bytes = 2 * len(chunks) * meta.chunk_rows * meta.row_bytes
        hold_room(Path(file.filename), n_bytes, self._home.location)
        self._array_delta(name)
        for chunk in chunks:
            self._write_chunk(name, chunk, start, values)
        with self._writing():
            item_of(file, name)[start : start + len(values)] = values
        n_rows = len(values)

        def again(changes: Changes, newer: Changes) -> None:
            if name in changes._tree.arrays:
                newer.write(name, start, changes.read(name, start, start + n_rows))

        self._note(again, {(name, chunk) for chunk in chunks})

    def _write_chunk(self, name: str, chunk: int, start: int, values: NDArray[np.generic]) -> None:
        """Keep a chunk that is about to be overwritten, and compute its new checksum."""
        meta = self.meta(name)
        first, last = meta.rows_of(chunk)
        given = values[max(0, first - start) : last - start]
        at = max(first, start) - first
        whole = len(given) == last - first
        if name in self._part_written and self._part_written[name][0] != chunk:
            self._sum_up(name)
        if name in self._part_written:
            rows = self._part_written[name][1]
            delta = self._lacking(name, chunk, start)
            if delta is not None:
                self._keep(name, delta, chunk, start, rows)
        else:
            old = self._old_rows(name, chunk, start, whole=whole)
            table = self._table(name)
            if table is not None and whole:
                table[chunk] = checksum(meta, given)
            if table is None or whole:
                return
            rows = meta.unwritten(last - first) if old is None else old
            self._part_written[name] = chunk, rows
        rows[at : at + len(given)] = given

    def _lacking(self, name: str, chunk: int, start: int) -> ArrayDelta | None:
        """Return the array's delta, if it lacks a chunk of which rows from ``start`` change."""
        delta = self._array_delta(name)
        if delta is None or not delta.lacks(chunk, self.meta(name).chunk_rows, start):
            return None
        return delta

    def _old_rows(
        self, name: str, chunk: int, start: int, *, whole: bool
    ) -> NDArray[np.generic] | None:
        """Keep a chunk for the version before, and return its rows.

        None if the chunk was never written, or its rows are not needed. A damaged chunk stays
        damaged in the version before; in this one, it has to be overwritten as a whole.
        """
        delta = self._lacking(name, chunk, start)
        if delta is None and (whole or not self._has_tables):
            return None
        first, last = self.meta(name).rows_of(chunk)
        what = f"rows {first}:{last} of "
        try:
            rows = self._told(what, name, lambda: self._array(name).read_chunk(chunk))
        except CorruptError as error:
            if not whole:
                raise CorruptError(
                    f"{error}; only some of them are given, so nothing is written: give all, or "
                    "use 'kpstore repair'"
                ) from error
            if delta is not None:
                damaged = layout.damaged_rows(has_checksums=self._has_tables)
                self._keep(name, delta, chunk, start, damaged)
            with self._writing():
                layout.empty_chunk(self._array(name).source.array, chunk)
            return None
        if delta is not None:
            self._keep(name, delta, chunk, start, rows)
        return rows

    def _keep(
        self, name: str, delta: ArrayDelta, chunk: int, start: int, rows: layout.Kept
    ) -> None:
        """Keep a chunk for the version before, by reference if rows are only appended to it."""
        is_continued = start >= delta.n_rows and self._has_tables and rows is not None
        with self._writing():
            if is_continued:
                delta.chunks[str(chunk)] = CONTINUED
                set_format(self._copy(), NEWEST_FORMAT)
            else:
                kept = item_of(self._kept(), "chunks")
                layout.keep_chunk(kept, name, self.meta(name), delta, chunk, rows)

    def _sum_up(self, name: str) -> None:
        """Compute the checksum of an array's chunk that was written in part."""
        if name in self._part_written:
            chunk, rows = self._part_written.pop(name)
            self._tables[name][chunk] = checksum(self.meta(name), rows)

    def discard(self) -> None:
        """Remove the copy."""
        self._spent = True
        self._close_work()
        self._hold = None
        self._part_written.clear()
        self._tree = self._read_tree(self._file)

    def _close_work(self) -> None:
        if self._work is not None:
            path, file = self._work
            self._work = None
            try:
                file.close()
            finally:
                path.unlink(missing_ok=True)
