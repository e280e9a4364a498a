"""The contract of chunks: what a reader that plans by chunk needs of one array of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Strips(Protocol):
    """Parts of the chunks of one array, each of which is decoded without the rest of its chunk."""

    @property
    def rows(self) -> int:
        """Number of rows in a strip; the rows of a chunk are a multiple."""

    def read_into(self, number: int, places: Mapping[int, NDArray[np.generic]]) -> None:
        """Decode some strips of a chunk.

        Rows after the array's end are undefined.

        Parameters
        ----------
        number : of the chunk.
        places : where to, (rows, *row shape), in C order; by the first row of the strip, counted
            from the chunk's first.

        Raises
        ------
        CorruptError
            If the strips cannot be read.
        """


class Chunks(Protocol):
    """The chunks of one array of numbers, for a reader that plans by chunk.

    They may be used from several threads. Chunks are not compared with the session's checksums
    here: the reader decides when to do that (:mod:`kpstore.store.reader`).
    """

    @property
    def mapped(self) -> NDArray[np.generic] | None:
        """All rows as read-only memory; None where chunks have to be read one by one.

        A chunk's rows are there once :meth:`bring` was called for it; before, they may be anything.
        """

    @property
    def how(self) -> str:
        """How chunks are read, in a few words, for benchmarks."""

    @property
    def strips(self) -> Strips | None:
        """Parts of chunks that are decoded alone; None where only whole chunks are."""

    @property
    def are_far(self) -> bool:
        """Whether each takes long to come, so that many are to be asked for at once."""

    def ask(self, numbers: NDArray[np.int64]) -> None:
        """Begin to bring chunks that will be read soon, and return at once.

        Nothing happens unless :attr:`are_far`, and errors are those of the read that follows.

        Parameters
        ----------
        numbers : (chunks,) int64; those that were asked for already need not be left out.
        """

    def drop_copy(self, number: int) -> bool:
        """Remove the copy of a chunk that is far away, as it is not what was committed.

        Return whether there may have been one: the chunk itself may be sound.
        """

    def bring(self, number: int) -> None:
        """Make a chunk's rows those of :attr:`mapped`, for this process and later forks of it.

        Raises
        ------
        CorruptError
            If the chunk cannot be read.
        """

    def read_into(self, number: int, out: NDArray[np.generic]) -> None:
        """Decode a chunk into ``out`` (chunk_rows, *row shape), in C order.

        Rows after the array's end are undefined.

        Raises
        ------
        CorruptError
            If the chunk cannot be read.
        """


class NearChunks:
    """What chunks inherit that are on this machine."""

    are_far = False

    def ask(self, numbers: NDArray[np.int64]) -> None:
        """Do nothing."""

    def drop_copy(self, number: int) -> bool:
        """Return False: what is here is no copy."""
        return False
