"""Text of variable length in HDF5 files, read by the file format.

HDF5 keeps such text in *global heap collections*, which have no checksum. Its library (2.0) never
returns from one whose sizes are damaged, and allocates what a damaged length says. So text is read
here, and every size is compared with the file first (HDF5 file format specification, III.E "Disk
Format: Level 1E - Global Heap").
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.hdf5_records import descriptor_of

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What the rows of a data set of text hold."""
_HEADER = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_USUAL_BYTES = 4096
_CHECKSUM_BYTES = 4

CheckBytes = Callable[[int], None]
"""Called with the bytes that some texts take, before they are made; raises if they are too many."""


def read_texts(
    array: h5py.Dataset, start: int, stop: int, check: CheckBytes = lambda n_bytes: None
) -> NDArray[np.object_]:
    """Return rows of a data set of text as ``str``; rows that were never written are empty.

    Parameters
    ----------
    array : of one axis, or a single text (then rows 0 to 1).

    Raises
    ------
    ValueError, OSError
        If the text is damaged; :class:`UnicodeDecodeError` is a :class:`ValueError`.
    """
    words = np.full(stop - start, "", dtype=object)
    kind = h5py.check_string_dtype(array.dtype)
    if kind is not None and kind.length is not None:  # in the rows themselves
        check((stop - start) * kind.length)
        words[:] = array.asstr("utf-8")[start:stop] if array.shape else array.asstr("utf-8")[()]
        return words
    if array.file.mode != "r":
        array.file.flush()
    heaps = _Heaps(array.file)
    if array.chunks is not None:
        check(array.chunks[0] * _REFERENCE.itemsize)
    for first, references in _references(array, start, stop):
        check(int(references["length"].sum(dtype=np.int64)))
        words[first - start : first - start + len(references)] = heaps.texts(references)
    return words


def no_texts(array: h5py.Dataset) -> bytes:
    """Return the stored bytes of a chunk of kpstore's own in which all texts are empty."""
    return zlib.compress(bytes(array.chunks[0] * _REFERENCE.itemsize))


# -- references ------------------------------------------------------------------------------------


def _references(
    array: h5py.Dataset, start: int, stop: int
) -> Iterator[tuple[int, NDArray[np.void]]]:
    """Yield the references of the rows that were written, with the number of the first of them."""
    if stop <= start:
        return
    if array.chunks is not None:
        size = array.chunks[0]
        for chunk in range(start // size, -(-stop // size)):
            references = _chunk(array, chunk)
            first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
            if references is not None:
                yield first, references[first - chunk * size : last - chunk * size]
        return
    if array.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        raise ValueError(f"the texts of {array.name} lie in its header, which is not read")
    if array.id.get_storage_size():
        n_bytes = (stop - start) * _REFERENCE.itemsize
        at = array.id.get_offset() + start * _REFERENCE.itemsize
        stored = os.pread(descriptor_of(array.file), n_bytes, at)
        if len(stored) != n_bytes:
            raise ValueError(f"{array.name} lies beyond the end of the file")
        yield start, np.frombuffer(stored, _REFERENCE)


def _chunk(array: h5py.Dataset, chunk: int) -> NDArray[np.void] | None:
    """Return the decoded references of a chunk; None if it was never written."""
    corner = (chunk * array.chunks[0],)
    if array.id.get_chunk_info_by_coord(corner).byte_offset is None:
        return None
    skipped, stored = array.id.read_direct_chunk(corner)
    wanted = array.chunks[0] * _REFERENCE.itemsize
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if set(filters) <= _DECODERS.keys():
        for number in reversed(range(len(filters))):
            if not skipped >> number & 1:
                stored = _DECODERS[filters[number]](stored, wanted)
    else:
        stored = _decoded(plist, stored, skipped, array.chunks[0])
    if len(stored) != wanted:
        raise ValueError(f"chunk {chunk} has {len(stored)} bytes, not {wanted}")
    return np.frombuffer(stored, _REFERENCE)


def _inflated(stored: bytes, wanted: int) -> bytes:
    try:
        # A checksum may follow what is wanted.
        return zlib.decompressobj().decompress(stored, wanted + _CHECKSUM_BYTES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _unshuffled(stored: bytes, wanted: int) -> bytes:
    if len(stored) % _REFERENCE.itemsize:
        raise ValueError(f"{len(stored)} bytes are not whole references")
    return np.frombuffer(stored, np.uint8).reshape(_REFERENCE.itemsize, -1).T.tobytes()


def _without_checksum(stored: bytes, wanted: int) -> bytes:
    return stored[:-_CHECKSUM_BYTES]


_DECODERS: dict[int, Callable[[bytes, int], bytes]] = {
    h5py.h5z.FILTER_DEFLATE: _inflated,
    h5py.h5z.FILTER_SHUFFLE: _unshuffled,
    h5py.h5z.FILTER_FLETCHER32: _without_checksum,
}


def _decoded(plist: h5py.h5p.PropDCID, stored: bytes, skipped: int, n_rows: int) -> bytes:
    """Return a chunk of references as HDF5's filters decode it, which takes them for plain bytes.

    The chunk is put into a data set of a file in memory, with the same filters and another type.
    """
    same = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    same.set_chunk((n_rows,))
    for number in range(plist.get_nfilters()):
        code, flags, values, _ = plist.get_filter(number)
        if not skipped >> number & 1:
            same.set_filter(code, flags, values)
    plain = h5py.h5t.create(h5py.h5t.OPAQUE, _REFERENCE.itemsize)
    with h5py.File("references", "w", driver="core", backing_store=False) as scratch:
        made = h5py.h5d.create(scratch.id, b"x", plain, h5py.h5s.create_simple((n_rows,)), same)
        made.write_direct_chunk((0,), stored)
        decoded = np.empty(n_rows, np.dtype((np.void, _REFERENCE.itemsize)))
        made.read(h5py.h5s.ALL, h5py.h5s.ALL, decoded)
        return decoded.tobytes()


# -- heaps -----------------------------------------------------------------------------------------


class _Heaps:
    """Global heap collections of a file, each read once."""

    def __init__(self, file: h5py.File) -> None:
        plist = file.id.get_create_plist()
        if plist.get_sizes()[0] != 8:
            raise ValueError("its addresses do not have 8 bytes")
        self._base = plist.get_userblock()
        self._handle = descriptor_of(file)
        self._size = os.fstat(self._handle).st_size
        self._unread = self._size
        self._known: dict[int, dict[int, bytes]] = {}

    def texts(self, references: NDArray[np.void]) -> list[str]:
        """Return the texts of some references."""
        found: list[str] = []
        for length, address, index in references.tolist():
            text = self._heap(address).get(index, b"") if length else b""
            if len(text) != length:
                raise ValueError(f"the text heap at byte {address} lacks a text")
            found.append(text.decode())
        return found

    def _heap(self, address: int) -> dict[int, bytes]:
        if address not in self._known:
            self._known[address] = self._read(address + self._base)
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
        self._unread -= size
        if self._unread < 0:  # collections that overlap could add up to any size
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
