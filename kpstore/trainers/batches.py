"""Batches of a loader as the training loop takes them: on a device, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.trainers.training import TensorBatch
from kpstore.views.loader import Loader

_ALIGNED = 64
"""Bytes to which PyTorch aligns its own tensors in memory."""


class Batches:
    """One epoch of a loader's batches on a device.

    Attributes
    ----------
    waited : seconds that the loop has waited for batches.
    n_samples : in the batches so far.
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
    """Return a batch with its tensors on a device.

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
    """Return a tensor whose memory begins where PyTorch's own begins.

    Batches that were read together lie one behind the other. Which ones are read together differs
    after a resume, and the last bit of MKL's sums may differ with the address of an array.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNED else tensor


def _without_random_numbers(loader: Loader) -> Iterator[Any]:
    """Yield a loader's batches; starting it draws no random numbers.

    PyTorch draws some when it starts worker processes.
    """
    state = torch.get_rng_state()
    batches = iter(loader)
    first = next(batches, None)
    torch.set_rng_state(state)
    if first is not None:
        yield first
        del first
        yield from batches
