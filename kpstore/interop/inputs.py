"""Steps that imports share: finding videos among rows, and parts among points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.layout import PART_SLICES


def runs(texts: Iterable[str]) -> Iterator[tuple[str, slice]]:
    """Yield each run of equal neighbours among texts, with the rows that it covers."""
    start = 0
    for text, run in groupby(texts):
        rows = slice(start, start + sum(1 for _ in run))
        yield text, rows
        start = rows.stop


def detect_parts(values: NDArray[np.floating], *, zeros: bool) -> NDArray[np.bool_]:
    """Return which parts of ``keypoints`` were detected, (rows, 4) bool; set the others to NaN.

    Parameters
    ----------
    values : (rows, 143, 3) floats, changed in place.
    zeros : whether zeros stand for missing values, as NaN always does.
    """
    there = ~np.isnan(values)
    if zeros:
        there &= values != 0
    detected = np.empty((len(values), len(PART_SLICES)), dtype=np.bool_)
    for column, points in enumerate(PART_SLICES.values()):
        # One axis per row, because numpy is many times slower on several short ones.
        n_numbers = (points.stop - points.start) * values.shape[2]
        detected[:, column] = there[:, points].reshape(len(values), n_numbers).any(axis=1)
        values[~detected[:, column], points] = np.nan
    return detected
