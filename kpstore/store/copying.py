"""Copying rows from one array to another, in blocks of whole chunks that fit into memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, WriteSession
from kpstore.backends.checksums import same_bits

_BLOCK_BYTES = 64 * 2**20


def block_rows(meta: ArrayMeta) -> int:
    """Return how many rows of an array make a block."""
    return meta.chunk_rows * max(1, _BLOCK_BYTES // max(1, meta.chunk_rows * meta.row_bytes))


def write_differing(
    session: WriteSession,
    name: str,
    start: int,
    values: NDArray[np.generic],
    old: NDArray[np.generic],
) -> None:
    """Write those chunks of a block that differ, to the bit, from what is there.

    Parameters
    ----------
    start : the first row, where a chunk begins.
    old : the rows that are there. A chunk that was never written stays so, if it is all fill.
    """
    step = session.meta(name).chunk_rows
    for first in range(0, len(values), step):
        block = slice(first, first + step)
        if not same_bits(values[block], old[block]):
            session.write(name, start + first, values[block])
