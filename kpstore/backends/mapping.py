"""Files that follow each other in memory: an array whose chunks are raw files, seen as one piece without reading it."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIECES = 30_000
"""Linux allows a process 65,530 mappings by default; half of them are left for everything else."""

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


def map_pieces(
    paths: Sequence[Path | None], piece: tuple[int, ...], dtype: np.dtype[Any], fill: float | int | bool
) -> NDArray[Any] | None:
    """Return files of raw values, mapped one behind the other, as one read-only array.

    Nothing is read or copied: the operating system brings in the pages that are touched, and all processes share them.
    A file that is deleted meanwhile stays readable until the array is gone.

    Parameters
    ----------
    paths : one file for each piece along the first axis; None for a piece that was never written.
    piece : shape of what each file holds, rows first.
    fill : what pieces that were never written read as.

    Returns
    -------
    (len(paths) * piece[0], *piece[1:]) array or None
        None where it cannot be done: another system than Linux, pieces that are not whole pages, too many of them, a
        file of another size.
    """
    piece_bytes = int(np.prod(piece)) * dtype.itemsize
    if not sys.platform.startswith("linux") or not paths or len(paths) > MAX_PIECES:
        return None
    if piece_bytes == 0 or piece_bytes % mmap.PAGESIZE:
        return None
    memory = _Memory(len(paths) * piece_bytes)
    fill_bytes = np.full(piece, fill, dtype=dtype).tobytes() if None in paths else b""
    fill_file = _memory_file(fill_bytes) if any(fill_bytes) else None
    try:
        for number, path in enumerate(paths):
            if path is None:
                if fill_file is not None:
                    memory.place(fill_file, number * piece_bytes, piece_bytes)
            elif not _place_file(memory, path, number * piece_bytes, piece_bytes):
                return None
    except OSError:
        return None
    finally:
        if fill_file is not None:
            os.close(fill_file)
    array = np.frombuffer(memory.buffer(), dtype=dtype).reshape(len(paths) * piece[0], *piece[1:])
    array.flags.writeable = False
    return array


def _place_file(memory: _Memory, path: Path, offset: int, size: int) -> bool:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_size != size:
            return False
        memory.place(file, offset, size)
        return True
    finally:
        os.close(file)


def _memory_file(content: bytes) -> int:
    file = os.memfd_create("kpstore-fill", os.MFD_CLOEXEC)
    os.write(file, content)
    return file


class _Memory:
    """A run of addresses, all zeros until files are placed in it; given back with the last array on it."""

    def __init__(self, size: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._address = self._map(None, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        self._buffer = (ctypes.c_char * size).from_address(self._address)
        # Not at exit: other threads may still be reading then, and the process gives everything back anyway.
        weakref.finalize(self._buffer, self._libc.munmap, self._address, size).atexit = False

    def _map(self, address: int | None, size: int, flags: int, file: int) -> int:
        mapped = self._libc.mmap(address, size, mmap.PROT_READ, flags, file, 0)
        if mapped in (None, _FAILED):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(mapped)

    def place(self, file: int, offset: int, size: int) -> None:
        self._map(self._address + offset, size, mmap.MAP_SHARED | _MAP_FIXED, file)

    def buffer(self) -> Any:
        return self._buffer
