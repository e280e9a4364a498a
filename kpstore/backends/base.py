"""The contract of a backend: named arrays, versions of them, and writers that fork.

A backend knows arrays, rows, chunks and commits; it knows nothing of videos or keypoints. Three
kinds of object:

- a :class:`Backend` is one place (a directory, a file, a bucket): it resolves versions and hands
  out sessions;
- a :class:`ReadSession` is one version of all arrays; it never changes;
- a :class:`WriteSession` is a set of changes on top of a version, which becomes the next version or
  vanishes. Its :class:`Fork` is the part that other processes get: they write whole chunks, and the
  session merges what they wrote.

All arrays are chunked along their first axis alone, so a chunk is a run of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ConflictError, InvalidError

MAIN = "main"
"""The branch that a new store has, and that everything reads and writes unless told otherwise."""

Codec = Literal["raw", "lz4", "zstd"]
TEXT = "str"
"""``ArrayMeta.dtype`` of text.

Such arrays have one axis and read as numpy object arrays of ``str``.
"""


_TEXT_BYTES = 100


@dataclass(frozen=True)
class ArrayMeta:
    """Shape and type of a stored array.

    Parameters
    ----------
    shape : rows first.
    dtype : a numpy dtype name, or ``TEXT``.
    chunk_rows : rows per chunk; the other axes are never cut.
    dims : a name per axis.
    fill : what rows that were never written read as; not used for text, which reads as ``""``.
    attrs : JSON attributes.
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

    @property
    def n_rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Memory that one row takes; text is taken to need a hundred bytes a value."""
        item_bytes = _TEXT_BYTES if self.dtype == TEXT else np.dtype(self.dtype).itemsize
        return item_bytes * int(np.prod(self.shape[1:]))

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

    def unwritten(self, n_rows: int) -> NDArray[Any]:
        """Return ``n_rows`` rows as they read before anything is written."""
        shape = (n_rows, *self.shape[1:])
        if self.dtype == TEXT:
            return np.full(shape, "", dtype=object)
        return np.full(shape, self.fill, dtype=self.dtype)

    def check_rows(self, name: str, start: int, n_rows: int) -> None:
        """Raise :class:`InvalidError` if rows ``start`` to ``start + n_rows`` are not all inside the array."""
        if start < 0 or n_rows < 0 or start + n_rows > self.n_rows:
            raise InvalidError(
                f"rows {start}:{start + n_rows} of {name!r} asked for; it has {self.n_rows}"
            )

    def check_values(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Raise :class:`InvalidError` unless ``values`` are whole rows that fit in at ``start``.

        Zarr takes values that are too wide without a word, and numpy would repeat one row over
        many.
        """
        if values.ndim != len(self.shape) or values.shape[1:] != self.shape[1:]:
            raise InvalidError(
                f"values of shape {values.shape} given for {name!r}; its rows have shape "
                f"{self.shape[1:]}"
            )
        self.check_rows(name, start, len(values))

    def has_short_chunk(self, start: int, n_rows: int) -> bool:
        """Whether rows from ``start`` on reach into a last chunk that is shorter than the others."""
        return n_rows > 0 and start + n_rows == self.n_rows and self.n_rows % self.chunk_rows > 0

    def check_whole_chunks(self, name: str, start: int, n_rows: int) -> None:
        """Raise :class:`InvalidError` unless the rows are whole chunks (the last chunk may end with the array).

        Two forks that each write a part of one chunk lose one part without a word, on every storage
        system that knows only whole objects; so a fork refuses parts of chunks.
        """
        self.check_rows(name, start, n_rows)
        stop = start + n_rows
        if start % self.chunk_rows or (stop % self.chunk_rows and stop != self.n_rows):
            raise InvalidError(
                f"a fork may write whole chunks of {self.chunk_rows} rows of {name!r}, not "
                f"{start}:{stop}"
            )


@dataclass(frozen=True)
class SessionChunks:
    """Chunks read through their session, which always works.

    Parameters
    ----------
    session : the session.
    name : array of numbers.
    mapped : its memory, if the session has it.
    """

    session: ReadSession
    name: str
    mapped: NDArray[Any] | None = None

    @property
    def how(self) -> str:
        """Where chunks are read from."""
        return "by the backend's own library"

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Decode a chunk; see :class:`Chunks`."""
        meta = self.session.meta(self.name)
        start = number * meta.chunk_rows
        stop = min(start + meta.chunk_rows, meta.n_rows)
        out[: stop - start] = self.session.read(self.name, start, stop)


def check_short_end(meta: ArrayMeta, name: str, n_rows: int) -> None:
    """Raise :class:`ConflictError` if an array has grown since a fork wrote its short last chunk at ``n_rows``."""
    if meta.n_rows != n_rows:
        raise ConflictError(
            f"{name!r} has grown from {n_rows} to {meta.n_rows} rows since a fork wrote its last "
            "chunk; write those rows again"
        )


@dataclass(frozen=True)
class Commit:
    """One version: who it follows, when and why it was made.

    ``metadata`` holds JSON values; ``time`` is in UTC.
    """

    id: str
    parent: str | None
    message: str
    time: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; asked before work starts.

    ``parallel_writers`` tells whether forks may write at the same time in several processes;
    without it the driver writes every row itself.
    """

    branches: bool = True
    parallel_writers: bool = True


class Chunks(Protocol):
    """The chunks of one array of numbers, for a reader that plans by chunk. Safe to use from several threads.

    Nothing is checked here against the session's checksums: who reads decides when to
    (:mod:`kpstore.store.reader`).
    """

    @property
    def mapped(self) -> NDArray[Any] | None:
        """All rows as read-only memory that nobody has to read first.

        None where there is no such thing.
        """

    @property
    def how(self) -> str:
        """Where chunks are read from, in a few words, for people who measure."""

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Decode a chunk into ``out`` (chunk_rows, *row shape), in C order.

        Rows after the array's end are undefined.

        Raises
        ------
        CorruptError
            If the chunk cannot be read.
        """


def text_digest(values: NDArray[np.object_]) -> str:
    """Return a hash of all texts of an array, in their order."""
    return hashlib.blake2b("\0".join(values.tolist()).encode(), digest_size=16).hexdigest()


class ReadSession(Protocol):
    """All arrays at one version."""

    @property
    def snapshot(self) -> str:
        """Id of the version that this session shows (a write session: the version that it builds upon)."""

    def attrs(self) -> Mapping[str, Any]:
        """JSON attributes of the whole store."""

    def names(self) -> list[str]:
        """Names of all arrays, sorted."""

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array; :class:`NotFoundError` if there is none."""

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` as a new array.

        Every chunk that they lie in is checked.

        Raises
        ------
        CorruptError
            If a chunk cannot be read, or is not what was committed at its place; the message names
            rows, array and file.
        """

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return what each chunk's values add up to (:func:`kpstore.backends.checksums.checksum`), (chunks,).

        0 for a chunk that nobody wrote. None where the store keeps none (format 1), or nothing can
        be damaged.
        """

    def place(self, name: str, chunk: int) -> str:
        """Return where a chunk lies, for people: a file relative to the store, or a byte of the store's one file."""

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array of numbers.

        What it needs to know of the store is read now, not later.
        """

    def digest(self, name: str) -> str | None:
        """Return :func:`text_digest` of an array of text as it was committed.

        None for numbers, and where the backend checks text whenever it is read.
        """


class Fork(Protocol):
    """A writer for another process: picklable, before and after it has written."""

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write whole chunks; anything else is an :class:`InvalidError`."""

    def check(self) -> None:
        """Read every chunk that was written through this fork, from where this process sees the store.

        The driver asks it before it takes over what another process claims to have written, perhaps
        to another disk.

        Raises
        ------
        CorruptError
            If a chunk is not there, or holds other values than were written; the message names
            array and rows.
        """


class WriteSession(ReadSession, Protocol):
    """Changes that become one version. Reads see what was written through this session.

    After ``commit`` or ``discard`` the session is spent: a further change or commit is a
    :class:`ReadOnlyError`.
    """

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Replace the store's attributes."""

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Replace the attributes of one array."""

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Make an array of unwritten rows; :class:`ExistsError` if the name is taken."""

    def resize(self, name: str, n_rows: int) -> None:
        """Make an array longer by unwritten rows; :class:`InvalidError` for a smaller number."""

    def delete(self, name: str) -> None:
        """Remove an array from this version on."""

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write any run of rows."""

    def fork(self) -> Fork:
        """Return a writer for another process.

        Only while nothing was changed through this session.
        """

    def merge(self, forks: Sequence[Fork]) -> None:
        """Take over what forks of this session, or of a session on an earlier version of the branch, have written.

        Raises
        ------
        ConflictError
            If a fork wrote an array's short last chunk and the array has grown since: its next rows
            are in that chunk.
        """

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Make the changes the branch's next version and return its id; the session is then spent.

        Without changes there is no new version: the id of the one that the session builds upon
        comes back.

        Raises
        ------
        ConflictError
            If another writer has changed the same data since this session was opened. Changes to
            different data are both kept.
        """

    def discard(self) -> None:
        """Forget all changes; the session is then spent."""


class Backend(Protocol):
    """One store's place. Cheap to make (of a location alone), picklable, opened when first used.

    What is registered as a backend (``kpstore.backends``) makes one when it is called, and says
    which locations are its own by ``claims(location)``: a class with a classmethod of that name, or
    an object like those of :mod:`kpstore.backends.places`.
    """

    @property
    def location(self) -> str:
        """Path or address, as :func:`kpstore.open` takes it."""

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do."""

    @property
    def sidecar_dir(self) -> Path | None:
        """A local directory for locks and live progress, not part of any version.

        None where there is none.
        """

    def exists(self) -> bool:
        """Whether there is a store at this place; touches nothing."""

    def create(self, attrs: Mapping[str, Any], message: str) -> str:
        """Make an empty store with one version and return its id.

        :class:`ExistsError` if the place is taken.
        """

    def move(self, location: str) -> None:
        """Give the store, with all its versions, another place of the same kind, in one step.

        This object, and what was opened through it, is then spent.

        Raises
        ------
        ExistsError
            If the place is taken.
        """

    def remove(self) -> None:
        """Remove the store with all its versions; nothing happens if there is none."""

    def close(self) -> None:
        """Let go of open files. Views stay as they are.

        Whatever is asked of the backend later opens it again.
        """

    def session(self, snapshot: str) -> ReadSession:
        """Open a version by its id; :class:`NotFoundError` if there is none."""

    def begin(self, branch: str = MAIN) -> WriteSession:
        """Start changes on top of a branch's newest version.

        :class:`NotFoundError` if there is no such branch.
        """

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and all that it builds upon, newest first.

        :class:`NotFoundError` if there is none.

        The oldest has no parent.
        """

    def branches(self) -> dict[str, str]:
        """Return branches and the ids of their newest versions."""

    def tags(self) -> dict[str, str]:
        """Return tags and the ids that they name."""

    def create_branch(self, name: str, snapshot: str) -> None:
        """Make a branch that starts at a version; :class:`ExistsError` if the name is taken."""

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch; :class:`NotFoundError` if either is unknown.

        ``expected`` is what the caller takes for the newest one now: :class:`ConflictError` if it
        no longer is.
        """

    def create_tag(self, name: str, snapshot: str) -> None:
        """Name a version for good; :class:`ExistsError` if the name is, or ever was, taken."""

    def delete_tag(self, name: str) -> None:
        """Remove a tag; :class:`NotFoundError` if there is none."""

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with names and records of versions, one line each: what no chunk's checksum covers.

        All tags, branches and every version that they lead to are looked at, but no values.
        """

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the store for one long write.

        :class:`BusyError` names who holds it. Does not disturb readers.
        """
