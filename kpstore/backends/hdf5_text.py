"""Text of variable length, read without HDF5's library.

HDF5 keeps such text in *global heap collections*, which have no checksum, and its library (2.0)
never returns from one whose sizes are damaged. So they are read here by the file format (HDF5 file
format specification, III.E "Disk Format: Level 1E - Global Heap"), and every size is checked.
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
"""A chunk of text holds one reference for each text."""

_NOWHERE = 2**64 - 1
_FILTERS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]
_HEADER = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_USUAL_BYTES = 4096


def can_read(array: h5py.Dataset) -> bool:
    """Whether text is stored as kpstore writes it: shuffled and deflated."""
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    return filters == _FILTERS


def read_text(array: h5py.Dataset, start: int, stop: int) -> NDArray[np.object_]:
    """Return rows of a data set of text as ``str``; those never written are empty.

    Raises
    ------
    ValueError
        If the text is damaged; :class:`UnicodeDecodeError` is one too.
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
    """Return the stored bytes of a chunk in which all texts are empty."""
    return zlib.compress(bytes(n_rows * REFERENCE.itemsize))


def _references(array: h5py.Dataset, chunk: int) -> NDArray[Any] | None:
    """Return the decoded references of a chunk; None if it was never written."""
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
        """Return the texts of some references."""
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
        """Return the objects of a collection, by index."""
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
            # Free space has the index 0, and its length includes its own head.
            needed = head + (length + 7) // 8 * 8 if index else length
            if needed < head or at + needed > size or index in found:
                raise damage
            if index:
                found[index] = heap[at + head : at + head + length]
            at += needed
        return found
