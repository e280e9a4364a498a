"""Versions of an Icechunk store, to read; every chunk is checked by its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, Chunks, SessionChunks
from kpstore.backends.checksums import TABLE
from kpstore.backends.icechunk_arrays import BadChunkError, meta_of, read_chunks
from kpstore.backends.icechunk_chunks import local_chunks
from kpstore.backends.icechunk_directory import IcechunkDirectory
from kpstore.backends.icechunk_errors import UNREADABLE, first_line, guard_fork
from kpstore.backends.icechunk_manifests import ChunkPlace, locate_chunks, locate_rows
from kpstore.backends.icechunk_table import ChecksumTable
from kpstore.errors import CorruptError, NotFoundError


class Session:
    """A session and its open arrays."""

    def __init__(self, session: icechunk.Session, home: IcechunkDirectory) -> None:
        self._session, self._home, self._location = session, home, home.location
        self._group = zarr.open_group(session.store, mode="r" if session.read_only else "r+")
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._metas: dict[str, ArrayMeta] = {}
        self._table: ChecksumTable | None = None
        self._sums: dict[str, NDArray[np.uint64] | None] = {}
        self._places: dict[str, list[ChunkPlace | None] | None] = {}

    @property
    def snapshot(self) -> str:
        """Id of the version that this session reads or changes."""
        return str(self._session.snapshot_id)

    def attrs(self) -> Mapping[str, Any]:
        """Return a copy of the store's attributes."""
        return copy.deepcopy(dict(self._group.attrs))

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

    def _array(self, name: str) -> zarr.Array[Any]:
        guard_fork()
        if name not in self._arrays:
            array = self._group.get(name) if name != TABLE else None
            if array is None:
                raise NotFoundError(f"array {name!r} not found; there are {self.names()}")
            if not isinstance(array, zarr.Array):
                raise CorruptError(f"{name!r} is a group, an array was expected")
            self._arrays[name] = array
        return self._arrays[name]

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array."""
        if name not in self._metas:
            self._metas[name] = meta_of(self._array(name))
        return self._metas[name]

    def digest(self, name: str) -> None:
        """Return None: text has checksums, like numbers."""

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk as it was committed; None in a store of format 1."""
        if name not in self._sums:
            meta = self.meta(name)
            try:
                if self._table is None and self._has_table():
                    self._table = self._open_table()
                found = None if self._table is None else self._table.read(name, meta.n_chunks)
            except UNREADABLE as error:
                raise CorruptError(
                    f"the checksums of {name!r} in {self._location} cannot be read: "
                    f"{first_line(error)}"
                ) from error
            if found is not None:
                found.flags.writeable = False
            self._sums[name] = found
        return self._sums[name]

    def _open_table(self) -> ChecksumTable:
        places = locate_chunks(self._home.nodes(self.snapshot), self._home.path, TABLE)
        return ChecksumTable.open(self._group, places)

    def _expected(self, name: str, chunks: range) -> list[int] | None:
        """Return the checksums of some chunks; None in a store of format 1."""
        sums = self.checksums(name)
        return None if sums is None else sums[chunks.start : chunks.stop].tolist()

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows, after checking their chunks."""
        meta = self.meta(name)
        meta.check_rows(name, start, stop - start)
        if start == stop:
            return meta.unwritten(0)
        chunks = meta.chunks_of(start, stop)
        try:
            sums = self._expected(name, chunks) or ()
            values = read_chunks(self._array(name), meta, chunks, sums)
        except BadChunkError as bad:
            first, last = meta.rows_of(bad.chunk)
            reason = bad.reason or "it is not what was committed there"
            raise CorruptError(
                f"rows {first}:{last} of {name!r} in {self._location} cannot be read: {reason} "
                f"({self.place(name, bad.chunk)})"
            ) from bad.__cause__
        begin = chunks.start * meta.chunk_rows
        rows = values[start - begin : stop - begin]
        # A row by itself should not keep its whole chunk in memory.
        return rows if len(rows) == len(values) else rows.copy()

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        if name not in self._places:
            nodes, n_chunks = self._home.nodes(self.snapshot), self.meta(name).n_chunks
            self._places[name] = locate_rows(nodes, self._home.path, name, n_chunks)
        places = self._places[name]
        if places is None or chunk >= len(places):
            return f"chunk {chunk}"
        place = places[chunk]
        return "no file" if place is None else str(place.file.relative_to(self._home.path))


class IcechunkReadSession(Session):
    """A version that never changes, so what was read of its metadata is kept."""

    def __init__(self, session: icechunk.Session, home: IcechunkDirectory) -> None:
        super().__init__(session, home)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array: its files where possible."""
        if name not in self._chunks:
            nodes = self._home.nodes(self.snapshot)
            found = local_chunks(nodes, self._home.path, self._array(name), self.meta(name))
            self._chunks[name] = found or SessionChunks(self, name)
        return self._chunks[name]
