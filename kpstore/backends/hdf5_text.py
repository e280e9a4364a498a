"""Text of variable length, read past HDF5's library.

HDF5 keeps such text in *global heap collections*, which have no checksum, and its library (2.0)
does not come back from one whose sizes are damaged. So what is read here is what the file format
says of them, with every size compared with what there is (HDF5 file format specification, III.E
"Disk Format: Level 1E - Global Heap").
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What stands in a chunk for each text."""

_NOWHERE = 2**64 - 1
_FILTERS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]
_HEADER = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_USUAL_BYTES = 4096


def can_read(array: h5py.Dataset) -> bool:
    """Whether text lies as kpstore writes it: shuffled and deflated."""
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    return filters == _FILTERS


def read_text(array: h5py.Dataset, start: int, stop: int) -> NDArray[np.object_]:
    """Return rows of a data set of text as ``str``; what nobody wrote is empty.

    Raises
    ------
    ValueError
        If what the file says of the text is contradictory. Damage also shows as
        :class:`UnicodeDecodeError`.
    """
    if array.file.mode != "r":
        array.file.flush()
    heaps = _Heaps(int(np.asarray(array.file.id.get_vfd_handle()).item()))
    size = array.chunks[0]
    words = np.full(stop - start, "", dtype=object)
    for chunk in range(start // size, -(-stop // size) if stop > start else 0):
        first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
        references = _references(array, chunk)
        if references is not None:
            words[first - start : last - start] = heaps.texts(
                references[first - chunk * size : last - chunk * size]
            )
    return words


def no_texts(n_rows: int) -> bytes:
    """Return a chunk in which all texts are empty, as it is stored."""
    return zlib.compress(bytes(n_rows * REFERENCE.itemsize))


def _references(array: h5py.Dataset, chunk: int) -> NDArray[Any] | None:
    """Return where the texts of a chunk are, decoded as HDF5's filters do it.

    None if nobody wrote it.
    """
    corner = (chunk * array.chunks[0],)
    if array.id.get_chunk_info_by_coord(corner).byte_offset is None:
        return None
    skipped, stored = array.id.read_direct_chunk(corner)
    wanted = array.chunks[0] * REFERENCE.itemsize
    if not skipped & 2:
        try:
            stored = zlib.decompressobj().decompress(stored, wanted + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
    if len(stored) != wanted:
        raise ValueError(f"chunk {chunk} has {len(stored)} bytes, not {wanted}")
    if not skipped & 1:
        stored = np.frombuffer(stored, np.uint8).reshape(REFERENCE.itemsize, -1).T.tobytes()
    return np.frombuffer(stored, REFERENCE)


class _Heaps:
    """Global heap collections of a file, each read once."""

    def __init__(self, handle: int) -> None:
        self._handle, self._size = handle, os.fstat(handle).st_size
        self._known: dict[int, dict[int, bytes]] = {}

    def texts(self, references: NDArray[Any]) -> list[str]:
        """Return the texts that are referred to."""
        found: list[str] = []
        heap: dict[int, bytes] = {}
        at = _NOWHERE
        for length, address, index in references.tolist():
            if length == 0:
                found.append("")
                continue
            if address != at:  # texts that were written together lie together
                heap, at = self._heap(address), address
            text = heap.get(index, b"")
            if len(text) != length:
                raise ValueError(f"the text heap at byte {address} lacks a text")
            found.append(text.decode())
        return found

    def _heap(self, address: int) -> dict[int, bytes]:
        if address not in self._known:
            self._known[address] = self._read(address)
        return self._known[address]

    def _read(self, address: int) -> dict[int, bytes]:
        """Return what is in a collection, by index."""
        damage = ValueError(f"the text heap at byte {address} is damaged")
        if address + _HEADER.size > self._size:
            raise damage
        heap = os.pread(self._handle, _USUAL_BYTES, address)
        mark, version, size = _HEADER.unpack_from(heap)
        if mark != b"GCOL" or version != 1 or address + size > self._size:
            raise damage
        if size > len(heap):
            heap += os.pread(self._handle, size - len(heap), address + len(heap))
        found: dict[int, bytes] = {}
        at, unpack, head = _HEADER.size, _OBJECT.unpack_from, _OBJECT.size
        while size - at >= head:
            index, _, length = unpack(heap, at)
            # What is free has the index 0, and counts its own head.
            needed = head + (length + 7) // 8 * 8 if index else length
            if needed < head or at + needed > size or index in found:
                raise damage
            if index:
                found[index] = heap[at + head : at + head + length]
            at += needed
        return found
