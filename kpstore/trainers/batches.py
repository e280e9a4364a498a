"""Batches of a loader: moved to a device, timed, and summed up for the means of an epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.trainers.ranks import Ranks
from kpstore.trainers.training import BatchLoss, TensorBatch
from kpstore.views.loader import Loader

_ALIGNED = 64
"""Bytes to which PyTorch aligns its own tensors in memory."""
_COUNT = "_count"
"""Name of the count among the tensors of a checkpoint."""


class Batches:
    """One epoch of a loader's batches, moved to a device.

    Attributes
    ----------
    waited : seconds spent waiting for batches so far.
    n_samples : number of samples in the batches so far.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self.waited, self.n_samples = 0.0, 0

    def __iter__(self) -> Iterator[TensorBatch]:
        began = time.perf_counter()
        for batch in _without_random_numbers(self._loader):
            self.waited += time.perf_counter() - began
            moved = on_device(batch, self._device)
            self.n_samples += next((len(v) for v in moved.values() if isinstance(v, Tensor)), 0)
            yield moved
            began = time.perf_counter()


def on_device(batch: object, device: torch.device) -> TensorBatch:
    """Return a batch with its tensors moved to a device.

    Raises
    ------
    InvalidError
        If the batch is not a dict.
    """
    if not isinstance(batch, Mapping):
        raise InvalidError(
            f"batches are dicts of tensors, found {type(batch).__name__}; use a view and its loader"
        )
    return {
        name: _aligned(item.to(device, non_blocking=True)) if isinstance(item, Tensor) else item
        for name, item in batch.items()
    }


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that is aligned in memory as PyTorch's own tensors are.

    Batches that were read together lie behind each other in memory. Which batches are read together
    changes after a resume, and the last bit of MKL's sums may depend on the address of an array.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNED else tensor


def _without_random_numbers(loader: Loader) -> Iterator[object]:
    """Yield a loader's batches without a change to the state of the random numbers.

    PyTorch draws random numbers when it starts worker processes.
    """
    state = torch.get_rng_state()
    batches = iter(loader)
    first = next(batches, None)
    torch.set_rng_state(state)
    if first is not None:
        yield first
        del first
        yield from batches


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

    @staticmethod
    def fits(tensors: Mapping[str, Tensor], names: Sequence[str]) -> bool:
        """Return whether tensors of a checkpoint are sums of these figures, or none at all."""
        wanted = {*names, _COUNT}
        return not tensors or (
            tensors.keys() >= wanted
            and all(t.shape == () and t.dtype == torch.float64 for t in tensors.values())
        )

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
