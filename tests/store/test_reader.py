"""Reads return what numpy would, and touch each chunk once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, ReadView
from kpstore.errors import InvalidError
from kpstore.store.reader import plan_runs, read_key, read_rows


class CountingView:
    """One array in memory that notes every read."""

    def __init__(self, values: NDArray[Any], chunk_rows: int) -> None:
        self.values, self.reads, self.snapshot = values, list[tuple[int, int]](), "s"
        self._meta = ArrayMeta(values.shape, values.dtype.name, chunk_rows, ("frame", *"xyz"[: values.ndim - 1]))

    def attrs(self) -> dict[str, Any]:
        return {}

    def names(self) -> list[str]:
        return ["a"]

    def meta(self, name: str) -> ArrayMeta:
        return self._meta

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        self._meta.check_rows(name, start, stop - start)
        self.reads.append((start, stop))
        return self.values[start:stop].copy()


def view_of(n_rows: int, chunk_rows: int = 4, shape: tuple[int, ...] = (3, 2)) -> CountingView:
    values = np.random.default_rng(n_rows).standard_normal((n_rows, *shape))
    return CountingView(values, chunk_rows)


def check(view: CountingView, key: Any) -> None:
    reader: ReadView = view
    found, wanted = read_key(reader, "a", key), view.values[key]
    assert np.shape(found) == np.shape(wanted)
    np.testing.assert_array_equal(found, wanted)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12))


@given(sizes, st.data())
def test_read_rows_equals_numpy_for_any_rows_in_any_order(size: tuple[int, int], data: st.DataObject) -> None:
    view = view_of(*size)
    rows = np.array(data.draw(st.lists(st.integers(0, size[0] - 1), max_size=60)), dtype=np.int64)
    np.testing.assert_array_equal(read_rows(view, "a", rows), view.values[rows])


@given(sizes, st.data())
def test_slices_equal_numpy(size: tuple[int, int], data: st.DataObject) -> None:
    bound = st.none() | st.integers(-50, 50)
    step = data.draw(st.none() | st.integers(-5, 5).filter(bool))
    check(view_of(*size), slice(data.draw(bound), data.draw(bound), step))


@given(sizes, st.data())
def test_lists_arrays_and_masks_equal_numpy(size: tuple[int, int], data: st.DataObject) -> None:
    n_rows = size[0]
    rows = data.draw(st.lists(st.integers(-n_rows, n_rows - 1), min_size=1, max_size=60))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows)))
    for key in (rows, np.array(rows, dtype=np.int16), np.array(rows), mask, mask.tolist(), rows[0], np.int32(rows[0])):
        check(view_of(*size), key)


@pytest.mark.parametrize(
    "key",
    [
        (),
        ...,
        (..., 0),
        (..., 0, 1),
        (..., slice(1), slice(None)),
        (slice(None), slice(None), ..., 0),
        (3, ...),
        (slice(2, 9), ..., 1),
        (slice(2, 9, 3), 1),
        ([3, 1, 1], slice(1, 3)),
        ([3, 1, 1], slice(None), 0),
        ([3, 1, 1], [0, 1, 2]),
        ([3, 1, 1], [0, 1, 2], [1, 0, 1]),
        ([3, 1, 1], ..., [1, 0, 1]),
        (5, [0, 2]),
        (-1, 2, 1),
        (slice(None), [0, 2]),
        (slice(None), None, 1),
        (np.arange(20) % 3 == 0, 1),
        [],
        ([], 0),
        slice(7, 3),
    ],
    ids=repr,
)
def test_keys_with_more_axes_equal_numpy(key: Any) -> None:
    check(view_of(20), [] if isinstance(key, list) and not key else key) if key != [] else check_empty()


def check_empty() -> None:
    assert read_key(view_of(20), "a", []).shape == (0, 3, 2)


@pytest.mark.parametrize("key", [..., (..., 3), (3, ...), (), slice(None, None, 2), ([1, 2], ...)], ids=repr)
def test_keys_of_one_axis_equal_numpy(key: Any) -> None:
    check(view_of(20, shape=()), key)


@given(st.lists(st.integers(0, 400), max_size=80).map(sorted), st.integers(1, 40))
def test_every_chunk_is_touched_by_exactly_one_read(rows: list[int], chunk_rows: int) -> None:
    runs = plan_runs(np.array(rows, dtype=np.int64), chunk_rows)
    touched = [chunk for run in runs for chunk in range(run.start // chunk_rows, (run.stop - 1) // chunk_rows + 1)]
    assert touched == sorted({row // chunk_rows for row in rows})
    assert [p for run in runs for p in range(len(rows))[run.positions]] == list(range(len(rows)))
    assert all(run.start <= rows[p] < run.stop for run in runs for p in range(len(rows))[run.positions])


def test_rows_of_neighbouring_chunks_share_a_read() -> None:
    view = view_of(40)
    read_rows(view, "a", np.array([7, 33, 0, 5, 2]))
    assert view.reads == [(0, 8), (33, 34)]


def test_a_read_past_the_end_names_the_last_row() -> None:
    for rows, worst in (([3, 20], 20), ([-1], -1)):
        with pytest.raises(InvalidError, match=f"row {worst} of 'a' asked for; its last row is 19"):
            read_rows(view_of(20), "a", np.array(rows))
    with pytest.raises(InvalidError, match="its last row is 19"):
        read_key(view_of(20), "a", [-21])
    with pytest.raises(IndexError, match="row 20 of 'a' asked for; it has 20 rows"):
        read_key(view_of(20), "a", 20)


@pytest.mark.parametrize("key", ["a", None, True, [0.5], [[1, 2]], np.zeros((2, 2), int)], ids=repr)
def test_other_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidError, match=r"a mask for 'a' needs|rows of 'a' are an int, a slice, a mask"):
        read_key(view_of(20), "a", key)


def test_a_mask_needs_the_length_of_the_array() -> None:
    with pytest.raises(InvalidError, match=r"a mask for 'a' needs shape \(20,\), found \(3,\)"):
        read_key(view_of(20), "a", np.ones(3, dtype=bool))
