"""Views of points that are mapped to [0, 1]; faces and skeletons are the two kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.store.store import BaseStore
from kpstore.views.base import Selection, Transform
from kpstore.views.frames import FrameView
from kpstore.views.missing import Missing
from kpstore.views.ranges import Normalizer, Range, extremes

_BLOCK_CHUNKS = 16
"""Chunks that are read together when a whole view is measured."""


class PointView(FrameView):
    """Frames of one feature of points.

    Parameters
    ----------
    feature : rows of (points, 3).
    normalizer : how points are mapped to [0, 1].
    fill : what missing points become; NaN leaves them as they are.
    """

    points = slice(None)
    """Which points of a row the view shows."""
    what = "point"
    """What a frame needs to be measured, for an error message."""

    def __init__(
        self,
        store: BaseStore,
        feature: str,
        normalizer: Normalizer,
        fill: float,
        *,
        missing: Missing,
        transform: Transform | None,
        **selection: Unpack[Selection],
    ) -> None:
        super().__init__(store, feature, missing=missing, transform=transform, **selection)
        self.feature, self.normalizer, self.fill = feature, normalizer, fill

    @property
    def normalize(self) -> str | None:
        """How points are mapped to [0, 1]; ``"given"`` for a range that was given."""
        return self.normalizer.how

    @property
    def range(self) -> Range:
        """What is mapped to 0 and to 1, of x, y and z, (3,) float32 each.

        They are the lowest and highest values; with ``"train_standard"`` the mean, and the mean
        plus one deviation. For ``"minmax"`` the first use reads all the view's frames once; the
        result is kept, and pickled with the view.
        """
        if self.normalizer.range is None:
            if not self.normalizer.is_measured:
                raise InvalidError(
                    f"a view with normalize={self.normalize!r} has no range over all frames"
                )
            self.normalizer = Normalizer(self.normalize, self._measure())
        return self.normalizer.range  # type: ignore[return-value]

    def _measure(self) -> Range:
        nothing = f"none of the {len(self)} frames has a {self.what} to measure"
        return extremes(self._iter_points(), nothing)

    def _iter_points(self) -> Iterator[NDArray[np.float32]]:
        step = self.store[self.feature].chunk_rows * _BLOCK_CHUNKS
        for start in range(0, len(self), step):
            rows = self.row_runs[np.arange(start, min(start + step, len(self)))]
            yield self.filled(self.read_points(rows))

    def read_points(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the view's points of some rows, (rows, points, 3) float32, NaN where missing."""
        # A copy: a slice would keep the other points in memory as well.
        return self.store.read(self.feature, rows)[:, self.points].astype(np.float32)

    def filled(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill missing points in place, and return them."""
        return points if np.isnan(self.fill) else np.nan_to_num(points, copy=False, nan=self.fill)

    def __getstate__(self) -> dict[str, Any]:
        # Measured before it is pickled: otherwise every worker process would measure for itself.
        if self.normalizer.is_measured and len(self):
            self.range  # noqa: B018
        return super().__getstate__()
