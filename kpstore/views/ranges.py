"""Ranges of coordinates, and how views map points to [0, 1] by them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError

Range = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Lowest and highest x, y, z: two (3,) float32."""
_SMALLEST_SPAN = 1e-8
"""A coordinate that varies less is only shifted: a division would blow up rounding errors."""
GIVEN = "given"
MEASURED = ("minmax", "train_minmax", "train_standard")


@dataclass(frozen=True, eq=False)
class Normalizer:
    """How a view maps its points to [0, 1].

    Parameters
    ----------
    how : ``"given"`` for a range that the user gave; a word of :data:`MEASURED` for one that the
        view measures; ``"frame"`` for that of each frame; None to leave points as they are.
    range : the range of all frames, as far as it is known.
    """

    how: str | None
    range: Range | None = None

    @classmethod
    def of(cls, normalize: Any, words: Sequence[str], others: str) -> Normalizer:
        """Return the value of an argument ``normalize=``.

        Parameters
        ----------
        normalize : one of ``words``, a range or None.
        others : what else the argument may be, for the error message.

        Raises
        ------
        InvalidError
            For any other word, and for anything that is not a range.
        """
        if normalize is None or (isinstance(normalize, str) and normalize in words):
            return cls(normalize)
        if isinstance(normalize, str):
            known = ", ".join(map(repr, words))
            raise InvalidError(f"normalize={normalize!r}: use {known}, {others} or None")
        return cls(GIVEN, as_range(normalize))

    @property
    def is_measured(self) -> bool:
        """Whether the view finds the range in its own or in the training frames."""
        return self.how in MEASURED


def extremes(blocks: Iterable[NDArray[np.float32]], nothing: str) -> Range:
    """Return the lowest and highest values of points, (…, points, 3) in each block.

    NaN does not count.

    Raises
    ------
    InvalidError
        If all values are NaN; the message begins with ``nothing``.
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
    """Return a range that a user gave; :class:`InvalidError` for anything else."""
    try:
        low, high = (np.asarray(values, dtype=np.float32) for values in given)
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        fits = low.shape == high.shape == (3,) and finite and bool((low <= high).all())
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InvalidError(
            f"normalize={given!r}: a range is (low, high), three finite numbers each, with "
            "low <= high"
        )
    return low, high
