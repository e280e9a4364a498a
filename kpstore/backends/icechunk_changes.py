"""Changes to a version of an Icechunk store, which are committed under the store's lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import icechunk
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, Chunks, SessionChunks, check_short_end
from kpstore.backends.checksums import TABLE, UNWRITTEN
from kpstore.backends.icechunk_arrays import as_stored, create_array, write_chunks
from kpstore.backends.icechunk_directory import IcechunkDirectory
from kpstore.backends.icechunk_errors import UNREADABLE, first_line, guard_fork
from kpstore.backends.icechunk_fork import IcechunkFork
from kpstore.backends.icechunk_sessions import Session
from kpstore.errors import ConflictError, CorruptError, ExistsError, InvalidError, ReadOnlyError

_COPY_BYTES = 64 * 2**20
"""Writes of up to this size are copied to fill up their first and last chunk.

Of larger ones only those two chunks are copied.
"""


class IcechunkWriteSession(Session):
    """A writable session; commits under the store's lock.

    Parameters
    ----------
    branch : the branch that the session is of, by kpstore's name for it.
    """

    def __init__(self, session: icechunk.Session, home: IcechunkDirectory, branch: str) -> None:
        super().__init__(session, home)
        self._branch = branch
        self._spent = False
        self._written: dict[str, dict[int, int]] = {}
        """Checksums of chunks that were written, by array and number, for the table."""
        self._created: set[str] = set()
        self._deleted: set[str] = set()

    def _check_open(self) -> None:
        guard_fork()
        if self._spent:
            raise ReadOnlyError(
                f"these changes of {self._location} were committed or discarded; begin new ones"
            )

    def _forget(self, name: str) -> None:
        self._arrays.pop(name, None)
        self._metas.pop(name, None)

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Replace the store's attributes."""
        self._check_open()
        self._group.attrs.put(dict(attrs))

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Replace the attributes of one array."""
        self._check_open()
        self._array(name).attrs.put(dict(attrs))
        self._forget(name)

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Create an array of unwritten rows."""
        self._check_open()
        if name in self.names() or name == TABLE:
            raise ExistsError(f"array {name!r} exists already")
        self._arrays[name] = create_array(self._group, name, meta)
        self._created.add(name)

    def resize(self, name: str, n_rows: int) -> None:
        """Append unwritten rows up to ``n_rows``."""
        self._check_open()
        array = self._array(name)
        if n_rows < array.shape[0]:
            raise InvalidError(f"{name!r} has {array.shape[0]} rows and cannot shrink to {n_rows}")
        if n_rows > array.shape[0]:
            array.resize((n_rows, *array.shape[1:]))
            self._forget(name)
            self._sums.pop(name, None)

    def delete(self, name: str) -> None:
        """Remove an array from this version on."""
        self._check_open()
        self._array(name)
        del self._group[name]
        self._forget(name)
        self._written.pop(name, None)
        if name not in self._created:
            self._deleted.add(name)
        self._created.discard(name)

    def names(self) -> list[str]:
        """Return the names of all arrays, sorted."""
        return sorted({*super().names(), *self._created} - self._deleted.difference(self._created))

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk, those that were written here included."""
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

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        is_new = name in self._created or chunk in self._written.get(name, {})
        return "written by this transaction" if is_new else super().place(name, chunk)

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, those that were written here included."""
        return SessionChunks(self, name)

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write any run of rows, as whole chunks."""
        self._check_open()
        array, meta = self._array(name), self.meta(name)
        meta.check_values(name, start, values)
        written = self._written.setdefault(name, {})
        for first, block in self._whole_chunks(name, meta, start, as_stored(name, meta, values)):
            written.update(write_chunks(array, meta, first, block))

    def _whole_chunks(
        self, name: str, meta: ArrayMeta, start: int, values: NDArray[Any]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield values as runs of whole chunks, each with its first row.

        Chunks that are written in part are filled up with their stored rows. Reading these checks
        them first: a chunk that is damaged never gets a new checksum.
        """
        size, stop = meta.chunk_rows, start + len(values)
        begin, end = start // size * size, min(-(-stop // size) * size, meta.n_rows)
        if not len(values):
            return
        if (begin, end) == (start, stop):
            yield start, values
        elif end - begin <= size:
            block = self.read(name, begin, end)
            block[start - begin : stop - begin] = values
            yield begin, block
        elif (end - begin) * meta.row_bytes <= _COPY_BYTES:
            parts = [self.read(name, begin, start), values, self.read(name, stop, end)]
            yield begin, np.concatenate(parts)
        else:
            # Whole chunks in the middle are not copied.
            first, last = -(-start // size) * size, stop // size * size
            for one, other in ((start, first), (first, last), (last, stop)):
                yield from self._whole_chunks(name, meta, one, values[one - start : other - start])

    def fork(self) -> IcechunkFork:
        """Return a writer for another process."""
        self._check_open()
        try:
            return IcechunkFork(self._session.fork())
        except ValueError:
            raise InvalidError(
                "a session can be forked only before it has changes of its own; commit first"
            ) from None

    def merge(self, forks: Sequence[IcechunkFork]) -> None:
        """Take over what forks have written."""
        self._check_open()
        for fork in forks:
            for name, n_rows in fork.short_ends.items():
                check_short_end(self.meta(name), name, n_rows)
        written = self._merged_sums(forks)
        self._session.merge(*(fork.session for fork in forks))
        self._written = written
        self._arrays.clear()
        self._metas.clear()

    def _merged_sums(self, forks: Sequence[IcechunkFork]) -> dict[str, dict[int, int]]:
        """Return the checksums of this session's and the forks' chunks.

        A chunk that two have written is refused: Icechunk would take either one, and the checksum
        may be the other's.
        """
        merged = {name: dict(sums) for name, sums in self._written.items()}
        for fork in forks:
            for name, sums in fork.checksums.items():
                known = merged.setdefault(name, {})
                twice = known.keys() & sums.keys()
                if twice:
                    raise ConflictError(
                        f"chunk {min(twice)} of {name!r} in {self._location} was written by two "
                        "forks, so nothing of them was taken over; give each fork chunks of its "
                        "own"
                    )
                known.update(sums)
        return merged

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Commit the changes as the branch's next version."""
        self._check_open()
        self._spent = True
        if not self._session.has_uncommitted_changes:
            return self.snapshot
        with self._home.commit_lock():
            if self._home.tip(self._branch) != self.snapshot:
                self._rebase(message)
                self._table = None
            self._update_table()
            try:
                version = self._commit_session(message, metadata)
            except icechunk.ConflictError:  # with other software, which does not know of the lock
                self._rebase(message)
                version = self._commit_session(message, metadata)
            self._home.committed(self._branch, version)
        return version

    def _commit_session(self, message: str, metadata: Mapping[str, Any] | None) -> str:
        try:
            return str(self._session.commit(message, dict(metadata or {})))
        except icechunk.ConflictError:
            raise
        except icechunk.IcechunkError as error:
            # Icechunk reads a manifest before it rewrites it, and the manifest may be damaged.
            raise CorruptError(
                f"{message!r} was not committed to {self._location}: {first_line(error)}; 'kpstore "
                "verify --all' tells whether the store is damaged"
            ) from error

    def _rebase(self, message: str) -> None:
        try:
            self._session.rebase(icechunk.ConflictDetector())
        except icechunk.RebaseFailedError as error:
            raise ConflictError(
                f"another writer has changed the same data of {self._location} in the meantime, so "
                f"{message!r} was not committed ({first_line(error)}); open the store again and "
                "repeat the change"
            ) from None

    def _update_table(self) -> None:
        """Write the checksums: last, because writers of different data share this one array."""
        if not self._has_table() or not (self._written or self._created or self._deleted):
            return
        try:
            table = self._table or self._open_table()
            table.update(self._written, self._created, self._deleted)
        except UNREADABLE as error:
            raise CorruptError(
                f"the checksums in {self._location} cannot be read, so nothing was committed: "
                f"{first_line(error)}"
            ) from error

    def discard(self) -> None:
        """Discard all changes."""
        if not self._spent:
            self._session.discard_changes()
            for kept in (self._arrays, self._metas, self._sums, self._written):
                kept.clear()
            self._created.clear()
            self._deleted.clear()
        self._spent = True
