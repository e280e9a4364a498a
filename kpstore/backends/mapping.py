"""Files that are mapped into memory one after another, so that raw chunks become one array."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta

MAX_PIECES = 30_000
"""Limit of mappings for all arrays of this process; Linux allows 65,530 by default."""

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


class FilePiece(NamedTuple):
    """Raw values in a file.

    Parameters
    ----------
    file : path of a file that holds only these values (or what leads to one, see
        :class:`os.PathLike`), or the number of an open file.
    offset : offset of the values in an open file.
    n_more : for a path, number of bytes after the values, such as those of a checksum.
    """

    file: str | os.PathLike[str] | int
    offset: int = 0
    n_more: int = 0


class MappedChunks:
    """An array whose raw chunks are mapped into memory one after another, as they are asked for.

    Nothing is read or copied: the operating system loads pages when they are used, and all
    processes share them. What was mapped stays readable if a file is deleted.

    Parameters
    ----------
    piece_of : returns the place of a chunk; None for one that was never written.

    Attributes
    ----------
    values : read-only array of ``meta.shape``; a chunk's rows are there after :meth:`bring`.
    """

    def __init__(self, piece_of: Callable[[int], FilePiece | None], meta: ArrayMeta) -> None:
        self._piece_of, self._meta = piece_of, meta
        self._bytes = meta.chunk_rows * meta.row_bytes
        self._memory = _Memory(meta.n_chunks * self._bytes, meta.n_chunks)
        values: NDArray[np.generic] = np.frombuffer(
            memoryview(self._memory.buffer), dtype=np.dtype(meta.dtype)
        )
        self.values = values.reshape(-1, *meta.shape[1:])[: meta.n_rows]
        self.values.flags.writeable = False
        self._is_there = np.zeros(meta.n_chunks, dtype=np.bool_)

    def bring(self, number: int) -> None:
        """Map a chunk, unless it is.

        Two threads may map it at once: the system then replaces one mapping by an equal one.

        Raises
        ------
        OSError, ValueError
            If its file cannot be opened, or has another size.
        """
        if not self._is_there[number]:
            piece = self._piece_of(number)
            if piece is None:
                self._fill(number)
            else:
                self._map(number, piece)
            self._is_there[number] = True

    def forget(self, number: int) -> None:
        """Let :meth:`bring` map a chunk anew."""
        self._is_there[number] = False

    def _map(self, number: int, piece: FilePiece) -> None:
        if isinstance(piece.file, int):
            self._place(number, piece.file, piece)
            return
        file = os.open(piece.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._place(number, file, piece)
        finally:
            os.close(file)

    def _place(self, number: int, file: int, piece: FilePiece) -> None:
        size, needed = os.fstat(file).st_size, piece.offset + self._bytes + piece.n_more
        if size < needed or (size > needed and not isinstance(piece.file, int)):
            raise ValueError(f"it has {size} bytes, {needed} were expected")
        self._memory.place(file, piece.offset, number * self._bytes, self._bytes)

    def _fill(self, number: int) -> None:
        """Put fill where no chunk was written; zeros are there already."""
        fill = self._meta.unwritten(self._meta.chunk_rows).tobytes()
        if any(fill):
            file = os.memfd_create("kpstore-fill", os.MFD_CLOEXEC)
            try:
                os.write(file, fill)
                self._memory.place(file, 0, number * self._bytes, self._bytes)
            finally:
                os.close(file)


def map_chunks(piece_of: Callable[[int], FilePiece | None], meta: ArrayMeta) -> MappedChunks | None:
    """Return the chunks of an array in memory, each mapped when it is asked for.

    Parameters
    ----------
    piece_of : as for :class:`MappedChunks`.

    Returns
    -------
    MappedChunks or None
        None where mapping is impossible: on other systems than Linux, for chunks that are not whole
        pages, and for too many chunks.
    """
    n_bytes = meta.chunk_rows * meta.row_bytes
    if (
        not sys.platform.startswith("linux")
        or not 0 < meta.n_chunks <= MAX_PIECES - _Memory.n_pieces
        or n_bytes == 0
        or n_bytes % mmap.PAGESIZE
    ):
        return None
    try:
        return MappedChunks(piece_of, meta)
    except OSError:
        return None


def _give_back(libc: ctypes.CDLL, address: int, size: int, n_pieces: int) -> None:
    libc.munmap(address, size)
    _Memory.n_pieces -= n_pieces


class _Memory:
    """A range of addresses, zero until files are mapped there, and freed with its last array."""

    n_pieces = 0
    """Number of pieces of all arrays of this process."""

    def __init__(self, size: int, n_pieces: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            *[ctypes.c_int] * 3,
            ctypes.c_long,
        ]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._address = self._map(None, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.buffer = (ctypes.c_char * size).from_address(self._address)
        # Not at exit, when other threads may still be reading and everything is freed anyway.
        weakref.finalize(
            self.buffer, _give_back, self._libc, self._address, size, n_pieces
        ).atexit = False
        _Memory.n_pieces += n_pieces

    def _map(self, address: int | None, size: int, flags: int, file: int, offset: int) -> int:
        mapped = self._libc.mmap(address, size, mmap.PROT_READ, flags, file, offset)
        if mapped in (None, _FAILED):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(mapped)

    def place(self, file: int, offset: int, at: int, size: int) -> None:
        self._map(self._address + at, size, mmap.MAP_SHARED | _MAP_FIXED, file, offset)
