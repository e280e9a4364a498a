"""Work that threads do a few steps ahead, while its results are taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from kpstore.budget import SPARE_BYTES
from kpstore.machine import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 8
_AHEAD = 2
"""Results per thread that may wait, so that memory does not grow with the number of items."""


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int | None = None,
    item_bytes: int = 0,
) -> Iterator[Result]:
    """Yield what ``work`` returns for each item, in the order of the items.

    Parameters
    ----------
    work : called in several threads at once; pays off if it releases the GIL, as reading,
        decoding and numpy do.
    threads : number of threads; by default one per core, up to 8.
    item_bytes : memory of an item and its result, if it is much: together, all take no more than
        one file may (:mod:`kpstore.budget`), but for one that alone takes more.
    """
    few = SPARE_BYTES // max(1, (1 + _AHEAD) * item_bytes)
    n_threads = threads or max(1, min(_MOST_THREADS, usable_cores(), few))
    if n_threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="kpstore-ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD * n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
