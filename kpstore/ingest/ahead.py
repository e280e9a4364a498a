"""Reads ahead of the extractor, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def read_ahead(items: Iterator[T], n_items: int) -> Iterator[Iterator[T]]:
    """Run an iterator in a thread, up to ``n_items`` items ahead of the iterator that this gives.

    No item may be None. What ``items`` raises is raised where they are used. The thread stops when
    the block ends.
    """
    waiting: queue.Queue[T | Exception | None] = queue.Queue(n_items)  # None is the end
    is_over = threading.Event()

    def read() -> None:
        try:
            for item in items:
                if is_over.is_set():
                    return
                waiting.put(item)
            waiting.put(None)
        except Exception as error:
            waiting.put(error)

    def iterate() -> Iterator[T]:
        while (item := waiting.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    thread = threading.Thread(target=read, name="kpstore-decode", daemon=True)
    thread.start()
    try:
        yield iterate()
    finally:
        is_over.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                waiting.get(timeout=0.05)
