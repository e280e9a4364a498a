"""Memory in which a thread reads and decodes one chunk after another."""

from __future__ import annotations

import threading

_MOST_BYTES = 2**24
"""Larger memory is not kept: a chunk may have 256 MiB, and threads may be many."""


class Scratch(threading.local):
    """Memory of each thread, used again: fresh memory costs as much as reading into it."""

    def __init__(self) -> None:
        self._kept = memoryview(b"")

    def bytes(self, size: int) -> memoryview:
        """Return memory of that size, which lasts until this thread asks for the next."""
        if size > _MOST_BYTES:
            return memoryview(bytearray(size))
        if len(self._kept) < size:
            self._kept = memoryview(bytearray(size))
        return self._kept[:size]
