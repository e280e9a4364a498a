"""The order in which an epoch visits samples: shuffles, batches, shares of ranks, resuming.

It depends on the seed, the epoch and the stored data only, never on workers, threads or caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.index import distinct

Shuffle = Literal["block", "full"] | None
SHUFFLES: tuple[Shuffle, ...] = ("block", "full", None)
Ints = NDArray[np.int64]
_GOLDEN = (5**0.5 - 1) / 2
_PIECE = 2**15
"""Samples that are placed together, so that what is computed for them stays in the cache."""
_BUCKET_BATCHES = 32
"""Batches whose videos are sorted by length together: similar lengths, yet still shuffled."""


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


@dataclass(frozen=True)
class Batches:
    """Batches of samples, one after the other.

    Parameters
    ----------
    samples : (samples,) int64, batch after batch.
    bounds : (batches + 1,) int64: batch ``i`` is ``samples[bounds[i]:bounds[i + 1]]``.
    """

    samples: Ints
    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, number: int) -> Ints:
        return self.samples[self.bounds[number] : self.bounds[number + 1]]

    def __iter__(self) -> Iterator[Ints]:
        return (self[number] for number in range(len(self)))

    def take(self, numbers: Ints) -> Batches:
        """Return some of the batches, in the order given."""
        chosen = [self[number] for number in numbers.tolist()]
        sizes = [len(batch) for batch in chosen]
        samples = np.concatenate([np.empty(0, dtype=np.int64), *chosen])
        return Batches(samples, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def batches_of(samples: Ints, size: int, *, drop_last: bool = False) -> Batches:
    """Return samples in batches of ``size``; the last may be smaller, unless it is dropped."""
    n_full = len(samples) // size
    bounds = np.arange(n_full + 1, dtype=np.int64) * size
    if drop_last:
        return Batches(samples[: n_full * size], bounds)
    return Batches(
        samples, bounds if n_full * size == len(samples) else np.append(bounds, len(samples))
    )


def batches_by_length(
    samples: Ints,
    lengths: Ints,
    max_frames: int,
    max_samples: int | None,
    rng: np.random.Generator | None,
) -> Batches:
    """Return batches of samples of similar lengths, of at most ``max_frames`` when padded.

    Parameters
    ----------
    samples : in the order of the epoch.
    lengths : (all samples,) int64, frames. A sample longer than ``max_frames`` is its own batch.
    max_samples : per batch; None for no limit.
    rng : shuffles nearby batches; None keeps them sorted by length.
    """
    per_batch = max(1, int(max_frames // max(1.0, lengths[samples].mean()))) if len(samples) else 1
    window = _BUCKET_BATCHES * min(per_batch, max_samples or per_batch)
    found: list[Ints] = []
    for first in range(0, len(samples), window):
        nearby = samples[first : first + window]
        by_length = nearby[np.argsort(lengths[nearby], kind="stable")]
        batches = np.split(by_length, _cuts(lengths[by_length].tolist(), max_frames, max_samples))
        found += batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
    bounds = np.cumsum([0, *map(len, found)]).astype(np.int64)
    return Batches(np.concatenate([np.empty(0, dtype=np.int64), *found]), bounds)


def _cuts(lengths: Sequence[int], max_frames: int, max_samples: int | None) -> list[int]:
    """Return where to cut ascending lengths so that each part, padded, stays within the limits."""
    cuts, first = [], 0
    for i, length in enumerate(lengths):
        n = i - first + 1
        if i > first and (n * length > max_frames or (max_samples is not None and n > max_samples)):
            cuts.append(i)
            first = i
    return cuts


def padding_share(batches: Batches, lengths: Ints) -> float:
    """Return padded frames as a share of all frames, each batch padded to its longest sample."""
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches if len(batch))
    return 1.0 - float(lengths[batches.samples].sum()) / padded if padded else 0.0


@dataclass(frozen=True)
class Done:
    """What was done of an epoch before it was interrupted.

    Parameters
    ----------
    world_size : number of ranks at that time.
    n_units : units (samples, or batches) that each rank had done.
    drop : whether the last few units were left out, see :func:`share_out`.
    """

    world_size: int
    n_units: int
    drop: bool = False


def share_out(
    units: Ints,
    rank: int,
    world_size: int,
    *,
    pad: bool,
    drop: bool = False,
    pad_from: Ints | None = None,
) -> tuple[Ints, int]:
    """Return the consecutive units of one rank, and how many units come twice over all ranks.

    Neighbours stay together, so that each rank reads its own part of storage. The units of all
    ranks together are ``units``.

    Parameters
    ----------
    pad : give every rank equally many by doing some units twice: ranks that train together wait for
        each other, and would wait for ever for one that has fewer.
    drop : give every rank equally many by leaving out the last few.
    pad_from : the units to do twice, from the first on; ``units`` by default.
    """
    first, stop = _bounds(len(units), rank, world_size, drop=drop)
    n_more = len(units) % world_size
    if drop or not pad or n_more == 0:
        return units[first:stop], 0
    mine, spare = units[first:stop], units if pad_from is None else pad_from
    if rank >= n_more:
        mine = np.append(mine, spare[(rank - n_more) % len(spare)])
    return mine, world_size - n_more


def _bounds(n_units: int, rank: int, world_size: int, *, drop: bool) -> tuple[int, int]:
    n_each, n_more = divmod(n_units, world_size)
    if drop:
        return rank * n_each, (rank + 1) * n_each
    first = rank * n_each + min(rank, n_more)
    return first, first + n_each + (rank < n_more)


def left_to_do(units: Ints, done: Sequence[Done]) -> Ints:
    """Return the units that no rank has done in an epoch that was interrupted, maybe repeatedly."""
    for before in done:
        bounds = [
            _bounds(len(units), rank, before.world_size, drop=before.drop)
            for rank in range(before.world_size)
        ]
        parts = [units[min(first + before.n_units, stop) : stop] for first, stop in bounds]
        units = np.concatenate([*parts, units[bounds[-1][1] :]])
    return units
