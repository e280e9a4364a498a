"""Members of a zip file that several threads compress."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self
from zipfile import ZipFile

from kpstore.machine import usable_cores

_MOST_THREADS = 8
_AHEAD = 2
"""Pieces per thread that may wait, so that memory does not grow with the file."""


class DeflateThreads:
    """Threads that compress the members of zip files, a piece at a time; a context manager.

    A piece is what is written at once. Each becomes a run of blocks of its own in one stream, which
    costs nothing noticeable for pieces of some 100 kB and more.
    """

    def __enter__(self) -> Self:
        self._n_threads = min(_MOST_THREADS, usable_cores())
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="kpstore-deflate")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def open(self, archive: ZipFile, name: str) -> Iterator[IO[bytes]]:
        """Open a new member for writing; the archive's compression is ``ZIP_DEFLATED``.

        An error or interrupt in the ``with`` block leaves a member that cannot be read.
        """
        pieces = _InOrder(self._pool, self._n_threads)
        with archive.open(name, "w", force_zip64=True) as member:
            # Python has no other way to hand over compressed data; without the attribute, it
            # compresses them itself.
            member._compressor = pieces  # type: ignore[attr-defined]
            try:
                yield member
            except BaseException:
                pieces.drop()  # closing would wait for them, for seconds
                raise


class _InOrder:
    """Compresses as :func:`zlib.compressobj` does, but later, in threads."""

    def __init__(self, pool: ThreadPoolExecutor, n_threads: int) -> None:
        self._pool, self._n_most = pool, _AHEAD * n_threads
        self._waiting: deque[Future[bytes]] = deque()

    def compress(self, data: bytes) -> bytes:
        """Take a piece; return those that had to wait for too long, compressed."""
        self._waiting.append(self._pool.submit(_compressed, data))
        return self._taken(self._n_most)

    def flush(self) -> bytes:
        """Return all else, and the end of the stream."""
        return self._taken(0) + zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()

    def drop(self) -> None:
        """Forget all pieces that were not taken, and compress none that waits."""
        for piece in self._waiting:
            piece.cancel()
        self._waiting.clear()

    def _taken(self, n_left: int) -> bytes:
        n_taken = max(0, len(self._waiting) - n_left)
        return b"".join([self._waiting.popleft().result() for _ in range(n_taken)])


def _compressed(data: bytes) -> bytes:
    """Return a run of blocks of a raw stream, which ends at a whole byte and is not its last."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
