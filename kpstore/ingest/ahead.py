"""Reads ahead of the extractor, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Comes after the last item."""


@dataclass(frozen=True)
class _Raised:
    """Comes in place of an item that could not be made."""

    error: BaseException


@contextmanager
def read_ahead(items: Iterator[T], n_items: int) -> Iterator[Iterator[T]]:
    """Run an iterator in a thread, up to ``n_items`` items ahead of the iterator that this gives.

    What ``items`` raises is raised where they are used. The thread stops when the block ends.
    """
    waiting: queue.Queue[T | _Raised | _End] = queue.Queue(n_items)
    is_over = threading.Event()

    def read() -> None:
        try:
            for item in items:
                if is_over.is_set():
                    return
                waiting.put(item)
            waiting.put(_End())
        except BaseException as error:  # a decoder's panic, say, which is no Exception
            waiting.put(_Raised(error))

    def iterate() -> Iterator[T]:
        while not isinstance(item := waiting.get(), _End):
            if isinstance(item, _Raised):
                raise item.error
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
