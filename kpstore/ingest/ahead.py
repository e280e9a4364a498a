"""What is read ahead of the extractor, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass
class Ahead(Generic[T]):
    """An iterator run in a thread, a bounded number of items ahead of whoever iterates.

    A context manager.

    Parameters
    ----------
    items : what to run; it is left where it stands when the block ends.
    n_items : how many to keep.
    """

    items: Iterator[T]
    n_items: int
    _queue: queue.Queue[Any] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Iterator[T]:
        self._queue = queue.Queue(self.n_items)
        self._thread = threading.Thread(target=self._read, name="kpstore-decode", daemon=True)
        self._thread.start()
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _read(self) -> None:
        try:
            for item in self.items:
                if self._stop.is_set():
                    return
                self._queue.put(item)
            self._queue.put(_END)
        except Exception as error:  # raised again where the frames are used
            self._queue.put(error)

    def _iterate(self) -> Iterator[T]:
        while (item := self._queue.get()) is not _END:
            if isinstance(item, Exception):
                raise item
            yield item


_END = object()
