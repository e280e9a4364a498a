"""Rows out of one array of one version. Every read of a store and every view comes through :func:`read_rows`.

This is the seam for the fast reading path: whatever plans, fetches, decodes or caches goes behind these functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ReadView
from kpstore.errors import InvalidError


@dataclass(frozen=True)
class RowRun:
    """One read of a plan: rows ``start`` to ``stop`` of storage serve ``positions`` of the wanted (sorted) rows."""

    start: int
    stop: int
    positions: slice


def plan_runs(sorted_rows: NDArray[np.int64], chunk_rows: int) -> list[RowRun]:
    """Group sorted rows into reads such that every chunk is touched by exactly one read.

    Rows of the same or of neighbouring chunks share a read.

    Parameters
    ----------
    sorted_rows : (rows,) int64, ascending; the same row may come several times.
    """
    if len(sorted_rows) == 0:
        return []
    chunks = sorted_rows // chunk_rows
    cuts = np.flatnonzero(np.diff(chunks) > 1) + 1
    edges = [0, *cuts.tolist(), len(sorted_rows)]
    return [
        RowRun(int(sorted_rows[first]), int(sorted_rows[last - 1]) + 1, slice(first, last))
        for first, last in pairwise(edges)
    ]


def read_rows(view: ReadView, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows of an array in the order asked for, (len(rows), *row shape).

    Raises
    ------
    InvalidError
        If a row lies outside the array; the message names its last row.
    """
    meta = view.meta(name)
    if len(rows) and (rows.min() < 0 or rows.max() >= meta.n_rows):
        worst = int(rows.max() if rows.max() >= meta.n_rows else rows.min())
        raise InvalidError(f"row {worst} of {name!r} asked for; its last row is {meta.n_rows - 1}")
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    out = np.empty((len(rows), *meta.shape[1:]), dtype=object if meta.dtype == TEXT else meta.dtype)
    for run in plan_runs(sorted_rows, meta.chunk_rows):
        block = view.read(name, run.start, run.stop)
        out[order[run.positions]] = block[sorted_rows[run.positions] - run.start]
    return out


def read_key(view: ReadView, name: str, key: Any) -> NDArray[Any]:
    """Return what numpy would for ``array[key]``: rows by int, slice, list, array or mask; further axes after them."""
    meta = view.meta(name)
    n_rows = meta.n_rows
    head, *rest = _without_ellipsis(key if isinstance(key, tuple) else (key,), len(meta.shape))
    tail = tuple(rest)
    if isinstance(head, slice):
        start, stop, step = head.indices(n_rows)
        if step == 1:
            block = view.read(name, start, max(start, stop))
        else:
            block = read_rows(view, name, np.arange(start, stop, step, dtype=np.int64))
        return block[(slice(None), *tail)] if tail else block
    if isinstance(head, int | np.integer) and not isinstance(head, bool):
        row = int(head) + (n_rows if head < 0 else 0)
        if not 0 <= row < n_rows:
            # IndexError is what ends Python's own iteration protocol and what numpy raises.
            raise IndexError(f"row {head} of {name!r} asked for; it has {n_rows} rows")
        block = view.read(name, row, row + 1)
        value: NDArray[Any] = block[(0, *tail)]
        return value
    wanted = np.asarray(head)
    if wanted.dtype == bool:
        if wanted.shape != (n_rows,):
            raise InvalidError(f"a mask for {name!r} needs shape ({n_rows},), found {wanted.shape}")
        wanted = np.flatnonzero(wanted)
    elif wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise InvalidError(f"rows of {name!r} are an int, a slice, a mask or a list of ints, found {head!r}")
    wanted = wanted.astype(np.int64)
    block = read_rows(view, name, np.where(wanted < 0, wanted + n_rows, wanted))
    # Not slice(None): numpy pairs a list of rows with a list of columns, it does not cross them.
    return block[(np.arange(len(block)), *tail)] if tail else block


def _without_ellipsis(key: tuple[Any, ...], n_axes: int) -> tuple[Any, ...]:
    """Return a key that names the rows first: ``...`` and an empty key written out as full slices."""
    at = next((i for i, part in enumerate(key) if part is Ellipsis), None)
    if at is None:
        return key or (slice(None),)
    n_named = sum(part is not None for part in key) - 1
    return (*key[:at], *[slice(None)] * (n_axes - n_named), *key[at + 1 :]) or (slice(None),)
