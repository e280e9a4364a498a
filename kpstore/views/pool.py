"""How memory for decoded chunks is shared out, and how many stored blocks a shuffle may so mix at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kpstore.backends.base import ArrayMeta

_SPARE = 1 / 8
"""Of the pool: for chunks on their way in, and for those that ought to have gone."""
_NARROW = 1 / 8
"""An array that takes no more of the pool stays in it whole, and does not matter to the shuffle."""
_BORDER = 8
"""Chunks per block where samples reach over borders: each border has one chunk decoded twice."""


@dataclass(frozen=True)
class Pool:
    """A use of memory for decoded chunks.

    Parameters
    ----------
    block_rows : rows that a shuffle takes as one block.
    window : blocks that it may have in use at a time.
    n_bytes : by array, what to set aside for its chunks.
    """

    block_rows: int
    window: int
    n_bytes: dict[str, int]


def plan_pool(arrays: Mapping[str, ArrayMeta], n_bytes: int, *, long_samples: bool) -> Pool:
    """Return how to use ``n_bytes`` for reading some arrays row for row together.

    Parameters
    ----------
    arrays : on the same axis.
    long_samples : whether samples are runs of rows, which may reach over the border of a chunk.
    """
    sizes = {name: meta.n_rows * meta.row_bytes for name, meta in arrays.items()}
    wide = {name: meta for name, meta in arrays.items() if sizes[name] > n_bytes * _NARROW}
    if not wide:
        return Pool(max((meta.n_rows for meta in arrays.values()), default=1), 1, sizes)
    left = max(
        n_bytes // 2, n_bytes - sum(size for name, size in sizes.items() if name not in wide)
    )
    row_bytes = sum(meta.row_bytes for meta in wide.values())
    shares = {name: left * meta.row_bytes // row_bytes for name, meta in wide.items()}
    chunk_rows = max(meta.chunk_rows for meta in wide.values())
    in_use = left * (1 - _SPARE) / row_bytes
    if not long_samples:
        return Pool(chunk_rows, max(1, int(in_use / chunk_rows)), {**sizes, **shares})
    block_rows = chunk_rows * max(1, min(_BORDER, int(in_use / chunk_rows / 16)))
    return Pool(block_rows, max(1, int(in_use / (block_rows + chunk_rows))), {**sizes, **shares})
