"""When a chunk is checked: what a read meets is compared with what was committed before anything is made of it.

Backends know what each chunk adds up to by its place (:mod:`kpstore.backends.checksums`). Here is
the decision when to look: ``"first"`` looks at each chunk when this process first maps or decodes
it, ``"always"`` each time that happens (of mapped chunks: before every read), ``"never"`` does not
look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, Chunks, ReadSession, SessionChunks
from kpstore.backends.checksums import matches
from kpstore.errors import CorruptError, InvalidError, UnsupportedError
from kpstore.store.arena import for_each
from kpstore.store.damage import damaged, reason_of

Check = Literal["first", "always", "never"]


def check_policy(check: str) -> None:
    """Raise :class:`InvalidError` unless ``check`` is one of the three."""
    if check not in get_args(Check):
        raise InvalidError(f"check={check!r}: use 'first', 'always' or 'never'")


class UncheckedChunks:
    """Which chunks of one array were looked at.

    Nothing is locked, as a lock would have to survive forks: two threads that meet at one chunk may
    both look at it.

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
        """Whether no chunk has to be looked at any more."""
        return self._unseen is None

    def to_check(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of these chunks have to be looked at, each once."""
        unseen = self._unseen
        wanted = numbers[:0] if unseen is None else numbers[unseen[numbers]]
        if unseen is None or len(wanted) < 2:
            return wanted
        # numpy.unique would do, but the first call of it takes 15 ms: it loads numpy.ma.
        each = np.zeros(len(unseen), dtype=bool)
        each[wanted] = True
        return np.flatnonzero(each)

    def is_due(self, number: int) -> bool:
        """Whether one chunk has to be looked at."""
        unseen = self._unseen
        return unseen is not None and bool(unseen[number])

    def seen(self, number: int) -> None:
        """Note that a chunk was looked at and is sound."""
        unseen = self._unseen
        if unseen is None or self.always:
            return
        unseen[number] = False
        if not unseen.any():
            self._unseen = None


class CheckedMemory:
    """All rows of an array in memory that nobody has read yet: mapped from the store, or from a decoded copy.

    Parameters
    ----------
    values : (rows, *row shape), read-only.
    look : told a chunk's number; raises :class:`CorruptError` if the chunk in memory is damaged.
    """

    def __init__(
        self, values: NDArray[Any], meta: ArrayMeta, check: Check, look: Callable[[int], None]
    ) -> None:
        self.values, self._chunk_rows, self._look = values, meta.chunk_rows, look
        self._unchecked = UncheckedChunks(check, n_chunks(meta))

    def check_rows(self, rows: NDArray[np.int64]) -> None:
        """Look at the chunks that hold some rows, if need be."""
        if not self._unchecked.done:
            self._check(rows // self._chunk_rows)

    def check_slice(self, start: int, stop: int) -> None:
        """Look at the chunks that hold a run of rows, if need be."""
        if not self._unchecked.done and stop > start:
            self._check(np.arange(start // self._chunk_rows, -(-stop // self._chunk_rows)))

    def _check(self, numbers: NDArray[np.int64]) -> None:
        wanted = self._unchecked.to_check(numbers)
        if len(wanted):
            for_each(self._look_if_due, wanted.tolist())

    def _look_if_due(self, number: int) -> None:
        """Look at a chunk, unless another thread has done so since: at first all threads want nearly all chunks."""
        if self._unchecked.is_due(number):
            self._look(number)
            self._unchecked.seen(number)


class CheckedChunks:
    """The chunks of one array, of which none that is damaged comes out.

    See :class:`kpstore.backends.base.Chunks`.

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
        # What comes through the session was checked there, and what it has in memory cannot be
        # damaged.
        self._trusted = check == "never" or isinstance(self._chunks, SessionChunks)
        self.checksums = None if check == "never" else session.checksums(name)
        self._unchecked = UncheckedChunks("never" if self._trusted else check, n_chunks(self.meta))
        self.how, self.is_mapped = self._chunks.how, self._chunks.mapped is not None

    @property
    def mapped(self) -> NDArray[Any] | None:
        """The memory that the session has, which nobody has looked at yet."""
        return self._chunks.mapped

    def strictly(self) -> CheckedChunks:
        """Return the same chunks, each looked at whenever it is decoded: for what is written down of them."""
        return CheckedChunks(self._session, self.name, "always", location=self._location)

    def memory(self) -> CheckedMemory | None:
        """Return the session's memory, if it has some; it is looked at before it is read."""
        mapped = self.mapped
        check: Check = "never" if self._trusted else self._check
        return (
            None
            if mapped is None
            else CheckedMemory(mapped, self.meta, check, self._look_at_mapped)
        )

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Decode a chunk and look at it, if need be."""
        try:
            if not self._unchecked.is_due(number):
                self._chunks.read_into(number, out)
                return
            if self.checksums is None:
                self._read_through_session(number, out)
            else:
                self._chunks.read_into(number, out)
                self._compare(number, out[: self._n_rows(number)])
        except CorruptError as error:
            raise damaged(
                self._session, self._location, self.name, number, reason_of(error)
            ) from error
        self._unchecked.seen(number)

    def _n_rows(self, number: int) -> int:
        return min(self.meta.chunk_rows, self.meta.n_rows - number * self.meta.chunk_rows)

    def _compare(self, number: int, values: NDArray[Any]) -> None:
        assert self.checksums is not None
        if not matches(self.meta, values, int(self.checksums[number])):
            raise CorruptError("it holds other values than were committed")

    def _read_through_session(self, number: int, out: NDArray[Any] | None = None) -> None:
        """Have the backend's own library read a chunk, which checks what the chunk says of itself: format 1's all."""
        start = number * self.meta.chunk_rows
        try:
            values = self._session.read(self.name, start, start + self._n_rows(number))
        except UnsupportedError:
            # In a forked process Icechunk's library is out of reach: there format 1 is read as it
            # always was.
            if out is not None:
                self._chunks.read_into(number, out)
            return
        if out is not None:
            out[: len(values)] = values

    def _look_at_mapped(self, number: int) -> None:
        mapped = self.mapped
        assert mapped is not None
        start = number * self.meta.chunk_rows
        try:
            if self.checksums is None:
                self._read_through_session(number)
            else:
                self._compare(number, mapped[start : start + self.meta.chunk_rows])
        except CorruptError as error:
            raise damaged(
                self._session, self._location, self.name, number, reason_of(error)
            ) from error


def n_chunks(meta: ArrayMeta) -> int:
    """Return how many chunks an array has."""
    return -(-meta.n_rows // meta.chunk_rows)
