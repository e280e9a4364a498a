"""When a chunk is checked: values that are read are compared with those that were committed.

Backends know a checksum of each chunk by its place (:mod:`kpstore.backends.checksums`). The policy
says when it is compared: ``"first"`` when this process first maps or decodes the chunk,
``"always"`` each time it is read from its file, ``"never"`` not at all.

With ``"always"`` the files of chunks are read and not mapped: if somebody cuts a mapped file short,
the system ends whoever looks at what is gone (SIGBUS), which no process of Python can turn into an
error (docs/reliability.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, ReadSession
from kpstore.backends.checksums import matches
from kpstore.backends.chunks import Chunks, Strips
from kpstore.backends.scratch import Scratch
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError, InvalidError, UnsupportedError
from kpstore.schema.index import distinct
from kpstore.store.arena import for_each
from kpstore.store.damage import damaged, reason_of

Check = Literal["first", "always", "never"]

_decoded = Scratch()


def check_policy(check: str) -> None:
    """Raise :class:`InvalidError` unless ``check`` is one of the three."""
    if check not in get_args(Check):
        raise InvalidError(f"check={check!r}: use 'first', 'always' or 'never'")


class UncheckedChunks:
    """Records which chunks of one array were checked.

    It is not locked, as a lock would have to survive forks: two threads may check the same chunk.

    Parameters
    ----------
    check : the policy.
    n_chunks : of the array.
    """

    def __init__(self, check: Check, n_chunks: int) -> None:
        self.always = check == "always"
        self._unseen = None if check == "never" else np.ones(n_chunks, dtype=bool)

    @property
    def done(self) -> bool:
        """Whether no chunk has to be checked any more."""
        return self._unseen is None

    def to_check(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of these chunks have to be checked, each once."""
        unseen = self._unseen
        return numbers[:0] if unseen is None else distinct(numbers[unseen[numbers]])

    def is_due(self, number: int) -> bool:
        """Whether one chunk has to be checked."""
        unseen = self._unseen
        return unseen is not None and bool(unseen[number])

    def seen(self, number: int) -> None:
        """Record that a chunk was checked and is sound."""
        unseen = self._unseen
        if unseen is not None and not self.always:
            unseen[number] = False
            if not unseen.any():
                self._unseen = None


class CheckedMemory:
    """All rows of an array in memory, mapped from the store or a decoded copy, checked when read.

    Parameters
    ----------
    values : (rows, *row shape), read-only.
    check : when to look.
    look : called with a chunk's number before its rows are read; may map them, and raises
        :class:`CorruptError` if they are damaged.
    ask : called before with the numbers of all those chunks.
    """

    def __init__(
        self,
        values: NDArray[Any],
        meta: ArrayMeta,
        check: Check,
        look: Callable[[int], None],
        ask: Callable[[NDArray[np.int64]], None] = lambda numbers: None,
    ) -> None:
        self.values, self._meta, self._look, self._ask = values, meta, look, ask
        self._unchecked = UncheckedChunks(check, meta.n_chunks)

    def check_rows(self, rows: NDArray[np.int64]) -> None:
        """Check the chunks that hold some rows, if they have to be."""
        if not self._unchecked.done:
            self._check(rows // self._meta.chunk_rows)

    def check_slice(self, start: int, stop: int) -> None:
        """Check the chunks that hold a run of rows, if they have to be."""
        if not self._unchecked.done and stop > start:
            self._check(np.array(self._meta.chunks_of(start, stop), dtype=np.int64))

    def _check(self, numbers: NDArray[np.int64]) -> None:
        wanted = self._unchecked.to_check(numbers)
        if len(wanted):
            self._ask(wanted)
            for_each(self._look_if_due, wanted.tolist())

    def ask(self, numbers: NDArray[np.int64]) -> None:
        """Begin to bring chunks that will be read soon, unless they are there."""
        if not self._unchecked.done:
            self._ask(self._unchecked.to_check(numbers))

    def _look_if_due(self, number: int) -> None:
        # Another thread may have checked it since: at first all threads want nearly all chunks.
        if self._unchecked.is_due(number):
            self._look(number)
            self._unchecked.seen(number)


class CheckedChunks:
    """The chunks of one array, checked; see :class:`kpstore.backends.chunks.Chunks`.

    Parameters
    ----------
    session : the version.
    location : of its store, for messages.
    """

    def __init__(
        self, session: ReadSession, name: str, check: Check, *, location: str = ""
    ) -> None:
        self._session, self.name, self._check, self._location = session, name, check, location
        self.meta = session.meta(name)
        self._chunks: Chunks = session.chunks(name)
        # Chunks read through the session were checked there, and its memory cannot be damaged.
        self._trusted = check == "never" or isinstance(self._chunks, SessionChunks)
        self.checksums = None if check == "never" else session.checksums(name)
        self._unchecked = UncheckedChunks("never" if self._trusted else check, self.meta.n_chunks)
        self.how, self.is_mapped = self._chunks.how, self._chunks.mapped is not None
        self.are_far = self._chunks.are_far

    def ask(self, numbers: NDArray[np.int64]) -> None:
        """Begin to bring chunks; see :meth:`kpstore.backends.chunks.Chunks.ask`."""
        self._chunks.ask(numbers)

    @property
    def mapped(self) -> NDArray[Any] | None:
        """The session's memory, not checked; None if it has none."""
        return self._chunks.mapped

    def drop_copy(self, number: int) -> bool:
        """Remove a damaged copy; see :meth:`kpstore.backends.chunks.Chunks.drop_copy`."""
        return self._chunks.drop_copy(number)

    def strictly(self) -> CheckedChunks:
        """Return the same chunks, each checked whenever it is decoded, for copies of them."""
        return CheckedChunks(self._session, self.name, "always", location=self._location)

    def memory(self) -> CheckedMemory | None:
        """Return the session's memory, checked when it is read; None if chunks are to be read."""
        if self.mapped is None or self._check == "always":
            return None
        there = isinstance(self._chunks, SessionChunks)
        check: Check = "never" if there else "first"
        return CheckedMemory(self.mapped, self.meta, check, self.bring, self.ask)

    @property
    def strips(self) -> CheckedStrips | None:
        """Parts of chunks that were checked; None if chunks are checked each time, as a whole."""
        found = self._chunks.strips
        return None if found is None or self._check == "always" else CheckedStrips(self, found)

    def read_strips(self, number: int, places: Mapping[int, NDArray[Any]], strips: Strips) -> None:
        """Decode strips of a chunk, or all of it, if it has to be checked."""
        if not self._unchecked.is_due(number):
            try:
                strips.read_into(number, places)
            except CorruptError as error:
                raise self._named(number, error) from error
            return
        like = next(iter(places.values()))
        memory = _decoded.bytes(self.meta.chunk_rows * self.meta.row_bytes)
        whole = np.frombuffer(memory, dtype=like.dtype).reshape(-1, *like.shape[1:])
        self.read_into(number, whole)
        for start, out in places.items():
            out[...] = whole[start : start + len(out)]

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Decode a chunk, and check it if it has to be."""
        self._sound(number, lambda: self._read(number, out))
        self._unchecked.seen(number)

    def _read(self, number: int, out: NDArray[Any]) -> None:
        if not self._unchecked.is_due(number):
            self._chunks.read_into(number, out)
        elif self.checksums is None:
            self._read_through_session(number, out)
        else:
            self._chunks.read_into(number, out)
            start, stop = self.meta.rows_of(number)
            self._compare(number, out[: stop - start])

    def bring(self, number: int) -> None:
        """Map a chunk, and check it if chunks are to be checked."""
        mapped = self.mapped
        assert mapped is not None
        self._sound(number, lambda: self._bring(number, mapped))

    def _bring(self, number: int, mapped: NDArray[Any]) -> None:
        self._chunks.bring(number)
        if self._trusted:
            return
        if self.checksums is None:
            self._read_through_session(number)
        else:
            self._compare(number, mapped[slice(*self.meta.rows_of(number))])

    def _sound(self, number: int, read: Callable[[], None]) -> None:
        """Read a chunk, once more if a copy of it was damaged."""
        try:
            try:
                read()
            except CorruptError:
                if not self.drop_copy(number):
                    raise
                read()
        except CorruptError as error:
            raise self._named(number, error) from error

    def _named(self, number: int, error: CorruptError) -> CorruptError:
        """Return the error of a damaged chunk with array, rows, videos and file."""
        return damaged(self._session, self._location, self.name, number, reason_of(error))

    def _compare(self, number: int, values: NDArray[Any]) -> None:
        assert self.checksums is not None
        if not matches(self.meta, values, int(self.checksums[number])):
            raise CorruptError("it holds other values than were committed")

    def _read_through_session(self, number: int, out: NDArray[Any] | None = None) -> None:
        """Read a chunk of format 1 by the backend's own library, which checks what it can."""
        try:
            values = self._session.read(self.name, *self.meta.rows_of(number))
        except UnsupportedError:
            # In a forked process Icechunk's library cannot be used: format 1 is not checked there.
            if out is not None:
                self._chunks.read_into(number, out)
            return
        if out is not None:
            out[: len(values)] = values


class CheckedStrips:
    """Strips of an array's chunks; see :class:`kpstore.backends.chunks.Strips`.

    A chunk that has to be checked is decoded as a whole, once.

    Parameters
    ----------
    chunks : the same chunks, which are checked.
    strips : their strips, which are not.
    """

    def __init__(self, chunks: CheckedChunks, strips: Strips) -> None:
        self.rows, self._chunks, self._strips = strips.rows, chunks, strips

    def read_into(self, number: int, places: Mapping[int, NDArray[Any]]) -> None:
        """Decode some strips."""
        self._chunks.read_strips(number, places, self._strips)
