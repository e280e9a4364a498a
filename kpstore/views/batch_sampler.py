"""Which samples each batch of an epoch holds, for one rank, resumable: the loader's order."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from kpstore.errors import InvalidError, MismatchError
from kpstore.schema.fields import check_whole, shown
from kpstore.views import first_order
from kpstore.views.base import View
from kpstore.views.order import Blocks, FullShuffle, Listed, Order, Stored, block_shuffle
from kpstore.views.runs import Ints, Runs
from kpstore.views.sampling import (
    SHUFFLES,
    Batches,
    Done,
    EvenBatches,
    Shuffle,
    batches_by_length,
    left_to_do,
    padding_share,
    share_out,
)

POOL_MIB = 256
ORDER = 2
"""The version of the order in which epochs begin; states name it. Those without are of order 1."""
_FIRST = 1
_ORDER, _LENGTHS = 0, 1
"""Uses of an epoch's random numbers; each has its own generator."""


class BatchSampler:
    """Iterates over the batches of an epoch: (samples,) int64 indices of the view for each.

    Each ``iter()`` starts the next epoch, beginning with ``epoch``; after :meth:`load_state_dict`,
    the first one continues where that state was taken. The parameters are those of
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
        epoch = check_whole("epoch", epoch)
        if shuffle not in SHUFFLES:
            raise InvalidError(f"shuffle={shuffle!r}: use 'block', 'full' or None")
        self.view = view
        self.batch_size = None if batch_size is None else int(batch_size)
        self.batch_frames = None if batch_frames is None else int(batch_frames)
        self.shuffle, self.seed, self.pool_mib = shuffle, check_whole("seed", seed), pool_mib
        self.drop_last, self.pad = drop_last, pad
        self._given = None if rank is None and world_size is None else rank_of(rank, world_size)
        self._begin(epoch, [])

    # -- ranks -------------------------------------------------------------------------------------

    @property
    def ranks(self) -> tuple[int, int]:
        """Rank of this process and number of ranks: as given, or else as they are now.

        Determined when an epoch begins: trainers start processes long after a loader is made.
        """
        return self._given or rank_of(None, None)

    # -- the order ---------------------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> tuple[Blocks, int]:
        """Where the samples are stored, and how many blocks may be in use."""
        pool = self.view.plan_pool(int(self.pool_mib * 2**20))
        videos = self.view.store.index.offsets
        return Blocks(self.view.row_runs, pool.block_rows, videos), pool.window

    def _order(self, epoch: int) -> Order:
        if self.shuffle is None:
            return Stored(len(self.view))
        if epoch == self.epoch and self._version == _FIRST:
            return Listed(self._first_order(epoch))
        entropy = (self.seed, epoch, _ORDER)
        if self.shuffle == "full":
            return FullShuffle(len(self.view), entropy)
        return block_shuffle(*self._blocks, entropy)

    def _first_order(self, epoch: int) -> Ints:
        """Return all samples in the order of an epoch that an earlier kpstore began."""
        rng = np.random.default_rng((self.seed, epoch, _ORDER))
        if self.shuffle == "full":
            return rng.permutation(len(self.view)).astype(np.int64, copy=False)
        pool = self.view.plan_pool(int(self.pool_mib * 2**20))
        videos, rows = self.view.store.index.offsets, self.view.first_rows
        shuffle = first_order.BlockShuffle.of_rows(rows, pool.block_rows, videos, pool.window)
        return shuffle.order(rng)

    def __getstate__(self) -> dict[str, Any]:
        # Another process has another rank: it plans an epoch that has not begun for itself.
        return self.__dict__ if self._started else {**self.__dict__, "_plan": None}

    def plan(self, epoch: int, done: Sequence[Done] = ()) -> tuple[Batches, int]:
        """Return this rank's batches of an epoch, and how many units come twice over all ranks.

        A unit is a sample, or with ``batch_frames`` a batch.

        Parameters
        ----------
        done : what was already done of the epoch, for each time it was interrupted.
        """
        order = self._order(epoch)
        if self.batch_frames is None:
            assert self.batch_size is not None
            units, padding = self._share(len(order), done)
            return EvenBatches(order, units, self.batch_size, drop_last=self.drop_last), padding
        rng = None if self.shuffle is None else np.random.default_rng((self.seed, epoch, _LENGTHS))
        samples = order.at(0, len(order))
        batches = batches_by_length(
            samples, self.view.lengths, self.batch_frames, self.batch_size, rng
        )
        units, padding = self._share(len(batches), done)
        return batches.take(units.to_array()), padding

    def _share(self, n_units: int, done: Sequence[Done]) -> tuple[Runs, int]:
        units = Runs.up_to(n_units)
        left = left_to_do(units, done)
        return share_out(left, *self.ranks, pad=self.pad, drop=self.drop_last, pad_from=units)

    # -- where it stands ---------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``iter()`` start this epoch, or continue it if its state was loaded.

        Trainers call this at the beginning of every epoch, including one that they resume.
        """
        if self._done and epoch == self.epoch and not self._started:
            return
        self._begin(epoch, [])

    def _begin(self, epoch: int, done: list[Done], version: int = ORDER) -> None:
        self.epoch = epoch
        """The epoch that runs, or will run next."""
        self._done, self._version = done, version
        self._started, self._n_given = False, 0
        self._plan: tuple[Batches, int] | None = None
        self._ranks = (0, 1)  # those that the plan is for

    def start(self) -> Batches:
        """Start the next epoch, or continue the one that was loaded; return its batches."""
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
        """Return the plan of the epoch; a running epoch keeps the ranks that it began with."""
        ranks = self.ranks
        if self._plan is None or (ranks != self._ranks and not self._started):
            self._plan, self._ranks = self.plan(self.epoch, self._done), ranks
        return self._plan

    def _shown(self) -> tuple[Batches, int]:
        """Return the plan of the running epoch, or of the next if the ranks have changed."""
        plan = self._planned()
        return plan if self._ranks == self.ranks else self.plan(self.epoch + 1)

    def __len__(self) -> int:
        """Return the number of batches of this rank in the running epoch, or else in the next.

        Of an epoch that was loaded, only the remaining batches count.
        """
        n_batches = len(self._shown()[0])
        if self._done and self._started and self._n_given >= n_batches:
            return len(self.plan(self.epoch + 1)[0])
        return n_batches

    @property
    def padding(self) -> int:
        """Samples (with ``batch_frames``, batches) that come twice in the epoch, over all ranks."""
        return self._shown()[1]

    @property
    def padding_share(self) -> float:
        """Padded frames as a share of all frames in the epoch's batches."""
        if self.view.are_frames:
            return 0.0
        return padding_share(self._shown()[0], self.view.lengths)

    @cached_property
    def _digest(self) -> str:
        return self.view.run_digest

    @cached_property
    def _first_digest(self) -> str:
        """What states of the first order have."""
        return self.view.digest

    def _settings(self, version: int) -> dict[str, Any]:
        """Return the values that an order depends on."""
        settings: dict[str, Any] = {
            "samples": len(self.view),
            "frames": self._first_digest if version == _FIRST else self._digest,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
        if self.shuffle == "block":
            settings["pool_mib"] = self.pool_mib
        if self.batch_frames is not None:
            settings |= {"batch_frames": self.batch_frames, "batch_size": self.batch_size}
        return settings

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, and the version of its order, as plain values.

        The batches given so far count as done on every rank. An epoch may be continued with another
        number of ranks and, without ``batch_frames``, with another batch size. Under a
        ``DataLoader`` with workers this sampler is ahead by the prefetched batches;
        :class:`kpstore.Loader` and torchdata's ``StatefulDataLoader`` count arrived batches.
        """
        epoch, done, version = self.epoch, list(self._done), self._version
        if self._started:
            n_units = self._n_given * (1 if self.batch_frames is not None else self.batch_size or 1)
            done.append(Done(self._ranks[1], n_units, self.drop_last))
            if self._n_given >= len(self._planned()[0]):
                epoch, done, version = epoch + 1, [], ORDER
        place = {"epoch": epoch, "done": [asdict(part) for part in done], "order": version}
        return {**place, **self._settings(version)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next ``iter()`` continue where a state was taken.

        An epoch that an earlier kpstore began is continued in the order of that time, the next ones
        are in the present order.

        Raises
        ------
        MismatchError
            If it was taken with other samples, seed or shuffle; the message names the first. If its
            order is that of a later kpstore.
        """
        if not isinstance(state, Mapping):
            raise MismatchError(
                f"not a state of a loader: {shown(state)}; use one from state_dict()"
            )
        version = state.get("order", _FIRST)
        if version not in (_FIRST, ORDER):
            raise MismatchError(
                f"the state is of order {shown(version)}, this kpstore knows orders up to {ORDER}; "
                "use the kpstore that it was taken with, or begin the epoch again"
            )
        expected = self._settings(version)
        if "frames" not in state:  # of an earlier kpstore, which counted them only
            del expected["frames"]
        for name, value in expected.items():
            if name not in state or state[name] != value:
                raise MismatchError(
                    f"the state was taken with {name}={state.get(name)!r}, this loader has "
                    f"{name}={value!r}; make the loader with the same settings"
                )
        try:
            epoch, done = int(state["epoch"]), [Done(**part) for part in state["done"]]
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError(
                f"not a state of a loader: {error!r}; use one from state_dict()"
            ) from None
        self._begin(epoch, done, version if done else ORDER)


def rank_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks: as given, by torch.distributed, by torchrun, or 0 of 1."""
    if rank is None and world_size is None:
        torch = sys.modules.get("torch")
        group = torch.distributed if torch is not None else None
        if group is not None and group.is_available() and group.is_initialized():
            return int(group.get_rank()), int(group.get_world_size())
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
        if size is not None:
            check_whole(name, size, 1)
    if not isinstance(pool_mib, int | float | np.number) or not 0 < pool_mib < 2**30:
        raise InvalidError(f"pool_mib={pool_mib!r}: use a number of MiB greater than 0")
    if batch_size is None and batch_frames is None:
        raise InvalidError(
            "a loader needs batch_size=, samples per batch, or batch_frames=, frames per padded "
            "batch"
        )
