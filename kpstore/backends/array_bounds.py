"""Bounds of stored arrays: a store may come from anyone, and claims of its arrays cost nothing."""

from __future__ import annotations

from kpstore.errors import InvalidError

MOST_CHUNK_BYTES = 2**28
"""Largest chunk: it is in memory as a whole, whatever is wanted of it."""
MOST_CHUNKS = 2**22
"""Most chunks of an array: their places and checksums are in memory, even if nobody wrote them."""


def check_chunks(shape: tuple[int, ...], dtype: str, chunk_rows: int, row_bytes: int) -> None:
    """Raise :class:`InvalidError` for an array whose chunks are too large, or too many.

    Writers are refused as readers are, so that no store is written that cannot be read.
    """
    what = f"an array of {shape} {dtype}"
    if not shape:
        raise InvalidError(f"{what} has no rows; arrays of a store have a row for each frame or so")
    n_rows = shape[0]
    n_bytes = chunk_rows * row_bytes
    if n_bytes > MOST_CHUNK_BYTES:
        raise InvalidError(
            f"{what}: {chunk_rows} rows in a chunk take {n_bytes / 2**20:,.0f} MiB of memory, "
            f"{MOST_CHUNK_BYTES // 2**20} are possible; use fewer"
        )
    if n_rows > MOST_CHUNKS * chunk_rows:
        raise InvalidError(
            f"{what}: {chunk_rows} rows in a chunk make {n_rows // max(1, chunk_rows):,} chunks, "
            f"{MOST_CHUNKS:,} are possible; use more"
        )
