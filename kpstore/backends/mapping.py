"""Files that are mapped into memory one after another, so that raw chunks become one array."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta

MAX_PIECES = 30_000
"""Limit of mappings for all arrays of this process; Linux allows 65,530 by default."""

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class FilePiece:
    """Raw values in a file.

    Parameters
    ----------
    file : path of a file that holds only these values, or the number of an open file.
    offset : offset of the values in an open file.
    n_more : for a path, number of bytes after the values, such as those of a checksum.
    """

    file: Path | int
    offset: int = 0
    n_more: int = 0


def map_chunks(pieces: Sequence[FilePiece | None], meta: ArrayMeta) -> NDArray[np.generic] | None:
    """Map the chunks of an array into memory one after another, as one read-only array.

    Nothing is read or copied: the operating system loads pages when they are used, and all
    processes share them. The array stays readable if a file is deleted.

    Parameters
    ----------
    pieces : place of each chunk; None for one that was never written.

    Returns
    -------
    array of ``meta.shape`` or None
        None where mapping is impossible: on other systems than Linux, for chunks that are not whole
        pages, for too many chunks, and for files of another size.
    """
    piece, dtype = (meta.chunk_rows, *meta.shape[1:]), np.dtype(meta.dtype)
    piece_bytes = int(np.prod(piece)) * dtype.itemsize
    if (
        not sys.platform.startswith("linux")
        or not pieces
        or len(pieces) > MAX_PIECES - _Memory.n_pieces
    ):
        return None
    if piece_bytes == 0 or piece_bytes % mmap.PAGESIZE:
        return None
    if any(found is not None and found.offset % mmap.PAGESIZE for found in pieces):
        return None
    memory = _Memory(len(pieces) * piece_bytes, len(pieces))
    fill_bytes = np.full(piece, meta.fill, dtype=dtype).tobytes() if None in pieces else b""
    fill_file = os.memfd_create("kpstore-fill", os.MFD_CLOEXEC) if any(fill_bytes) else None
    try:
        if fill_file is not None:
            os.write(fill_file, fill_bytes)
        for number, found in enumerate(pieces):
            if found is None:
                if fill_file is not None:
                    memory.place(fill_file, 0, number * piece_bytes, piece_bytes)
            elif not _place(memory, found, number * piece_bytes, piece_bytes):
                return None
    except OSError:
        return None
    finally:
        if fill_file is not None:
            os.close(fill_file)
    values: NDArray[np.generic] = np.frombuffer(memoryview(memory.buffer), dtype=dtype)
    array = values.reshape(len(pieces) * piece[0], *piece[1:])[: meta.n_rows]
    array.flags.writeable = False
    return array


def _place(memory: _Memory, piece: FilePiece, at: int, size: int) -> bool:
    if isinstance(piece.file, int):
        if os.fstat(piece.file).st_size < piece.offset + size:
            return False
        memory.place(piece.file, piece.offset, at, size)
        return True
    file = os.open(piece.file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_size != size + piece.n_more:
            return False
        memory.place(file, 0, at, size)
        return True
    finally:
        os.close(file)


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
