"""What a model is trained for: how to measure a batch, and how to draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from kpstore.views.base import View

TensorBatch = Mapping[str, Any]


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one batch.

    Parameters
    ----------
    loss : () float32, the mean over the batch that is minimised.
    count : weight of this batch in means over batches: its number of samples, or of points that are
        not missing.
    figures : by name, further means over the batch to report, () float32 each.
    """

    loss: Tensor
    count: int | Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """Pictures of one sample: input, target and output.

    (height, width, 3) uint8 each.
    """

    input: NDArray[np.uint8]
    target: NDArray[np.uint8]
    output: NDArray[np.uint8]


class Training(Protocol):
    """What a model is trained for: a frozen dataclass whose fields are kept in checkpoints."""

    @property
    def figures(self) -> Sequence[str]:
        """Names of the figures of :meth:`measure`, in order."""

    def measure(self, model: nn.Module, batch: TensorBatch) -> BatchLoss:
        """Run the model on a batch of a loader."""

    def draw(self, model: nn.Module, batch: TensorBatch) -> list[Drawing]:
        """Return a drawing of each sample of a batch."""


@runtime_checkable
class ChecksViews(Protocol):
    """A training that does not suit every view."""

    def check_view(self, view: View) -> None:
        """Raise :class:`InvalidError` if a model must not be trained or measured on a view."""
