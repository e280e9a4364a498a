"""FlatBuffers, read directly: tables one by one, and numbers of very many tables at once.

What leads out of the file is an error, :class:`ValueError` or :class:`struct.error`
(https://flatbuffers.dev/internals/).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_OUTSIDE = "an offset leads out of the file"
_MOST_ITEMS = 32
"""Of a vector that :meth:`Numbers.rows` reads."""


def fields_at(content: bytes, at: int) -> tuple[int, ...]:
    """Return the offsets of a table's fields within it, from the list at ``at``."""
    if at < 0:
        raise ValueError(_OUTSIDE)
    size = struct.unpack_from("<H", content, at)[0]
    return struct.unpack_from(f"<{max(size - 4, 0) // 2}H", content, at + 4)


def offset_of(fields: tuple[int, ...], number: int) -> int:
    """Return the offset of a field within its table; 0 if it is absent."""
    return fields[number] if number < len(fields) else 0


class Numbers:
    """Numbers at many places of a FlatBuffers file, which need not be aligned."""

    def __init__(self, content: bytes) -> None:
        self._bytes = np.frombuffer(content, dtype=np.uint8)

    def at(self, places: NDArray[np.int64], dtype: str) -> NDArray[np.int64]:
        """Return the numbers at some places; :class:`ValueError` if one is outside the file."""
        found = self.raw(places, np.dtype(dtype).itemsize)
        return np.asarray(found.view(dtype)[..., 0], dtype=np.int64)

    def are_inside(self, places: NDArray[np.int64], n_bytes: int) -> NDArray[np.bool_]:
        """Return whether so many bytes at some places are in the file."""
        return np.asarray((places >= 0) & (places <= len(self._bytes) - n_bytes), dtype=np.bool_)

    def raw(self, places: NDArray[np.int64], n_bytes: int) -> NDArray[np.uint8]:
        """Return so many bytes at some places, (places, bytes); errors as for :meth:`at`."""
        if not self.are_inside(places, n_bytes).all():
            raise ValueError(_OUTSIDE)
        found: NDArray[np.uint8] = self._bytes[places[..., np.newaxis] + np.arange(n_bytes)]
        return found

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return vectors of equally many uint32, (places, items)."""
        begins = places + self.at(places, "<u4")
        counts = set(self.at(begins, "<u4").tolist())
        n_items = max(counts, default=1)
        if len(counts) > 1 or n_items > _MOST_ITEMS:
            raise ValueError("vectors of several lengths")
        return self.at(begins[:, np.newaxis] + 4 + 4 * np.arange(n_items), "<u4")


class Table:
    """A FlatBuffers table: a list of offsets of its fields, any of which may be absent."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._fields = fields_at(content, at - struct.unpack_from("<i", content, at)[0])

    @classmethod
    def root(cls, content: bytes) -> Table:
        """Return the table of a whole file."""
        return cls(content, struct.unpack_from("<I", content, 0)[0])

    def _field(self, number: int) -> int:
        """Return the offset of a field; 0 if it is absent."""
        offset = offset_of(self._fields, number)
        return self._at + offset if offset else 0

    def _vector(self, number: int) -> tuple[int, int]:
        """Return the offset of a vector's first item, and the number of items."""
        at = self._field(number)
        if not at:
            return 0, 0
        begin = at + struct.unpack_from("<I", self._content, at)[0]
        return begin + 4, struct.unpack_from("<I", self._content, begin)[0]

    def has(self, number: int) -> bool:
        """Whether a field is there."""
        return self._field(number) != 0

    def fixed(self, number: int, size: int) -> bytes:
        """Return the bytes of a field of a fixed size, which lie in the table itself."""
        return self._bytes(self._field(number), size)

    def raw(self, number: int) -> bytes:
        """Return the bytes of a vector."""
        return self._bytes(*self._vector(number))

    def _bytes(self, at: int, size: int) -> bytes:
        found = self._content[at : at + size]
        if len(found) != size:
            raise ValueError(_OUTSIDE)
        return found

    def tables(self, number: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        begin, count = self._vector(number)
        for item in range(begin, begin + 4 * count, 4):
            yield Table(self._content, item + struct.unpack_from("<I", self._content, item)[0])

    def table_offsets(self, number: int, numbers: Numbers) -> NDArray[np.int64]:
        """Return the offsets of many tables, (tables,)."""
        begin, count = self._vector(number)
        if 4 * count > len(self._content):
            raise ValueError("more tables than the file has room for")
        items = begin + 4 * np.arange(count)
        found: NDArray[np.int64] = items + numbers.at(items, "<u4")
        return found
