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
from pathlib import Path

import h5py

from kpstore.errors import CorruptError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_BYTES = 2**25
"""Bytes of an object's header that are looked at."""
_SIZES = frozenset((2, 4, 8))
"""Sizes of addresses and lengths that are read here."""
_MOST_PARTS = 2**17
"""Free parts of heaps that are looked at together."""
_FEW_BYTES = 1024
"""What most headers take; one read is enough for them."""
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
        file = _File(number)
        root, beside = file.root()
        for heap in beside:
            file.check_heap(heap)
        _check_header(file, root)
    except _Refused as refused:
        raise CorruptError(f"{path}{refused}") from None
    except _NOT_READ:
        return
    finally:
        os.close(number)


class ObjectChecks:
    """Looks at objects of a file before they are opened.

    Parameters
    ----------
    group : a group of the file, which is open.
    """

    def __init__(self, group: h5py.Group) -> None:
        self._opened = h5py.h5i.get_file_id(group.id)
        try:
            self._file: _File | None = _File(self._opened.get_vfd_handle())
        except (*_NOT_READ, _Refused):  # made here, and not written yet; others were refused before
            self._file = None

    def look(self, address: int) -> None:
        """Check an object as :func:`check_root` does the root, by the address that a link names."""
        try:
            if self._file is not None:
                _check_header(self._file, address)
        except _Refused as refused:
            # What this process has just written need not be in the file: other bytes are read then.
            is_read = self._opened.get_intent() == h5py.h5f.ACC_RDONLY
            if is_read or not isinstance(refused, _TooLarge):
                raise CorruptError(f"{os.fsdecode(self._opened.name)}{refused}") from None
        except _NOT_READ:
            return


class _Refused(Exception):
    """Why a file is refused; its text goes on behind the file's name."""


class _TooLarge(_Refused):
    """A header claims more than is looked at, as any bytes may."""


class _File:
    """The bytes of a file, in the file's own terms.

    Whatever cannot be read, or is too short, is a :class:`ValueError` or an :class:`OSError`.

    Attributes
    ----------
    offset_bytes, length_bytes : sizes of addresses and lengths.
    """

    def __init__(self, number: int) -> None:
        self._number, self._base, self._end = number, 0, os.fstat(number).st_size
        at = 0
        while (head := self.read(at, 16))[:8] != _SIGNATURE:
            at = max(512, 2 * at)
        self._base = at
        self._version = head[8]
        place = 13 if self._version < 2 else 9
        self.offset_bytes, self.length_bytes = head[place], head[place + 1]
        if not {self.offset_bytes, self.length_bytes} <= _SIZES:
            raise _Refused(
                f" has addresses of {self.offset_bytes} bytes and lengths of {self.length_bytes}, "
                "which are not read, as no common program writes them; copy what is to be read "
                "into a new file"
            )
        self._looked_at = set[int]()
        self._left = _MOST_PARTS

    def root(self) -> tuple[int, list[int]]:
        """Return where the root's header is, and heaps that are named beside it."""
        size = self.offset_bytes
        if self._version > 1:
            return self.address(self.read(12 + 3 * size, size), 0), []
        # Behind sizes and flags are four addresses, then the root's entry: name (a length), header,
        # kind of what is repeated here from the header, and that: tree, heap.
        name = self.length_bytes
        entry = self.read(24 + 4 * self._version + 4 * size, name + 3 * size + 8)
        heaps = [self.address(entry, name + 2 * size + 8)] if entry[name + size] == 1 else []
        return self.address(entry, name), heaps

    def check_heap(self, heap: int) -> None:
        """Follow the list of a heap's free parts, unless it was followed before."""
        if heap in self._looked_at:
            return
        self._looked_at.add(heap)
        size = self.length_bytes
        try:
            head = self.read(heap, 8 + 2 * size + self.offset_bytes)
            n_bytes, free = self.length(head, 8), self.length(head, 8 + size)
            at = self.address(head, 8 + 2 * size)
            if head[:4] != b"HEAP":
                return
            # A list without a loop has no more parts than there is room for. The library itself
            # refuses parts that lie outside.
            for _ in range(n_bytes // (2 * size) + 1):
                if free == _END_OF_LIST or free + 2 * size > n_bytes:
                    return
                self._left -= 1
                if self._left < 0:
                    raise _Refused(
                        f": the free space of its groups' names is in over {_MOST_PARTS:,} parts; "
                        "copy what is to be read into a new file"
                    )
                free = self.length(self.read(at + free, size), 0)
        except _NOT_READ:  # the library will not read it either
            return
        raise _Refused(
            " is damaged: the free space of a group's names leads back to itself; copy the file "
            "again"
        )

    def some(self, at: int, size: int) -> bytes:
        """Return bytes at an address, fewer if the file ends."""
        at += self._base
        if size < 1 or at > self._end:  # also what would overflow
            raise ValueError(at)
        return os.pread(self._number, min(size, self._end - at), at)

    def read(self, at: int, size: int) -> bytes:
        """Return bytes at an address."""
        content = self.some(at, size)
        if len(content) != size:
            raise ValueError(at)
        return content

    def address(self, content: bytes, at: int) -> int:
        """Return the address at a place of some bytes."""
        return int.from_bytes(content[at : at + self.offset_bytes], "little")

    def length(self, content: bytes, at: int) -> int:
        """Return the length at a place of some bytes."""
        return int.from_bytes(content[at : at + self.length_bytes], "little")


def _check_header(file: _File, header: int) -> None:
    """Look at the heaps that an object's header, of the older kind or the newer, names."""
    head = file.some(header, _FEW_BYTES)
    if len(head) < 16:
        return
    if head[:4] == b"OHDR":
        flags, newer = head[5], True
        sizes_at = 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
        first = sizes_at + (1 << (flags & 3))
        n_bytes = int.from_bytes(head[sizes_at:first], "little")
        unpack, head_bytes = _NEWER.unpack_from, 4 + 2 * (flags >> 2 & 1)
    elif head[:1] == b"\1":
        first, newer, n_bytes = 16, False, int.from_bytes(head[8:12], "little")
        unpack, head_bytes = _OLDER.unpack_from, 8
    else:
        return
    left, seen = _MOST_BYTES - n_bytes, {header + first}
    if len(head) >= first + n_bytes:
        blocks = [head[first : first + n_bytes]]
    else:
        blocks = [_block(file, header + first, n_bytes, left)]
    while blocks:
        content, place = blocks.pop(), 0
        while place + head_bytes <= len(content):
            kind, n_bytes = unpack(content, place)
            start = place + head_bytes
            place = start + n_bytes
            if kind not in _LOOKED_AT:
                continue
            body = content[start:place]
            if kind == _SYMBOL_TABLE:
                file.check_heap(file.address(body, file.offset_bytes))
            elif kind == _EXTERNAL_FILES:
                file.check_heap(file.address(body, 8))
            else:
                at, n_bytes = file.address(body, 0), file.length(body, file.offset_bytes)
                if newer:  # with a signature before the messages and a checksum behind
                    at, n_bytes = at + 4, n_bytes - 8
                left -= max(0, n_bytes)
                if at not in seen and n_bytes >= head_bytes:
                    seen.add(at)
                    blocks.append(_block(file, at, n_bytes, left))


def _block(file: _File, at: int, n_bytes: int, left: int) -> bytes:
    """Return a block of messages, unless too much was read of a header."""
    if left < 0:
        raise _TooLarge(
            f": what describes one of its objects takes over {_MOST_BYTES:,} bytes; copy what is "
            "to be read into a new file"
        )
    return file.read(at, n_bytes)
