"""Rows gathered on their way into a store: nothing is lost, and chunks are written once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.backends.base import ArrayMeta
from kpstore.store.row_buffer import RowBuffer
from tests.fakes import fake_spec, record

CHUNK = 4


class Session:
    """Keeps what is written, and counts how often each chunk is."""

    def __init__(self, n_rows: int) -> None:
        self.rows = np.zeros(n_rows, dtype=np.int64)
        self.chunks = Counter[int]()

    def meta(self, name: str) -> ArrayMeta:
        return ArrayMeta(self.rows.shape, "int64", CHUNK, ("frame",))

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        assert len(values)
        assert start + len(values) <= len(self.rows)
        self.rows[start : start + len(values)] = values
        self.chunks.update(range(start // CHUNK, (start + len(values) - 1) // CHUNK + 1))


writes = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 11), st.booleans()), max_size=12)


@given(writes)
def test_what_is_written_is_what_was_given(writes: list[tuple[int, int, bool]]) -> None:
    session: Any = Session(41)
    buffer, expected = RowBuffer(session), np.zeros(41, dtype=np.int64)
    for number, (start, length, flushed) in enumerate(writes, start=1):
        values = np.arange(length) + 100 * number
        expected[start : start + length] = values
        buffer.write("a", start, values)
        values[:] = -1  # memory of the caller's, who uses it again
        if flushed:
            buffer.flush()
            np.testing.assert_array_equal(session.rows, expected)
    buffer.flush()
    np.testing.assert_array_equal(session.rows, expected)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_rows_that_follow_each_other_are_written_once(lengths: list[int]) -> None:
    session: Any = Session(sum(lengths))
    buffer, first = RowBuffer(session), 0
    for length in lengths:
        buffer.write("a", first, np.ones(length, dtype=np.int64))
        first += length
    buffer.flush()
    assert session.rows.all()
    assert set(session.chunks.values()) <= {1}


def test_a_write_that_fails_can_be_repeated() -> None:
    session: Any = Session(8)
    buffer, write = RowBuffer(session), session.write
    buffer.write("a", 0, np.array([1, 2]))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    session.write = full
    with pytest.raises(OSError, match="No space"):
        buffer.flush()
    session.write = write
    buffer.flush()
    assert session.rows.tolist() == [1, 2, 0, 0, 0, 0, 0, 0]


def test_values_that_are_refused_leave_no_rows_behind() -> None:
    session: Any = Session(8)
    buffer = RowBuffer(session)
    buffer.write("a", 0, np.array([1, 2]))
    with pytest.raises(ValueError, match="invalid literal"):
        buffer.write("a", 2, np.array(["3", "x"]))
    buffer.flush()
    assert session.rows.tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert session.chunks == {0: 1}


def test_a_loop_over_videos_writes_each_chunk_once(
    memory_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lengths = memory_store, [3, 1, 0, 7, 2, 30]
    with store.transaction("add") as tx:
        tx.add_videos([record(f"v{i}", n) for i, n in enumerate(lengths)])
        tx.add_feature(fake_spec(CHUNK), {})
    written = Counter[tuple[str, int]]()
    with store.transaction("write") as tx:
        write = tx.session.write

        def counted(name: str, start: int, values: np.ndarray) -> None:
            size = tx._session.meta(name).chunk_rows
            first, last = start // size, (start + len(values) - 1) // size
            written.update((name, chunk) for chunk in range(first, last + 1))
            write(name, start, values)

        monkeypatch.setattr(tx.session, "write", counted)
        for i, n in enumerate(lengths):
            tx.write("points", f"v{i}", np.full((n, 5, 3), i, dtype=np.float32))
    assert set(written.values()) == {1}
    expected = np.repeat(np.arange(6), lengths)
    np.testing.assert_array_equal(store.at()["points"][:, 0, 0], expected)


def test_rows_gathered_are_seen_by_whoever_reads(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("write") as tx:
        tx.add_videos([record("a", 3), record("b", 2)])
        tx.add_feature(fake_spec(CHUNK), {})
        tx.write("points", "a", np.ones((3, 5, 3), dtype=np.float32))
        assert tx.read_states("points").tolist() == [1, 0]
        assert (tx.session.read("points", 0, 3) == 1).all()
        tx.add_videos([record("c", 1)])
        tx.write("points", "b", np.full((2, 5, 3), 2, dtype=np.float32))
        tx.write("points", "c", np.full((1, 5, 3), 3, dtype=np.float32))
        tx.reset_states("points", [0])
        tx.remove_feature("points")
        tx.add_feature(fake_spec(CHUNK), {})
        tx.write("points", "c", np.full((1, 5, 3), 4, dtype=np.float32))
    found = memory_store.at()["points"][:, 0, 0]
    np.testing.assert_array_equal(found, [np.nan] * 5 + [4])
