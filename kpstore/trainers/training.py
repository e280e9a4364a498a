"""What :func:`kpstore.trainers.fit.fit` needs to know of a task: how to measure a batch, and how to draw one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

TensorBatch = Mapping[str, Any]


@dataclass(frozen=True)
class BatchLoss:
    """What one batch gave.

    Parameters
    ----------
    loss : () float32, to be made smaller; a mean over the batch.
    count : by how much this batch counts in a mean over batches: samples, or points that are there.
    figures : by name () float32 each, means over the batch that are reported and not trained.
    """

    loss: Tensor
    count: int | Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """Pictures of one sample: what went in, what was wanted, what came out.

    (height, width, 3) uint8 each.
    """

    input: NDArray[np.uint8]
    target: NDArray[np.uint8]
    output: NDArray[np.uint8]


class Training(Protocol):
    """What a model is trained for. A frozen dataclass, whose fields go into checkpoints."""

    @property
    def figures(self) -> Sequence[str]:
        """Names of the figures that :meth:`measure` gives, in order."""

    def measure(self, model: nn.Module, batch: TensorBatch) -> BatchLoss:
        """Run the model on a batch of a loader."""

    def draw(self, model: nn.Module, batch: TensorBatch) -> list[Drawing]:
        """Return a drawing of each sample of a batch."""
