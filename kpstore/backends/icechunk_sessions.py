"""Versions of an Icechunk store, to read and to change; every chunk is checked by its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray

from kpstore.backends import refusals
from kpstore.backends.asides import sync_disk
from kpstore.backends.base import TEXT, ArrayMeta, Chunks
from kpstore.backends.checksums import TABLE, UNWRITTEN, matches
from kpstore.backends.icechunk_chunks import (
    BadChunkError,
    ZarrArray,
    as_stored,
    check_unpacked,
    create_array,
    local_chunks,
    meta_of,
    read_chunks,
    root_group,
    whole_chunks,
    write_chunks,
)
from kpstore.backends.icechunk_directory import IcechunkDirectory
from kpstore.backends.icechunk_ends import (
    LastChunk,
    rows_with_fill_behind,
    share_last_chunks,
)
from kpstore.backends.icechunk_errors import (
    ERRORS,
    UNREADABLE,
    first_line,
    guard_fork,
    translated,
    translation,
)
from kpstore.backends.icechunk_fork import IcechunkFork, merged_sums
from kpstore.backends.icechunk_manifests import RowPlaces, locate_chunks, locate_rows
from kpstore.backends.icechunk_table import ChecksumTable
from kpstore.backends.locks import SharedLock
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError
from kpstore.schema.fields import storable_json


class _Session:
    """A session of Icechunk and its open arrays."""

    def __init__(self, session: icechunk.Session, home: IcechunkDirectory) -> None:
        self._session, self._home, self._location = session, home, home.location
        self._group = root_group(session)
        self._opened: dict[str, tuple[ZarrArray, ArrayMeta]] = {}
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

    def _open(self, name: str) -> tuple[ZarrArray, ArrayMeta]:
        guard_fork()
        if name not in self._opened:
            with self._home.there(self.snapshot), translated(self._location):
                array = self._group.get(name) if name != TABLE else None
                if array is None:  # for Zarr, as every array of a store that is gone
                    raise refusals.no_array(name, self.names())
            if not isinstance(array, zarr.Array):
                raise CorruptError(f"{name!r} is a group, but an array was expected")
            self._opened[name] = array, meta_of(array)
        return self._opened[name]

    def meta(self, name: str) -> ArrayMeta:
        """Return the shape and type of an array; known ones also in forked processes."""
        return (self._opened.get(name) or self._open(name))[1]

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
        places = locate_chunks(self._home.nodes(self.snapshot), self._home.path, TABLE)
        return ChecksumTable.open(self._group, places)

    def _expected(self, name: str, chunks: range) -> list[int] | None:
        """Return the checksums of some chunks; None in a store of format 1."""
        sums = self.checksums(name)
        return None if sums is None else sums[chunks.start : chunks.stop].tolist()

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows, after checking their chunks."""
        with self._home.there(self.snapshot):
            return self._read(name, start, stop)

    def _read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        array, meta = self._open(name)
        meta.check_rows(name, start, stop - start)
        if start == stop:
            return meta.unwritten(0)
        chunks = meta.chunks_of(start, stop)
        try:
            if meta.dtype == TEXT:
                check_unpacked(array, chunks, self._located(name))
            sums = self._expected(name, chunks) or ()
            values = read_chunks(array, meta, chunks, sums, self.chunks(name))
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

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, including those that were written here."""
        return SessionChunks(self, name)

    def _located(self, name: str) -> RowPlaces | None:
        if name not in self._places:
            nodes, n_chunks = self._home.nodes(self.snapshot), self.meta(name).n_chunks
            self._places[name] = locate_rows(nodes, self._home.path, name, n_chunks)
        return self._places[name]

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return which chunks may be stored: all, where only Icechunk itself can tell."""
        (array, meta), places = self._open(name), self._located(name)
        if places is None or (meta.dtype == TEXT and array.fill_value != ""):  # other software's
            return np.ones(meta.n_chunks, dtype=np.bool_)
        return places.written.copy()

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        places = self._located(name)
        return f"chunk {chunk}" if places is None else places.name_of(chunk, self._home.path)


class IcechunkReadSession(_Session):
    """A version, which never changes, so that the metadata of its chunks is kept."""

    def __init__(self, session: icechunk.Session, home: IcechunkDirectory) -> None:
        super().__init__(session, home)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, read from their files where possible."""
        if name not in self._chunks:
            there = partial(self._home.there, self.snapshot)
            found = local_chunks(self._located(name), *self._open(name), there)
            self._chunks[name] = found or SessionChunks(self, name)
        return self._chunks[name]


class IcechunkWriteSession(_Session):
    """Changes to the newest version of a branch, which are committed under the store's lock.

    Parameters
    ----------
    branch : kpstore's name of the branch.
    hold : keeps garbage collection away from chunks that no version refers to yet, for as long as
        this session, or a fork of it in this process, lives.
    """

    def __init__(
        self,
        session: icechunk.Session,
        home: IcechunkDirectory,
        branch: str,
        hold: SharedLock | None = None,
    ) -> None:
        super().__init__(session, home)
        self._branch, self._hold = branch, hold
        self._spent = False
        self._written: dict[str, dict[int, int]] = {}
        """Checksums of chunks that were written, by array and number, for the table."""
        self._lengths: dict[str, int] = {}
        """Number of rows before this session, of arrays that were resized."""
        self._created: set[str] = set()
        self._deleted: set[str] = set()

    def _check_open(self) -> None:
        guard_fork()
        if self._spent:
            raise refusals.spent(self._location)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Check that this session is open, and translate Icechunk's errors."""
        self._check_open()
        with translated(self._location, "nothing was committed"):
            yield

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Replace the store's attributes."""
        with self._changing():
            self._group.attrs.put(dict(attrs))

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Replace the attributes of one array."""
        with self._changing():
            self._open(name)[0].attrs.put(dict(attrs))
            del self._opened[name]

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Create an array of unwritten rows."""
        with self._changing():
            if name in self.names() or name == TABLE:
                raise refusals.array_taken(name)
            array = create_array(self._group, name, meta)
            self._opened[name] = array, meta_of(array)
            self._created.add(name)

    def resize(self, name: str, n_rows: int) -> None:
        """Append unwritten rows up to ``n_rows``."""
        with self._changing():
            array, meta = self._open(name)
            longer = meta.extended(name, n_rows)
            if longer.shape != array.shape:
                array.resize(longer.shape)
                self._lengths.setdefault(name, meta.n_rows)
                del self._opened[name]
                self._sums.pop(name, None)
                self._clear_end(name, meta)

    def _clear_end(self, name: str, before: ArrayMeta) -> None:
        """Put fill behind the rows of ``before``, where its last chunk's file holds others."""
        block = rows_with_fill_behind(*self._open(name), before.n_rows)
        if block is None:
            return
        kept = before.n_rows % before.chunk_rows
        known = self._expected(name, range((n := before.n_rows // before.chunk_rows), n + 1))
        if known is None or matches(before, block[:kept], known[0]):  # else a read says: damaged
            self.write(name, before.n_rows - kept, block)

    def delete(self, name: str) -> None:
        """Remove an array from this version on."""
        with self._changing():
            self._open(name)
            del self._group[name], self._opened[name]
            self._written.pop(name, None)
            if name not in self._created:
                self._deleted.add(name)
            self._created.discard(name)

    def names(self) -> list[str]:
        """Return the names of all arrays, sorted."""
        return sorted({*super().names(), *self._created} - self._deleted.difference(self._created))

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk, including those that were written here."""
        expected = self._expected(name, range(self.meta(name).n_chunks))
        return None if expected is None else np.array(expected, dtype=np.uint64)

    def _expected(self, name: str, chunks: range) -> list[int] | None:
        if name in self._created and not self._has_table():
            return None
        written = self._written.get(name, {})
        if name in self._created:
            return [written.get(chunk, UNWRITTEN) for chunk in chunks]
        known = super().checksums(name)
        return None if known is None else [written.get(c, int(known[c])) for c in chunks]

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return that every chunk may be stored: any may have been written here."""
        return np.ones(self.meta(name).n_chunks, dtype=np.bool_)

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        is_new = name in self._created or chunk in self._written.get(name, {})
        return "written by this transaction" if is_new else super().place(name, chunk)

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Write any run of rows, as whole chunks."""
        with self._changing():
            array, meta = self._open(name)
            meta.check_values(name, start, values)
            written = self._written.setdefault(name, {})
            rows = as_stored(name, meta, values)
            for first, block in whole_chunks(meta, start, rows, partial(self.read, name)):
                written.update(write_chunks(array, meta, first, block))

    def fork(self) -> IcechunkFork:
        """Return a writer for another process."""
        self._check_open()
        refusals.check_sendable(self._location, str(self._home.path))
        try:
            return IcechunkFork(self._session.fork(), self._hold)
        except ValueError:
            raise refusals.not_forkable() from None

    def merge(self, forks: Sequence[IcechunkFork]) -> None:
        """Take over what forks have written."""
        with self._changing():
            for fork in forks:
                for name, n_rows in fork.short_ends.items():
                    refusals.check_short_end(self.meta(name), name, n_rows)
            written = merged_sums(self._written, forks, self._location)
            self._session.merge(*(fork.session for fork in forks))
            self._written = written
            self._opened.clear()

    def commit(self, message: str, metadata: Mapping[str, object] | None = None) -> str:
        """Commit the changes as the branch's next version."""
        self._check_open()
        try:
            self._separate_ends()
            return self._commit(message, metadata)
        finally:
            self._spent = True
            self._hold = None

    def _separate_ends(self) -> None:
        """Write last chunks that were only lengthened: one file has one end (icechunk_ends)."""
        for name, end in self._ends().items():
            if end.is_shared and end.number not in self._written.get(name, {}):
                start, stop = end.meta.rows_of(end.number)
                if self._expected(name, range(end.number, end.number + 1)) != [UNWRITTEN]:
                    with suppress(CorruptError):  # whoever reads it will say so
                        self.write(name, start, self.read(name, start, stop))

    def _commit(self, message: str, metadata: Mapping[str, object] | None) -> str:
        if not self._session.has_uncommitted_changes:
            return self.snapshot
        with self._home.commit_lock():
            branches = self._home.records.names("branch")
            if self._home.newest(self._branch, branches) != self.snapshot:
                self._rebase(message)
                self._table = None
            self._update_table()
            self._home.wait_for_clock(self.snapshot, f"{message!r} was not committed")
            ends = {name: end for name, end in self._ends().items() if name in self._written}
            before, version = self.snapshot, self._save(message, metadata)
            self._move_branch(before, version, message)
            self._home.records.committed(self._branch, version)
            sync_disk(self._home.path)
            share_last_chunks(self._home, before, version, ends)
        return version

    def _ends(self) -> dict[str, LastChunk]:
        """Return the last chunks before this session of arrays that it has made or lengthened."""
        if not self._has_table():  # of old stores it is not known which versions share files
            return {}
        before = {**self._lengths, **dict.fromkeys(self._created, 0)}
        names = before.keys() - (self._deleted - self._created)
        return {name: LastChunk(self.meta(name), before[name]) for name in names}

    def _save(self, message: str, metadata: Mapping[str, object] | None) -> str:
        """Write the version, which no branch leads to yet, and wait until it is on the disk."""
        with translated(self._location, f"{message!r} was not committed"):
            version = str(self._session.flush(message, storable_json(metadata or {})))
        sync_disk(self._home.path)
        return version

    def _move_branch(self, before: str, version: str, message: str) -> None:
        try:
            self._home.move_branch(self._branch, before, version)
        except icechunk.IcechunkError as error:  # other software, which does not use the lock
            reason = f" ({first_line(error)})"
            raise refusals.changed_meanwhile(self._location, message, reason) from None

    def _rebase(self, message: str) -> None:
        try:
            self._session.rebase(icechunk.ConflictDetector())
        except ERRORS as error:
            told = translation(error, self._location, f"{message!r} was not committed")
            if isinstance(told, OSError):
                raise told from error
            # Icechunk does not find this session's version in a branch that was rolled back.
            reason = f" ({first_line(error)})"
            raise refusals.changed_meanwhile(self._location, message, reason) from None

    def _update_table(self) -> None:
        """Write the checksums: last, because writers of different data share this one array."""
        if not self._has_table() or not (self._written or self._created or self._deleted):
            return
        try:
            table = self._table or self._open_table()
            table.update(self._written, self._created, self._deleted)
        except UNREADABLE as error:
            if isinstance(error, ERRORS):
                told = translation(error, self._location, "nothing was committed")
                if isinstance(told, OSError):
                    raise told from error
            raise CorruptError(
                f"the checksums in {self._location} cannot be read, so nothing was committed: "
                f"{first_line(error)}"
            ) from error

    def discard(self) -> None:
        """Discard all changes."""
        if not self._spent:
            self._session.discard_changes()
            for kept in (self._opened, self._sums, self._written, self._created, self._deleted):
                kept.clear()
        self._spent = True
        self._hold = None
