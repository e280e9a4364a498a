"""Results come in the order of the items, a few are made ahead, and an error ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kpstore.store.in_order import in_order


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_order_though_later_ones_may_be_done_first(threads: int) -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0 and threads > 1:
            second_done.wait()
        if item == 1:
            second_done.set()
        return item * item

    assert list(in_order(work, range(50), threads=threads)) == [n * n for n in range(50)]
    assert list(in_order(work, [], threads=threads)) == []


def test_few_items_are_taken_before_their_results_are() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items(), threads=2)
    assert next(results) == 0
    assert len(taken) < 10
    results.close()
    assert len(taken) < 10


@pytest.mark.parametrize(("item_bytes", "most"), [(2**20, 25), (2**25, 7), (2**28, 1), (2**40, 1)])
def test_fewer_are_ahead_the_larger_they_are(
    monkeypatch: pytest.MonkeyPatch, item_bytes: int, most: int
) -> None:
    monkeypatch.setattr("kpstore.store.in_order.usable_cores", lambda: 64)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items(), item_bytes=item_bytes)
    assert next(results) == 0
    assert len(taken) <= most
    results.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_is_raised_where_its_result_would_come(threads: int) -> None:
    results = in_order(lambda item: 1 // (3 - item), range(9), threads=threads)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
