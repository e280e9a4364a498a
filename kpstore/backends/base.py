"""The contract of a backend: named arrays, versions of them, and writers that fork.

A backend knows arrays, rows, chunks and commits; it knows nothing of videos or keypoints. Three
kinds of object:

- a :class:`Backend` is one place (a directory, a file, a bucket): it finds versions and opens
  sessions;
- a :class:`ReadSession` is one version of all arrays; it never changes;
- a :class:`WriteSession` is a set of changes to a version. They become the next version or are
  discarded. Other processes get a :class:`Fork` of it: they write whole chunks, and the session
  merges them.

All arrays are chunked along their first axis alone, so a chunk is a run of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.array_bounds import check_chunks
from kpstore.backends.chunks import Chunks
from kpstore.backends.optional import Sidecar
from kpstore.errors import InvalidError

MAIN = "main"
"""The branch of a new store, and the default for reading and writing."""

Codec = Literal["raw", "lz4", "zstd"]
TEXT = "str"
"""``ArrayMeta.dtype`` of text.

Such arrays have one axis and read as numpy object arrays of ``str``.
"""

_TEXT_BYTES = 100


def plain(attrs: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of attributes as JSON returns them, which a version's digest is of."""
    return dict(json.loads(json.dumps(dict(attrs))))


@dataclass(frozen=True)
class ArrayMeta:
    """Shape and type of a stored array.

    Parameters
    ----------
    shape : length of each axis; rows are the first one.
    dtype : name of a numpy dtype, or ``TEXT``.
    chunk_rows : rows per chunk; the other axes are never divided.
    dims : name of each axis.
    fill : value of rows that were never written; unused for text, which reads as ``""``.
    attrs : attributes, as JSON values.
    codec : how chunks are stored: ``"raw"`` for values that hardly shrink and are read at memory
        speed, ``"lz4"`` (Blosc, shuffled) for numbers that do shrink, ``"zstd"`` for the rest.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    dims: tuple[str, ...]
    fill: float | int | bool = 0
    attrs: Mapping[str, Any] = field(default_factory=dict)
    codec: Codec = "zstd"

    def __post_init__(self) -> None:
        check_chunks(self.shape, self.dtype, self.chunk_rows, self.row_bytes)

    @property
    def n_rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Size of one row in memory, in bytes; for text, an estimate of 100 bytes per value."""
        item_bytes = _TEXT_BYTES if self.dtype == TEXT else np.dtype(self.dtype).itemsize
        return int(item_bytes * np.prod(self.shape[1:], dtype=object))

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.n_rows // self.chunk_rows)

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """Return the first row of a chunk and the row after its last one."""
        start = chunk * self.chunk_rows
        return start, min(start + self.chunk_rows, self.n_rows)

    def chunks_of(self, start: int, stop: int) -> range:
        """Return the numbers of the chunks that hold rows ``start`` to ``stop``."""
        return range(start // self.chunk_rows, -(-stop // self.chunk_rows))

    def unwritten(self, n_rows: int) -> NDArray[np.generic]:
        """Return ``n_rows`` rows of the fill value."""
        shape = (n_rows, *self.shape[1:])
        text = self.dtype == TEXT
        return np.full(shape, "" if text else self.fill, dtype=object if text else self.dtype)

    def with_rows(self, n_rows: int) -> ArrayMeta:
        """Return the same array with another length."""
        return replace(self, shape=(n_rows, *self.shape[1:]))

    def extended(self, name: str, n_rows: int) -> ArrayMeta:
        """Return the array with ``n_rows`` rows; :class:`InvalidError` if that would shorten it."""
        if n_rows < self.n_rows:
            raise InvalidError(f"{name!r} has {self.n_rows} rows and cannot shrink to {n_rows}")
        return self.with_rows(n_rows)

    def check_rows(self, name: str, start: int, n_rows: int) -> None:
        """Raise :class:`InvalidError` unless the array has rows ``start`` to ``start + n_rows``."""
        if start < 0 or n_rows < 0 or start + n_rows > self.n_rows:
            raise InvalidError(
                f"rows {start}:{start + n_rows} of {name!r} asked for; it has {self.n_rows}"
            )

    def check_values(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Raise :class:`InvalidError` unless ``values`` are whole rows that fit at ``start``.

        Zarr silently accepts values that are too wide, and numpy broadcasts one row to many.
        """
        if values.ndim != len(self.shape) or values.shape[1:] != self.shape[1:]:
            raise InvalidError(
                f"values of shape {values.shape} given for {name!r}; its rows have shape "
                f"{self.shape[1:]}"
            )
        self.check_rows(name, start, len(values))

    def has_short_chunk(self, start: int, n_rows: int) -> bool:
        """Return whether these rows include a last chunk that is shorter than the others."""
        return n_rows > 0 and start + n_rows == self.n_rows and self.n_rows % self.chunk_rows > 0

    def check_whole_chunks(self, name: str, start: int, n_rows: int) -> None:
        """Raise :class:`InvalidError` unless the rows are whole chunks.

        The last chunk may end with the array. A fork refuses parts of chunks because storage keeps
        whole chunks: if two forks wrote parts of the same chunk, one part would silently be lost.
        """
        self.check_rows(name, start, n_rows)
        stop = start + n_rows
        if start % self.chunk_rows or (stop % self.chunk_rows and stop != self.n_rows):
            raise InvalidError(
                f"a fork may only write whole chunks of {self.chunk_rows} rows of {name!r}, not "
                f"{start}:{stop}"
            )


@dataclass(frozen=True)
class Commit:
    """One version: its parent, and when and why it was committed.

    ``metadata`` holds JSON values, and ``time`` is in UTC.
    """

    id: str
    parent: str | None
    message: str
    time: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def now(
        cls, id: str, parent: str | None, message: str, metadata: Mapping[str, object] | None
    ) -> Commit:
        """Return a commit with the present time."""
        return cls(id, parent, message, datetime.now(UTC), dict(metadata or {}))


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do, which callers check before they start to work.

    ``parallel_writers`` says whether forks in several processes may write at the same time. Where
    they may not, the driver writes every row itself.
    """

    branches: bool = True
    parallel_writers: bool = True


class ReadSession(Protocol):
    """All arrays at one version."""

    @property
    def snapshot(self) -> str:
        """Id of the version that this session reads, or that a write session changes."""

    def attrs(self) -> Mapping[str, Any]:
        """JSON attributes of the whole store."""

    def names(self) -> list[str]:
        """Names of all arrays, sorted."""

    def meta(self, name: str) -> ArrayMeta:
        """Return the shape and type of an array; :class:`NotFoundError` for an unknown name."""

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` as a new array, after checking their chunks.

        Raises
        ------
        CorruptError
            If a chunk cannot be read, or is not what was committed there; the message names rows,
            array and file.
        """

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk (:mod:`kpstore.backends.checksums`), (chunks,).

        0 for a chunk that was never written. None where the store keeps no checksums: in format 1
        and in memory.
        """

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return which chunks may be stored, (chunks,): the others are known to read as fill."""

    def place(self, name: str, chunk: int) -> str:
        """Return where a chunk is stored, for messages: a file of the store, or a byte in it."""

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array of numbers.

        This reads all metadata that the chunks need.
        """

    def digest(self, name: str) -> str | None:
        """Return the ``text_digest`` (:mod:`kpstore.backends.checksums`) of committed text.

        None for numbers, and where every chunk of text has a checksum.
        """


class Fork(Protocol):
    """A writer for another process, which can be pickled before and after it has written."""

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Write whole chunks; :class:`InvalidError` for parts of chunks."""

    def check(self) -> None:
        """Read every chunk that was written through this fork, as this process sees the store.

        The driver calls this before it merges the fork of another process, which may have written
        to another disk.

        Raises
        ------
        CorruptError
            If a chunk is missing, or holds other values than were written; the message names the
            array and the rows.
        """


class WriteSession(ReadSession, Protocol):
    """Changes that become one version. Reads see what was written through this session.

    After ``commit`` or ``discard`` the session is spent: a further change or commit is a
    :class:`ReadOnlyError`.
    """

    def set_attrs(self, attrs: Mapping[str, object]) -> None:
        """Replace the store's attributes."""

    def set_array_attrs(self, name: str, attrs: Mapping[str, object]) -> None:
        """Replace the attributes of one array."""

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Create an array of unwritten rows; :class:`ExistsError` if the name is taken."""

    def resize(self, name: str, n_rows: int) -> None:
        """Append unwritten rows up to ``n_rows``; :class:`InvalidError` for a smaller number."""

    def delete(self, name: str) -> None:
        """Remove an array from this version on."""

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Write any run of rows."""

    def fork(self) -> Fork:
        """Return a writer for another process, while this session has no changes of its own."""

    def merge(self, forks: Sequence[Fork]) -> None:
        """Take over what forks have written.

        They may be forks of this session, or of a session on an earlier version of the branch.

        Raises
        ------
        ConflictError
            If a fork wrote an array's short last chunk and the array has grown since: its next rows
            are in that chunk.
        """

    def commit(self, message: str, metadata: Mapping[str, object] | None = None) -> str:
        """Commit the changes as the branch's next version and return its id.

        The session is then spent. If there are no changes, there is no new version, and the id of
        the session's own version is returned.

        Raises
        ------
        ConflictError
            If another writer has changed the same data since this session was opened. Changes to
            different data are both kept.
        """

    def discard(self) -> None:
        """Discard all changes; the session is then spent."""


class Backend(Protocol):
    """The place of one store: cheap to create, picklable, and opened at its first use.

    An entry point of the group ``kpstore.backends`` is called with a location and returns a
    backend; its ``claims(location)`` says which locations it handles. It is a class with a
    classmethod of that name, or an object like those of :mod:`kpstore.backends.places`.
    """

    @property
    def location(self) -> str:
        """Path or address, as given to :func:`kpstore.open`."""

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do."""

    @property
    def sidecar(self) -> Sidecar | None:
        """Where progress is written, which no version contains; None in memory."""

    def exists(self) -> bool:
        """Return whether there is a store at this place, without changing anything."""

    def create(self, attrs: Mapping[str, object], message: str) -> str:
        """Create a store with one version, return its id; :class:`ExistsError` if one is there."""

    def move(self, location: str) -> None:
        """Move the store with all its versions to another place of the same kind, in one step.

        This object, and everything opened through it, is then spent.

        Raises
        ------
        ExistsError
            If the place is taken.
        """

    def remove(self) -> None:
        """Remove the store with all its versions, if it exists."""

    def close(self) -> None:
        """Close open files. Open sessions stay usable, and later calls open the store again."""

    def session(self, snapshot: str) -> ReadSession:
        """Open a version by its id; :class:`NotFoundError` for an unknown id."""

    def begin(self, branch: str = MAIN) -> WriteSession:
        """Start changes to a branch's newest version; :class:`NotFoundError` without the branch."""

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and its ancestors, newest first; the oldest has no parent.

        :class:`NotFoundError` for an unknown id.
        """

    def branches(self) -> Mapping[str, str]:
        """Return branches and the ids of their newest versions."""

    def tags(self) -> Mapping[str, str]:
        """Return tags and the ids of their versions."""

    def create_branch(self, name: str, snapshot: str) -> None:
        """Create a branch at a version; :class:`ExistsError` if the name is taken."""

    def delete_branch(self, name: str) -> None:
        """Remove a branch other than ``main``; :class:`NotFoundError` for an unknown name."""

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch; :class:`NotFoundError` if either is unknown.

        ``expected`` is the newest version as far as the caller knows: :class:`ConflictError` if
        the branch has another one by now.
        """

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version permanently; :class:`ExistsError` if the name is, or ever was, taken."""

    def delete_tag(self, name: str) -> None:
        """Remove a tag; :class:`NotFoundError` for an unknown name."""

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with names and records of versions, one line each.

        This checks all tags, all branches and every version that they lead to, but no values,
        which have their own checksums.
        """

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Reserve the store for one long write, while readers continue.

        :class:`BusyError` names the process that has reserved it.
        """
