"""What a training tells while it runs, and at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Step:
    """One optimizer step, as :func:`fit` tells of it.

    Parameters
    ----------
    step : how many there have been, this one included.
    n_steps : how many there will be if nothing ends the run early.
    epoch : from 0.
    loss, lr, grad_norm : of this step; the norm is that before clipping.
    """

    step: int
    n_steps: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Parameters
    ----------
    epoch : from 0.
    step : steps since the beginning.
    train, dev : by name, ``"loss"`` and the task's figures, means over the epoch's samples; ``dev``
        may be empty.
    lr : of the last step.
    seconds : of its training steps, since the last resume if there was one in it.
    frames_per_s : samples trained on in a second.
    wait_share : part of the seconds in which no batch was there; on a GPU, which works on
        meanwhile, an upper bound.
    """

    epoch: int
    step: int
    train: Mapping[str, float]
    dev: Mapping[str, float]
    lr: float
    seconds: float
    frames_per_s: float
    wait_share: float

    @property
    def score(self) -> float:
        """The loss that decides which epoch is best: of the dev frames, where there are any."""
        return (self.dev or self.train)["loss"]


@dataclass(frozen=True)
class TrainReport:
    """How a training ended.

    Parameters
    ----------
    stopped : ``"finished"`` after the last epoch, ``"early"`` when patience was at its end.
    epochs, steps : done in all, before a resume too.
    best_epoch, best_loss : the epoch, from 0, with the lowest loss on the dev frames (or else the
        training frames).
    last : the last epoch; None if this call had none to do.
    parameters : numbers that were trained.
    resumed_at : the step at which this call went on; None if it began.
    folder : where everything lies; None if nothing was written.
    """

    stopped: Literal["finished", "early"]
    epochs: int
    steps: int
    best_epoch: int
    best_loss: float
    last: Epoch | None
    parameters: int
    resumed_at: int | None
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}


OnStep = Callable[[Step], None]
OnEpoch = Callable[[Epoch], None]
