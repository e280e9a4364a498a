"""Versions of an Icechunk store, changes on top of one, and forks.

Every chunk that is read is checked by its place.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal, Protocol

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from kpstore.backends.base import TEXT, ArrayMeta, Chunks, Codec, SessionChunks, check_short_end
from kpstore.backends.checksums import TABLE, UNWRITTEN, checksum, matches
from kpstore.backends.icechunk_chunks import ChunkDecoder, ChunkPlace
from kpstore.backends.icechunk_table import UNREADABLE, ChecksumTable
from kpstore.errors import (
    ConflictError,
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

_COPY_BYTES = 64 * 2**20
"""Writes of up to so much are copied to fill up their first and last chunk.

Of larger ones just those two are.
"""
_READ_BYTES, _READ_CHUNKS = 16 * 2**20, 32
"""So much of what a worker wrote is asked for at once: each chunk takes a file handle and a thread."""

_used_in_this_process = False
_forked_after_use = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _used_in_this_process


os.register_at_fork(after_in_child=_after_fork)


def guard_fork() -> None:
    """Refuse to touch Icechunk in a forked child of a process that used it: its threads are gone and it would hang."""
    global _used_in_this_process
    if _forked_after_use:
        raise UnsupportedError(
            "an Icechunk store cannot be read in a process made by fork() from one that had "
            "already opened a store; start workers with 'forkserver' or 'spawn', e.g. "
            "DataLoader(..., num_workers=2, multiprocessing_context='forkserver')"
        )
    _used_in_this_process = True


def first_line(error: BaseException) -> str:
    """Return the part of an error of Icechunk, Zarr or a codec that says what happened."""
    line = next(
        (line.strip(" x") for line in str(error).splitlines() if line.strip(" x|")),
        type(error).__name__,
    )
    return line.partition(". Stored: b")[0]  # two checksums as bytes, which say nothing to people


class Home(Protocol):
    """What sessions need of the backend that they come from."""

    @property
    def location(self) -> str:
        """Path of the store, as it was given."""

    def array_names(self, snapshot: str) -> frozenset[str]:
        """Return the names of all arrays of a version."""

    def local_chunks(self, snapshot: str, array: zarr.Array[Any], meta: ArrayMeta) -> Chunks | None:
        """Return the chunks of an array of a version as files of the store's directory.

        None where they are not.
        """

    def table_chunks(self, snapshot: str) -> Mapping[tuple[int, ...], ChunkPlace] | None:
        """Return where the chunks of a version's table of checksums are.

        None where they are not files.
        """

    def places(self, snapshot: str, name: str, n_chunks: int) -> Sequence[str] | None:
        """Return where each chunk of an array of a version lies; None if that is not known."""

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits."""

    def tip(self, branch: str) -> str:
        """Return the newest version of a branch, under the lock."""

    def committed(self, branch: str, version: str) -> None:
        """Take note of a commit, under the lock."""


class _BadChunkError(Exception):
    """A chunk that cannot be read, with the reason, or that holds something else than was written, without one."""

    def __init__(self, chunk: int, reason: str = "") -> None:
        super().__init__(reason)
        self.chunk, self.reason = chunk, reason


def _read_chunks(
    array: zarr.Array[Any], meta: ArrayMeta, chunks: range, sums: Sequence[int] | None
) -> NDArray[Any]:
    """Return the rows of chunks that follow each other.

    :class:`_BadChunkError` for the first that is damaged.

    Parameters
    ----------
    sums : checksums of these chunks; None to check no more than the codec does.
    """
    size = meta.chunk_rows
    start, stop = chunks.start * size, min(chunks.stop * size, meta.n_rows)
    try:
        values = np.asarray(array[start:stop])
    except UNREADABLE as error:
        if len(chunks) > 1:
            for chunk in chunks:
                _read_chunks(array, meta, range(chunk, chunk + 1), None)
        raise _BadChunkError(chunks.start, first_line(error)) from error
    if values.dtype.kind == "T":
        values = values.astype(object)
    for number, expected in enumerate(sums if sums is not None else ()):
        if not matches(meta, values[number * size : (number + 1) * size], int(expected)):
            raise _BadChunkError(chunks.start + number)
    return values


class _Session:
    """A session and its open arrays."""

    def __init__(self, session: icechunk.Session, home: Home) -> None:
        self._session, self._home, self._location = session, home, home.location
        self._group = zarr.open_group(session.store, mode="r" if session.read_only else "r+")
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._metas: dict[str, ArrayMeta] = {}
        self._table: ChecksumTable | None = None
        self._sums: dict[str, NDArray[np.uint64] | None] = {}
        self._places: dict[str, Sequence[str] | None] = {}

    @property
    def snapshot(self) -> str:
        return str(self._session.snapshot_id)

    def attrs(self) -> Mapping[str, Any]:
        return copy.deepcopy(dict(self._group.attrs))

    def names(self) -> list[str]:
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
        if name not in self._metas:
            self._metas[name] = _meta_of(self._array(name))
        return self._metas[name]

    def digest(self, name: str) -> None:
        """Return none: text has checksums as numbers have."""

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return what was committed, read once."""
        if name not in self._sums:
            meta = self.meta(name)
            try:
                if self._table is None and self._has_table():
                    self._table = self._open_table()
                found = None if self._table is None else self._table.read(name, _n_chunks(meta))
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
        return ChecksumTable.open(self._group, self._home.table_chunks(self.snapshot))

    def _expected(self, name: str, chunks: range) -> list[int] | None:
        """Return the checksums of some chunks."""
        sums = self.checksums(name)
        return None if sums is None else sums[chunks.start : chunks.stop].tolist()

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        meta = self.meta(name)
        meta.check_rows(name, start, stop - start)
        chunks = range(start // meta.chunk_rows, -(-stop // meta.chunk_rows))
        if start == stop:
            return np.empty(
                (0, *meta.shape[1:]), dtype=object if meta.dtype == TEXT else meta.dtype
            )
        try:
            values = _read_chunks(self._array(name), meta, chunks, self._expected(name, chunks))
        except _BadChunkError as bad:
            raise CorruptError(self._describe(name, meta, bad)) from bad.__cause__
        begin = chunks.start * meta.chunk_rows
        rows = values[start - begin : stop - begin]
        # A row by itself should not keep its whole chunk in memory.
        return rows if len(rows) == len(values) else rows.copy()

    def _describe(self, name: str, meta: ArrayMeta, bad: _BadChunkError) -> str:
        start, stop = (
            bad.chunk * meta.chunk_rows,
            min((bad.chunk + 1) * meta.chunk_rows, meta.n_rows),
        )
        what = (
            f"cannot be read: {bad.reason}"
            if bad.reason
            else "cannot be read: it is not what was committed there"
        )
        return (
            f"rows {start}:{stop} of {name!r} in {self._location} {what} "
            f"({self.place(name, bad.chunk)})"
        )

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        if name not in self._places:
            self._places[name] = self._home.places(self.snapshot, name, _n_chunks(self.meta(name)))
        places = self._places[name]
        return f"chunk {chunk}" if places is None or chunk >= len(places) else places[chunk]


def _n_chunks(meta: ArrayMeta) -> int:
    return -(-meta.n_rows // meta.chunk_rows)


def _meta_of(array: zarr.Array[Any]) -> ArrayMeta:
    text = array.dtype.kind == "T"
    return ArrayMeta(
        shape=array.shape,
        dtype=TEXT if text else array.dtype.name,
        chunk_rows=array.chunks[0],
        dims=tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ()),
        fill=0 if text else array.fill_value.item(),
        attrs=dict(array.attrs),
        codec=_codec_name(array),
    )


_COMPRESSORS: Mapping[Codec, tuple[Any, ...]] = {
    "raw": (),
    "zstd": (ZstdCodec(),),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),),
}


def _codec_name(array: zarr.Array[Any]) -> Codec:
    match array.compressors:
        case (BloscCodec(), *_):
            return "lz4"
        case (ZstdCodec(), *_):
            return "zstd"
        case _:
            return "raw"


class IcechunkReadSession(_Session):
    """A version that never changes: what was learnt about it stays true."""

    def __init__(self, session: icechunk.Session, home: Home) -> None:
        super().__init__(session, home)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array: files, where they are of a kind that is understood here."""
        if name not in self._chunks:
            found = self._home.local_chunks(self.snapshot, self._array(name), self.meta(name))
            self._chunks[name] = found or SessionChunks(self, name)
        return self._chunks[name]


class IcechunkWriteSession(_Session):
    """A writable session; commits under the store's lock.

    Parameters
    ----------
    branch : the branch that the session is of, by the name that kpstore knows it by.
    """

    def __init__(self, session: icechunk.Session, home: Home, branch: str) -> None:
        super().__init__(session, home)
        self._branch = branch
        self._spent = False
        self._written: dict[str, dict[int, int]] = {}
        """Checksums of chunks that were written, by array and number.

        They go into the table with the commit.
        """
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
        """Make an array of unwritten rows."""
        self._check_open()
        if name in self.names() or name == TABLE:
            raise ExistsError(f"array {name!r} exists already")
        text = meta.dtype == TEXT
        self._arrays[name] = self._group.create_array(
            name,
            shape=meta.shape,
            chunks=(meta.chunk_rows, *meta.shape[1:]),
            dtype=str if text else meta.dtype,
            fill_value="" if text else meta.fill,
            compressors=(*_COMPRESSORS[meta.codec], Crc32cCodec()),
            dimension_names=meta.dims,
            attributes=dict(meta.attrs),
            # A chunk that was written must exist even if all of it is fill: no chunk means that
            # nobody wrote it.
            config={"write_empty_chunks": True},
        )
        self._created.add(name)

    def resize(self, name: str, n_rows: int) -> None:
        """Make an array longer by unwritten rows."""
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
        """Return those of the version that this one builds upon, and of what was written here."""
        expected = self._expected(name, range(_n_chunks(self.meta(name))))
        return None if expected is None else np.array(expected, dtype=np.uint64)

    def _expected(self, name: str, chunks: range) -> list[int] | None:
        if name not in self._created:
            committed = super().checksums(name)
        elif self._has_table():
            committed = np.full(_n_chunks(self.meta(name)), UNWRITTEN, dtype=np.uint64)
        else:
            committed = None
        if committed is None:
            return None
        written = self._written.get(name, {})
        return [written.get(chunk, int(committed[chunk])) for chunk in chunks]

    def place(self, name: str, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        is_new = name in self._created or chunk in self._written.get(name, {})
        return "written by this transaction" if is_new else super().place(name, chunk)

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, those written here included."""
        return SessionChunks(self, name)

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write any run of rows, as whole chunks."""
        self._check_open()
        array, meta = self._array(name), self.meta(name)
        meta.check_values(name, start, values)
        written = self._written.setdefault(name, {})
        for first, block in self._whole_chunks(name, meta, start, _as_stored(name, meta, values)):
            written.update(_write_chunks(array, meta, first, block))

    def _whole_chunks(
        self, name: str, meta: ArrayMeta, start: int, values: NDArray[Any]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield values as runs of whole chunks, filled up with what is there already, each with its first row.

        What is there is read, and so checked, first: a chunk that is damaged never gets a new
        checksum.
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
            yield (
                begin,
                np.concatenate([self.read(name, begin, start), values, self.read(name, stop, end)]),
            )
        else:
            # Whole chunks in the middle go as they are; only what is left at either end is copied.
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
        self._check_apart(forks)
        self._session.merge(*(fork.session for fork in forks))
        for fork in forks:
            for name, written in fork.checksums.items():
                self._written.setdefault(name, {}).update(written)
        self._arrays.clear()
        self._metas.clear()

    def _check_apart(self, forks: Sequence[IcechunkFork]) -> None:
        """Refuse chunks that two have written: Icechunk takes either, and its checksum may be the other's."""
        taken = {name: set(written) for name, written in self._written.items()}
        for fork in forks:
            for name, written in fork.checksums.items():
                chunks = taken.setdefault(name, set())
                twice = chunks.intersection(written)
                if twice:
                    raise ConflictError(
                        f"chunk {min(twice)} of {name!r} in {self._location} was written by two "
                        "forks, so nothing of them was taken over; give each fork chunks of its "
                        "own"
                    )
                chunks.update(written)

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Make the changes the branch's next version."""
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
        except (
            icechunk.IcechunkError
        ) as error:  # a manifest that is rewritten is read first, and may be damaged
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
        """Write down the checksums: last, because the table is the one array that writers of different data share."""
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
        """Forget all changes."""
        if not self._spent:
            self._session.discard_changes()
            for kept in (self._arrays, self._metas, self._sums, self._written):
                kept.clear()
            self._created.clear()
            self._deleted.clear()
        self._spent = True


class IcechunkFork:
    """A forked session; pickles together with what was written through it."""

    def __init__(self, session: icechunk.ForkSession) -> None:
        self.session = session
        self.short_ends: dict[str, int] = {}
        """Rows of each array whose short last chunk was written, when it was."""
        self.checksums: dict[str, dict[int, int]] = {}
        """Of each chunk that was written, by array and number."""

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write whole chunks."""
        array = self._array(name, "r+")
        meta = _meta_of(array)
        meta.check_values(name, start, values)
        meta.check_whole_chunks(name, start, len(values))
        if meta.has_short_chunk(start, len(values)):
            self.short_ends[name] = meta.n_rows
        written = self.checksums.setdefault(name, {})
        written.update(_write_chunks(array, meta, start, _as_stored(name, meta, values)))

    def check(self) -> None:
        """Read every chunk that was written, through this process's own session of the store."""
        for name, written in self.checksums.items():
            try:
                array = self._array(name, "r")
            except (NotFoundError, icechunk.IcechunkError) as error:
                raise CorruptError(
                    f"{name!r}, of which a worker says it wrote rows, cannot be read: "
                    f"{first_line(error)}"
                ) from error
            meta = _meta_of(array)
            for chunk, reason in _wrong_chunks(array, meta, written):
                start, stop = (
                    chunk * meta.chunk_rows,
                    min((chunk + 1) * meta.chunk_rows, meta.n_rows),
                )
                what = (
                    f"cannot be read: {reason}" if reason else "hold other values than were written"
                )
                raise CorruptError(
                    f"rows {start}:{stop} of {name!r}, which a worker says it wrote, {what}"
                )

    def _array(self, name: str, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
        guard_fork()
        try:
            return zarr.open_array(self.session.store, path=name, mode=mode)
        except FileNotFoundError:
            raise NotFoundError(f"array {name!r} not found") from None


def _wrong_chunks(
    array: zarr.Array[Any], meta: ArrayMeta, sums: Mapping[int, int]
) -> Iterator[tuple[int, str]]:
    """Yield chunks that are not what was written, with the reason if they cannot even be read."""
    numbers, decode = sorted(sums), ChunkDecoder.of(array)
    if decode is None:
        for number in numbers:
            try:
                _read_chunks(array, meta, range(number, number + 1), [sums[number]])
            except _BadChunkError as bad:
                yield number, bad.reason
        return
    out = np.empty((meta.chunk_rows, *meta.shape[1:]), dtype=meta.dtype)
    n_together = max(1, min(_READ_CHUNKS, _READ_BYTES // max(1, out.nbytes)))
    for first in range(0, len(numbers), n_together):
        some = numbers[first : first + n_together]
        for number, encoded in zip(some, sync(_encoded(array, some)), strict=True):
            n_rows = min(meta.chunk_rows, meta.n_rows - number * meta.chunk_rows)
            try:
                if isinstance(encoded, BaseException):
                    raise encoded
                decode(encoded, out, with_crc=True)
            except UNREADABLE as error:
                yield number, first_line(error)
            else:
                if not matches(meta, out[:n_rows], sums[number]):
                    yield number, ""


async def _encoded(array: zarr.Array[Any], numbers: Sequence[int]) -> list[bytes | BaseException]:
    """Return the bytes of chunks, or why they cannot be had."""

    async def get(number: int) -> bytes:
        key = array.metadata.encode_chunk_key((number, *(0 for _ in array.shape[1:])))
        buffer = await array.store.get(f"{array.path}/{key}", default_buffer_prototype())
        if buffer is None:
            raise OSError("it is not there")
        return bytes(buffer.to_bytes())

    return list(await asyncio.gather(*map(get, numbers), return_exceptions=True))


def _as_stored(name: str, meta: ArrayMeta, values: NDArray[Any]) -> NDArray[Any]:
    """Return values in the type that they are stored in, so that checksums are of what will be read."""
    if meta.dtype != TEXT:
        return np.asarray(values, dtype=meta.dtype)
    texts = np.asarray(values, dtype=object)
    wrong = next((text for text in texts.tolist() if not isinstance(text, str)), None)
    if wrong is not None:
        raise InvalidError(f"{wrong!r} given for {name!r}, which holds text")
    return texts


def _write_chunks(
    array: zarr.Array[Any], meta: ArrayMeta, start: int, values: NDArray[Any]
) -> dict[int, int]:
    """Write whole chunks; return their checksums by number."""
    if not array.config.write_empty_chunks:
        array = array.with_config({"write_empty_chunks": True})
    if len(values):
        array[start : start + len(values)] = values
    size = meta.chunk_rows
    return {
        (start + row) // size: checksum(meta, values[row : row + size])
        for row in range(0, len(values), size)
    }
