"""The loop that trains a model from loaders: killed at any moment, it goes on where its last checkpoint was."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kpstore._version import __version__
from kpstore.errors import ExistsError, InvalidError, KpstoreError
from kpstore.render.skeleton import contact_sheet
from kpstore.trainers.board import Board, check_board
from kpstore.trainers.checkpoint import (
    Checkpoint,
    check_same,
    load_weights,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    restore_rng,
    rng_tensors,
    write_checkpoint,
)
from kpstore.trainers.journal import Journal, open_journal
from kpstore.trainers.ranks import Ranks, joined
from kpstore.trainers.report import Epoch, OnEpoch, OnStep, Step, TrainReport
from kpstore.trainers.settings import TrainOptions, TrainSettings, device_named
from kpstore.trainers.training import BatchLoss, TensorBatch, Training
from kpstore.views.base import Subset, View
from kpstore.views.loader import Loader
from kpstore.views.skeletons import SkeletonView

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
METRICS, STEPS, SAMPLES, TENSORBOARD = "metrics.csv", "steps.csv", "samples", "tensorboard"
_ALIGNED = 64
"""Bytes: where tensors of PyTorch begin, in memory."""


@dataclass
class _Place:
    """Where a run stands; all of it goes into a checkpoint."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = -1
    best_loss: float = math.inf
    sums: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: nn.Module,
    train_loader: Loader,
    dev_loader: Loader | None = None,
    *,
    task: Training,
    device: str = "cpu",
    folder: Path | str | None = None,
    resume: bool = False,
    log_steps: int = 10,
    checkpoint_steps: int | None = 2000,
    samples: int = 4,
    inputs: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    **settings: Unpack[TrainOptions],
) -> TrainReport:
    """Train a model; it ends up with the weights of the last epoch, in the mode (``train()``, ``eval()``) it came in.

    On a CPU, a run that was killed at any moment and resumed gives the same numbers, bit for bit,
    as one that was not: as long as machine, PyTorch and number of threads are the same. The
    caller's random numbers are left as they were.

    Under ``torchrun``, or in a process group of ``torch.distributed``, each process trains on the
    share of its loaders, which take their rank from there: a step is a batch in each, gradients are
    means over processes (so that a process whose batch has fewer points counts as much), figures
    means over all samples. The first process alone writes.

    Parameters
    ----------
    model : any module that ``task`` can measure; its weights are what they are, see
        ``torch.manual_seed``.
    train_loader, dev_loader : of :func:`kpstore.loader`. Each epoch of training is followed by one
        of ``dev_loader``, without gradients and dropout; its order should be fixed,
        ``shuffle=None``.
    task : measures and draws batches, such as :class:`kpstore.trainers.keypoints.KeypointTraining`.
    device : ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``.
    folder : gets ``checkpoint.safetensors`` (all that resuming takes), ``best.safetensors`` (the
        best epoch's weights), ``metrics.csv`` (a line an epoch), ``steps.csv`` (a line every
        ``log_steps``) and ``samples/epoch_0001.png``.
    resume : go on with the run in ``folder``; where there is no checkpoint yet, begin.
    log_steps : steps from one line, and one ``on_step``, to the next.
    checkpoint_steps : steps from one checkpoint to the next; there is one after every epoch in any
        case.
    samples : how many samples, of the dev frames where there are any, each epoch's picture shows; 0
        for no picture.
    inputs : JSON values that say what the model is fed, such as feature and range; checkpoints keep
        them, and :mod:`kpstore.trainers.predict` needs them.
    tensorboard : whether ``folder/tensorboard`` gets numbers and pictures too.
    on_step, on_epoch : told what happens, in every process.
    **settings : the fields of :class:`kpstore.trainers.settings.TrainSettings`.

    Returns
    -------
    TrainReport

    Raises
    ------
    ExistsError
        If ``folder`` holds a run and ``resume`` is not set.
    MismatchError
        If the run to resume was made with another version of the store, or with other settings; the
        message names them.
    MissingExtraError
        If TensorBoard is asked for and not installed.
    InvalidError
        If a setting makes no sense, there is nothing to train on, or the loss is no longer a
        number.
    """
    run = _Run(
        model, train_loader, dev_loader, task, TrainSettings(**settings), device_named(device)
    )
    run.log_steps, run.checkpoint_steps, run.samples = max(1, log_steps), checkpoint_steps, samples
    run.inputs = _plain(dict(inputs or {}))
    run.on_step, run.on_epoch = on_step or _say_nothing, on_epoch or _say_nothing
    if tensorboard:
        check_board()
    if folder is not None:
        check_free(Path(folder), resume=resume)  # by all processes, before the first one makes it
    with _own_random_numbers(run.device), joined(run.device) as ranks, ExitStack() as files:
        torch.manual_seed(run.settings.seed + ranks.rank)  # each its own dropout
        run.join(ranks)
        files.callback(run.leave)
        files.callback(model.train, model.training)
        if folder is not None:
            run.open_folder(Path(folder), files, tensorboard=tensorboard)
        return run.run()


def check_free(folder: Path, *, resume: bool) -> None:
    """Raise :class:`ExistsError` if a folder holds a run that is not to be resumed."""
    if (folder / CHECKPOINT).exists() and not resume:
        raise ExistsError(f"{folder} holds a run; resume it (--resume) or choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ExistsError(f"{folder} is a file; choose a folder")


def _say_nothing(_: object) -> None:
    return None


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


class _Run:
    """What :func:`fit` works with."""

    log_steps: int
    checkpoint_steps: int | None
    samples: int
    inputs: Mapping[str, Any]
    on_step: OnStep
    on_epoch: OnEpoch

    def __init__(
        self,
        model: nn.Module,
        train_loader: Loader,
        dev_loader: Loader | None,
        task: Training,
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        _check_loaders(train_loader, dev_loader)
        self.ranks, self.wrapped = Ranks(), model
        self.model, self.task, self.settings, self.device = model.to(device), task, settings, device
        self.train_loader, self.dev_loader = train_loader, dev_loader
        loaders = {"train": train_loader, **({"dev": dev_loader} if dev_loader else {})}
        self.views = {name: loader.sampler.view for name, loader in loaders.items()}
        self.frames = {name: _digest(view) for name, view in self.views.items()}
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        train_loader.set_epoch(0)
        self.epoch_steps = len(train_loader)
        self.n_steps = self.epoch_steps * settings.epochs
        self.place = _Place()
        self.folder: Path | None = None
        self.journals: tuple[Journal, Journal] | None = None
        self.board: Board | None = None
        self.resumed_at: int | None = None

    def join(self, ranks: Ranks) -> None:
        """Train together with other processes."""
        self.ranks, self.wrapped = ranks, ranks.wrapped(self.model, self.device)

    def leave(self) -> None:
        """Let go of the wrapped model while the group of processes is still there.

        Freed after it, the wrapper would take the group along while it holds Python's lock, and
        wait for a thread of the group that may be waiting for the lock: the process would hang
        after its last step.
        """
        self.wrapped = self.model

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> TrainReport:
        """Train what is left of the epochs."""
        last = None
        while self.place.epoch < self.settings.epochs and not self._is_out_of_patience:
            last = self._epoch()
        early = self._is_out_of_patience and self.place.epoch < self.settings.epochs
        return TrainReport(
            stopped="early" if early else "finished",
            epochs=self.place.epoch,
            steps=self.place.step,
            best_epoch=self.place.best_epoch,
            best_loss=self.place.best_loss,
            last=last,
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            resumed_at=self.resumed_at,
            folder=self.folder,
        )

    @property
    def _is_out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.place.epoch - 1 - self.place.best_epoch >= patience

    def _epoch(self) -> Epoch:
        clock = _Clock()
        self._train(clock)
        seconds = clock.seconds()
        train, self.place.sums = _means(self._summed(self.place.sums)), {}
        done = Epoch(
            epoch=self.place.epoch,
            step=self.place.step,
            train=train,
            dev=self._evaluate(),
            lr=self.settings.lr_at(self.place.step - 1, self.n_steps),
            seconds=seconds,
            frames_per_s=clock.n_samples * self.ranks.size / max(seconds, 1e-9),
            wait_share=clock.waited / max(seconds, 1e-9),
        )
        self._finish(done)
        return done

    def _train(self, clock: _Clock) -> None:
        self.model.train()
        self.train_loader.set_epoch(self.place.epoch)
        n_left = len(self.train_loader)
        for number, batch in enumerate(
            clock.waiting(_without_random_numbers(self.train_loader)), start=1
        ):
            self._step(self._moved(batch))
            clock.n_samples += _n_samples(batch)
            is_time = self.checkpoint_steps and self.place.step % self.checkpoint_steps == 0
            # The last step's state is that of the next epoch: it is written when this epoch's dev
            # frames are done.
            if is_time and number < n_left:
                self._write_checkpoint()

    def _step(self, batch: TensorBatch) -> None:
        lr = self.settings.lr_at(self.place.step, self.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        measured = self._measure(self.wrapped, batch)
        measured.loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.clip_norm or math.inf
        )
        self.optimizer.step()
        _add(self.place.sums, measured)
        self.place.step += 1
        if self.place.step % self.log_steps == 0 or self.place.step == self.n_steps:
            self._log(self.ranks.mean(measured.loss).item(), lr, grad_norm.item())

    def _log(self, loss: float, lr: float, grad_norm: float) -> None:
        place = self.place
        if not math.isfinite(loss):
            raise _diverged(f"the loss is {loss} at step {place.step}")
        if self.journals:
            row = {
                "step": place.step,
                "epoch": place.epoch,
                "loss": loss,
                "lr": lr,
                "grad_norm": grad_norm,
            }
            self.journals[0].append(row)
        if self.board:
            self.board.add_numbers(
                "step", {"loss": loss, "lr": lr, "grad_norm": grad_norm}, place.step
            )
        self.on_step(Step(place.step, self.n_steps, place.epoch, loss, lr, grad_norm))

    def _measure(self, model: nn.Module, batch: TensorBatch) -> BatchLoss:
        with self._autocast():
            return self.task.measure(model, batch)

    def _summed(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.ranks.summed(sums, ("loss", *self.task.figures, "_count"), self.device)

    def _autocast(self) -> Any:
        if self.settings.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @torch.inference_mode()
    def _evaluate(self) -> dict[str, float]:
        if self.dev_loader is None:
            return {}
        self.model.eval()
        sums: dict[str, Tensor] = {}
        self.dev_loader.set_epoch(0)
        for batch in _without_random_numbers(self.dev_loader):
            # Not the wrapped model: ranks may have more batches, or fewer, and must not wait for
            # each other.
            _add(sums, self._measure(self.model, self._moved(batch)))
        return _means(self._summed(sums))

    def _moved(self, batch: Any) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise InvalidError(
                f"batches are dicts of tensors, found {type(batch).__name__}; use a view and its "
                "loader"
            )
        return {
            name: _aligned(item.to(self.device, non_blocking=True))
            if isinstance(item, Tensor)
            else item
            for name, item in batch.items()
        }

    def _finish(self, done: Epoch) -> None:
        if not math.isfinite(done.score):
            raise _diverged(f"the loss of epoch {done.epoch + 1} is {done.score}")
        is_best = done.score < self.place.best_loss
        if is_best:
            self.place.best_epoch, self.place.best_loss = done.epoch, done.score
        self.place.epoch += 1
        if self.board:
            for split, figures in (("train", done.train), ("dev", done.dev)):
                self.board.add_numbers(split, figures, done.step)
        if self.journals:
            self.journals[1].append(_as_row(done))
            self._draw_samples(done)
            if is_best:
                self._write_best()
        self._write_checkpoint()
        self.on_epoch(done)

    # -- the folder --------------------------------------------------------------------------------

    def open_folder(self, folder: Path, files: ExitStack, *, tensorboard: bool) -> None:
        """Take up the run that is in a folder, if there is one.

        The first process makes it and opens its files.
        """
        if (folder / CHECKPOINT).exists():
            self._take_up(folder / CHECKPOINT)
        self.folder, step = folder, self.place.step
        if not self.ranks.is_first:
            return
        (folder / SAMPLES).mkdir(parents=True, exist_ok=True)
        steps = open_journal(
            folder / STEPS, ("step", "epoch", "loss", "lr", "grad_norm"), up_to_step=step
        )
        files.callback(steps.close)
        columns = _metric_columns(self.task)
        metrics = open_journal(folder / METRICS, columns, up_to_step=step)
        files.callback(metrics.close)
        self.journals = steps, metrics
        if tensorboard:
            self.board = Board(folder / TENSORBOARD, up_to_step=step)
            files.callback(self.board.close)

    def _take_up(self, path: Path) -> None:
        found = read_checkpoint(path)
        if "loader" not in found.about:
            raise InvalidError(
                f"{path}: holds weights alone, as {BEST} does, and a run cannot go on from those; "
                "start anew in another folder"
            )
        check_same(path, found.about, self._about())
        about, place = found.about, self.place
        load_weights(self.model, found, path)
        restore_optimizer(self.model, self.optimizer, found.under("optimizer"))
        place.epoch, place.step, place.best_epoch = (
            about["epoch"],
            about["step"],
            about["best_epoch"],
        )
        place.best_loss = math.inf if about["best_loss"] is None else about["best_loss"]
        if self.ranks.is_first:
            place.sums = {
                name: tensor.to(self.device) for name, tensor in found.under("sums").items()
            }
        self.train_loader.load_state_dict(about["loader"])
        restore_rng(self.device, self.ranks.own(found.under("rng")))
        self.resumed_at = place.step

    def _about(self) -> dict[str, Any]:
        """Return what a run follows from: to be the same when it resumes."""
        store = self.train_loader.sampler.view.store
        return {
            "kpstore": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "model": _described(self.model),
            "task": _described(self.task),
            "inputs": self.inputs,
            "settings": asdict(self.settings),
            "store": {"location": store.location, "snapshot": store.snapshot},
            "batch_size": self.train_loader.sampler.batch_size,
            "ranks": self.ranks.size,
            "samples": {name: len(view) for name, view in self.views.items()},
            "frames": self.frames,
        }

    def _write_checkpoint(self) -> None:
        if self.folder is None:
            return
        self._check_weights()
        place, rng = self.place, self.ranks.gathered(rng_tensors(self.device))
        if place.sums:
            # The sums of all ranks go on in the first one, as they will after a resume.
            total = self._summed(place.sums)
            place.sums = total if self.ranks.is_first else {}
        if self.journals is None:
            return
        for journal in self.journals:
            journal.sync()
        if self.board:
            self.board.sync()
        tensors = {
            **_prefixed("model", self.model.state_dict()),
            **_prefixed("optimizer", optimizer_tensors(self.model, self.optimizer)),
            **_prefixed("sums", place.sums),
            **_prefixed("rng", rng),
        }
        about = {
            **self._about(),
            "epoch": place.epoch,
            "step": place.step,
            "best_epoch": place.best_epoch,
            "best_loss": place.best_loss if math.isfinite(place.best_loss) else None,
            "loader": self.train_loader.state_dict(),
        }
        write_checkpoint(self.folder / CHECKPOINT, Checkpoint(tensors, about))

    def _check_weights(self) -> None:
        # Between two logged steps all may have gone wrong; the last good checkpoint must not be
        # lost over it.
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise _diverged(f"weights are no longer numbers at step {self.place.step}")

    def _write_best(self) -> None:
        assert self.folder is not None
        about = {**self._about(), "epoch": self.place.best_epoch, "loss": self.place.best_loss}
        write_checkpoint(
            self.folder / BEST, Checkpoint(_prefixed("model", self.model.state_dict()), about)
        )

    @torch.inference_mode()
    def _draw_samples(self, done: Epoch) -> None:
        loader = self.dev_loader or self.train_loader
        n_shown = min(self.samples, len(loader.dataset))
        if n_shown == 0 or self.folder is None:
            return
        self.model.eval()
        chosen = np.linspace(0, len(loader.dataset) - 1, n_shown).astype(np.int64)
        with self._autocast():
            drawings = self.task.draw(self.model, self._moved(loader.dataset[chosen]))
        pictures = [
            picture for shown in drawings for picture in (shown.input, shown.target, shown.output)
        ]
        sheet = contact_sheet(pictures, 3, ["input", "target", "output"] * len(drawings))
        aside = self.folder / SAMPLES / ".aside.png"
        Image.fromarray(sheet).save(aside)
        aside.replace(self.folder / SAMPLES / f"epoch_{done.epoch + 1:04d}.png")
        if self.board:
            self.board.add_picture("samples", sheet, done.step)


class _Clock:
    """How long an epoch takes, how much of that was waiting for batches, and how many samples came in them."""

    def __init__(self) -> None:
        self._began, self.waited, self.n_samples = time.perf_counter(), 0.0, 0

    def seconds(self) -> float:
        """Return the time since the beginning."""
        return time.perf_counter() - self._began

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches, and count the time until each is there."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.perf_counter() - began
            yield batch


def _n_samples(batch: Mapping[str, Any]) -> int:
    """Return how many samples a batch holds.

    The last one of an epoch may be smaller than the others.
    """
    return next((len(item) for item in batch.values() if isinstance(item, Tensor)), 0)


def _digest(view: View) -> str:
    """Return what tells a view's frames from others of the same store."""
    return hashlib.blake2b(view.first_rows.astype("<i8").tobytes(), digest_size=8).hexdigest()


def _without_random_numbers(loader: Loader) -> Iterator[Any]:
    """Yield a loader's batches.

    Starting it draws no random numbers, which PyTorch's worker processes would.
    """
    state = torch.get_rng_state()
    batches = iter(loader)
    first = next(batches, None)
    torch.set_rng_state(state)
    if first is not None:
        yield first
        del first
        yield from batches


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins where PyTorch's own do.

    Batches read together lie behind each other. Which are read together differs after a resume, and
    MKL's sums may differ in the last bit with where an array begins.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNED else tensor


def _add(sums: dict[str, Tensor], measured: BatchLoss) -> None:
    """Add a batch to an epoch's sums, float64, where the model is: nothing waits for a GPU."""
    values = {"loss": measured.loss, **measured.figures}
    for name, value in values.items():
        share = value.detach().double() * measured.count
        sums[name] = sums[name] + share if name in sums else share
    count = torch.as_tensor(measured.count, dtype=torch.float64, device=measured.loss.device)
    sums["_count"] = sums["_count"] + count if "_count" in sums else count


def _means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    count = max(sums["_count"].item(), 1e-12)
    return {name: value.item() / count for name, value in sums.items() if name != "_count"}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _described(part: object) -> dict[str, Any]:
    """Return the name of a model's or a task's class, and its settings if it has them as a dataclass."""
    config = getattr(part, "config", part)
    fields = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    return {"name": type(part).__name__, "config": _plain(fields)}


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back, with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _metric_columns(task: Training) -> tuple[str, ...]:
    names = ("loss", *task.figures)
    measured = (f"{split}_{name}" for split in ("train", "dev") for name in names)
    return ("epoch", "step", "lr", *measured, "seconds", "frames_per_s", "wait_share")


def _as_row(done: Epoch) -> dict[str, Any]:
    measured = {f"train_{name}": value for name, value in done.train.items()}
    measured |= {f"dev_{name}": value for name, value in done.dev.items()}
    timed = {"seconds": round(done.seconds, 3), "frames_per_s": round(done.frames_per_s, 1)}
    waited = {"wait_share": round(done.wait_share, 4)}
    return {
        "epoch": done.epoch + 1,
        "step": done.step,
        "lr": done.lr,
        **measured,
        **timed,
        **waited,
    }


def _diverged(what: str) -> KpstoreError:
    return InvalidError(
        f"{what}; nothing was written since the last checkpoint: try a lower --lr or --clip-norm"
    )


def _check_loaders(train_loader: Loader, dev_loader: Loader | None) -> None:
    for name, loader in (("train", train_loader), ("dev", dev_loader)):
        if loader is None:
            continue
        if not isinstance(loader, Loader):
            raise InvalidError(
                f"the {name} loader is a {type(loader).__name__}; make it with "
                "kpstore.loader(view, …)"
            )
        if len(loader.dataset) == 0:
            raise InvalidError(
                f"there are no {name} frames in {loader.dataset.view!r}; choose another split"
            )
        if loader.sampler.drop_last and len(loader) == 0:
            raise InvalidError(
                f"the {name} loader drops all of its {len(loader.dataset)} frames, which fill no "
                "batch; make batches smaller, or drop_last=False"
            )
        if loader.sampler.view.store.check == "never":
            raise InvalidError(
                f"the {name} loader reads a store that was opened with check='never', and damage "
                "would be learnt; open it with check='first'"
            )
        _check_fill(loader.sampler.view)


def _check_fill(view: View) -> None:
    """Raise :class:`InvalidError` for skeletons in which what is missing looks like a point in the picture's corner."""
    while isinstance(view, Subset):
        view = view.view
    # With a range of their own, zeros are asked for: numbers as users' scripts make them.
    if isinstance(view, SkeletonView) and view.normalize is None and not np.isnan(view.fill):
        raise InvalidError(
            f"missing points are {view.fill:g} in this view, which a model takes for coordinates; "
            "make it with fill=float('nan'), by which the models know them"
        )
