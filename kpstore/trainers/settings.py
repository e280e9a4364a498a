"""The settings of a training, its learning rate at each step, and its device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

import torch

from kpstore.errors import InvalidError, UnsupportedError
from kpstore.options import Option
from kpstore.trainers.ranks import local_rank

Precision = Literal["float32", "bf16"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class TrainSettings:
    """The settings on which a result depends, beside the model, the training and the batches.

    Parameters
    ----------
    epochs : maximum number of epochs.
    lr : maximum learning rate of AdamW.
    weight_decay : of AdamW.
    schedule : of the learning rate after the warm-up: ``"cosine"`` falls to 0 at the end of the
        last epoch.
    warmup : share of all steps in which the rate rises linearly from 0.
    clip_norm : maximum norm of the gradient; None or 0 does not clip.
    precision : ``"bf16"`` computes most of the model in bfloat16 (autocast); weights stay float32.
    patience : number of epochs without a better loss on the dev frames (if there are none, on the
        training frames) after which training ends; None trains all epochs.
    seed : of dropout and everything else that is random during training.

    Raises
    ------
    InvalidError
        If values are invalid; the message lists all of them.
    """

    epochs: Annotated[int, Option("Maximum number of epochs.", "N")] = 100
    lr: Annotated[float, Option("Maximum learning rate of AdamW.", "RATE")] = 3e-4
    weight_decay: Annotated[float, Option("Weight decay of AdamW.", "X")] = 0.01
    schedule: Annotated[Schedule, Option("Schedule of the learning rate after the warm-up.")] = (
        "cosine"
    )
    warmup: Annotated[float, Option("Share of steps in which the rate rises.", "SHARE")] = 0.02
    clip_norm: Annotated[float | None, Option("Maximum gradient norm; 0 does not clip.", "X")] = 1.0
    precision: Annotated[Precision, Option("bf16 computes most of the model in bfloat16.")] = (
        "float32"
    )
    patience: Annotated[
        int | None, Option("Stop after N epochs without a better loss on the dev frames.", "N")
    ] = None
    seed: Annotated[int, Option("Seed of weights, order and dropout.", "N")] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip_norm", self.clip_norm or None)
        checked = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("lr", 0 < self.lr < math.inf, "more than 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("schedule", self.schedule in get_args(Schedule), " or ".join(get_args(Schedule))),
            ("warmup", 0 <= self.warmup < 1, "from 0 to less than 1"),
            ("clip_norm", 0 < (self.clip_norm or 1) < math.inf, "more than 0, or none"),
            ("precision", self.precision in get_args(Precision), " or ".join(get_args(Precision))),
            ("patience", self.patience is None or self.patience >= 1, "1 or more, or none"),
            ("seed", 0 <= self.seed < 2**63, "0 or more"),
        )
        check_all(
            "training", [(fits, f"{n}={getattr(self, n)!r} ({rule})") for n, fits, rule in checked]
        )

    def lr_at(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, from 0, if all epochs have ``n_steps`` steps."""
        n_rising = math.ceil(self.warmup * n_steps)
        if step < n_rising:
            return self.lr * (step + 1) / (n_rising + 1)
        if self.schedule == "constant":
            return self.lr
        share = math.pi * (step - n_rising) / max(1, n_steps - n_rising)
        return self.lr * 0.5 * (1 + math.cos(share))


def check_all(what: str, rules: Iterable[tuple[bool, str]]) -> None:
    """Raise :class:`InvalidError` with the messages of all rules that are broken."""
    if problems := [message for holds, message in rules if not holds]:
        raise InvalidError(f"{what}: {'; '.join(problems)}")


def split_options(options: Mapping[str, Any]) -> tuple[TrainSettings, dict[str, Any]]:
    """Split keywords of :func:`kpstore.trainers.fit.fit` into settings and all others.

    Settings come as ``settings``, by the names of their fields, or both.
    """
    names = {field.name for field in fields(TrainSettings)}
    numbers = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return replace(others.pop("settings", None) or TrainSettings(), **numbers), others


def device_named(name: str) -> torch.device:
    """Return a device by name; ``"auto"`` is a GPU if there is one.

    Under ``torchrun``, ``"cuda"`` is a different GPU for each process.

    Raises
    ------
    UnsupportedError
        If this machine, or this build of PyTorch, does not have the device.
    InvalidError
        If no device has this name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (number := local_rank()) is not None:
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidError(f"device {name!r}: use auto, cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"device {name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"device {name!r} asked for, but PyTorch {torch.__version__} finds no GPU here; use "
            "cpu, or install a build of PyTorch for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(
            f"device {name!r} asked for; this machine has {torch.cuda.device_count()} GPU(s), "
            "numbered from 0"
        )
    return device
