"""What a chunk's values add up to: kept for every chunk by its place, so that damage shows when it is read.

docs/decisions/008 says why these and not a codec's own: a checksum inside a chunk knows no place,
and one of decoded values serves every way in which a chunk is kept.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta

TABLE = "chunk_checksums"
"""Name of the array that a backend may keep checksums in; no array of a store may be called so."""

UNWRITTEN = 0
"""Of a chunk that nobody wrote, and that has to read as fill."""


def checksum(meta: ArrayMeta, values: NDArray[Any]) -> int:
    """Return the checksum of one chunk.

    Parameters
    ----------
    values : (rows, *row shape), the chunk's rows from its first one on; those that are not given
        count as fill.
    """
    if meta.dtype == TEXT:
        texts = values.tolist()
        while texts and texts[-1] == "":
            texts.pop()
        return xxhash.xxh3_64_intdigest(json.dumps(texts, ensure_ascii=False).encode()) or 1
    rows = np.ascontiguousarray(values, dtype=np.dtype(meta.dtype).newbyteorder("<"))
    missing = meta.chunk_rows - len(rows)
    if not missing:
        return xxhash.xxh3_64_intdigest(_bytes_of(rows)) or 1
    hashed = xxhash.xxh3_64(_bytes_of(rows))
    hashed.update(_bytes_of(np.full((missing, *meta.shape[1:]), meta.fill, dtype=rows.dtype)))
    return hashed.intdigest() or 1


def _bytes_of(rows: NDArray[Any]) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def matches(meta: ArrayMeta, values: NDArray[Any], expected: int) -> bool:
    """Whether one chunk's values are those that ``expected`` was made of; see :func:`checksum`."""
    if expected == UNWRITTEN:
        return checksum(meta, values) == checksum(meta, values[:0])
    return checksum(meta, values) == expected
