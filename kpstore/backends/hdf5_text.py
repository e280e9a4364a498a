"""Text of HDF5 files, read by the file format itself.

HDF5 keeps text of variable length in *global heap collections*, which have no checksum. Its library
(2.0) never returns from one whose sizes are damaged, and allocates what a text's length claims. So
they are read here by the file format (HDF5 file format specification, III.E "Disk Format: Level
1E - Global Heap"), and every size is checked.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.hdf5_records import descriptor_of
from kpstore.budget import VARIABLE, MemoryBudget
from kpstore.errors import InvalidError

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""Where a data set of text has the text itself: a reference to each."""
TEXT_BYTES = 64
"""Memory of a text without its characters."""
_WIDEST = 4
"""Bytes that each character of a text takes in memory if a single one needs so many."""
_BLOCK_ROWS = 4096
"""Texts whose heaps are in memory together."""
_FEW = 16
"""Chunks to ask for one by one; for more of them, listing all is faster."""
_HEADER = struct.Struct("<4sB3xQ")
_OBJECT = struct.Struct("<HH4xQ")
_USUAL_BYTES = 4096

Allow = Callable[[int], object]
"""Called with the memory that texts will take; raises an error if that is too much."""


def is_text(array: h5py.Dataset) -> bool:
    """Return whether a data set holds text of variable length."""
    kind = h5py.check_string_dtype(array.dtype)
    return kind is not None and kind.length is None


def read_texts(
    array: h5py.Dataset, start: int, stop: int, allow: Allow | None = None
) -> NDArray[np.object_]:
    """Return rows of a data set of text as ``str``; rows that were never written are empty.

    Parameters
    ----------
    array : text of variable length with one axis, or a single one without.
    allow : asked before texts are made; by default they may take as much as any file's.

    Raises
    ------
    ValueError
        If the text is damaged; :class:`UnicodeDecodeError` is one too.
    InvalidError
        If it is stored in a way that only HDF5's library knows.
    """
    if array.file.mode != "r":
        array.file.flush()
    heaps = _Heaps(array.file)
    words = np.full(stop - start, "", dtype=object)
    for begin, found in _references(array, start, stop):
        end = min(stop, begin + len(found))
        for first in range(max(start, begin), end, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, end)
            wanted = found[first - begin : last - begin]
            n_bytes = _WIDEST * int(wanted["length"].sum(dtype=np.int64))
            n_bytes += len(wanted) * TEXT_BYTES
            (allow or heaps.allow)(n_bytes)
            words[first - start : last - start] = heaps.texts(wanted)
    return words


def no_texts(n_rows: int) -> bytes:
    """Return the stored bytes of a chunk of kpstore's own in which all texts are empty."""
    return zlib.compress(bytes(n_rows * _REFERENCE.itemsize))


# -- references ------------------------------------------------------------------------------------


def _references(
    array: h5py.Dataset, start: int, stop: int
) -> Iterator[tuple[int, NDArray[np.void]]]:
    """Yield the references of chunks, or of rows without chunks, behind the number of the first.

    Those that were never written are left out.
    """
    if array.chunks is None:
        content = _contiguous(
            array, start * _REFERENCE.itemsize, (stop - start) * _REFERENCE.itemsize
        )
        if content is not None:
            yield start, _whole(content, start, stop - start)
        return
    size, plist = array.chunks[0], array.id.get_create_plist()
    filters = [plist.get_filter(number) for number in range(plist.get_nfilters())]
    for begin, n_bytes in _written(array, start // size * size, stop):
        wanted = size * _REFERENCE.itemsize
        # Filters hardly lengthen what they cannot shorten.
        if n_bytes > wanted + wanted // 8 + 1024:
            raise ValueError(f"the chunk at row {begin} has {n_bytes} bytes, not {wanted}")
        yield begin, _whole(_unfiltered(array, begin, filters, wanted), begin, size)


def _whole(content: bytes, begin: int, n_rows: int) -> NDArray[np.void]:
    wanted = n_rows * _REFERENCE.itemsize
    if len(content) != wanted:
        raise ValueError(f"the chunk at row {begin} has {len(content)} bytes, not {wanted}")
    return np.frombuffer(content, _REFERENCE)


def _written(array: h5py.Dataset, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the first row and the stored bytes of the chunks with some rows, in order."""
    size, found = array.chunks[0], {}

    def look(info: h5py.h5d.StoreInfo) -> None:
        if info.byte_offset is not None and start <= info.chunk_offset[0] < stop:
            found[info.chunk_offset[0]] = info.size

    if stop - start <= _FEW * size:
        for begin in range(start, stop, size):
            look(array.id.get_chunk_info_by_coord((begin,)))
    else:  # HDF5 goes through all chunks to tell of one
        array.id.chunk_iter(look)
    return sorted(found.items())


def _contiguous(array: h5py.Dataset, start: int, n_bytes: int) -> bytes | None:
    if array.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise _unknown(array, "in a way that kpstore does not read", "-l CONTI")
    at = array.id.get_offset()
    if at is None or not array.id.get_storage_size():
        return None
    return os.pread(descriptor_of(array.file), n_bytes, at + start)


def _unfiltered(
    array: h5py.Dataset, begin: int, filters: Sequence[tuple[Any, ...]], wanted: int
) -> bytes:
    skipped, content = array.id.read_direct_chunk((begin,))
    for number, (code, _, _, name) in reversed(list(enumerate(filters))):
        undo = _UNDO.get(code)
        if undo is None:
            raise _unknown(array, f"with the filter {name.decode(errors='replace')!r}", "-f NONE")
        if not skipped & 1 << number:
            content = undo(content, wanted)
    return bytes(content)


def _unknown(array: h5py.Dataset, how: str, option: str) -> InvalidError:
    return InvalidError(
        f"{array.file.filename}: the text of {array.name[1:]!r} is stored {how}; write it anew, "
        f"such as by: h5repack {option}"
    )


def _inflate(content: bytes, wanted: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(content, wanted + 64)
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _unshuffle(content: bytes, wanted: int) -> bytes:
    if len(content) % _REFERENCE.itemsize:
        raise ValueError(f"a chunk has {len(content)} bytes, not {wanted}")
    return np.frombuffer(content, np.uint8).reshape(_REFERENCE.itemsize, -1).T.tobytes()


def _unpack_lzf(content: bytes, wanted: int) -> bytes:
    """Undo h5py's LZF: runs of bytes as they are, and copies of what came before."""
    made, at = bytearray(), 0
    while at < len(content) and len(made) <= wanted:
        control = content[at]
        at += 1
        if control < 32:
            made += content[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += content[at]
            at += 1
        back = ((control & 31) << 8) + content[at] + 1
        at += 1
        if back > len(made):
            raise ValueError("a chunk repeats bytes before its first one")
        length += 2
        piece = made[-back : len(made) - back + length]  # shorter where it repeats itself
        made += (piece * (length // len(piece) + 1))[:length]
    return bytes(made)


def _without_checksum(content: bytes, wanted: int) -> bytes:
    return content[:-4]


_UNDO: Mapping[int, Callable[[bytes, int], bytes]] = {
    h5py.h5z.FILTER_SHUFFLE: _unshuffle,
    h5py.h5z.FILTER_DEFLATE: _inflate,
    h5py.h5z.FILTER_LZF: _unpack_lzf,
    h5py.h5z.FILTER_FLETCHER32: _without_checksum,
}


# -- heaps -----------------------------------------------------------------------------------------


class _Heaps:
    """Global heap collections of a file, each read once for some thousand texts."""

    def __init__(self, file: h5py.File) -> None:
        if file.id.get_create_plist().get_sizes()[0] != 8:
            raise InvalidError(
                f"{file.filename} was made with addresses of other than 8 bytes, and its text is "
                "not read; write it anew, such as by h5repack"
            )
        self._handle, self._base = descriptor_of(file), file.userblock_size
        self._size = self._left = os.fstat(self._handle).st_size
        self._most = self._allowed = MemoryBudget("", self._size).limit
        self._known: dict[int, dict[int, bytes]] = {}
        self._n_texts = 0

    def allow(self, n_bytes: int) -> None:
        """Count memory that texts take; :class:`ValueError` if that is more than a file may."""
        self._allowed -= n_bytes
        if self._allowed < 0:
            raise ValueError(
                f"its texts would take more than {self._most / 2**20:,.0f} MiB of memory; if you "
                f"trust the file, set {VARIABLE} to more"
            )

    def texts(self, references: NDArray[np.void]) -> NDArray[np.object_]:
        """Return the texts of some references."""
        self._n_texts += len(references)
        if self._n_texts > _BLOCK_ROWS:
            self._n_texts, self._left = len(references), self._size
            self._known.clear()
        words = np.full(len(references), "", dtype=object)
        # Chunks of a small store are nearly empty.
        (there,) = np.nonzero(references["length"])
        found: list[str] = []
        for length, address, index in references[there].tolist():
            text = self._heap(address).get(index, b"")
            if len(text) != length:
                raise ValueError(f"the text heap at byte {address} lacks a text")
            found.append(text.decode())
        words[there] = found
        return words

    def _heap(self, address: int) -> dict[int, bytes]:
        if address not in self._known:
            self._known[address] = self._read(address)
        return self._known[address]

    def _read(self, address: int) -> dict[int, bytes]:
        """Return the objects of a collection, by index."""
        damage = ValueError(f"the text heap at byte {address} is damaged")
        address += self._base
        if address + _HEADER.size > self._size:
            raise damage
        heap = os.pread(self._handle, _USUAL_BYTES, address)
        mark, version, size = _HEADER.unpack_from(heap)
        # Heaps that lie in each other would be read again and again.
        if mark != b"GCOL" or version != 1 or size > min(self._size - address, self._left):
            raise damage
        self._left -= size
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
