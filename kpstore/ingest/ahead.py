"""Reads ahead of the extractor, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

_END = object()


@contextmanager
def read_ahead(items: Iterator[T], n_items: int) -> Iterator[Iterator[T]]:
    """Run an iterator in a thread, up to ``n_items`` items ahead of the iterator that this gives.

    What ``items`` raises is raised where they are used. It stops where it is when the block ends.
    """
    waiting: queue.Queue[Any] = queue.Queue(n_items)
    is_over = threading.Event()

    def read() -> None:
        try:
            for item in items:
                if is_over.is_set():
                    return
                waiting.put(item)
            waiting.put(_END)
        except Exception as error:
            waiting.put(error)

    def iterate() -> Iterator[T]:
        while (item := waiting.get()) is not _END:
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
