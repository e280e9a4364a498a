"""Statistics of a feature by split, part and coordinate, kept on the local disk once measured.

The policy ``"detected"`` says which values count: finite values of done frames, in parts that the
presence mask says were detected. All other values of done frames are *missing*; frames that failed
or are pending do not count at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import NotFoundError
from kpstore.inspect.measuring import POLICY, KeptMoments, OnRows, measure
from kpstore.inspect.moments import Moments, Sketch
from kpstore.store.store import BaseStore
from kpstore.visible import visible

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Statistics:
    """Statistics of a feature over some videos.

    Arrays are (parts, columns), NaN where no value counts.

    Parameters
    ----------
    feature, snapshot, policy : the feature, the version, and the rule for which values count, see
        :mod:`kpstore.inspect.statistics`.
    splits : names of the splits of the videos.
    parts, columns : names along the axes of all arrays, such as face and x.
    videos, frames : number of videos, and of their done frames.
    count, missing : int64, values that count, and values of done frames that do not.
    low, high, mean, std : float64; the standard deviation is divided by n.
    quantiles : (probabilities, parts, columns) float64, each within 0.1 % of a value of that rank
        (numpy's ``method="lower"``); all NaN for a selection of videos, as only their moments are
        kept.
    """

    feature: str
    snapshot: str
    policy: str
    splits: tuple[str, ...]
    parts: tuple[str, ...]
    columns: tuple[str, ...]
    videos: int
    frames: int
    count: NDArray[np.int64]
    missing: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    probabilities: tuple[float, ...] = PROBABILITIES

    def __repr__(self) -> str:
        held = f"{self.frames} frames, {self.parts} × {self.columns}"
        return visible(f"<Statistics of {self.feature} in {', '.join(self.splits)}: {held}>")

    def range(self, part: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a part's lowest and highest value by column, (columns,) each.

        Raises
        ------
        NotFoundError
            If there is no such part, or it has no values.
        """
        at = self._position(part)
        return self.low[at], self.high[at]

    def standard(self, part: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a part's mean and standard deviation by column, (columns,) each.

        Raises as :meth:`range`.
        """
        at = self._position(part)
        return self.mean[at], self.std[at]

    def _position(self, part: str | None) -> int:
        if part is None and len(self.parts) == 1:
            part = self.parts[0]
        if part not in self.parts:
            raise NotFoundError(
                f"part {part!r} of {self.feature!r} not found; there are {list(self.parts)}"
            )
        at = self.parts.index(part)
        if not self.count[at].all():
            raise NotFoundError(
                f"no {part!r} of {self.feature!r} was detected in "
                f"{', '.join(map(repr, self.splits))}"
            )
        return at

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, by part and column; None where no value counts."""
        about = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if not isinstance(value, np.ndarray)
        }
        values = {
            part: {column: self._group_json(p, c) for c, column in enumerate(self.columns)}
            for p, part in enumerate(self.parts)
        }
        return {**about, "statistics": values}

    def _group_json(self, part: int, column: int) -> dict[str, Any]:
        numbers = {"min": self.low, "max": self.high, "mean": self.mean, "std": self.std}
        shares = zip(self.probabilities, self.quantiles[:, part, column].tolist(), strict=True)
        return {
            "count": int(self.count[part, column]),
            "missing": int(self.missing[part, column]),
            **{name: _number(array[part, column]) for name, array in numbers.items()},
            "quantiles": {
                f"{100 * probability:g}": _number(value) for probability, value in shares
            },
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def statistics(
    store: BaseStore,
    feature: str,
    *,
    split: str | Sequence[str] | None = None,
    videos: Sequence[str] | None = None,
    workers: int | None = None,
    on_rows: OnRows | None = None,
) -> Statistics:
    """Return statistics of a feature.

    The first call for a version reads the feature once; later calls use the result.

    Parameters
    ----------
    split : only videos of these splits; all by default. Other videos have no influence.
    videos : only these videos; quantiles are then NaN.
    workers : number of Dask threads that measure; by default one per core, or the Dask cluster
        that a client of this process is connected to. With 1, or without Dask, this thread
        measures. The result is the same, bit for bit.
    on_rows : called with the number of rows just measured.

    Raises
    ------
    NotFoundError
        If the store has no such feature, split or video.
    InvalidError
        If ``workers`` is less than 1, or a video is named twice.
    """
    spec = store.feature(feature)
    positions = store.index.select(split=split, videos=videos)
    measured = measure(store, feature, workers=workers, on_rows=on_rows)
    moments = measured.moments[positions].total()
    some = moments.count > 0
    names = tuple(dict.fromkeys(store.index.splits[positions].tolist()))
    quantiles = np.full((len(PROBABILITIES), *measured.groups.shape), np.nan)
    if videos is None:
        _fill_quantiles(quantiles, measured, names, moments)
    return Statistics(
        feature=spec.name,
        snapshot=store.snapshot,
        policy=POLICY,
        splits=names,
        parts=tuple(measured.groups.parts),
        columns=measured.groups.columns,
        videos=len(positions),
        frames=int(measured.frames[positions].sum()),
        count=moments.count,
        missing=moments.missing,
        low=np.where(some, moments.low, np.nan),
        high=np.where(some, moments.high, np.nan),
        mean=np.where(some, moments.mean, np.nan),
        std=moments.std,
        quantiles=quantiles,
    )


def statistics_by_split(
    store: BaseStore,
    features: Sequence[str] | None = None,
    *,
    splits: Sequence[str] | None = None,
    workers: int | None = None,
    on_rows: OnRows | None = None,
) -> dict[str, dict[str, Statistics]]:
    """Return statistics by feature and split; all of both by default. See :func:`statistics`."""
    wanted = store.splits if splits is None else list(splits)
    names = list(store.features) if features is None else list(dict.fromkeys(features))
    store.index.select(split=wanted)
    for name in names:
        store.feature(name)
    return {
        name: {
            split: statistics(store, name, split=split, workers=workers, on_rows=on_rows)
            for split in wanted
        }
        for name in names
    }


def _fill_quantiles(
    quantiles: NDArray[np.float64], measured: KeptMoments, splits: Sequence[str], moments: Moments
) -> None:
    for part, column in np.ndindex(*measured.groups.shape):
        sketch = Sketch.merge([measured.sketches[split, part, column] for split in splits])
        found = sketch.quantiles(PROBABILITIES)
        low, high = moments.low[part, column], moments.high[part, column]
        quantiles[:, part, column] = np.clip(found, low, high) if high >= low else found
