"""Counts, extremes, means and deviations that can be merged, and a histogram for quantiles.

Moments of parts of the data are merged as in Chan, Golub and LeVeque, "Updating formulae and a
pairwise algorithm for computing sample variances" (1979): deviations are taken from the mean of
each part, so that nothing cancels, however far from zero the values are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

_KEPT_BITS = 18
"""Of a float32: sign, exponent and 9 of 23 bits after the point."""
_DROPPED_BITS = 32 - _KEPT_BITS
RELATIVE_ERROR = 2.0**-10
"""Largest relative error of a quantile (0.1 %)."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""Quantiles nearer to zero than this, 1.2e-38, are given as zero."""
LARGEST = float(np.finfo(np.float32).max)
"""Values farther from zero than this, 3.4e38, count as this for quantiles."""

_HUGE = np.errstate(over="ignore", invalid="ignore")
"""Squares of float64 values beyond 1e154 overflow: such a deviation is given as infinite."""


@dataclass(frozen=True)
class Moments:
    """Moments of many groups of values at once; all arrays have the shape of the groups.

    Parameters
    ----------
    count, missing : int64, numbers of present and of missing values.
    low, high : float64, the extremes; inf and -inf for a group without values.
    mean, m2 : float64, the mean, and the sum of squared deviations from it; 0 for a group without
        values.
    """

    count: NDArray[np.int64]
    missing: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Moments(groups {self.count.shape}, {int(self.count.sum())} values)"

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> Self:
        """Return groups without values."""
        whole, real = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        return cls(
            whole, whole.copy(), np.full(shape, np.inf), np.full(shape, -np.inf), real, real.copy()
        )

    @classmethod
    def stack(cls, several: Sequence[Moments]) -> Self:
        """Return (runs, columns) groups of several parts as (runs, parts, columns)."""
        return cls(
            *(
                np.stack([getattr(one, field.name) for one in several], axis=1)
                for field in fields(cls)
            )
        )

    def __getitem__(self, groups: slice | NDArray[np.int64] | None) -> Moments:
        return Moments(*(getattr(self, field.name)[groups] for field in fields(self)))

    def put(self, groups: slice | NDArray[np.int64], other: Moments) -> None:
        """Replace some groups."""
        for field in fields(self):
            getattr(self, field.name)[groups] = getattr(other, field.name)

    @_HUGE
    def merged(self, other: Moments) -> Moments:
        """Return the moments of both, group by group."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.missing + other.missing,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.mean + delta * share,
            self.m2 + other.m2 + delta * delta * self.count * share,
        )

    @_HUGE
    def total(self) -> Moments:
        """Return the moments of all groups along the first axis, merged."""
        count = self.count.sum(axis=0)
        mean = (self.mean * (self.count / np.maximum(count, 1))).sum(axis=0)
        spread = self.count * (self.mean - mean) ** 2
        low, high = self.low.min(axis=0, initial=np.inf), self.high.max(axis=0, initial=-np.inf)
        return Moments(
            count, self.missing.sum(axis=0), low, high, mean, (self.m2 + spread).sum(axis=0)
        )

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation (divided by n); NaN for a group without values."""
        return np.where(self.count > 0, np.sqrt(self.m2 / np.maximum(self.count, 1)), np.nan)


@_HUGE
def measure_runs(
    values: NDArray[np.float64], present: NDArray[np.bool_], starts: NDArray[np.int64]
) -> Moments:
    """Return moments of runs of rows, over each run's rows and points: groups (runs, columns).

    Parameters
    ----------
    values : (rows, columns, points) float64, points contiguous in memory; values where ``present``
        is False do not matter.
    present : the same shape, bool.
    starts : (runs,) int64, the first row of each run, rising from 0; a run ends where the next
        begins.
    """
    lengths = np.diff(np.append(starts, len(values)))
    count = np.add.reduceat(present.sum(axis=2, dtype=np.int64), starts, axis=0)
    missing = lengths[:, None] * values.shape[2] - count
    low = np.minimum.reduceat(np.where(present, values, np.inf).min(axis=2), starts, axis=0)
    high = np.maximum.reduceat(np.where(present, values, -np.inf).max(axis=2), starts, axis=0)
    there = np.maximum(count, 1)
    mean = np.add.reduceat(np.where(present, values, 0.0).sum(axis=2), starts, axis=0) / there
    away = np.where(present, values - np.repeat(mean, lengths, axis=0)[:, :, None], 0.0)
    left_over = np.add.reduceat(away.sum(axis=2), starts, axis=0)
    away *= away
    m2 = np.add.reduceat(away.sum(axis=2), starts, axis=0)
    # The mean was rounded: the effect on the deviations is removed, and the mean corrected.
    m2 = np.maximum(m2 - left_over**2 / there, 0.0)
    return Moments(count, missing, low, high, mean + left_over / there, m2)


@dataclass(frozen=True)
class Sketch:
    """A histogram of 2^18 bins whose width grows with their distance from zero.

    A bin holds the values that agree in the first 18 bits of their float32 (sign, exponent, 9 bits
    of the rest), so its relative precision is fixed, as in DDSketch (Masson, Rim and Lee, VLDB
    2019), and no logarithm is needed. Only bins with values are kept: kB usually, a few MB at most.

    Parameters
    ----------
    bins : (bins,) uint32, rising.
    counts : (bins,) int64, more than 0.
    """

    bins: NDArray[np.uint32]
    counts: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"Sketch({int(self.counts.sum())} values in {len(self.bins)} bins)"

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """Return the sketch of finite values."""
        if len(values) == 0:
            return cls(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64))
        bins = _bins(values)
        first = int(bins.min())
        counts = np.bincount(bins - np.uint32(first))
        held = np.flatnonzero(counts)
        return cls((held + first).astype(np.uint32), counts[held].astype(np.int64))

    @classmethod
    def merge(cls, sketches: Sequence[Sketch]) -> Self:
        """Return the sketch of the values of all sketches."""
        if not sketches:
            return cls.of(np.empty(0))
        bins, where = np.unique(
            np.concatenate([sketch.bins for sketch in sketches]), return_inverse=True
        )
        counts = np.zeros(len(bins), dtype=np.int64)
        np.add.at(counts, where, np.concatenate([sketch.counts for sketch in sketches]))
        return cls(bins, counts)

    def quantiles(self, probabilities: Sequence[float]) -> NDArray[np.float64]:
        """Return quantiles, (probabilities,) float64; NaN without values.

        For each, the middle of the bin that holds the value of rank floor(p (n - 1)) of the sorted
        values (numpy's ``method="lower"``), so it is off by at most :data:`RELATIVE_ERROR` of its
        size.
        """
        if len(self.bins) == 0:
            return np.full(len(probabilities), np.nan)
        upto = np.cumsum(self.counts)
        ranks = np.floor(np.asarray(probabilities) * (upto[-1] - 1) + 1e-9)
        return _middles(self.bins[np.searchsorted(upto, ranks, side="right")])


def _bins(values: NDArray[np.float64]) -> NDArray[np.uint32]:
    single = np.clip(values, -LARGEST, LARGEST).astype(np.float32)
    bits = np.ascontiguousarray(single + np.float32(0)).view(np.uint32)  # + 0: there is one zero
    sign = np.uint32(0x80000000)
    ordered = np.where(bits & sign, ~bits, bits | sign)
    return ordered >> np.uint32(_DROPPED_BITS)


def _middles(bins: NDArray[np.uint32]) -> NDArray[np.float64]:
    first = bins << np.uint32(_DROPPED_BITS)
    last = first | np.uint32((1 << _DROPPED_BITS) - 1)
    ends = np.stack([first, last])
    sign = np.uint32(0x80000000)
    floats = np.where(ends & sign, ends ^ sign, ~ends).view(np.float32).astype(np.float64)
    middle: NDArray[np.float64] = np.clip(floats, -LARGEST, LARGEST).mean(axis=0)
    return np.where(np.abs(middle) < SMALLEST, 0.0, middle)
