"""Versions of an Icechunk store; every chunk is checked by its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray

from kpstore.backends import refusals
from kpstore.backends.base import TEXT, ArrayMeta
from kpstore.backends.checksums import TABLE
from kpstore.backends.chunks import Chunks
from kpstore.backends.icechunk_chunks import (
    BadChunkError,
    OpenArray,
    check_unpacked,
    open_arrays,
    read_chunks,
    read_files,
    root_group,
)
from kpstore.backends.icechunk_codec import ZarrArray
from kpstore.backends.icechunk_errors import UNREADABLE, first_line, guard_fork, translated
from kpstore.backends.icechunk_files import local_chunks
from kpstore.backends.icechunk_home import IcechunkHome
from kpstore.backends.icechunk_manifests import ChunkPlace, RowPlaces, locate_chunks, locate_rows
from kpstore.backends.icechunk_table import ChecksumTable
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError

_TOGETHER = 100
"""Arrays that are opened together; of more, most are not needed."""


class IcechunkSession:
    """A session of Icechunk and its open arrays."""

    def __init__(self, session: icechunk.Session, home: IcechunkHome) -> None:
        self._session, self._home, self._location = session, home, home.location
        self._group = root_group(session)
        self._opened: dict[str, OpenArray] = {}
        self._found: dict[str, ZarrArray] = {}
        """Arrays that were opened beside others, until they are asked for."""
        self._are_together = False
        self._table: ChecksumTable | None = None
        self._sums: dict[str, NDArray[np.uint64] | None] = {}
        self._places: dict[str, RowPlaces | None] = {}

    @property
    def snapshot(self) -> str:
        """Id of the version that this session reads or changes."""
        return str(self._session.snapshot_id)

    def attrs(self) -> Mapping[str, Any]:
        """Return a copy of the store's attributes."""
        return dict(json.loads(json.dumps(self._group.attrs.asdict())))

    def names(self) -> list[str]:
        """Return the names of all arrays, sorted."""
        guard_fork()
        return sorted(self._committed_names - {TABLE})

    @cached_property
    def _committed_names(self) -> frozenset[str]:
        # Zarr opens every array to list them.
        return self._home.array_names(self.snapshot)

    def _has_table(self) -> bool:
        return TABLE in self._committed_names

    def _open(self, name: str) -> OpenArray:
        guard_fork()
        if name not in self._opened:
            with self._home.there(self.snapshot), translated(self._location):
                array = self._array(name) if name != TABLE else None
                if array is None:  # for Zarr, as every array of a store that is gone
                    raise refusals.no_array(name, self.names())
            if not isinstance(array, zarr.Array):
                raise CorruptError(f"{name!r} is a group, but an array was expected")
            self._opened[name] = OpenArray.of(array)
        return self._opened[name]

    def _array(self, name: str) -> object:
        """Open an array; None if there is nothing of that name.

        Opening many at once takes hardly longer than one: with the first comes the table of
        checksums, with the second all others.
        """
        if name not in self._found and not self._are_together:
            if self._opened:
                self._open_together()
            else:
                self._found = open_arrays(self._group, self._committed_names & {name, TABLE})
        found = self._found.pop(name, None)
        return self._group.get(name) if found is None else found

    def _open_together(self) -> None:
        """Open all arrays that are not open, unless they are very many."""
        self._are_together = True
        names = self._committed_names - self._opened.keys() - self._found.keys()
        if len(names) <= _TOGETHER:
            self._found |= open_arrays(self._group, names)

    def meta(self, name: str) -> ArrayMeta:
        """Return the shape and type of an array; known ones also in forked processes."""
        return (self._opened.get(name) or self._open(name)).meta

    def digest(self, name: str) -> None:
        """Return None: text has checksums, as numbers have."""

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk as it was committed; None in a store of format 1."""
        if name not in self._sums:
            with self._home.there(self.snapshot):
                found = self._read_checksums(name)
            if found is not None:
                found.flags.writeable = False
            self._sums[name] = found
        return self._sums[name]

    def _read_checksums(self, name: str) -> NDArray[np.uint64] | None:
        meta = self.meta(name)
        try:
            if self._table is None and self._has_table():
                self._table = self._open_table()
            return None if self._table is None else self._table.read(name, meta.n_chunks)
        except UNREADABLE as error:
            raise CorruptError(
                f"the checksums of {name!r} in {self._location} cannot be read: {first_line(error)}"
            ) from error

    def _open_table(self) -> ChecksumTable:
        places = locate_chunks(self._home.nodes(self.snapshot), self._home.root, TABLE)
        return ChecksumTable.open(self._array(TABLE), places)

    def _expected(self, name: str, chunks: range) -> list[int] | None:
        """Return the checksums of some chunks; None in a store of format 1."""
        sums = self.checksums(name)
        return None if sums is None else sums[chunks.start : chunks.stop].tolist()

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows, after checking their chunks."""
        with self._home.there(self.snapshot):
            return self._read(name, start, stop)

    def _read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        opened = self._open(name)
        meta = opened.meta
        meta.check_rows(name, start, stop - start)
        if start == stop:
            return meta.unwritten(0)
        chunks = meta.chunks_of(start, stop)
        places, sums = self._files(name, chunks), self._expected(name, chunks)
        try:
            values = None
            if places is not None and sums is not None:
                values = read_files(opened, chunks, places, sums)
            if values is None:
                self._hand_over()
                if places is not None:
                    check_unpacked(opened.array, chunks, places)
                values = read_chunks(opened.array, meta, chunks, sums or ())
        except BadChunkError as bad:
            first, last = meta.rows_of(bad.chunk)
            reason = bad.reason or "it is not what was committed there"
            raise CorruptError(
                f"rows {first}:{last} of {name!r} in {self._location} cannot be read: {reason} "
                f"({self.place(name, bad.chunk)})"
            ) from bad.__cause__
        begin = chunks.start * meta.chunk_rows
        rows = values[start - begin : stop - begin]
        # A copy, so that a few rows do not keep their whole chunks in memory.
        return rows if len(rows) == len(values) else rows.copy()

    def _located(self, name: str) -> RowPlaces | None:
        if name not in self._places:
            nodes, n_chunks = self._home.nodes(self.snapshot), self.meta(name).n_chunks
            self._places[name] = locate_rows(nodes, self._home.root, name, n_chunks)
        return self._places[name]

    def _files(self, name: str, chunks: range) -> list[ChunkPlace | None] | None:
        """Return the places of some chunks; None if only Icechunk itself can tell."""
        places = self._located(name)
        return None if places is None else places.of(chunks)

    def _hand_over(self) -> None:
        """Let Icechunk have all changes, before it is asked."""

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return which chunks may be stored: all, where only Icechunk itself can tell."""
        opened, places = self._open(name), self._located(name)
        is_text = opened.meta.dtype == TEXT
        if places is None or (is_text and opened.array.fill_value != ""):  # other software's
            return np.ones(opened.meta.n_chunks, dtype=np.bool_)
        return places.written.copy()

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        places = self._located(name)
        return f"chunk {chunk}" if places is None else places.name_of(chunk, self._home.root)


class IcechunkReadSession(IcechunkSession):
    """A version, which never changes, so that the metadata of its chunks is kept."""

    def __init__(self, session: icechunk.Session, home: IcechunkHome) -> None:
        super().__init__(session, home)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, read from their files where possible."""
        if name not in self._chunks:
            check_there = partial(self._home.check_there, self.snapshot)
            found = local_chunks(self._located(name), self._open(name), check_there)
            self._chunks[name] = found or SessionChunks(self, name)
        return self._chunks[name]
