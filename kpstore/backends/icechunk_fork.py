"""Writers of an Icechunk store for other processes, and the check of the chunks they wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from kpstore.backends.base import ArrayMeta
from kpstore.backends.checksums import matches
from kpstore.backends.icechunk_chunks import (
    BadChunkError,
    as_stored,
    meta_of,
    read_chunks,
    write_chunks,
)
from kpstore.backends.icechunk_codec import ChunkCodec, ZarrArray
from kpstore.backends.icechunk_errors import UNREADABLE, first_line, guard_fork, translated
from kpstore.backends.locks import SharedLock
from kpstore.errors import ConflictError, CorruptError, NotFoundError

_READ_BYTES, _READ_CHUNKS = 16 * 2**20, 32
"""Limits of what a check reads at once: each chunk takes a file handle and a thread."""


class IcechunkFork:
    """A forked session, which is pickled together with what was written through it.

    Parameters
    ----------
    hold : keeps garbage collection away while the fork is in the process that made it.
    """

    def __init__(self, session: icechunk.ForkSession, hold: SharedLock | None = None) -> None:
        self.session, self._hold = session, hold
        self.short_ends: dict[str, int] = {}
        """Number of rows, at that time, of each array whose short last chunk was written."""
        self.checksums: dict[str, dict[int, int]] = {}
        """Checksum of each chunk that was written, by array and number."""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_hold": None}

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Write whole chunks."""
        with translated("the store", f"rows of {name!r} were not written"):
            array = self._array(name, "r+")
            meta = meta_of(array)
            meta.check_values(name, start, values)
            meta.check_whole_chunks(name, start, len(values))
            if meta.has_short_chunk(start, len(values)):
                self.short_ends[name] = meta.n_rows
            written = write_chunks(array, meta, start, as_stored(name, meta, values))
        self.checksums.setdefault(name, {}).update(written)

    def check(self) -> None:
        """Read every chunk that was written, as this process sees the store."""
        for name, written in self.checksums.items():
            try:
                array = self._array(name, "r")
            except (NotFoundError, icechunk.IcechunkError) as error:
                raise CorruptError(
                    f"{name!r}, of which a worker says it wrote rows, cannot be read: "
                    f"{first_line(error)}"
                ) from error
            meta = meta_of(array)
            for bad in _bad_chunks(array, meta, written):
                start, stop = meta.rows_of(bad.chunk)
                what = f"cannot be read: {bad.reason}"
                raise CorruptError(
                    f"rows {start}:{stop} of {name!r}, which a worker says it wrote, "
                    f"{what if bad.reason else 'hold other values than were written'}"
                )

    def _array(self, name: str, mode: Literal["r", "r+"]) -> ZarrArray:
        guard_fork()
        try:
            return zarr.open_array(self.session.store, path=name, mode=mode)
        except FileNotFoundError:
            raise NotFoundError(
                f"array {name!r} not found: its store was moved, removed or replaced meanwhile"
            ) from None


def merged_sums(
    written: Mapping[str, Mapping[int, int]], forks: Sequence[IcechunkFork], location: str
) -> dict[str, dict[int, int]]:
    """Return the checksums of a session's chunks, ``written``, and of its forks'.

    A chunk that two of them have written is refused: Icechunk would keep either one, and its
    checksum might be the other's.
    """
    merged = {name: dict(sums) for name, sums in written.items()}
    for fork in forks:
        for name, sums in fork.checksums.items():
            known = merged.setdefault(name, {})
            twice = known.keys() & sums.keys()
            if twice:
                raise ConflictError(
                    f"chunk {min(twice)} of {name!r} in {location} was written by two forks, so "
                    "neither was merged; give each fork its own chunks"
                )
            known.update(sums)
    return merged


def _bad_chunks(
    array: ZarrArray, meta: ArrayMeta, sums: Mapping[int, int]
) -> Iterator[BadChunkError]:
    """Yield the chunks that are not as they were written."""
    numbers, codec = sorted(sums), ChunkCodec.of(array)
    if codec is None:
        for number in numbers:
            try:
                read_chunks(array, meta, range(number, number + 1), [sums[number]])
            except BadChunkError as bad:
                yield bad
        return
    n_together = max(1, min(_READ_CHUNKS, _READ_BYTES // max(1, meta.chunk_rows * meta.row_bytes)))
    for first in range(0, len(numbers), n_together):
        some = numbers[first : first + n_together]
        for number, encoded in zip(some, sync(_encoded(array, some)), strict=True):
            start, stop = meta.rows_of(number)
            try:
                if isinstance(encoded, BaseException):
                    raise encoded
                rows = codec.rows(encoded, stop - start)
            except UNREADABLE as error:
                yield BadChunkError(number, first_line(error))
            else:
                if not matches(meta, rows, sums[number]):
                    yield BadChunkError(number)


async def _encoded(array: ZarrArray, numbers: Sequence[int]) -> list[bytes | BaseException]:
    """Return the bytes of chunks, or why they cannot be read."""

    async def get(number: int) -> bytes:
        key = array.metadata.encode_chunk_key((number, *(0 for _ in array.shape[1:])))
        buffer = await array.store.get(f"{array.path}/{key}", default_buffer_prototype())
        if buffer is None:
            raise OSError("it does not exist")
        return bytes(buffer.to_bytes())

    return list(await asyncio.gather(*map(get, numbers), return_exceptions=True))
