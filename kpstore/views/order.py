"""The order in which an epoch visits samples, computed where it is asked for.

It depends on the seed, the epoch and the stored data only, never on workers, threads or caches. An
order is no list: it holds the samples near the position that was read last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from functools import cached_property
from typing import Any

import numpy as np

from kpstore.schema.index import distinct
from kpstore.views.permutation import Permutation, Words, hashed, keys_of
from kpstore.views.runs import Ints, Runs

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The golden ratio's fraction, of 2**64."""
_PIECE = 2**15
"""Samples that are placed together: so many that NumPy's calls hardly count."""
_RANKED, _BLOCK_BITS = 2**16, 10
"""About how many samples are ranked together; of at most so many bits of blocks."""
_DEALT = 1
"""Tells the random numbers of a block shuffle from those of its permutation."""
_FINE, _STEPS = 16, 12
"""Bits of a place within a slot; of the distance between two samples of a block."""


_NOTHING: Ints = np.empty(0, dtype=np.int64)


class Order(ABC):
    """The samples of an epoch by position, from 0 to ``len(order) - 1``."""

    def __init__(self, n_samples: int) -> None:
        self._n_samples = n_samples
        self._piece: tuple[int, Ints] = 0, _NOTHING
        """The samples that were computed last, and the position of the first."""

    def __len__(self) -> int:
        return self._n_samples

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_piece": (0, _NOTHING)}

    def at(self, first: int, stop: int) -> Ints:
        """Return the samples at positions ``first`` to ``stop - 1``, int64."""
        parts = []
        while first < stop:
            begin, samples = self._piece
            if not begin <= first < begin + len(samples):
                begin, samples = self._piece = self._piece_at(first)
            parts.append(samples[first - begin : stop - begin])
            first += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate([_NOTHING, *parts])

    @abstractmethod
    def _piece_at(self, position: int) -> tuple[int, Ints]:
        """Return the samples around a position, and the position of the first of them."""


class Stored(Order):
    """Samples in the order of the view."""

    def _piece_at(self, position: int) -> tuple[int, Ints]:
        first = position // _PIECE * _PIECE
        return first, np.arange(first, min(first + _PIECE, len(self)))


class Listed(Order):
    """Samples in an order that is given, (samples,) int64."""

    def __init__(self, samples: Ints) -> None:
        super().__init__(len(samples))
        self._samples = samples

    def _piece_at(self, position: int) -> tuple[int, Ints]:
        return 0, self._samples


class FullShuffle(Order):
    """All samples in a random order, which follows from whole numbers alone."""

    def __init__(self, n_samples: int, entropy: tuple[int, ...]) -> None:
        super().__init__(n_samples)
        self._permutation = Permutation(n_samples, entropy)

    def _piece_at(self, position: int) -> tuple[int, Ints]:
        first = position // _PIECE * _PIECE
        return first, self._permutation.at(first, min(first + _PIECE, len(self)))


class Blocks:
    """Where samples are stored: in which block, and of which group.

    Parameters
    ----------
    rows : the first row of each sample, as runs.
    block_rows : rows of a block.
    borders : (groups + 1,) int64: group ``i`` holds rows ``borders[i]`` to ``borders[i + 1]``.

    Attributes
    ----------
    starts : (blocks + 1,) int64: block ``i`` holds samples ``starts[i]`` to ``starts[i + 1]``, in
        the order of storage; blocks without samples are left out.
    """

    def __init__(self, rows: Runs, block_rows: int, borders: Ints) -> None:
        self._numbers: Runs | None = None
        """The number in the view of each sample in the order of storage; None if it is the same."""
        if not rows.is_ascending:
            rows, self._numbers = _in_storage_order(rows)
        self._rows, self._borders = rows, borders
        n_rows = int(rows.starts[-1] + rows.sizes[-1]) if len(rows) else 0
        edges = np.arange(0, n_rows + block_rows, block_rows)
        self.starts = distinct(rows.count_below(edges))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def n_samples(self) -> int:
        """Number of samples in all blocks."""
        return len(self._rows)

    def numbers(self, samples: Ints) -> Ints:
        """Return the numbers in the view of samples in the order of storage."""
        return samples if self._numbers is None else self._numbers[samples]

    def groups(self, blocks: Ints) -> tuple[Ints, Ints]:
        """Return the first samples of the groups in some blocks.

        Parameters
        ----------
        blocks : (blocks,) int64.

        Returns
        -------
        which, samples : (groups,) int64
            Which of ``blocks`` it is, and the first sample there of a group, in the order of
            storage. The first of each block is one; some may come repeatedly.
        """
        first, stop = self.starts[blocks], self.starts[blocks + 1]
        begun = np.searchsorted(self._borders, self._rows[first], side="right")
        counts = np.searchsorted(self._borders, self._rows[stop - 1], side="right") - begun
        which = np.repeat(np.arange(len(blocks)), counts)
        border = np.arange(len(which)) + np.repeat(begun - np.cumsum(counts) + counts, counts)
        inside = self._rows.count_below(self._borders[border])
        return (
            np.concatenate([np.arange(len(blocks)), which]),
            np.concatenate([first, inside]),
        )


def _in_storage_order(rows: Runs) -> tuple[Runs, Runs]:
    """Return rows in ascending order, and the place of each in the given order."""
    by_start = np.argsort(rows.starts, kind="stable")
    starts, stops = rows.starts[by_start], (rows.starts + rows.sizes)[by_start]
    ascending = Runs.between(starts, stops)
    if ascending.is_ascending:
        return ascending, Runs.between(rows.bounds[:-1][by_start], rows.bounds[1:][by_start])
    # Runs overlap: some rows come several times.
    numbers = rows.to_array()
    by_row = np.argsort(numbers, kind="stable")
    return Runs.of(numbers[by_row]), Runs.of(by_row)


def block_shuffle(blocks: Blocks, window: int, entropy: tuple[int, ...]) -> Order:
    """Return an order that reads block by block, with at most ``window`` of them in use."""
    if window >= len(blocks):
        # All blocks are in use all the time: no sample has to stay near its block.
        return FullShuffle(blocks.n_samples, entropy)
    return BlockShuffle(blocks, window, entropy)


class BlockShuffle(Order):
    """A shuffle that reads storage block by block and keeps few blocks in memory.

    Blocks come in random order, one a *turn*, and an epoch has a *slot* for each turn. The samples
    of a block are dealt over a window of slots, with the block's turn in the middle. So at most
    ``window`` blocks are in use at any time, each during one stretch, and every stretch mixes that
    many. Within its window, the samples of a group (a video) keep apart: from a random start they
    step by the golden ratio, which spreads any number of them evenly and out of order. So a batch
    holds more different videos than a random draw from the same blocks.

    At the beginning and the end of the epoch, windows that reach beyond it are folded back, which
    leaves half as many blocks to mix there.

    How many samples lie before a slot follows from the sizes of blocks alone. So samples are
    computed where they are asked for, from the blocks in use there. Only whole numbers are
    computed with: the order is the same on every machine.

    Parameters
    ----------
    blocks : where samples are stored.
    window : most blocks in use at a time, fewer than there are.
    entropy : whole numbers that the order follows from.
    """

    def __init__(self, blocks: Blocks, window: int, entropy: tuple[int, ...]) -> None:
        super().__init__(blocks.n_samples)
        self._blocks, self._entropy = blocks, entropy
        self._keys = keys_of(3, *entropy, _DEALT)
        # Products stay within 64 bits for up to 2**47 samples in use.
        self._n_turns, self._window = len(blocks), window
        self._index_bits = int(np.diff(blocks.starts).max(initial=0)).bit_length()
        per_piece = _PIECE * self._n_turns // max(1, len(self))
        self._step = max(1, per_piece, window // 16)
        """Slots that are placed together."""
        self._following = 0, 0
        """The position after the piece that was computed last, and the number of the next."""
        self._ranked: tuple[int, int, Ints] = 0, 0, _NOTHING
        """The blocks in use: first and last turn, and the samples of each by rank."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ranked": (0, 0, _NOTHING)}

    # -- how many samples are where ----------------------------------------------------------------

    @cached_property
    def _turns(self) -> Ints:
        """(turns,) int64: the block of each turn."""
        return Permutation(self._n_turns, self._entropy).at(0, self._n_turns)

    @cached_property
    def _begun(self) -> Ints:
        """(turns + 1,) int64: samples of all blocks before each turn."""
        sizes = np.diff(self._blocks.starts)[self._turns]
        return np.concatenate([[0], np.cumsum(sizes)])

    def _starts(self, first: int, stop: int) -> Ints:
        """Return where the first sample of each turn's block lies in the block's first slots.

        A sample of rank ``k`` lies ``k * window << _STEPS`` behind that; slots are ``size <<
        _STEPS`` long.
        """
        word = hashed(self._turns[first:stop].view(np.uint64), self._keys[2])
        word >>= np.uint64(40)
        word *= np.uint64(self._window)
        # Of 24 bits, as many as _STEPS says are left.
        return (word >> np.uint64(24 - _STEPS)).view(np.int64)

    def _ranks(self, first: int, stop: int, slot: int) -> Ints:
        """Return how many samples of each turn's block lie before a slot of the unfolded epoch."""
        halves = np.clip(2 * slot - self._begin(first, stop), 0, 2 * self._window)
        length = np.diff(self._begun[first : stop + 1]) << (_STEPS - 1)
        return -((self._starts(first, stop) - halves * length) // (self._window << _STEPS))

    def _begin(self, first: int, stop: int) -> Ints:
        """Return where the window of each turn's block begins, in halves of a slot."""
        return np.arange(2 * first + 1, 2 * stop + 1, 2) - self._window

    def _in_use(self, first: int, stop: int) -> tuple[int, int]:
        """Return the turns whose blocks reach into slots of the unfolded epoch: first and stop."""
        around = self._window // 2
        return (
            min(max(0, first - around), self._n_turns),
            max(0, min(stop + around, self._n_turns)),
        )

    def _unfolded(self, slot: int) -> int:
        """Return how many samples lie before a slot, were nothing folded back."""
        first, stop = self._in_use(slot, slot)
        return int(self._begun[first]) + int(self._ranks(first, stop, slot).sum())

    def _before(self, slot: int) -> int:
        """Return how many samples of the epoch lie before a slot."""
        end = 2 * self._n_turns - slot
        return self._unfolded(slot) - self._unfolded(-slot) + len(self) - self._unfolded(end)

    # -- the samples of some slots -----------------------------------------------------------------

    def _piece_at(self, position: int) -> tuple[int, Ints]:
        begin, number = self._following
        samples = self._piece_of(number) if begin == position else _NOTHING
        if not len(samples):
            pieces = range(-(-self._n_turns // self._step))
            number = bisect_right(pieces, position, key=self._before_piece) - 1
            begin, samples = self._before_piece(number), self._piece_of(number)
        self._following = begin + len(samples), number + 1
        return begin, samples

    def _before_piece(self, number: int) -> int:
        return self._before(number * self._step)

    def _piece_of(self, number: int) -> Ints:
        """Return the samples of a piece, in the order of the epoch."""
        first = number * self._step
        stop, end = min(first + self._step, self._n_turns), 2 * self._n_turns
        direct = self._dealt(first, stop)
        early, late = self._dealt(-stop, -first), self._dealt(end - stop, end - first)
        # Folded back, what was last in a slot is first.
        folded = [direct[0], ~early[0], ~late[0] + (end << _FINE)]
        keys = np.concatenate(folded)
        keys -= first << _FINE
        bits = len(keys).bit_length()
        keys <<= bits
        keys |= np.arange(len(keys))
        keys.sort()
        keys &= (1 << bits) - 1
        samples = np.concatenate([direct[1], early[1], late[1]])[keys]
        return self._blocks.numbers(samples)

    def _dealt(self, first: int, stop: int) -> tuple[Ints, Ints]:
        """Return the samples that slots of the unfolded epoch hold: their places, and themselves.

        Places are in slots, of 2**_FINE; a block's samples are equally far from each other.
        """
        begun, ended = self._in_use(first, stop)
        low, high = (self._ranks(begun, ended, slot) for slot in (first, stop))
        counts = high - low
        n_dealt = int(counts.sum())
        if not n_dealt:
            return _NOTHING, _NOTHING
        ranks = np.arange(n_dealt)
        ranks += np.repeat(low - np.cumsum(counts) + counts, counts)
        places = ranks * (self._window << _STEPS)
        places += np.repeat(self._starts(begun, ended), counts)
        places <<= _FINE - _STEPS
        places //= np.repeat(np.diff(self._begun[begun : ended + 1]), counts)
        places += np.repeat(self._begin(begun, ended) << (_FINE - 1), counts)
        ranks += np.repeat(self._begun[begun:ended] - self._begun[begun], counts)
        return places, self._by_rank(begun, ended)[ranks]

    # -- the samples of blocks in use --------------------------------------------------------------

    def _by_rank(self, first: int, stop: int) -> Ints:
        """Return the samples of the blocks of some turns, each block's by rank.

        Those of the turns that were asked for last are kept.
        """
        begun, ended, samples = self._ranked
        if not begun <= first <= ended:
            begun, ended, samples = first, first, samples[:0]
        if stop > ended:
            step = max(1, min(2**_BLOCK_BITS, _RANKED * self._n_turns // len(self)))
            more = [self._rank(t, min(t + step, stop)) for t in range(ended, stop, step)]
            samples = np.concatenate([samples[self._begun[first] - self._begun[begun] :], *more])
            begun, ended = first, stop
            self._ranked = begun, ended, samples
        return samples[self._begun[first] - self._begun[begun] :]

    def _rank(self, first: int, stop: int) -> Ints:
        """Return the samples of the blocks of some turns, each block's in the order of its slots.

        The groups of a block come in random order, and samples step by the golden ratio from a
        random start.
        """
        blocks, places = self._turns[first:stop], self._begun[first : stop + 1]
        sizes, starts = np.diff(places), self._blocks.starts[blocks]
        places = places[:-1] - places[0]
        inside = np.arange(sizes.sum()) - np.repeat(places, sizes)
        heads, moves = self._regrouped(blocks, places, len(inside))
        steps = inside + np.repeat(moves, np.diff(heads, append=len(inside)))
        keys = steps.view(np.uint64) * _GOLDEN
        keys += np.repeat(hashed(blocks.view(np.uint64), self._keys[0]), sizes)
        # Packed with its block and its number there, a sample's key sorts faster than by argsort.
        keys >>= np.uint64(self._index_bits + _BLOCK_BITS)
        keys <<= np.uint64(self._index_bits)
        keys |= inside.view(np.uint64)
        keys |= np.repeat(_numbered(len(blocks)), sizes)
        keys.sort()
        keys &= np.uint64((1 << self._index_bits) - 1)
        found: Ints = keys.view(np.int64)
        found += np.repeat(starts, sizes)
        return found

    def _regrouped(self, blocks: Ints, places: Ints, n_samples: int) -> tuple[Ints, Ints]:
        """Return how groups of samples move for the groups of each block to be in random order.

        Parameters
        ----------
        blocks, places : (blocks,) int64, which blocks, and the first sample of each, one after the
            other.
        n_samples : of all of them.

        Returns
        -------
        heads, moves : (groups,) int64
            The first sample of each group, and how far the group moves.
        """
        which, firsts = self._blocks.groups(blocks)
        shifts = self._blocks.starts[blocks] - places
        heads = distinct(firsts - shifts[which])
        which = np.searchsorted(places, heads, side="right") - 1
        words = hashed((heads + shifts[which]).view(np.uint64), self._keys[1])
        words >>= np.uint64(_BLOCK_BITS)
        words |= _numbered(len(blocks))[which]
        mixed, sizes = np.argsort(words, kind="stable"), np.diff(heads, append=n_samples)
        moves = np.empty(len(heads), dtype=np.int64)
        moves[mixed] = np.cumsum(sizes[mixed]) - sizes[mixed]
        moves -= heads
        return heads, moves


def _numbered(n_blocks: int) -> Words:
    """Return the numbers of blocks in the highest bits, (n_blocks,) uint64."""
    return np.arange(n_blocks, dtype=np.uint64) << np.uint64(64 - _BLOCK_BITS)
