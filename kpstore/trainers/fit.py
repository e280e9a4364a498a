"""The loop that trains a model; a run that was killed resumes from its checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kpstore.errors import InvalidError
from kpstore.trainers.batches import Batches, Sums, on_device, over_ranks
from kpstore.trainers.folder import CHECKPOINT, RunFolder, check_start, open_folder
from kpstore.trainers.ranks import joined
from kpstore.trainers.report import Epoch, OnEpoch, OnStep, Step, TrainReport
from kpstore.trainers.settings import TrainSettings
from kpstore.trainers.state import RunState, described_run
from kpstore.trainers.training import BatchLoss, ChecksViews, TensorBatch, Training
from kpstore.views.loader import Loader


def fit(
    model: nn.Module,
    train_loader: Loader,
    dev_loader: Loader | None = None,
    *,
    training: Training,
    device: str = "cpu",
    folder: Path | str | None = None,
    resume: bool = False,
    log_steps: int = 10,
    checkpoint_steps: int | None = 2000,
    samples: int = 4,
    inputs: Mapping[str, object] | None = None,
    tensorboard: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    settings: TrainSettings | None = None,
    **numbers: Any,
) -> TrainReport:
    """Train a model in place: it keeps the weights of the last epoch and the mode it came in.

    On a CPU, a run that was killed at any moment and resumed gives the same numbers, bit for bit,
    as an uninterrupted one on the same machine, with the same PyTorch and number of threads. The
    state of the caller's random numbers is restored.

    Under ``torchrun``, or in a process group of ``torch.distributed``, each process trains on its
    share of the frames, since loaders take their rank from there. A step is one batch in each
    process. Gradients are means over processes (a process whose batch has fewer points counts as
    much as the others), figures are means over all samples. Only the first process writes.

    Parameters
    ----------
    model : any module that ``training`` can measure; its weights are used as they are, see
        ``torch.manual_seed``.
    train_loader, dev_loader : of :func:`kpstore.loader`. After each epoch, all of ``dev_loader`` is
        measured without gradients and dropout; its order should be fixed, ``shuffle=None``.
    training : measures and draws batches, such as
        :class:`kpstore.trainers.keypoints.KeypointTraining`.
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``.
    folder : gets ``checkpoint.safetensors`` (all that resuming needs), ``best.safetensors`` (the
        weights of the best epoch), ``metrics.csv`` (a line per epoch), ``steps.csv`` (a line every
        ``log_steps``) and ``samples/epoch_0001.png``.
    resume : continue the run in ``folder``; start one if there is no checkpoint yet.
    log_steps : steps between two lines, and between two calls of ``on_step``.
    checkpoint_steps : steps between two checkpoints within an epoch; None writes one after each
        epoch only.
    samples : number of samples in each epoch's picture, from the dev frames if there are any; 0 for
        no picture.
    inputs : JSON values that describe the model's input, such as its feature and range. They are
        kept in checkpoints; :mod:`kpstore.trainers.predict` needs them.
    tensorboard : whether to write numbers and pictures to ``folder/tensorboard`` too.
    on_step, on_epoch : called in every process.
    settings : numbers of the training; the defaults if not given.
    **numbers : fields of :class:`kpstore.trainers.settings.TrainSettings` that replace those of
        ``settings``.

    Returns
    -------
    TrainReport

    Raises
    ------
    ExistsError
        If ``folder`` holds a run and ``resume`` is not set.
    MismatchError
        If the run to resume was started with another version of the store, or with other settings;
        the message names them.
    MissingExtraError
        If TensorBoard is asked for and not installed.
    InvalidError
        If a setting is invalid, there is nothing to train on, or the loss is not finite.
    """
    chosen = replace(settings or TrainSettings(), **numbers)
    where = check_start(folder, device=device, resume=resume, tensorboard=tensorboard)
    loaders = {"train": train_loader} | ({} if dev_loader is None else {"dev": dev_loader})
    _check_loaders(loaders, training)
    path = None if folder is None else Path(folder)
    own_random_numbers = torch.random.fork_rng([where] if where.type == "cuda" else [])
    with own_random_numbers, joined(where) as ranks, ExitStack() as files:
        torch.manual_seed(chosen.seed + ranks.rank)  # a dropout of its own for each rank
        files.callback(model.train, model.training)
        train_loader.set_epoch(0)
        names = ("loss", *training.figures)
        state = RunState(model.to(where), chosen, train_loader, names, ranks, where)
        views = {name: loader.sampler.view for name, loader in loaders.items()}
        about = described_run(state, training, chosen, views, inputs or {})
        if path is not None and (path / CHECKPOINT).exists():
            state.restore(path / CHECKPOINT, about)
        opened = None
        if path is not None and ranks.is_first:
            opened = files.enter_context(
                open_folder(path, training.figures, up_to_step=state.step, tensorboard=tensorboard)
            )
        run = _Run(
            state=state,
            dev_loader=dev_loader,
            training=training,
            settings=chosen,
            about=about,
            path=path,
            folder=opened,
            log_steps=max(1, log_steps),
            checkpoint_steps=checkpoint_steps,
            samples=samples,
            on_step=on_step,
            on_epoch=on_epoch,
        )
        files.callback(run.leave)
        return run.train()


@dataclass(kw_only=True)
class _Run:
    """The loop over epochs and steps.

    Parameters
    ----------
    about : what the run follows from; it is kept in checkpoints.
    path : of the run's folder; None if nothing is written.
    folder : the open files of this folder, in the first process; None in the others.
    """

    state: RunState
    dev_loader: Loader | None
    training: Training
    settings: TrainSettings
    about: Mapping[str, object]
    path: Path | None
    folder: RunFolder | None
    log_steps: int
    checkpoint_steps: int | None
    samples: int
    on_step: OnStep | None
    on_epoch: OnEpoch | None
    wrapped: nn.Module = field(init=False)
    """The model whose gradients are means over ranks."""

    def __post_init__(self) -> None:
        self.wrapped = self.state.ranks.wrapped(self.state.model, self.state.device)

    def leave(self) -> None:
        """Drop the wrapped model while the process group still exists.

        A wrapper that outlives the group destroys it while it holds Python's lock, and waits for a
        thread of the group that may be waiting for this lock: the process would hang after its last
        step.
        """
        self.wrapped = self.state.model

    def train(self) -> TrainReport:
        """Train the remaining epochs."""
        last, state = None, self.state
        while state.epoch < self.settings.epochs and not self._is_out_of_patience:
            last = self._epoch()
        return TrainReport(
            stopped="early" if state.epoch < self.settings.epochs else "finished",
            epochs=state.epoch,
            steps=state.step,
            best_epoch=state.best_epoch,
            best_loss=state.best_loss,
            last=last,
            parameters=sum(p.numel() for p in state.model.parameters() if p.requires_grad),
            resumed_at=state.resumed_at,
            folder=self.path,
        )

    @property
    def _is_out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.state.epoch - 1 - self.state.best_epoch >= patience

    def _epoch(self) -> Epoch:
        state, began = self.state, time.perf_counter()
        state.model.train()
        state.loader.set_epoch(state.epoch)
        n_left = len(state.loader)
        batches = Batches(state.loader, state.device)
        for number, batch in enumerate(batches, start=1):
            self._step(batch)
            is_time = self.checkpoint_steps and state.step % self.checkpoint_steps == 0
            # After the last step the state is that of the next epoch. It is written once the dev
            # frames of this epoch have been measured.
            if is_time and number < n_left:
                self._write_checkpoint()
        seconds = max(time.perf_counter() - began, 1e-9)
        train, state.sums = self._means(state.sums), None
        done = Epoch(
            epoch=state.epoch,
            step=state.step,
            train=train,
            dev=self._evaluate(),
            lr=self.settings.lr_at(state.step - 1, state.n_steps),
            seconds=seconds,
            frames_per_s=batches.n_samples * state.ranks.size / seconds,
            wait_share=batches.waited / seconds,
        )
        self._finish(done)
        return done

    def _step(self, batch: TensorBatch) -> None:
        state = self.state
        lr = self.settings.lr_at(state.step, state.n_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.zero_grad(set_to_none=True)
        measured = self._measure(self.wrapped, batch)
        measured.loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(
            state.model.parameters(), self.settings.clip_norm or math.inf
        )
        state.optimizer.step()
        sums = Sums.of(measured)
        state.sums = sums if state.sums is None else state.sums + sums
        state.step += 1
        if state.step % self.log_steps == 0 or state.step == state.n_steps:
            loss = state.ranks.mean(measured.loss).item()
            self._log(Step(state.step, state.n_steps, state.epoch, loss, lr, grad_norm.item()))

    def _log(self, step: Step) -> None:
        if not math.isfinite(step.loss):
            raise _diverged(f"the loss is {step.loss} at step {step.step}")
        if self.folder:
            self.folder.add_step(step)
        if self.on_step:
            self.on_step(step)

    def _measure(self, model: nn.Module, batch: TensorBatch) -> BatchLoss:
        with self._autocast():
            return self.training.measure(model, batch)

    def _autocast(self) -> torch.autocast:
        is_on = self.settings.precision == "bf16"
        return torch.autocast(self.state.device.type, torch.bfloat16, enabled=is_on)

    def _means(self, sums: Sums | None) -> dict[str, float]:
        state = self.state
        return over_ranks(sums, state.ranks, state.figures, state.device).means()

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        if self.dev_loader is None:
            return {}
        self.state.model.eval()
        self.dev_loader.set_epoch(0)
        sums: Sums | None = None
        for batch in Batches(self.dev_loader, self.state.device):
            # Not the wrapped model: ranks may have different numbers of batches, and must not wait
            # for each other.
            measured = Sums.of(self._measure(self.state.model, batch))
            sums = measured if sums is None else sums + measured
        return self._means(sums)

    def _finish(self, done: Epoch) -> None:
        if not math.isfinite(done.score):
            raise _diverged(f"the loss of epoch {done.epoch + 1} is {done.score}")
        state = self.state
        is_best = done.score < state.best_loss
        if is_best:
            state.best_epoch, state.best_loss = done.epoch, done.score
        state.epoch += 1
        if self.folder:
            self.folder.add_epoch(done)
            self._draw_samples(self.folder, done)
            if is_best:
                self.folder.write_best(state.to_best(self.about))
        self._write_checkpoint()
        if self.on_epoch:
            self.on_epoch(done)

    def _write_checkpoint(self) -> None:
        if self.path is None:
            return
        # Weights may diverge between two logged steps; the last good checkpoint must stay.
        if not all(bool(torch.isfinite(p).all()) for p in self.state.model.parameters()):
            raise _diverged(f"weights are no longer finite at step {self.state.step}")
        checkpoint = self.state.to_checkpoint(self.about)
        if self.folder:
            self.folder.write_checkpoint(checkpoint)

    @torch.inference_mode()
    def _draw_samples(self, folder: RunFolder, done: Epoch) -> None:
        dataset = (self.dev_loader or self.state.loader).dataset
        n_shown = min(self.samples, len(dataset))
        if n_shown == 0:
            return
        self.state.model.eval()
        batch = dataset[np.linspace(0, len(dataset) - 1, n_shown).astype(np.int64)]
        with self._autocast():
            moved = on_device(batch, self.state.device)
            folder.add_samples(done, self.training.draw(self.state.model, moved))


def _diverged(what: str) -> InvalidError:
    return InvalidError(
        f"{what}; the last checkpoint is kept: try a lower lr= (--lr) or clip_norm= (--clip-norm)"
    )


def _check_loaders(loaders: Mapping[str, Loader], training: Training) -> None:
    for name, loader in loaders.items():
        if not isinstance(loader, Loader):
            raise InvalidError(
                f"the {name} loader is a {type(loader).__name__}; make it with "
                "kpstore.loader(view, …)"
            )
        view = loader.sampler.view
        if len(loader.dataset) == 0:
            raise InvalidError(f"there are no {name} frames in {view!r}; choose another split")
        if loader.sampler.drop_last and len(loader) == 0:
            raise InvalidError(
                f"the {name} loader drops all of its {len(loader.dataset)} frames, which fill no "
                "batch; make batches smaller, or use drop_last=False"
            )
        if view.store.check == "never":
            raise InvalidError(
                f"the {name} loader reads a store that was opened with check='never', and the "
                "model would learn damaged values; open it with check='first'"
            )
        if isinstance(training, ChecksViews):
            training.check_view(view)
