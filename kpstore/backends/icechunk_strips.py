"""Parts of chunks which are read, and decoded if they are compressed, without the rest.

Blosc divides what it compresses into blocks, and says where each begins. Behind a header of its
own, each is again something that Blosc decodes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.icechunk_codec import BLOSC_HEADER
from kpstore.backends.icechunk_manifests import ChunkPlace, RowPlaces
from kpstore.backends.open_files import FilePath, OpenFiles
from kpstore.backends.scratch import Scratch
from kpstore.errors import CorruptError

_LEAST_BYTES = 2**16
"""Blosc makes no smaller blocks of shuffled numbers."""
_LEAST_READ_BYTES = 2**13
"""To read less takes no less time."""
_MOST_STRIPS = 2**22
"""Readers remember where each is; a store that comes from anyone may claim any number of rows."""
_ONE_BLOCK = struct.Struct("<4s4I")
"""The header of a single block, and where that begins."""
_STORED = 0x02
"""The flag of values that are not compressed: they follow the header as they are."""

NOT_READ = (OSError, RuntimeError, ValueError)
"""Errors of chunks that cannot be read or decoded."""

encoded = Scratch()
"""Where bytes of chunks are read to, to be decoded at once."""


def rows_per_strip(meta: ArrayMeta) -> int:
    """Return how many rows a block of new chunks gets: few, and a part of the chunk without rest.

    Smaller blocks would make a frame at random cheaper, and whole chunks slower and larger.
    """
    rows = 1
    while rows < meta.chunk_rows and rows * meta.row_bytes < _LEAST_BYTES:
        rows *= 2
    return rows if meta.chunk_rows % rows == 0 else meta.chunk_rows


def blocksize(meta: ArrayMeta) -> int:
    """Return Blosc's setting for such blocks: of shuffled numbers, it is a number of them."""
    return rows_per_strip(meta) * int(np.prod(meta.shape[1:], dtype=object))


class _Cut(NamedTuple):
    """How a chunk is divided.

    Parameters
    ----------
    file : path of its file.
    begin : the first bytes of the header, as Blosc wrote them.
    starts, stops : of each block, offset of its first byte, and after its last.
    """

    file: FilePath
    begin: bytes
    starts: list[int]
    stops: list[int]

    @property
    def is_stored(self) -> bool:
        """Whether values are not compressed."""
        return bool(self.begin[2] & _STORED)


class BloscStrips:
    """The blocks of an array's chunks; see :class:`kpstore.backends.chunks.Strips`.

    Parameters
    ----------
    places : place of each chunk.
    meta : shape and type of the array.
    rows : number of rows in a block.
    n_check : number of bytes of the check at the end of each chunk.
    read_whole : decodes a chunk.
    unreadable : returns the error of a chunk that cannot be read, from one of :data:`NOT_READ`.
    """

    def __init__(
        self,
        places: RowPlaces,
        meta: ArrayMeta,
        rows: int,
        n_check: int,
        *,
        read_whole: Callable[[int, NDArray[np.generic]], None],
        unreadable: Callable[[int, Exception], CorruptError],
    ) -> None:
        self.rows = rows
        self._places, self._meta, self._n_check = places, meta, n_check
        self._read_whole, self._unreadable = read_whole, unreadable
        self._strip_bytes = rows * meta.row_bytes
        self._cuts: dict[int, _Cut | None] = {}
        self._files = OpenFiles()

    def read_into(self, number: int, places: Mapping[int, NDArray[np.generic]]) -> None:
        """Decode some blocks; see :class:`kpstore.backends.chunks.Strips`."""
        try:
            if number not in self._cuts:
                place = self._places[number]
                if place is None:
                    for out in places.values():
                        out[...] = self._meta.fill
                    return
                self._cuts[number] = self._read_cut(place)
            cut = self._cuts[number]
            if cut is not None:
                file = self._files.at(cut.file)
                for start, out in places.items():
                    self._read_block(file.number, cut, start // self.rows, out)
        except NOT_READ as error:
            if (known := self._cuts.get(number)) is not None:
                self._files.drop(known.file)
            raise self._unreadable(number, error) from error
        if cut is None:
            like = next(iter(places.values()))
            whole = np.empty((self._meta.chunk_rows, *like.shape[1:]), dtype=like.dtype)
            self._read_whole(number, whole)
            for start, out in places.items():
                out[...] = whole[start : start + len(out)]

    def _read_cut(self, place: ChunkPlace) -> _Cut | None:
        """Return how a chunk is divided; None if otherwise than into blocks of ``rows``.

        All offsets are checked, because they come from a file that may be damaged.
        """
        if place.inline is not None or place.offset:
            return None
        n_strips, stop = self._meta.chunk_rows // self.rows, place.length - self._n_check
        file = self._files.at(place.file)
        content = os.pread(file.number, BLOSC_HEADER.size + 4 * n_strips, 0)
        if len(content) < BLOSC_HEADER.size:
            return None
        begin, *sizes = BLOSC_HEADER.unpack_from(content)
        if sizes != [n_strips * self._strip_bytes, self._strip_bytes, stop]:
            return None
        if begin[2] & _STORED:
            ends = [BLOSC_HEADER.size + block * self._strip_bytes for block in range(n_strips + 1)]
            return _Cut(place.file, begin, ends[:-1], ends[1:])
        starts = np.frombuffer(content, "<i4", offset=BLOSC_HEADER.size).tolist()
        if len(starts) != n_strips or min(starts) < len(content) or max(starts) >= stop:
            return None
        # Several threads may have compressed them, so they are in any order.
        stop_of = dict(pairwise([*sorted(starts), stop]))
        return _Cut(place.file, begin, starts, [stop_of[start] for start in starts])

    def _read_block(self, file: int, cut: _Cut, block: int, out: NDArray[np.generic]) -> None:
        start, stop = cut.starts[block], cut.stops[block]
        if cut.is_stored:
            _fill(out.reshape(-1).view(np.uint8).data, file, start)
            return
        # One by one: together, blocks would be spread over Blosc's own threads, which wait for one
        # another longer than so little work takes.
        n_before, n_bytes = _ONE_BLOCK.size, self._strip_bytes
        memory = encoded.bytes(n_before + stop - start)
        _ONE_BLOCK.pack_into(memory, 0, cut.begin, n_bytes, n_bytes, len(memory), n_before)
        _fill(memory[n_before:], file, start)
        numcodecs.blosc.decompress(memory, out)


class RawStrips:
    """Some rows of chunks that are not compressed; see :class:`kpstore.backends.chunks.Strips`.

    For arrays that are not mapped into memory.

    Parameters
    ----------
    places : place of each chunk, all of them in files.
    meta : shape and type of the array.
    rows : number of rows in a strip.
    n_check : number of bytes of the check at the end of each chunk.
    unreadable : returns the error of a chunk that cannot be read, from one of :data:`NOT_READ`.
    """

    def __init__(
        self,
        places: RowPlaces,
        meta: ArrayMeta,
        rows: int,
        n_check: int,
        *,
        unreadable: Callable[[int, Exception], CorruptError],
    ) -> None:
        self.rows = rows
        self._places, self._meta, self._unreadable = places, meta, unreadable
        self._chunk_bytes = meta.chunk_rows * meta.row_bytes + n_check
        self._files = OpenFiles()

    def read_into(self, number: int, places: Mapping[int, NDArray[np.generic]]) -> None:
        """Read some strips; see :class:`kpstore.backends.chunks.Strips`."""
        place: ChunkPlace | None = None
        try:
            place = self._places[number]
            if place is None:
                for out in places.values():
                    out[...] = self._meta.fill
                return
            if place.length != self._chunk_bytes:
                raise ValueError(f"it has {place.length} bytes, not {self._chunk_bytes}")
            file = self._files.at(place.file)
            for start, out in places.items():
                at = place.offset + start * self._meta.row_bytes
                _fill(out.reshape(-1).view(np.uint8).data, file.number, at)
        except NOT_READ as error:
            if place is not None:
                self._files.drop(place.file)
            raise self._unreadable(number, error) from error


def rows_per_read(meta: ArrayMeta) -> int | None:
    """Return how many rows of uncompressed chunks are read together; None for whole chunks only."""
    rows = 1
    while rows < meta.chunk_rows and (
        rows * meta.row_bytes < _LEAST_READ_BYTES or meta.n_rows > rows * _MOST_STRIPS
    ):
        rows *= 2
    return rows if rows < meta.chunk_rows and meta.chunk_rows % rows == 0 else None


def _fill(memory: memoryview, file: int, at: int) -> None:
    """Fill memory from a file; :class:`ValueError` if the file ends before."""
    n_read = os.preadv(file, [memory], at)
    if n_read != len(memory):
        raise ValueError(f"{n_read} of {len(memory)} bytes at {at} could be read")


def rows_in_strips(places: RowPlaces, meta: ArrayMeta) -> int | None:
    """Return how many rows the blocks of an array's first chunk have.

    None if they are not whole rows, if there is one block, or if there would be too many.
    """
    if not places.written.any():
        return None
    try:
        place = places[int(np.argmax(places.written))]
        if place is None or place.inline is not None:
            return None
        with open(place.file, "rb", buffering=0) as file:
            _, _, block_bytes, _ = BLOSC_HEADER.unpack(file.read(BLOSC_HEADER.size))
    except (OSError, ValueError, struct.error):
        return None  # reading the chunk will say so
    rows, rest = divmod(block_bytes, max(1, meta.row_bytes))
    fits = not rest and 0 < rows < meta.chunk_rows and meta.chunk_rows % rows == 0
    return int(rows) if fits and meta.n_rows <= rows * _MOST_STRIPS else None
