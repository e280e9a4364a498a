"""Batches of a loader for the training loop: moved to a device, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.trainers.training import TensorBatch
from kpstore.views.loader import Loader

_ALIGNED = 64
"""Bytes to which PyTorch aligns its own tensors in memory."""


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
