"""Changes to an Icechunk store that become one version, or nothing.

Lengths and chunks are handed over to Icechunk many at a time: when enough have come together,
before Icechunk itself is asked for what they change, and before the commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import icechunk
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import refusals
from kpstore.backends.base import ArrayMeta
from kpstore.backends.checksums import TABLE, UNWRITTEN, checksum, matches
from kpstore.backends.chunks import Chunks
from kpstore.backends.icechunk_chunks import (
    OpenArray,
    as_stored,
    create_array,
    whole_chunks,
    write_chunks,
)
from kpstore.backends.icechunk_ends import LastChunk, filled_behind
from kpstore.backends.icechunk_errors import (
    ERRORS,
    UNREADABLE,
    first_line,
    guard_fork,
    is_of_storage,
    translated,
    translation,
    unreachable,
)
from kpstore.backends.icechunk_fork import IcechunkFork, merged_sums
from kpstore.backends.icechunk_home import IcechunkHome
from kpstore.backends.icechunk_manifests import ChunkPlace
from kpstore.backends.icechunk_pending import GATHERED_BYTES, PendingChunks
from kpstore.backends.icechunk_sessions import IcechunkSession
from kpstore.backends.locks import SharedLock
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError, UnreachableError
from kpstore.schema.fields import storable_json


class IcechunkWriteSession(IcechunkSession):
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
        home: IcechunkHome,
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
        self._pending = PendingChunks()
        self._open_together()

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
            self._hand_over()
            self._open(name).array.attrs.put(dict(attrs))
            del self._opened[name]

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Create an array of unwritten rows."""
        with self._changing():
            if name in self.names() or name == TABLE:
                raise refusals.array_taken(name)
            self._opened[name] = OpenArray.of(create_array(self._group, name, meta))
            self._created.add(name)

    def resize(self, name: str, n_rows: int) -> None:
        """Append unwritten rows up to ``n_rows``."""
        with self._changing():
            opened = self._open(name)
            meta, longer = opened.meta, opened.meta.extended(name, n_rows)
            if longer.shape != meta.shape:
                opened.meta = longer
                self._lengths.setdefault(name, meta.n_rows)
                self._sums.pop(name, None)
                self._clear_end(name, meta)

    def _clear_end(self, name: str, before: ArrayMeta) -> None:
        """Put fill behind the rows of ``before``, where its last chunk's file holds others."""
        number, kept = divmod(before.n_rows, before.chunk_rows)
        if not self._home.shares_ends:
            return
        if before.codec != "raw" or not kept or number in self._written.get(name, {}):
            return
        try:
            rows = self._unchecked(name, number)
        except UNREADABLE:  # said by whoever reads the rows before
            return
        block = filled_behind(rows, before, before.n_rows)
        known = self._expected(name, range(number, number + 1))
        if block is not None and (known is None or matches(before, block[:kept], known[0])):
            self.write(name, before.n_rows - kept, block)  # else a read says: damaged

    def _unchecked(self, name: str, number: int) -> NDArray[np.generic]:
        """Return the rows of a committed chunk, whether or not they are those of its checksum."""
        opened, places = self._open(name), self._files(name, range(number, number + 1))
        start, stop = opened.meta.rows_of(number)
        if places is None or opened.codec is None:
            self._hand_over()
            return np.array(opened.array[start:stop])
        place, n_rows = places[0], stop - start
        return opened.codec.rows(place.read(), n_rows) if place else opened.meta.unwritten(n_rows)

    def delete(self, name: str) -> None:
        """Remove an array from this version on."""
        with self._changing():
            self._open(name)
            del self._group[name], self._opened[name]
            self._written.pop(name, None)
            self._lengths.pop(name, None)
            self._pending.drop(name)
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

    def _files(self, name: str, chunks: range) -> list[ChunkPlace | None] | None:
        written, places = self._written.get(name, {}), super()._files(name, chunks)
        if name in self._created:
            places = [None] * len(chunks)
        if places is not None and not written.keys().isdisjoint(chunks):
            new = [self._pending.place(name, number) for number in chunks]
            if any(new[number - chunks.start] is None for number in written.keys() & chunks):
                return None  # handed over
            places = [place or old for place, old in zip(new, places, strict=True)]
        return places

    def _hand_over(self) -> None:
        with translated(self._location, "nothing was committed"):
            self._pending.hand_over(self._opened)

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return that every chunk may be stored: any may have been written here."""
        return np.ones(self.meta(name).n_chunks, dtype=np.bool_)

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        is_new = name in self._created or chunk in self._written.get(name, {})
        return "written by this transaction" if is_new else super().place(name, chunk)

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, including those that were written here."""
        return SessionChunks(self, name)

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Write any run of rows, as whole chunks."""
        with self._changing():
            opened = self._open(name)
            opened.meta.check_values(name, start, values)
            rows = as_stored(name, opened.meta, values)
            for first, block in whole_chunks(opened.meta, start, rows, partial(self.read, name)):
                self._write_chunks(name, opened, first, block)

    def _write_chunks(
        self, name: str, opened: OpenArray, start: int, rows: NDArray[np.generic]
    ) -> None:
        meta, codec, written = opened.meta, opened.codec, self._written.setdefault(name, {})
        if codec is None or rows.nbytes > GATHERED_BYTES:
            self._hand_over()
            written.update(write_chunks(opened.array, meta, start, rows))
            return
        for row in range(0, len(rows), meta.chunk_rows):
            number, block = (start + row) // meta.chunk_rows, rows[row : row + meta.chunk_rows]
            self._pending.put(name, number, codec.encode(block))
            written[number] = checksum(meta, block)
        if self._pending.n_bytes > GATHERED_BYTES:
            self._hand_over()

    def fork(self) -> IcechunkFork:
        """Return a writer for another process."""
        self._check_open()
        self._hand_over()
        self._home.check_sendable()
        try:
            return IcechunkFork(self._session.fork(), self._hold)
        except ValueError:
            raise refusals.not_forkable() from None

    def merge(self, forks: Sequence[IcechunkFork]) -> None:
        """Take over what forks have written."""
        with self._changing():
            self._hand_over()
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
            self._hand_over()
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
            branches = self._home.branches_now()
            if self._home.newest(self._branch, branches) != self.snapshot:
                self._rebase(message)
                self._table = None
                self._found.clear()  # the table among them is that of the version before
            self._update_table()
            self._home.wait_for_clock(self.snapshot, f"{message!r} was not committed")
            ends = {name: end for name, end in self._ends().items() if name in self._written}
            before, version = self.snapshot, self._save(message, metadata)
            self._move_branch(before, version, message)
            self._home.settle(self._branch, before, version, ends)
        return version

    def _ends(self) -> dict[str, LastChunk]:
        """Return the last chunks before this session of arrays that it has made or lengthened."""
        # Of old stores it is not known which versions share files.
        if not (self._home.shares_ends and self._has_table()):
            return {}
        before = {**self._lengths, **dict.fromkeys(self._created, 0)}
        return {name: LastChunk(self.meta(name), n_rows) for name, n_rows in before.items()}

    def _save(self, message: str, metadata: Mapping[str, object] | None) -> str:
        """Write the version, which no branch leads to yet, and wait until it is on the disk."""
        with translated(self._location, f"{message!r} was not committed"):
            version = str(self._session.flush(message, storable_json(metadata or {})))
        self._home.sync()
        return version

    def _move_branch(self, before: str, version: str, message: str) -> None:
        try:
            self._home.move_branch(self._branch, before, version)
        except icechunk.IcechunkError as error:  # other software, which does not use the lock
            if is_of_storage(error):
                raise unreachable(self._location, error, f"{message!r} may be committed") from None
            reason = f" ({first_line(error)})"
            raise refusals.changed_meanwhile(self._location, message, reason) from None

    def _rebase(self, message: str) -> None:
        try:
            self._session.rebase(icechunk.ConflictDetector())
        except ERRORS as error:
            told = translation(error, self._location, f"{message!r} was not committed")
            if isinstance(told, OSError | UnreachableError):
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
                if isinstance(told, OSError | UnreachableError):
                    raise told from error
            raise CorruptError(
                f"the checksums in {self._location} cannot be read, so nothing was committed: "
                f"{first_line(error)}"
            ) from error

    def discard(self) -> None:
        """Discard all changes."""
        if not self._spent:
            self._session.discard_changes()
            self._pending = PendingChunks()
            for kept in (self._opened, self._sums, self._written, self._created, self._deleted):
                kept.clear()
        self._spent = True
        self._hold = None
