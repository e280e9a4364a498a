"""A check that HDF5's library lacks: a loop in a list of free space makes it take all memory.

Groups of the older kinds keep their names in a *local heap*, whose free parts are a linked list
(HDF5 File Format Specification, III.D). The library (2.0) follows it without an end.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import h5py

from kpstore.errors import CorruptError

_SIGNATURE, _HEAP = b"\x89HDF\r\n\x1a\n", b"HEAP\0\0\0\0"
_LOOKED_AT_BYTES = 16 * 2**20
"""Of a file, from its beginning, where groups are; the rest is data, and may be very large."""
_END_OF_LIST = 1
_HEAD_BYTES = 16
"""Of a file, with the sizes of numbers in it."""


def open_checked(path: Path) -> h5py.File:
    """Open a file for reading, after :func:`check_heaps`."""
    check_heaps(path)
    return h5py.File(path, "r")


def check_heaps(path: Path) -> None:
    """Raise :class:`CorruptError` if a list of free space in a file leads back to itself."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return  # opening the file will say what is wrong
    with content:
        base = _base_of(content)
        if base < 0 or len(content) < base + _HEAD_BYTES:
            return
        version = content[base + 8]
        sizes = content[base + 13 : base + 15] if version < 2 else content[base + 9 : base + 11]
        offset_bytes, length_bytes = sizes
        at = content.find(_HEAP, base, _LOOKED_AT_BYTES)
        while at >= 0:
            if _leads_back(content, at + len(_HEAP), base, offset_bytes, length_bytes):
                raise CorruptError(
                    f"{path} is damaged: the free space of the heap at byte {at} leads back to "
                    "itself; copy the file again"
                )
            at = content.find(_HEAP, at + 1, _LOOKED_AT_BYTES)


def _base_of(content: mmap.mmap) -> int:
    """Return where HDF5 begins in a file: at 0, or behind a user's block; -1 if nowhere."""
    at = 0
    while at < len(content):
        if content[at : at + len(_SIGNATURE)] == _SIGNATURE:
            return at
        at = max(512, 2 * at)
    return -1


def _leads_back(
    content: mmap.mmap, at: int, base: int, offset_bytes: int, length_bytes: int
) -> bool:
    def number(place: int, size: int) -> int:
        return int.from_bytes(content[place : place + size], "little")

    n_bytes, free = number(at, length_bytes), number(at + length_bytes, length_bytes)
    data = base + number(at + 2 * length_bytes, offset_bytes)
    seen: set[int] = set()
    # Elsewhere the library itself looks: it refuses parts that lie outside.
    while free != _END_OF_LIST and free < n_bytes and data + free < len(content):
        if free in seen:
            return True
        seen.add(free)
        free = number(data + free, length_bytes)
    return False
