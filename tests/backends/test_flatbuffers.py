"""FlatBuffers: what leads out of the file is an error, and nothing else."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kpstore.backends.flatbuffers import Numbers, Table

# The root table is at 12, behind the list of its fields. One is there: the vector of b"abc".
WHOLE = struct.pack("<I4HiII3s", 12, 6, 8, 4, 0, 8, 4, 3, b"abc")


def test_a_table_and_its_vector() -> None:
    table = Table.root(WHOLE)
    assert table.has(0)
    assert not table.has(1)
    assert table.raw(0) == b"abc"
    assert table.raw(1) == b""
    assert table.fixed(0, 4) == struct.pack("<I", 4)


@pytest.mark.parametrize("at", range(0, len(WHOLE) - 3, 4))
@pytest.mark.parametrize("number", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 1_000])
def test_an_offset_out_of_the_file_is_an_error(at: int, number: int) -> None:
    damaged = bytearray(WHOLE)
    struct.pack_into("<I", damaged, at, number)
    try:
        found = Table.root(bytes(damaged)).raw(0)
    except (ValueError, struct.error):
        return
    assert found in (b"", b"abc")  # another list of fields, in which there is none


def test_a_file_that_ends_early_is_an_error() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises((ValueError, struct.error)):
            Table.root(WHOLE[:size]).raw(0)


def test_many_numbers_at_once() -> None:
    numbers, last = Numbers(WHOLE), len(WHOLE) - 4
    assert numbers.at(np.array([0, 20]), "<u4").tolist() == [12, 3]
    inside = numbers.are_inside(np.array([-1, 0, last, last + 1]), 4)
    assert inside.tolist() == [False, True, True, False]
    for place in (-1, last + 1, 2**40):
        with pytest.raises(ValueError, match="leads out of the file"):
            numbers.at(np.array([0, place]), "<u4")
