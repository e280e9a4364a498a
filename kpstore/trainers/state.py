"""How far a run is and what it follows from: everything that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kpstore._version import __version__
from kpstore.errors import InvalidError
from kpstore.trainers.batches import Sums, over_ranks
from kpstore.trainers.checkpoint import (
    Checkpoint,
    check_same,
    fits_optimizer,
    fits_rng,
    load_weights,
    optimizer_tensors,
    prefixed,
    read_checkpoint,
    restore_optimizer,
    restore_rng,
    rng_tensors,
)
from kpstore.trainers.ranks import Ranks
from kpstore.trainers.settings import TrainSettings
from kpstore.trainers.training import Training
from kpstore.views.base import View
from kpstore.views.loader import Loader


class RunState:
    """Model, optimizer and loader of a run, and how far they are.

    Parameters
    ----------
    model : on ``device``.
    loader : of the training frames.
    figures : names of what is measured, ``"loss"`` first.

    Attributes
    ----------
    n_steps : number of steps of all epochs.
    resumed_at : the step at which the run was resumed; None if it was not.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        loader: Loader,
        figures: tuple[str, ...],
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.model, self.loader, self.figures = model, loader, figures
        self.ranks, self.device = ranks, device
        # All parameters at once, as on GPUs: the same bits on a CPU, in about half the time.
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, foreach=True
        )
        self.n_steps = len(loader) * settings.epochs  # before a restored loader has fewer left
        self.resumed_at: int | None = None
        self.epoch, self.step = 0, 0
        self.best_epoch, self.best_loss = -1, math.inf
        self.sums: Sums | None = None

    def restore(self, path: Path, here: Mapping[str, object]) -> None:
        """Continue where a checkpoint was written.

        Raises
        ------
        MismatchError
            If it was written by another run than ``here`` describes, see :func:`described_run`.
        InvalidError
            If it holds nothing but weights, or those of another model, or lacks anything else.
        """
        found = read_checkpoint(path)
        about = found.about
        if "loader" not in about:
            raise InvalidError(
                f"{path}: holds weights alone, as best.safetensors does, and a run cannot resume "
                "from those; start again in another folder"
            )
        check_same(path, about, here)
        load_weights(self.model, found, path)
        self._check(path, found)
        restore_optimizer(self.model, self.optimizer, found.under("optimizer"))
        self.epoch, self.best_epoch = about["epoch"], about["best_epoch"]
        self.resumed_at = self.step = about["step"]
        self.best_loss = math.inf if about["best_loss"] is None else about["best_loss"]
        if self.ranks.is_first:
            self.sums = Sums.from_tensors(found.under("sums"), self.device)
        self.loader.load_state_dict(about["loader"])
        restore_rng(self.device, self.ranks.own(found.under("rng")))

    def _check(self, path: Path, found: Checkpoint) -> None:
        """Raise :class:`InvalidError` unless a file holds all that a run continues from."""
        about, loss = found.about, found.about.get("best_loss", "")
        counts = [about.get(name) for name in ("epoch", "step", "best_epoch")]
        own_rng = self.ranks.own(found.under("rng"))
        rules = [
            (all(type(n) is int and -1 <= n < 2**63 for n in counts), "how far it is"),
            (loss is None or isinstance(loss, float | int), "its best loss"),
            (isinstance(about["loader"], dict), "the place in its data"),
            (fits_optimizer(self.model, found.under("optimizer")), "its optimizer"),
            (fits_rng(own_rng, self.device), "its random numbers"),
            (Sums.fits(found.under("sums"), self.figures), "its sums"),
        ]
        lacks = [what for holds, what in rules if not holds]
        if lacks:
            raise InvalidError(
                f"{path}: does not say {', '.join(lacks)} as kpstore train does; start again in "
                "another folder"
            )

    def to_checkpoint(self, about: Mapping[str, object]) -> Checkpoint:
        """Return everything that a resumed run needs; every rank has to call it."""
        rng = self.ranks.gathered(rng_tensors(self.device))
        sums: dict[str, Tensor] = {}
        if self.sums is not None:
            # The first rank continues the sums of all ranks, as it does after a resume.
            total = over_ranks(self.sums, self.ranks, self.figures, self.device)
            self.sums, sums = total if self.ranks.is_first else None, total.to_tensors()
        tensors = {
            **prefixed("model", self.model.state_dict()),
            **prefixed("optimizer", optimizer_tensors(self.model, self.optimizer)),
            **prefixed("sums", sums),
            **prefixed("rng", rng),
        }
        place = {
            "epoch": self.epoch,
            "step": self.step,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "loader": self.loader.state_dict(),
        }
        return Checkpoint(tensors, {**about, **place})

    def to_best(self, about: Mapping[str, object]) -> Checkpoint:
        """Return nothing but the weights."""
        place = {"epoch": self.best_epoch, "loss": self.best_loss}
        return Checkpoint(prefixed("model", self.model.state_dict()), {**about, **place})


def described_run(
    state: RunState,
    training: Training,
    settings: TrainSettings,
    views: Mapping[str, View],
    inputs: Mapping[str, object],
) -> dict[str, object]:
    """Return what a run follows from, as JSON values; a run resumes only if it is the same."""
    sampler = state.loader.sampler
    store = sampler.view.store
    return {
        "kpstore": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": _described(state.model),
        "task": _described(training),
        "inputs": _plain(dict(inputs)),
        "settings": asdict(settings),
        "store": {"location": store.location, "snapshot": store.snapshot},
        "batch_size": sampler.batch_size,
        "ranks": state.ranks.size,
        "samples": {name: len(view) for name, view in views.items()},
        "frames": {name: view.digest for name, view in views.items()},
    }


def _described(part: object) -> dict[str, object]:
    """Return the class of a model or a training, and its settings if they are a dataclass.

    A class that was renamed keeps its name in checkpoints as ``on_record``.
    """
    config = getattr(part, "config", part)
    fields = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    name = getattr(part, "on_record", type(part).__name__)
    return {"name": name, "config": _plain(fields)}


def _plain(value: object) -> object:
    """Return a value as JSON gives it back, with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
