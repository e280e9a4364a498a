"""Batches of an epoch's samples, shares of ranks, and what is left after an interruption."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kpstore.views.order import Order
from kpstore.views.runs import Ints, Runs

Shuffle = Literal["block", "full"] | None
SHUFFLES: tuple[Shuffle, ...] = ("block", "full", None)
_BUCKET_BATCHES = 32
"""Batches whose videos are sorted by length together: similar lengths, yet still shuffled."""


class Batches(ABC):
    """Batches of samples, one after the other: ``batches[i]`` is (samples,) int64."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def __getitem__(self, number: int) -> Ints:
        """Return the samples of a batch."""

    @property
    @abstractmethod
    def n_samples(self) -> int:
        """Number of samples in all batches."""

    def __iter__(self) -> Iterator[Ints]:
        return (self[number] for number in range(len(self)))


class EvenBatches(Batches):
    """Batches of equally many samples, computed when they are asked for.

    Parameters
    ----------
    order : of the epoch.
    places : in the order, of the samples of all batches.
    size : samples per batch; the last may be smaller, unless it is dropped.
    """

    def __init__(self, order: Order, places: Runs, size: int, *, drop_last: bool = False) -> None:
        self._order, self._places, self._size = order, places, size
        n_all = len(places)
        self._n_samples = n_all // size * size if drop_last else n_all

    def __len__(self) -> int:
        return -(-self._n_samples // self._size)

    def __getitem__(self, number: int) -> Ints:
        """Return the samples of a batch; see :class:`Batches`."""
        first = number * self._size
        stop = min(first + self._size, self._n_samples)
        parts = [self._order.at(*span) for span in self._places.spans(first, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def n_samples(self) -> int:
        """Number of samples in all batches."""
        return self._n_samples


@dataclass(frozen=True)
class ListedBatches(Batches):
    """Batches of any sizes.

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
        """Return the samples of a batch; see :class:`Batches`."""
        return self.samples[self.bounds[number] : self.bounds[number + 1]]

    @property
    def n_samples(self) -> int:
        """Number of samples in all batches."""
        return len(self.samples)

    def take(self, numbers: Ints) -> ListedBatches:
        """Return some of the batches, in the order given."""
        chosen = [self[number] for number in numbers.tolist()]
        sizes = [len(batch) for batch in chosen]
        samples = np.concatenate([np.empty(0, dtype=np.int64), *chosen])
        return ListedBatches(samples, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def batches_by_length(
    samples: Ints,
    lengths: Ints,
    max_frames: int,
    max_samples: int | None,
    rng: np.random.Generator | None,
) -> ListedBatches:
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
    return ListedBatches(np.concatenate([np.empty(0, dtype=np.int64), *found]), bounds)


def _cuts(lengths: Sequence[int], max_frames: int, max_samples: int | None) -> list[int]:
    """Return where to cut ascending lengths so that each part, padded, stays within the limits."""
    cuts, first = [], 0
    for i, length in enumerate(lengths):
        n = i - first + 1
        if i > first and (n * length > max_frames or (max_samples is not None and n > max_samples)):
            cuts.append(i)
            first = i
    return cuts


def largest(batches: Batches, lengths: Ints) -> int:
    """Return the number of the batch with most frames, padded ones included; there is one."""
    if lengths.min() == lengths.max():
        return 0  # only the last may be smaller
    n_frames = [len(batch) * int(lengths[batch].max()) for batch in batches]
    return n_frames.index(max(n_frames))


def padding_share(batches: Batches, lengths: Ints) -> float:
    """Return padded frames as a share of all frames, each batch padded to its longest sample."""
    n_frames = n_padded = 0
    for batch in batches:
        of_batch = lengths[batch]
        n_frames += int(of_batch.sum())
        n_padded += len(batch) * int(of_batch.max(initial=0))
    return 1.0 - n_frames / n_padded if n_padded else 0.0


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
    units: Runs,
    rank: int,
    world_size: int,
    *,
    pad: bool,
    drop: bool = False,
    pad_from: Runs | None = None,
) -> tuple[Runs, int]:
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
        return units.part(first, stop), 0
    mine, spare = units.part(first, stop), units if pad_from is None else pad_from
    if rank >= n_more:
        twice = (rank - n_more) % len(spare)
        mine = Runs.joined([mine, spare.part(twice, twice + 1)])
    return mine, world_size - n_more


def _bounds(n_units: int, rank: int, world_size: int, *, drop: bool) -> tuple[int, int]:
    n_each, n_more = divmod(n_units, world_size)
    if drop:
        return rank * n_each, (rank + 1) * n_each
    first = rank * n_each + min(rank, n_more)
    return first, first + n_each + (rank < n_more)


def left_to_do(units: Runs, done: Sequence[Done]) -> Runs:
    """Return the units that no rank has done in an epoch that was interrupted, maybe repeatedly."""
    for before in done:
        bounds = [
            _bounds(len(units), rank, before.world_size, drop=before.drop)
            for rank in range(before.world_size)
        ]
        parts = [units.part(min(first + before.n_units, stop), stop) for first, stop in bounds]
        units = Runs.joined([*parts, units.part(bounds[-1][1], len(units))])
    return units
