"""Which samples each batch of an epoch holds, for one rank, from where it was left: the order behind the loader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from kpstore.errors import InvalidError, MismatchError
from kpstore.views.base import View
from kpstore.views.sampling import (
    SHUFFLES,
    Batches,
    BlockShuffle,
    Done,
    Ints,
    Share,
    Shuffle,
    batches_by_length,
    batches_of,
    left_to_do,
    numbered,
    padding_share,
    share_out,
)

POOL_MIB = 256
_ORDER, _LENGTHS = 0, 1
"""What random numbers of an epoch are for: each use has its own."""


class BatchSampler:
    """Which samples each batch of an epoch holds.

    Iterating yields (batch,) int64 indices of the view.

    Each ``iter()`` starts the next epoch, beginning with ``epoch``; after :meth:`load_state_dict`,
    the first goes on where that state was taken. The parameters are those of
    :func:`kpstore.loader`.
    """

    def __init__(
        self,
        view: View,
        batch_size: int | None = None,
        *,
        shuffle: Shuffle = "block",
        seed: int = 0,
        epoch: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        pad: bool = True,
        batch_frames: int | None = None,
        pool_mib: float = POOL_MIB,
    ) -> None:
        if not isinstance(view, View):
            raise InvalidError(
                f"a loader needs a view, such as store.frames(...), found {type(view).__name__}"
            )
        _check_sizes(batch_size, batch_frames, pool_mib)
        for name, number in (("seed", seed), ("epoch", epoch)):
            if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 0:
                raise InvalidError(f"{name}={number!r}: use a whole number, 0 or more")
        if shuffle not in SHUFFLES:
            raise InvalidError(f"shuffle={shuffle!r}: use 'block', 'full' or None")
        self.view, self.batch_size, self.batch_frames = view, batch_size, batch_frames
        self.shuffle, self.seed, self.pool_mib = shuffle, seed, pool_mib
        self.drop_last, self.pad = drop_last, pad
        self._given = None if rank is None and world_size is None else rank_of(rank, world_size)
        self._begin(epoch, [])

    # -- ranks -------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of this process among those that train together: as given, else as it is now.

        See :func:`rank_of`.
        """
        return self._ranks_now()[0]

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        return self._ranks_now()[1]

    def _ranks_now(self) -> tuple[int, int]:
        # Asked for when an epoch begins: trainers start their processes long after the script has
        # made its loader.
        return self._given or rank_of(None, None)

    # -- the order ---------------------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> BlockShuffle:
        pool = self.view.plan_pool(int(self.pool_mib * 2**20))
        first_rows = self.view.first_rows
        blocks = numbered(first_rows // pool.block_rows)
        return BlockShuffle(blocks, self.view.store.index.video_of(first_rows), pool.window)

    def _order(self, epoch: int) -> Ints:
        if self.shuffle is None:
            return np.arange(len(self.view), dtype=np.int64)
        rng = np.random.default_rng((self.seed, epoch, _ORDER))
        return (
            self._blocks.order(rng)
            if self.shuffle == "block"
            else rng.permutation(len(self.view)).astype(np.int64)
        )

    def __getstate__(self) -> dict[str, Any]:
        # Another process has other ranks; it makes the plan of an epoch that has not begun for
        # itself.
        return self.__dict__ if self._started else {**self.__dict__, "_plan": None}

    def plan(self, epoch: int, done: Sequence[Done] = ()) -> tuple[Batches, int]:
        """Return this rank's batches of an epoch, and how many units the ranks do twice to have equally many.

        A unit is a sample, or with ``batch_frames`` a batch.

        Parameters
        ----------
        done : what was done of the epoch before, for each time it was left.
        """
        order = self._order(epoch)
        if self.batch_frames is None:
            assert self.batch_size is not None
            share = self._share(order, done)
            return batches_of(share.units, self.batch_size, drop_last=self.drop_last), share.padding
        rng = None if self.shuffle is None else np.random.default_rng((self.seed, epoch, _LENGTHS))
        batches = batches_by_length(
            order, self.view.lengths, self.batch_frames, self.batch_size, rng
        )
        share = self._share(np.arange(len(batches), dtype=np.int64), done)
        return batches.take(share.units), share.padding

    def _share(self, units: Ints, done: Sequence[Done]) -> Share:
        left = left_to_do(units, done)
        rank, world_size = self._ranks_now()
        return share_out(left, rank, world_size, pad=self.pad, drop=self.drop_last, pad_from=units)

    # -- where it stands ---------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Have the next ``iter()`` start this epoch.

        If it is the one that was loaded, go on where that was left.

        Trainers call this at the beginning of every epoch, also of the one that they resume.
        """
        if self._done and epoch == self.epoch and not self._started:
            return
        self._begin(epoch, [])

    def _begin(self, epoch: int, done: list[Done]) -> None:
        self.epoch = epoch
        """The epoch that runs, or will run next."""
        self._done = done
        self._started, self._n_given = False, 0
        self._plan: tuple[Batches, int] | None = None
        self._ranks = (0, 1)  # those that the plan is for

    def start(self) -> Batches:
        """Start the next epoch, or go on with the one that was loaded; return its batches."""
        if self._started:
            self._begin(self.epoch + 1, [])
        plan = self._planned()[0]
        self._started = True
        return plan

    def given(self) -> None:
        """Count one more batch as done."""
        self._n_given += 1

    def __iter__(self) -> Iterator[Ints]:
        for batch in self.start():
            self.given()
            yield batch

    def _planned(self) -> tuple[Batches, int]:
        """Return the plan of the epoch; one that runs keeps the ranks that it began with."""
        ranks = self._ranks_now()
        if self._plan is None or (ranks != self._ranks and not self._started):
            self._plan, self._ranks = self.plan(self.epoch, self._done), ranks
        return self._plan

    def _shown(self) -> tuple[Batches, int]:
        """Return the plan of the epoch that runs.

        Of the next one if processes have joined since that began.
        """
        plan = self._planned()
        return plan if self._ranks == self._ranks_now() else self.plan(self.epoch + 1)

    def __len__(self) -> int:
        """Return the number of batches of this rank's epoch: of the one that runs, or else of the one that comes next.

        Of an epoch that was loaded it is how many were left.
        """
        n_batches = len(self._shown()[0])
        if self._done and self._started and self._n_given >= n_batches:
            return len(self.plan(self.epoch + 1)[0])
        return n_batches

    @property
    def padding(self) -> int:
        """How many samples (with ``batch_frames``, batches) come twice in the epoch, over all ranks together."""
        return self._shown()[1]

    @property
    def padding_share(self) -> float:
        """Which part of all frames of the epoch's batches, each padded to its longest sample, is padding."""
        return padding_share(self._shown()[0], self.view.lengths)

    def _settings(self) -> dict[str, Any]:
        """Return what the order depends on."""
        settings: dict[str, Any] = {
            "samples": len(self.view),
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
        if self.shuffle == "block":
            settings["pool_mib"] = self.pool_mib
        if self.batch_frames is not None:
            settings |= {"batch_frames": self.batch_frames, "batch_size": self.batch_size}
        return settings

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands, as plain values: the batches given so far count as done on every rank.

        It may be taken up with another number of ranks and, but for ``batch_frames``, in batches of
        another size. Under a ``DataLoader`` with workers this sampler runs ahead of the batches
        that have arrived by as many as that prefetches; :class:`kpstore.Loader` and torchdata's
        ``StatefulDataLoader`` count what has arrived.
        """
        epoch, done = self.epoch, list(self._done)
        if self._started:
            n_units = self._n_given * (1 if self.batch_frames is not None else self.batch_size or 1)
            done.append(Done(self._ranks[1], n_units, self.drop_last))
            if self._n_given >= len(self._planned()[0]):
                epoch, done = epoch + 1, []
        return {"epoch": epoch, "done": [asdict(part) for part in done], **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next ``iter()`` go on where a state was taken.

        Raises
        ------
        MismatchError
            If it was taken from another order: other samples, seed or shuffle; the message names
            the first.
        """
        for name, value in self._settings().items():
            if name not in state or state[name] != value:
                raise MismatchError(
                    f"the state was taken with {name}={state.get(name)!r}, this loader has "
                    f"{name}={value!r}; make the loader as it was then"
                )
        try:
            epoch, done = int(state["epoch"]), [Done(**part) for part in state["done"]]
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError(
                f"this is no state of a loader: {error!r}; see state_dict()"
            ) from None
        self._begin(epoch, done)


def rank_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks: as given, else of ``torch.distributed``, else of ``torchrun``, else 0 of 1."""
    if rank is None and world_size is None:
        torch = sys.modules.get("torch")
        if (
            torch is not None
            and torch.distributed.is_available()
            and torch.distributed.is_initialized()
        ):
            return int(torch.distributed.get_rank()), int(torch.distributed.get_world_size())
        given = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        rank, world_size = (
            int(number) if number and number.isdigit() else None for number in given
        )
        if rank is None or world_size is None:
            return 0, 1
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise InvalidError(
            f"rank={rank}, world_size={world_size}: give both, rank from 0 to world_size - 1"
        )
    return rank, world_size


def _check_sizes(batch_size: int | None, batch_frames: int | None, pool_mib: float) -> None:
    for name, size in (("batch_size", batch_size), ("batch_frames", batch_frames)):
        if size is not None and (
            not isinstance(size, int | np.integer) or isinstance(size, bool) or size <= 0
        ):
            raise InvalidError(f"{name}={size!r}: use a whole number greater than 0")
    if not isinstance(pool_mib, int | float | np.number) or not 0 < pool_mib < 2**30:
        raise InvalidError(f"pool_mib={pool_mib!r}: use a number of MiB greater than 0")
    if batch_size is None and batch_frames is None:
        raise InvalidError(
            "a loader needs batch_size=, samples per batch, or batch_frames=, frames per padded "
            "batch"
        )
