"""A check that HDF5's library lacks: a loop in a list of free space makes it take all memory.

Groups of the older kind, which h5py makes by default, keep their names in a *local heap*, whose
free parts are a linked list; the library (2.0) follows it without an end. Names of external files
lie in such heaps too. The library looks at an object's heaps when it opens that object, so they are
looked at here just before (HDF5 File Format Specification, version 3: II, III.A.1, III.D, IV.A.1,
IV.A.2.h and r).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py

from kpstore.errors import CorruptError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_BYTES = 2**25
"""Bytes of an object's header that are looked at."""
_END_OF_LIST = 1
_NOT_READ = (OSError, ValueError)
_SYMBOL_TABLE, _EXTERNAL_FILES, _CONTINUED = 0x11, 0x07, 0x10
_LOOKED_AT = frozenset((_SYMBOL_TABLE, _EXTERNAL_FILES, _CONTINUED))
_NEWER, _OLDER = struct.Struct("<BH"), struct.Struct("<HH")
"""What a message begins with: its kind, and its length without its head."""


def open_checked(path: Path) -> h5py.File:
    """Open a file for reading, after :func:`check_root`."""
    check_root(path)
    return h5py.File(path, "r")


def check_root(path: Path) -> None:
    """Raise :class:`CorruptError` if a list of free space of the root leads back to itself.

    All else that is wrong with a file is left to the library.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        bytes_of = _Bytes(number)
        for heap in bytes_of.heaps_beside_root:
            _check_heap(bytes_of, heap, path)
        _check_header(bytes_of, bytes_of.root, path)
    except _NOT_READ:
        return
    finally:
        os.close(number)


def check_object(group: h5py.Group, address: int) -> None:
    """Look at an object of a group's file, by the address in its link, as :func:`check_root` does.

    To be called before the object is opened.
    """
    file = h5py.h5i.get_file_id(group.id)
    try:
        _check_header(_Bytes(file.get_vfd_handle()), address, os.fsdecode(file.name))
    except _TooLarge:
        # What this process has just written need not be in the file: other bytes are read then.
        if file.get_intent() == h5py.h5f.ACC_RDONLY:
            raise
    except _NOT_READ:
        return


class _TooLarge(CorruptError):
    """A header is not looked at to its end."""


class _Bytes:
    """The bytes of a file, in the file's own terms.

    Whatever cannot be read, or is too short, is a :class:`ValueError` or an :class:`OSError`.

    Attributes
    ----------
    offset_bytes, length_bytes : sizes of addresses and lengths.
    root : address of the root's header.
    heaps_beside_root : heaps that are named with the root, and not in its header.
    """

    def __init__(self, file: int) -> None:
        self._file, self._base = file, 0
        at, end = 0, os.fstat(file).st_size
        while self.read(at, len(_SIGNATURE)) != _SIGNATURE:
            at = max(512, 2 * at)
            if at >= end:
                raise ValueError(at)
        self._base = at
        head = self.read(0, 16)
        version, place = head[8], 13 if head[8] < 2 else 9
        self.offset_bytes, self.length_bytes = head[place], head[place + 1]
        if not 0 < self.offset_bytes <= 8 or not 0 < self.length_bytes <= 8:
            raise ValueError(head)
        self.heaps_beside_root: list[int] = []
        if version > 1:
            self.root = self.address(self.read(12 + 3 * self.offset_bytes, self.offset_bytes), 0)
            return
        # Behind sizes and flags are four addresses, then the root's entry: name, header, kind of
        # what is repeated here from the header, and that: tree, heap.
        entry = self.read(24 + 4 * version + 4 * self.offset_bytes, 4 * self.offset_bytes + 8)
        self.root = self.address(entry, self.offset_bytes)
        if entry[2 * self.offset_bytes] == 1:
            self.heaps_beside_root = [self.address(entry, 3 * self.offset_bytes + 8)]

    def read(self, at: int, size: int) -> bytes:
        """Return bytes at an address."""
        if size < 1 or self._base + at >= 2**63:
            raise ValueError(at)
        content = os.pread(self._file, size, self._base + at)
        if len(content) != size:
            raise ValueError(at)
        return content

    def address(self, content: bytes, at: int) -> int:
        """Return the address at a place of some bytes."""
        return int.from_bytes(content[at : at + self.offset_bytes], "little")

    def length(self, content: bytes, at: int) -> int:
        """Return the length at a place of some bytes."""
        return int.from_bytes(content[at : at + self.length_bytes], "little")


def _check_header(bytes_of: _Bytes, header: int, path: str | Path) -> None:
    """Look at the heaps that an object's header names."""
    for kind, body in _messages(bytes_of, header, path):
        if kind == _SYMBOL_TABLE:
            _check_heap(bytes_of, bytes_of.address(body, bytes_of.offset_bytes), path)
        elif kind == _EXTERNAL_FILES:
            _check_heap(bytes_of, bytes_of.address(body, 8), path)


def _messages(bytes_of: _Bytes, header: int, path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield kinds and bodies of those messages of a header, older or newer, that name heaps."""
    head, left = bytes_of.read(header, 16), _MOST_BYTES
    newer = head[:4] == b"OHDR"
    if newer:
        flags = head[5]
        sizes_at = header + 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
        width = 1 << (flags & 3)
        size = int.from_bytes(bytes_of.read(sizes_at, width), "little")
        blocks = [(sizes_at + width, size)]
        unpack, head_bytes = _NEWER.unpack_from, 4 + 2 * (flags >> 2 & 1)
    else:
        if head[0] != 1:
            return
        blocks = [(header + 16, int.from_bytes(head[8:12], "little"))]
        unpack, head_bytes = _OLDER.unpack_from, 8
    seen = set[int]()
    while blocks:
        at, size = blocks.pop()
        if at in seen or size < head_bytes:
            continue
        seen.add(at)
        left -= size
        if left < 0:
            raise _TooLarge(
                f"{path}: what describes one of its objects takes over {_MOST_BYTES:,} bytes; "
                "copy what is to be read into a new file"
            )
        content, place = bytes_of.read(at, size), 0
        while place + head_bytes <= size:
            kind, n_bytes = unpack(content, place)
            start = place + head_bytes
            place = start + n_bytes
            if kind not in _LOOKED_AT:
                continue
            body = content[start:place]
            if kind == _CONTINUED:
                start = bytes_of.address(body, 0)
                n_bytes = bytes_of.length(body, bytes_of.offset_bytes)
                # Those of the newer kind have a signature before and a checksum behind.
                blocks.append((start + 4, n_bytes - 8) if newer else (start, n_bytes))
            else:
                yield kind, body


def _check_heap(bytes_of: _Bytes, heap: int, path: str | Path) -> None:
    size = bytes_of.length_bytes
    try:
        head = bytes_of.read(heap, 8 + 2 * size + bytes_of.offset_bytes)
        n_bytes, free = bytes_of.length(head, 8), bytes_of.length(head, 8 + size)
        if head[:4] != b"HEAP" or free == _END_OF_LIST:
            return
        content = bytes_of.read(bytes_of.address(head, 8 + 2 * size), n_bytes)
    except _NOT_READ:  # the library will not read it either
        return
    # A list without a loop has no more parts than there is room for. The library itself refuses
    # parts that lie outside.
    for _ in range(n_bytes // (2 * size) + 1):
        if free == _END_OF_LIST or free + 2 * size > n_bytes:
            return
        free = bytes_of.length(content, free)
    raise CorruptError(
        f"{path} is damaged: the free space of a group's names leads back to itself; copy the "
        "file again"
    )
