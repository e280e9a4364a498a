"""Whole numbers kept as runs of consecutive ones: rows of a view, or positions in an order.

A view of everything is one run, however many frames it has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_PIECE = 2**16
"""Numbers that are made at a time."""


class Runs:
    """Whole numbers in an order, as the runs of consecutive ones among them.

    Equal numbers in the same order have equal runs: each is as long as it can be.

    Parameters
    ----------
    starts : (runs,) int64, the first number of each run.
    bounds : (runs + 1,) int64: run ``i`` holds the numbers at ``bounds[i]`` to ``bounds[i + 1]``.
    """

    def __init__(self, starts: Ints, bounds: Ints) -> None:
        self.starts, self.bounds = starts, bounds

    @classmethod
    def between(cls, starts: Ints, stops: Ints) -> Runs:
        """Return the numbers from each of ``starts`` up to its stop, (runs,) int64 both."""
        there = stops > starts
        starts, stops = starts[there], stops[there]
        begins = np.ones(len(starts), dtype=np.bool_)
        begins[1:] = starts[1:] != stops[:-1]
        sizes = np.add.reduceat(stops - starts, np.flatnonzero(begins)) if len(starts) else starts
        return cls(starts[begins], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @classmethod
    def of(cls, numbers: Ints) -> Runs:
        """Return numbers, (numbers,) int64, as runs."""
        breaks = np.flatnonzero(numbers[1:] != numbers[:-1] + 1) + 1
        ends = np.full(min(1, len(numbers)), len(numbers))
        bounds = np.concatenate([[0], breaks, ends]).astype(np.int64)
        return cls(numbers[bounds[:-1]], bounds)

    @classmethod
    def up_to(cls, stop: int) -> Runs:
        """Return the numbers from 0 to ``stop - 1``."""
        return cls.between(np.zeros(1, dtype=np.int64), np.full(1, stop, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Iterable[Runs]) -> Runs:
        """Return the numbers of several, one after the other."""
        several = list(parts)
        nothing = np.empty(0, dtype=np.int64)
        return cls.between(
            np.concatenate([nothing, *(part.starts for part in several)]),
            np.concatenate([nothing, *(part.starts + part.sizes for part in several)]),
        )

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __repr__(self) -> str:
        return f"Runs({len(self)} numbers in {len(self.starts)} runs)"

    @property
    def sizes(self) -> Ints:
        """(runs,) int64: how many numbers each run has."""
        return np.diff(self.bounds)

    def __getitem__(self, places: Ints) -> Ints:
        """Return the numbers at some places, as an array of all numbers does; from the end, too.

        Raises
        ------
        IndexError
            If there is no such place.
        """
        length = len(self)
        if places.size and places.min() < 0:
            places = np.where(places < 0, places + length, places)
        # As unsigned numbers, negative ones are the greatest.
        if places.size and int(places.view(np.uint64).max()) >= length:
            raise IndexError(f"there are {length} numbers")
        if len(self.starts) == 1:
            shifts = self.starts[0]
        else:
            run = np.searchsorted(self.bounds, places, side="right") - 1
            shifts = self.starts[run] - self.bounds[run]
        found: Ints = places + shifts
        return found

    def spans(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the numbers at places ``first`` to ``stop - 1``: first and stop of each run."""
        run = bisect_right(self.bounds, first) - 1
        while first < stop:
            end = min(stop, int(self.bounds[run + 1]))
            shift = int(self.starts[run]) - int(self.bounds[run])
            yield first + shift, end + shift
            first, run = end, run + 1

    def part(self, first: int, stop: int) -> Runs:
        """Return the numbers at places ``first`` to ``stop - 1``."""
        spans = np.array(list(self.spans(first, stop)), dtype=np.int64).reshape(-1, 2)
        return Runs.between(spans[:, 0], spans[:, 1])

    def pieces(self) -> Iterator[Ints]:
        """Yield all numbers in order, some at a time."""
        for first in range(0, len(self), _PIECE):
            yield self[np.arange(first, min(first + _PIECE, len(self)))]

    def to_array(self) -> Ints:
        """Return all numbers, (numbers,) int64."""
        numbers = np.repeat(self.starts - self.bounds[:-1], self.sizes)
        numbers += np.arange(len(numbers))
        return numbers

    @property
    def is_ascending(self) -> bool:
        """Whether no number is less than the one before it."""
        return bool((self.starts[1:] >= (self.starts + self.sizes)[:-1] - 1).all())

    def count_below(self, limits: Ints) -> Ints:
        """Return how many numbers are less than each of ``limits``, if they are ascending."""
        if not len(self):
            return np.zeros(len(limits), dtype=np.int64)
        run = np.searchsorted(self.starts, limits, side="left") - 1
        inside = np.minimum(limits - self.starts[run], self.sizes[run])
        return np.where(run < 0, 0, self.bounds[run] + inside)

    def within(self, mask: NDArray[np.bool_]) -> Runs:
        """Return the numbers for which a mask of all that there may be is True."""
        padded = np.zeros(len(mask) + 2, dtype=np.bool_)
        padded[1:-1] = mask
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        begins, ends = edges[::2], edges[1::2]
        # Of each run, the stretches of the mask that reach into it.
        first = np.searchsorted(ends, self.starts, side="right")
        stop = np.searchsorted(begins, self.starts + self.sizes, side="left")
        counts = np.maximum(0, stop - first)
        run = np.repeat(np.arange(len(counts)), counts)
        stretch = np.arange(len(run)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        return Runs.between(
            np.maximum(begins[stretch], self.starts[run]),
            np.minimum(ends[stretch], (self.starts + self.sizes)[run]),
        )
