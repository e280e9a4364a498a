"""How memory for decoded chunks is divided, and how many blocks a shuffle may mix within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kpstore.backends.base import ArrayMeta

_SPARE = 1 / 8
"""Share of the pool for chunks that are being decoded or about to be dropped."""
_NARROW = 1 / 8
"""An array of at most this share of the pool stays in it whole and does not limit the shuffle."""
_BORDER = 8
"""Chunks per block where samples cross borders: at each border a chunk is decoded twice."""


@dataclass(frozen=True)
class Pool:
    """How to use memory for decoded chunks.

    Parameters
    ----------
    block_rows : rows of a block of the shuffle.
    window : most blocks of the shuffle in use at a time.
    n_bytes : bytes to reserve for the chunks of each array.
    """

    block_rows: int
    window: int
    n_bytes: dict[str, int]


def plan_pool(arrays: Mapping[str, ArrayMeta], n_bytes: int, *, long_samples: bool) -> Pool:
    """Return how to use ``n_bytes`` for reading the same rows of several arrays.

    Parameters
    ----------
    arrays : arrays on the same axis.
    long_samples : whether samples are runs of rows, which may cross chunk borders.
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
