"""Bounds of stored arrays: a store may come from anyone, and claims of its arrays cost nothing."""

from __future__ import annotations

from kpstore.budget import SPARE_BYTES, VARIABLE, allowed_by_user
from kpstore.errors import InvalidError

_PLACE_BYTES = 64
"""Memory of a chunk's place and checksum, which are there even if nobody wrote the chunk."""


def most_bytes() -> int:
    """Return the size of the largest chunk, which is in memory as a whole; a user may allow more.

    The places of all chunks of an array may take as much.
    """
    return max(SPARE_BYTES, allowed_by_user())


def check_chunks(shape: tuple[int, ...], dtype: str, chunk_rows: int, row_bytes: int) -> None:
    """Raise :class:`InvalidError` for an array whose chunks are too large, or too many.

    Writers are refused as readers are, so that no store is written that others cannot read.
    """
    n_chunks = shape[0] // max(1, chunk_rows)
    if chunk_rows * row_bytes > SPARE_BYTES:
        wanted, what, instead = chunk_rows * row_bytes, "take", "fewer"
    elif n_chunks * _PLACE_BYTES > SPARE_BYTES:
        wanted, what, instead = (
            n_chunks * _PLACE_BYTES,
            f"make {n_chunks:,} chunks and take",
            "more",
        )
    else:
        return
    if wanted > most_bytes():
        raise InvalidError(
            f"an array of {shape} {dtype}: {chunk_rows} rows in a chunk {what} "
            f"{wanted / 2**20:,.0f} MiB of memory, {most_bytes() / 2**20:,.0f} are possible; use "
            f"{instead}, or, if you trust who made it, set {VARIABLE}={wanted // 2**30 + 1}GiB"
        )
