"""``kpstore train``: models from the keypoints of a store."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from typer.core import TyperGroup

from kpstore.options import Option

from . import render
from .arguments import At, Json, StoreArgument
from .commands import LazyCommand, one_command, takes

if TYPE_CHECKING:
    from kpstore.trainers.report import Epoch, Step, TrainReport
    from kpstore.trainers.train import TrainPlan

_LINE_EVERY_S = 15.0

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where checkpoints, metrics and samples go; STORE-skeleton, say, by default.",
    ),
]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Frames of a step, in each process.")]


@dataclass(frozen=True)
class Running:
    """Where a training runs, and what it leaves behind; it changes no numbers."""

    device: Annotated[str, Option("A GPU if there is one, by default.", "auto|cpu|cuda|cuda:N")] = (
        "auto"
    )
    resume: Annotated[bool, Option("Go on with the run in the folder; begin if there is none.")] = (
        False
    )
    checkpoint_steps: Annotated[
        int, Option("Steps from one checkpoint to the next, within an epoch.", "N", least=1)
    ] = 2000
    tensorboard: Annotated[
        bool, Option("Numbers and pictures for TensorBoard too, in FOLDER/tensorboard.")
    ] = False


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    app = typer.Typer(
        cls=_TrainGroup, no_args_is_help=True, help="Train a model from the keypoints of a store."
    )
    app.callback()(lambda: None)
    parent.add_typer(app, name="train")


@dataclass(frozen=True)
class _Training:
    """What people read of a training before torch is imported, and its command."""

    summary: str
    details: str
    examples: tuple[str, ...]
    make: Callable[[], Callable[..., None]]

    def command(self, name: str) -> Any:
        return one_command(name, self.make(), f"{self.summary}\n\n{self.details}", self.examples)


class _TrainGroup(TyperGroup):
    """Commands that are made when they are asked for: their options are those of modules that import torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the trainings."""
        return list(_TRAININGS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a training."""
        found = _TRAININGS.get(cmd_name)
        return (
            None
            if found is None
            else LazyCommand(cmd_name, found.summary, lambda: found.command(cmd_name))
        )


def _skeleton() -> Callable[..., None]:
    from kpstore.trainers.settings import TrainSettings
    from kpstore.trainers.skeleton import SkeletonConfig, SkeletonTraining
    from kpstore.trainers.train import Frames, train_skeleton

    @takes(
        frames=Frames,
        config=SkeletonConfig,
        task=SkeletonTraining,
        settings=TrainSettings,
        running=Running,
    )
    def skeleton(
        store: StoreArgument,
        frames: Frames,
        config: SkeletonConfig,
        task: SkeletonTraining,
        settings: TrainSettings,
        running: Running,
        at: At = None,
        out: Out = None,
        batch_size: BatchSize = 16,
        no_weighted_loss: Annotated[
            bool,
            typer.Option(
                "--no-weighted-loss", help="Plain mean squared error: all pixels count alike."
            ),
        ] = False,
        json: Json = False,
    ) -> None:
        if no_weighted_loss:
            task = replace(task, hands=1.0, face=1.0, rest=1.0)
        train = partial(
            train_skeleton, frames=frames, config=config, task=task, batch_size=batch_size
        )
        _train("skeleton", train, store, at, out, {**asdict(settings), **asdict(running)}, json)

    return skeleton


def _keypoints() -> Callable[..., None]:
    from kpstore.trainers.keypoints import KeypointConfig
    from kpstore.trainers.settings import TrainSettings
    from kpstore.trainers.train import Frames, train_keypoints

    @takes(
        frames=Frames,
        config=KeypointConfig,
        settings=TrainSettings,
        running=Running,
        without=("missing_parts",),
    )
    def keypoints(
        store: StoreArgument,
        frames: Frames,
        config: KeypointConfig,
        settings: TrainSettings,
        running: Running,
        at: At = None,
        out: Out = None,
        batch_size: BatchSize = 32,
        json: Json = False,
    ) -> None:
        train = partial(train_keypoints, frames=frames, config=config, batch_size=batch_size)
        _train("keypoints", train, store, at, out, {**asdict(settings), **asdict(running)}, json)

    return keypoints


_TRAININGS = {
    "skeleton": _Training(
        "Train a transformer that draws skeletons: keypoints (143, 3) to a picture of 256 x 256.",
        "The pictures are drawn from the keypoints on the way. FOLDER gets checkpoint.safetensors, "
        "best.safetensors, metrics.csv, steps.csv and a picture of samples after each epoch. "
        "Killed at any moment, it goes on with --resume.",
        (
            "kpstore train skeleton phoenix.kps --out runs/skeleton",
            "kpstore train skeleton phoenix.kps --out runs/skeleton --resume",
            "torchrun --nproc-per-node 4 -m kpstore.cli.main train skeleton phoenix.kps --out "
            "runs/skeleton",
            "kpstore train skeleton phoenix.kps --limit-frames 64 --epochs 5 --image-size 64 "
            "--dev-split ''",
        ),
        _skeleton,
    ),
    "keypoints": _Training(
        "Train a transformer that encodes faces region by region and gives their 68 points again.",
        "Points are mapped to [0, 1] by the range of the training split's faces. FOLDER gets the "
        "same files as that of `train skeleton`.",
        (
            "kpstore train keypoints phoenix.kps --at v1.0 --out runs/faces --device cuda",
            "kpstore train keypoints phoenix.kps --precision bf16 --patience 10 --json",
        ),
        _keypoints,
    ),
}


def _train(
    kind: str,
    train: Callable[..., TrainReport],
    store: str,
    at: str | None,
    out: Path | None,
    options: Mapping[str, Any],
    json: bool,
) -> None:
    import kpstore

    opened = kpstore.open(store, at)
    folder = out or Path(f"{Path(store.rstrip('/')).stem}-{kind}")
    with _watching() as watcher, _saying_how_to_go_on():
        report = train(
            opened,
            folder,
            on_plan=watcher.on_plan,
            on_step=watcher.on_step,
            on_epoch=watcher.on_epoch,
            **options,
        )
    if _is_first():
        render.print_json(report.to_json()) if json else _print(report)


def _is_first() -> bool:
    """Whether this process, of those that torchrun started, is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _print(report: TrainReport) -> None:
    why = (
        ""
        if report.stopped == "finished"
        else ", ended early: the loss did not get better any more"
    )
    since = (
        "" if report.resumed_at is None else f", resumed at step {render.number(report.resumed_at)}"
    )
    typer.echo(
        f"{render.count(report.epochs, 'epoch')}, {render.count(report.steps, 'step')}{since}{why}"
    )
    typer.echo(
        f"best epoch {report.best_epoch + 1}, loss {report.best_loss:.4g}: "
        f"{report.folder}/best.safetensors"
    )
    if report.last is not None:
        speed = f"{render.number(round(report.last.frames_per_s))} frames/s"
        typer.echo(
            f"last epoch: {speed}, {report.last.wait_share:.1%} of the time waiting for frames"
        )


class _LineWatcher:
    """Writes a line for each epoch, and now and then one for a step."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def on_plan(self, plan: TrainPlan) -> None:
        """Say what will be done."""
        self._say(_plan_line(plan))

    def on_step(self, step: Step) -> None:
        """Say how far it is."""
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._say(
                f"step {render.number(step.step)} of {render.number(step.n_steps)}, loss "
                f"{step.loss:.4g}"
            )

    def on_epoch(self, epoch: Epoch) -> None:
        """Say what the epoch gave."""
        self._say(_epoch_line(epoch))

    def _say(self, line: str) -> None:
        self._last = time.monotonic()
        typer.echo(line, err=True)


class _SilentWatcher(_LineWatcher):
    """For all processes but the first."""

    def _say(self, line: str) -> None:
        return None


class _BarWatcher(_LineWatcher):
    """Draws a bar, with a line above it for each epoch."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        super().__init__()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=render.console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=None, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_step(self, step: Step) -> None:
        """Move the bar."""
        note = f"loss {step.loss:.4g}"
        description = f"epoch {step.epoch + 1}"
        self._bar.update(
            self._task, description=description, completed=step.step, total=step.n_steps, note=note
        )

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)


@contextmanager
def _watching() -> Iterator[_LineWatcher]:
    kind = _BarWatcher if sys.stderr.isatty() else _LineWatcher
    with kind() if _is_first() else _SilentWatcher() as watcher:
        yield watcher


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            "stopped; the same command with --resume goes on at the last checkpoint", err=True
        )
        raise


def _plan_line(plan: TrainPlan) -> str:
    frames = ", ".join(
        f"{render.count(n, 'frame')} of {render.split_name(split)}"
        for split, n in plan.frames.items()
    )
    return f"{frames}; {render.number(plan.parameters)} parameters on {plan.device}"


def _epoch_line(epoch: Epoch) -> str:
    def shown(figures: Any) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())

    dev = f"; dev {shown(epoch.dev)}" if epoch.dev else ""
    return f"epoch {epoch.epoch + 1}: train {shown(epoch.train)}{dev}"
