"""Changes on their way to Icechunk, which takes as long for many at once as for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import zarr
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from kpstore.backends.icechunk_chunks import OpenArray, set_chunk
from kpstore.backends.icechunk_codec import ZarrArray
from kpstore.backends.icechunk_manifests import ChunkPlace

GATHERED_BYTES = 16 * 2**20
"""Encoded chunks of this size are handed over."""
_NO_FILE = ""


class PendingChunks:
    """Encoded chunks of a write session that Icechunk does not have yet."""

    def __init__(self) -> None:
        self._chunks: dict[str, dict[int, bytes]] = {}
        self.n_bytes = 0
        """Size of all of them."""

    def put(self, name: str, number: int, encoded: bytes) -> None:
        """Add or replace a chunk of an array."""
        chunks = self._chunks.setdefault(name, {})
        self.n_bytes += len(encoded) - len(chunks.get(number, b""))
        chunks[number] = encoded

    def drop(self, name: str) -> None:
        """Forget the chunks of an array."""
        self.n_bytes -= sum(map(len, self._chunks.pop(name, {}).values()))

    def place(self, name: str, number: int) -> ChunkPlace | None:
        """Return the bytes of a chunk, as a manifest that holds them would be read."""
        encoded = self._chunks.get(name, {}).get(number)
        return None if encoded is None else ChunkPlace(_NO_FILE, inline=encoded)

    def hand_over(self, arrays: Mapping[str, OpenArray]) -> None:
        """Let Icechunk have all chunks, and the lengths of arrays.

        Parameters
        ----------
        arrays : all open ones by name, each with what it is to be.
        """
        longer = [one for one in arrays.values() if one.array.shape != one.meta.shape]
        chunks = [
            (arrays[name].array, (number, *(0 for _ in arrays[name].meta.shape[1:])), encoded)
            for name, by_number in self._chunks.items()
            for number, encoded in by_number.items()
        ]
        if longer or chunks:
            sync(_hand_over(longer, chunks))
        self._chunks.clear()
        self.n_bytes = 0


async def _hand_over(
    longer: Sequence[OpenArray],
    chunks: Sequence[tuple[ZarrArray, tuple[int, ...], bytes]],
) -> None:
    # Lengths first, as Icechunk refuses chunks behind an array's end.
    await asyncio.gather(*(one.array.async_array.resize(one.meta.shape) for one in longer))
    await concurrent_map(chunks, set_chunk, zarr.config.get("async.concurrency"))
