"""The first order of epochs, as a list of all samples; states that were saved in it go on in it.

:mod:`kpstore.views.order` is the order of epochs that begin now.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from kpstore.schema.index import distinct
from kpstore.views.runs import Ints

_GOLDEN = (5**0.5 - 1) / 2
_PIECE = 2**15
"""Samples that are placed together, so that what is computed for them stays in the cache."""


class BlockShuffle:
    """A shuffle that reads storage block by block and keeps few blocks in memory.

    Blocks come in random order. The samples of a block are spread over a window of the epoch, as
    long as ``window`` blocks and centred at the block's turn. At most ``window`` blocks are in use
    at any time, each during one stretch, and every stretch mixes that many. Within its window, the
    samples of a group (a video) keep apart: from a random start they step by the golden ratio,
    which spreads any number of them evenly and out of order. So a batch holds more different videos
    than a random draw from the same blocks.

    At the beginning and the end of the epoch, windows that reach beyond it are folded back, which
    leaves half as many blocks to mix there.

    Parameters
    ----------
    blocks, groups : (samples,) int64, the block and the group of each sample, from 0.
    window : most blocks in use at a time.
    """

    def __init__(self, blocks: Ints, groups: Ints, window: int) -> None:
        keys = groups * (int(blocks.max(initial=-1)) + 1)
        keys += blocks
        by_run = None if _is_ascending(keys) else np.argsort(keys, kind="stable")
        if by_run is not None:
            keys, blocks = keys[by_run], blocks[by_run]
        starts = _starts_of_runs(keys)
        self._keep(len(keys), starts, blocks[starts], window, by_run)

    @classmethod
    def of_rows(cls, rows: Ints, block_rows: int, borders: Ints, window: int) -> Self:
        """Return the shuffle of samples that are stored in blocks of ``block_rows`` rows.

        Parameters
        ----------
        rows : (samples,) int64, the first row of each sample.
        borders : (groups + 1,) int64: group ``i`` holds rows ``borders[i]`` to ``borders[i + 1]``.
        """
        if not _is_ascending(rows):
            groups = np.searchsorted(borders, rows, side="right")
            return cls(numbered(rows // block_rows), groups, window)
        # As in a view of whole splits. Borders are few, and no sample has to be looked at.
        edges = np.arange(0, int(rows[-1]) + 1 if len(rows) else 0, block_rows)
        cuts = np.searchsorted(rows, np.concatenate([edges, borders]))
        starts = distinct(cuts[cuts < len(rows)])
        shuffle = cls.__new__(cls)
        shuffle._keep(len(rows), starts, numbered(rows[starts] // block_rows), window)
        return shuffle

    def _keep(
        self, n_samples: int, starts: Ints, blocks: Ints, window: int, by_run: Ints | None = None
    ) -> None:
        """Keep the runs of samples of one group in one block: where each begins, and its block.

        ``by_run`` lists the samples run by run; None if that is their own order.
        """
        self._n_samples, self._starts, self._blocks = n_samples, starts, blocks
        self._n_blocks = int(blocks.max(initial=-1)) + 1
        self._window, self._by_run = window, by_run

    def order(self, rng: np.random.Generator) -> Ints:
        """Return all samples in the order of an epoch, (samples,) int64."""
        n_samples, n_blocks = self._n_samples, self._n_blocks
        if self._window >= n_blocks:
            # All blocks are in use all the time: no sample has to stay near its block.
            return rng.permutation(n_samples).astype(np.int64, copy=False)
        phases = rng.random(len(self._starts))
        turns = (rng.permutation(n_blocks) + 0.5)[self._blocks]  # of each run
        bits = max(1, (n_samples - 1).bit_length())
        # Packed with the sample's number, keys sort faster than by argsort.
        packed = np.empty(n_samples, dtype=np.int64)
        for first in range(0, n_samples, _PIECE):
            numbers = np.arange(first, min(first + _PIECE, n_samples))
            run = self._run_of(first, len(numbers))
            at = (numbers - self._starts[run]) * _GOLDEN
            at -= np.floor(at)  # the same bits as at % 1, and sooner
            at += phases[run]
            at -= np.floor(at)
            at -= 0.5
            at *= self._window
            at += turns[run]
            np.abs(at, out=at)
            at = n_blocks - np.abs(n_blocks - at)
            at /= n_blocks
            at *= 2.0 ** (62 - bits)
            keys = at.astype(np.int64)
            keys <<= bits
            keys |= numbers if self._by_run is None else self._by_run[numbers]
            packed[first : first + _PIECE] = keys
        packed.sort()
        packed &= (1 << bits) - 1
        return packed

    def _run_of(self, first: int, count: int) -> Ints:
        """Return the run of each of ``count`` samples from ``first`` on, of samples run by run."""
        begun, ended = np.searchsorted(self._starts, [first, first + count], side="left")
        inside = self._starts[begun:ended] - first
        sizes = np.diff(inside, prepend=0, append=count)
        return np.repeat(np.arange(begun - 1, ended), sizes)


def _is_ascending(keys: Ints) -> bool:
    return bool((keys[1:] >= keys[:-1]).all())


def _starts_of_runs(keys: Ints) -> Ints:
    """Return where each run of equal keys begins, of keys in ascending order."""
    changes = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    return np.concatenate([np.zeros(min(1, len(keys)), dtype=np.int64), changes])


def numbered(keys: Ints) -> Ints:
    """Return for each key the rank of its value among the distinct values, (keys,) int64 from 0."""
    if _is_ascending(keys):
        starts = _starts_of_runs(keys)
        return np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
    return np.unique(keys, return_inverse=True)[1].astype(np.int64, copy=False)
