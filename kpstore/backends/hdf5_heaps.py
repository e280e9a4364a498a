"""A check that HDF5's library lacks: a loop in a list of free space makes it take all memory.

Groups of the older kind, which h5py makes by default, keep their names in a *local heap*, whose
free parts are a linked list; the library (2.0) follows it without an end. Heaps are looked at where
the library would find them: from the root group on, through groups of that kind (HDF5 File Format
Specification, version 3: II, III.A.1, III.B, III.D, IV.A.1.a).
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from kpstore.errors import CorruptError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_GROUPS, _MOST_BYTES, _MOST_PARTS = 1000, 2**26, 2**18
"""Groups, bytes and free parts that are looked at: this is done whenever a file is opened."""
_END_OF_LIST = 1
_NOT_READ = (OSError, ValueError, IndexError, OverflowError)
_SYMBOL_TABLE, _CONTINUED = 0x11, 0x10


def open_checked(path: Path) -> h5py.File:
    """Open a file for reading, after :func:`check_heaps`."""
    check_heaps(path)
    return h5py.File(path, "r")


def check_heaps(path: Path) -> None:
    """Raise :class:`CorruptError` if a list of free space in a file leads back to itself.

    All else that is wrong with a file is left to the library.
    """
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        _Groups(number, path).look()
    except _NOT_READ:
        return
    finally:
        os.close(number)


class _Groups:
    """The groups of a file, while they are looked at.

    Errors of the file are :class:`ValueError`.
    """

    def __init__(self, file: int, path: Path) -> None:
        self._file, self._path, self._base = file, path, 0
        self._offset_bytes = self._length_bytes = 8
        self._seen: set[int] = set()
        self._left_bytes, self._left_parts = _MOST_BYTES, _MOST_PARTS

    def look(self) -> None:
        left = [self._root()]
        while left and len(self._seen) < _MOST_GROUPS:
            header = left.pop()
            if header in self._seen:
                continue
            self._seen.add(header)
            try:
                for tree, heap in self._symbol_tables(header):
                    self._check_list(heap)
                    left += self._members(tree)
            except _NOT_READ:  # the library will not open it either
                continue

    def _read(self, at: int, size: int) -> bytes:
        self._left_bytes -= size
        if size < 1 or self._left_bytes < 0:
            raise ValueError(size)
        content = os.pread(self._file, size, self._base + at)
        if len(content) != size:
            raise ValueError(size)
        return content

    def _offset(self, content: bytes, at: int) -> int:
        return int.from_bytes(content[at : at + self._offset_bytes], "little")

    def _length(self, content: bytes, at: int) -> int:
        return int.from_bytes(content[at : at + self._length_bytes], "little")

    def _root(self) -> int:
        """Return where the root group's header is; find where the file begins, and its sizes."""
        at, end = 0, os.fstat(self._file).st_size
        while self._read(at, len(_SIGNATURE)) != _SIGNATURE:
            at = max(512, 2 * at)
            if at >= end:
                raise ValueError(at)
        self._base = at
        head = self._read(0, 16)
        if head[8] > 1:  # groups of the newer kind
            raise ValueError(head[8])
        self._offset_bytes, self._length_bytes = head[13], head[14]
        if not 0 < self._offset_bytes <= 8 or not 0 < self._length_bytes <= 8:
            raise ValueError(head)
        # Behind sizes and flags are four addresses, then the root's entry: name, header.
        start = 24 + 4 * (head[8] == 1) + 5 * self._offset_bytes
        return self._offset(self._read(start, self._offset_bytes), 0)

    def _symbol_tables(self, header: int) -> list[tuple[int, int]]:
        """Return addresses of the tree and the heap of a group; none of what is no such group."""
        head = self._read(header, 16)
        if head[0] != 1:
            return []
        found: list[tuple[int, int]] = []
        blocks, seen = [(header + 16, int.from_bytes(head[8:12], "little"))], set[int]()
        while blocks:
            at, size = blocks.pop()
            if at in seen or size < 8:
                continue
            seen.add(at)
            content, place = self._read(at, size), 0
            while place + 8 <= len(content):
                kind, length = (
                    int.from_bytes(content[place + skip : place + skip + 2], "little")
                    for skip in (0, 2)
                )
                body = content[place + 8 : place + 8 + length]
                if kind == _SYMBOL_TABLE and len(body) >= 2 * self._offset_bytes:
                    found.append((self._offset(body, 0), self._offset(body, self._offset_bytes)))
                elif kind == _CONTINUED and len(body) >= self._offset_bytes + self._length_bytes:
                    blocks.append((self._offset(body, 0), self._length(body, self._offset_bytes)))
                place += 8 + length
        return found

    def _members(self, tree: int) -> list[int]:
        """Return where the headers of a group's members are."""
        found, left, seen = [], [tree], set[int]()
        while left and len(seen) < _MOST_GROUPS:
            at = left.pop()
            if at in seen:
                continue
            seen.add(at)
            head = self._read(at, 8)
            count = int.from_bytes(head[6:8], "little")
            if head[:4] == b"TREE":
                step = self._length_bytes + self._offset_bytes
                content = self._read(at + 8 + 2 * self._offset_bytes, max(1, count * step))
                left += [
                    self._offset(content, number * step + self._length_bytes)
                    for number in range(count)
                ]
            elif head[:4] == b"SNOD":
                step = 2 * self._offset_bytes + 24
                content = self._read(at + 8, max(1, count * step))
                found += [
                    self._offset(content, number * step + self._offset_bytes)
                    for number in range(count)
                ]
        return found

    def _check_list(self, heap: int) -> None:
        size = self._length_bytes
        head = self._read(heap, 8 + 2 * size + self._offset_bytes)
        n_bytes, free = self._length(head, 8), self._length(head, 8 + size)
        if head[:4] != b"HEAP" or free == _END_OF_LIST:
            return
        content, seen = self._read(self._offset(head, 8 + 2 * size), n_bytes), set[int]()
        # The library itself refuses parts that lie outside.
        while free != _END_OF_LIST and free + 2 * size <= len(content):
            if free in seen:
                raise CorruptError(
                    f"{self._path} is damaged: the free space of a group's names leads back to "
                    "itself; copy the file again"
                )
            seen.add(free)
            self._left_parts -= 1
            if self._left_parts < 0:
                raise ValueError(free)
            free = self._length(content, free)
