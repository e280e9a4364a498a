"""Indexing as in numpy, on arrays that are read when indexed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.fields import whole_number
from kpstore.store.reader import RowReader


def read_key(reader: RowReader, name: str, key: object) -> NDArray[Any]:
    """Return what numpy would for ``array[key]``: rows by int, slice, list, array or mask.

    Keys of further axes may follow.
    """
    n_rows, *others = reader.meta(name).shape
    parts = key if isinstance(key, tuple) else (key,)
    head, *tail = _without_ellipsis(parts, 1 + len(others))
    if isinstance(head, slice):
        start, stop, step = head.indices(n_rows)
        if step == 1:
            block = reader.read_slice(name, start, max(start, stop))
        else:
            block = reader.read(name, np.arange(start, stop, step, dtype=np.int64))
        return block[(slice(None), *tail)] if tail else block
    number = whole_number(head)
    if number is not None:
        row = number + (n_rows if number < 0 else 0)
        if not 0 <= row < n_rows:
            # An IndexError, as numpy raises it; it also ends Python's iteration protocol.
            raise IndexError(f"row {head} of {name!r} asked for; it has {n_rows} rows")
        block = reader.read_slice(name, row, row + 1)
        value: NDArray[Any] = block[(0, *tail)]
        return value
    wanted = np.asarray(head)
    if wanted.dtype == bool:
        if wanted.shape != (n_rows,):
            raise InvalidError(f"a mask for {name!r} needs shape ({n_rows},), found {wanted.shape}")
        wanted = np.flatnonzero(wanted)
    elif wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise InvalidError(
            f"rows of {name!r} are an int, a slice, a mask or a list of ints, found {head!r}"
        )
    wanted = wanted.astype(np.int64)
    block = reader.read(name, np.where(wanted < 0, wanted + n_rows, wanted))
    # Not slice(None): numpy pairs a list of rows with a list of columns.
    return block[(np.arange(len(block)), *tail)] if tail else block


def _without_ellipsis(key: tuple[Any, ...], n_axes: int) -> tuple[Any, ...]:
    """Return a key that begins with the rows; ``...`` and an empty key become full slices."""
    at = next((i for i, part in enumerate(key) if part is Ellipsis), None)
    if at is None:
        return key or (slice(None),)
    n_named = sum(map(_axes_named, (*key[:at], *key[at + 1 :])))
    return (*key[:at], *[slice(None)] * (n_axes - n_named), *key[at + 1 :]) or (slice(None),)


def _axes_named(part: object) -> int:
    """Return how many axes a part of a key stands for; a mask stands for all of its own."""
    if part is None or isinstance(part, slice):
        return int(part is not None)
    given = np.asarray(part)
    return given.ndim if given.dtype == bool else 1
