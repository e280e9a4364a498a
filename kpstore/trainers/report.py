"""What a training reports while it runs and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Parameters
    ----------
    step : number of steps so far, including this one.
    n_steps : number of steps of a run that does not end early.
    epoch : from 0.
    loss, lr, grad_norm : of this step; the norm before clipping.
    """

    step: int
    n_steps: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch.

    Parameters
    ----------
    epoch : from 0.
    step : number of steps since the run began.
    train, dev : by name, ``"loss"`` and the training's figures, means over the epoch's samples;
        ``dev`` may be empty.
    lr : of the last step.
    seconds : duration of its training steps, from the last resume on if there was one in it.
    frames_per_s : samples trained on per second.
    wait_share : share of this time spent waiting for batches; an upper bound on a GPU, which
        computes meanwhile.
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
    def figures(self) -> dict[str, Mapping[str, float]]:
        """``train`` and ``dev`` by these names."""
        return {"train": self.train, "dev": self.dev}

    @property
    def score(self) -> float:
        """The loss by which the best epoch is chosen: of the dev frames if there are any."""
        return (self.dev or self.train)["loss"]


@dataclass(frozen=True)
class TrainReport:
    """How a training ended.

    Parameters
    ----------
    stopped : ``"finished"`` after the last epoch, ``"early"`` when patience ran out.
    epochs, steps : numbers of both, including those before a resume.
    best_epoch, best_loss : the epoch, from 0, with the lowest loss on the dev frames (if there are
        none, on the training frames).
    last : the last epoch; None if this call had none left to train.
    parameters : number of trained parameters.
    resumed_at : the step at which this call resumed a run; None if it started one.
    folder : of the run's files; None if nothing was written.
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

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}


OnStep = Callable[[Step], None]
OnEpoch = Callable[[Epoch], None]
