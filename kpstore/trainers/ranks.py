"""Training in several processes, each on its share of the frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kpstore.trainers.checkpoint import prefixed, under
from kpstore.views.batch_sampler import rank_of


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together.

    Parameters
    ----------
    rank, size : number of this process, from 0, and number of all processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrapped(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return a model whose gradients are means over all ranks; with one rank, the model."""
        if self.size == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, which replaces the values of this rank."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a number over all ranks."""
        return self.summed(value.detach().clone()) / self.size

    def gathered(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of all ranks: ``name`` of rank 0, ``1.name`` of rank 1, and so on."""
        if self.size == 1:
            return dict(own)
        found: list[dict[str, Tensor]] = [{}] * self.size
        distributed.all_gather_object(found, dict(own))
        tensors = dict(found[0])
        for rank, part in enumerate(found[1:], start=1):
            tensors |= prefixed(str(rank), part)
        return tensors

    def own(self, gathered: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's tensors among those that :meth:`gathered` returned."""
        if self.is_first:
            return {name: tensor for name, tensor in gathered.items() if "." not in name}
        return under(str(self.rank), gathered)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did.

    If the caller has joined a process group, it is used and stays open.
    """
    rank, size = rank_of(None, None)
    mine = size > 1 and not distributed.is_initialized()
    if mine:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size
        )
    if device.type == "cuda" and size > 1:
        torch.cuda.set_device(device)  # where objects are gathered
    try:
        yield Ranks(rank, size)
    finally:
        if mine:
            distributed.destroy_process_group()


def local_rank() -> int | None:
    """Return the number of this process on its machine; None without ``torchrun``."""
    given, size = os.environ.get("LOCAL_RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(given) if given.isdigit() and size.isdigit() and int(size) > 1 else None
