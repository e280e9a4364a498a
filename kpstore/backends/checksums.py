"""Checksums of chunks by their places, with which damage is noticed when a chunk is read.

A codec's own checksum is not enough, because it does not know the chunk's place
(docs/decisions/008). These are of decoded values, however a chunk is stored.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import xxhash
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta

TABLE = "chunk_checksums"
"""Array in which a backend may keep checksums; no other array of a store may have this name."""

UNWRITTEN = 0
"""Checksum of a chunk that was never written, and has to read as fill."""


def checksum(meta: ArrayMeta, values: NDArray[np.generic]) -> int:
    """Return the checksum of one chunk.

    Parameters
    ----------
    values : (rows, *row shape), the first rows of the chunk; the others count as fill.
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


def _bytes_of(rows: NDArray[np.generic]) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def matches(meta: ArrayMeta, values: NDArray[np.generic], expected: int) -> bool:
    """Return whether the values of one chunk have the checksum ``expected``."""
    if expected == UNWRITTEN:
        return checksum(meta, values) == checksum(meta, values[:0])
    return checksum(meta, values) == expected


def text_digest(values: NDArray[np.generic]) -> str:
    """Return a hash of all texts of an array, in their order."""
    return hashlib.blake2b("\0".join(values.tolist()).encode(), digest_size=16).hexdigest()


def same_bits(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    """Return whether values are the same to the bit: 0.0 and -0.0 differ, as may two NaN."""
    if one.dtype == object:
        return bool(np.array_equal(one, other))
    return one.tobytes() == other.tobytes()
