"""Ranges of coordinates, and points mapped to [0, 1] by them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError

Range = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Lowest and highest x, y, z: two (3,) float32."""
_SMALLEST_SPAN = 1e-8
"""A coordinate that varies less is only shifted: dividing by its span would blow up rounding errors."""


def extremes(blocks: Iterable[NDArray[np.float32]], nothing: str) -> Range:
    """Return the lowest and highest values of points, (…, points, 3) in each block.

    NaN does not count.

    Raises
    ------
    InvalidError
        If there is no value at all; the message begins with ``nothing``.
    """
    low, high = np.full(3, np.inf, dtype=np.float32), np.full(3, -np.inf, dtype=np.float32)
    for points in blocks:
        low = np.fmin(low, np.fmin.reduce(points, axis=(0, 1)))
        high = np.fmax(high, np.fmax.reduce(points, axis=(0, 1)))
    if not (np.isfinite(low) & np.isfinite(high)).all():
        raise InvalidError(f"{nothing}; choose others or give a range")
    return low, high


def span(low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """Return what to divide by, (3,)."""
    width: NDArray[Any] = high - low
    return np.where(width < _SMALLEST_SPAN, width.dtype.type(1), width)


def to_unit(
    points: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return points, (…, points, 3), mapped so that ``low`` is 0 and ``high`` is 1, (…, 3) each."""
    unit: NDArray[np.float32] = (points - low[..., None, :]) / span(low, high)[..., None, :]
    return unit


def as_range(given: Any) -> Range:
    """Return a range that a user gave; :class:`InvalidError` if it is none."""
    try:
        low, high = (np.asarray(values, dtype=np.float32) for values in given)
        fits = low.shape == high.shape == (3,) and bool((low <= high).all())
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InvalidError(
            f"normalize={given!r}: a range is (low, high), three numbers each, none lower in high"
        )
    return low, high
