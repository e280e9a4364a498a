"""A random permutation whose numbers are computed by their places, without the others."""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
_ROUNDS, _MORE = 8, 32
"""Rounds of a Feistel network; of few numbers more, whose rounds can do less."""
_FEW = 1000
_HALF = np.uint64(32)


def keys_of(count: int, *entropy: int) -> Words:
    """Return random numbers that follow from whole numbers alone, (count,) uint64."""
    # NumPy promises that seeds are spread in the same way in all its versions.
    return np.random.SeedSequence(entropy).generate_state(count, np.uint64).astype(np.uint64)


def hashed(numbers: Words, key: np.uint64) -> Words:
    """Return a random number for each number, of the same shape, by a key; uint64."""
    found: Words = numbers ^ key
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # as in SplitMix64
        found ^= found >> np.uint64(31)
        found *= np.uint64(factor)
    found ^= found >> np.uint64(31)
    return found


class Permutation:
    """The numbers from 0 to ``length - 1`` in a random order.

    Numbers are cells of a table that is about as wide as high. In turns, each row is rotated by a
    random number that depends on the row, and each column likewise (a Feistel network); this is
    repeated for the few that leave the range.

    Parameters
    ----------
    length : less than 2**62.
    entropy : whole numbers that the order follows from.
    """

    def __init__(self, length: int, entropy: tuple[int, ...]) -> None:
        self.length = length
        self._keys = keys_of(_ROUNDS if length > _FEW else _MORE, *entropy)
        width = max(1, isqrt(max(0, length - 1)) + 1)
        self._width, self._height = np.uint64(width), np.uint64(max(1, -(-length // width)))

    def at(self, first: int, stop: int) -> Ints:
        """Return the numbers at places ``first`` to ``stop - 1``, int64."""
        assert 0 <= first <= stop <= self.length  # others lead out of the range for ever
        found = self._shuffled(np.arange(first, stop, dtype=np.uint64))
        while len(outside := np.flatnonzero(found >= np.uint64(self.length))):
            found[outside] = self._shuffled(found[outside])
        return found.view(np.int64)

    def _shuffled(self, cells: Words) -> Words:
        row, column = np.divmod(cells, self._width)
        for of_rows, of_columns in self._keys.reshape(-1, 2):
            row = _rotated(row, column, of_rows, self._height)
            column = _rotated(column, row, of_columns, self._width)
        row *= self._width
        row += column
        return row


def _rotated(numbers: Words, by: Words, key: np.uint64, length: np.uint64) -> Words:
    shift: Words = hashed(by, key)
    shift >>= _HALF
    shift *= length
    shift >>= _HALF
    shift += numbers
    # Of unsigned numbers, those below zero are the greatest.
    np.minimum(shift, shift - length, out=shift)
    return shift
