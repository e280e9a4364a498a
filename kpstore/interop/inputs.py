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
    detected = np.empty((len(values), len(PART_SLICES)), dtype=np.bool_)
    for column, points in enumerate(PART_SLICES.values()):
        part = values[:, points]
        gone = np.isnan(part) | (part == 0) if zeros else np.isnan(part)
        detected[:, column] = ~gone.all(axis=(1, 2))
        part[~detected[:, column]] = np.nan
    return detected
