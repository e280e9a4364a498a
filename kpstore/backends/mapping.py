"""Files mapped into memory one after another: raw chunks become one array without reading."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIECES = 30_000
"""Most mappings for all arrays of this process; Linux allows a process 65,530 by default."""

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class FilePiece:
    """Raw values in a file.

    Parameters
    ----------
    file : path of a file that holds only these values, or the number of an open file.
    offset : where the values begin in an open file.
    n_more : for a path, number of bytes after the values, such as a checksum.
    """

    file: Path | int
    offset: int = 0
    n_more: int = 0


def map_pieces(
    pieces: Sequence[FilePiece | None],
    piece: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: float | int | bool,
) -> NDArray[Any] | None:
    """Map raw values in files one after another, as one read-only array.

    Nothing is read or copied: the operating system loads pages when they are used, and all
    processes share them. The array stays readable if a file is deleted.

    Parameters
    ----------
    pieces : pieces along the first axis; None for one that was never written.
    piece : shape of each piece, rows first.
    fill : value of pieces that were never written.

    Returns
    -------
    (len(pieces) * piece[0], *piece[1:]) array or None
        None where mapping is impossible: on other systems than Linux, for pieces that are not whole
        pages, for too many pieces, and for files of another size.
    """
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
    fill_bytes = np.full(piece, fill, dtype=dtype).tobytes() if None in pieces else b""
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
    array = np.frombuffer(memory.buffer(), dtype=dtype).reshape(len(pieces) * piece[0], *piece[1:])
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


def _give_back(libc: Any, address: int, size: int, n_pieces: int) -> None:
    libc.munmap(address, size)
    _Memory.n_pieces -= n_pieces


class _Memory:
    """A range of addresses, zero until files are placed in it; freed with its last array."""

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
        self._buffer = (ctypes.c_char * size).from_address(self._address)
        # Not at exit, when other threads may still be reading and everything is freed anyway.
        weakref.finalize(
            self._buffer, _give_back, self._libc, self._address, size, n_pieces
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

    def buffer(self) -> Any:
        return self._buffer
