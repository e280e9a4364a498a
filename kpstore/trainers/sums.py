"""Sums over batches, from which the means of an epoch are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kpstore.trainers.ranks import Ranks
from kpstore.trainers.training import BatchLoss

_COUNT = "_count"
"""Name of the count among the tensors of a checkpoint."""


@dataclass(frozen=True)
class Sums:
    """Sums over the batches of an epoch; () float64 each, on the model's device.

    Only :meth:`means` waits for a GPU.

    Parameters
    ----------
    figures : by name, the sum of the batches' values, each times the count of its batch.
    count : the sum of the batches' counts.
    """

    figures: Mapping[str, Tensor]
    count: Tensor

    @classmethod
    def of(cls, measured: BatchLoss) -> Sums:
        """Return the sums of one batch."""
        where = measured.loss.device
        count = torch.as_tensor(measured.count, dtype=torch.float64, device=where)
        values = {"loss": measured.loss, **measured.figures}
        return cls({name: v.detach().double() * count for name, v in values.items()}, count)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> Sums | None:
        """Return what :meth:`to_tensors` wrote to a checkpoint; None if it holds no sums."""
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        return cls(moved, moved.pop(_COUNT)) if moved else None

    def to_tensors(self) -> dict[str, Tensor]:
        """Return tensors for a checkpoint."""
        return {**self.figures, _COUNT: self.count}

    def __add__(self, other: Sums) -> Sums:
        figures = {name: self.figures[name] + value for name, value in other.figures.items()}
        return Sums(figures, self.count + other.count)

    def means(self) -> dict[str, float]:
        """Return the mean of each figure."""
        count = max(self.count.item(), 1e-12)
        return {name: value.item() / count for name, value in self.figures.items()}


def over_ranks(sums: Sums | None, ranks: Ranks, names: Sequence[str], device: torch.device) -> Sums:
    """Return the sums over all ranks; a rank without any passes None and takes part too."""
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    own = sums or Sums({}, nothing)
    if ranks.size == 1:
        return own
    figures = [own.figures.get(name, nothing) for name in names]
    *totals, count = ranks.summed(torch.stack([*figures, own.count])).unbind()
    return Sums(dict(zip(names, totals, strict=True)), count)
