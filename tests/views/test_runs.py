"""Runs of consecutive numbers are those numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.views.runs import Ints, Runs

stretches = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=12)


def numbers_in(parts: list[tuple[int, int]]) -> Ints:
    return np.concatenate(
        [np.empty(0, dtype=np.int64), *(np.arange(first, first + n) for first, n in parts)]
    )


@given(stretches, st.data())
def test_runs_are_the_numbers_that_they_were_made_of(
    parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    numbers = numbers_in(parts)
    first, size = np.array(parts, dtype=np.int64).reshape(-1, 2).T
    runs, of = Runs.between(first, first + size), Runs.of(numbers)
    for found in (runs.to_array(), of.to_array(), numbers_in(list(zip(first, size, strict=True)))):
        np.testing.assert_array_equal(found, numbers)
    np.testing.assert_array_equal(np.concatenate([numbers[:0], *runs.pieces()]), numbers)
    np.testing.assert_array_equal(runs.starts, of.starts)
    np.testing.assert_array_equal(runs.bounds, of.bounds)
    assert len(runs) == len(numbers)
    assert runs.is_ascending == bool((np.diff(numbers) >= 0).all())
    begin, stop = sorted(data.draw(st.integers(0, len(numbers))) for _ in range(2))
    np.testing.assert_array_equal(runs.part(begin, stop).to_array(), numbers[begin:stop])
    joined = Runs.joined([runs.part(begin, stop), runs.part(0, begin)])
    np.testing.assert_array_equal(
        joined.to_array(), np.concatenate([numbers[begin:stop], numbers[:begin]])
    )


@given(stretches, st.lists(st.integers(-60, 60), max_size=9))
def test_numbers_are_picked_as_from_an_array(
    parts: list[tuple[int, int]], places: list[int]
) -> None:
    numbers, wanted = numbers_in(parts), np.array(places, dtype=np.int64)
    runs = Runs.of(numbers)
    if all(-len(numbers) <= place < len(numbers) for place in places):
        np.testing.assert_array_equal(runs[wanted], numbers[wanted])
    else:
        with pytest.raises(IndexError):
            runs[wanted]


@given(stretches, st.lists(st.integers(-1, 60), max_size=9))
def test_numbers_below_a_limit_are_counted(parts: list[tuple[int, int]], limits: list[int]) -> None:
    numbers = np.sort(numbers_in(parts))
    found = Runs.of(numbers).count_below(np.array(limits, dtype=np.int64))
    assert found.tolist() == [int((numbers < limit).sum()) for limit in limits]


@given(stretches, st.lists(st.booleans(), min_size=50, max_size=50))
def test_a_mask_keeps_numbers_in_their_order(
    parts: list[tuple[int, int]], mask: list[bool]
) -> None:
    numbers = numbers_in(parts)
    kept = Runs.of(numbers).within(np.array(mask))
    np.testing.assert_array_equal(kept.to_array(), numbers[np.array(mask)[numbers]])
    np.testing.assert_array_equal(kept.bounds, Runs.of(kept.to_array()).bounds)
