"""``kpstore train``: models from the keypoints of a store."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

import typer

from . import render
from .arguments import At, Json, StoreArgument

if TYPE_CHECKING:
    from kpstore.trainers.report import Epoch, Report, Step
    from kpstore.trainers.run import Frames, Plan, RunOptions

_LINE_EVERY_S = 15.0

Split = Annotated[str, typer.Option(metavar="SPLIT", help="Frames to train on.")]
DevSplit = Annotated[
    str | None,
    typer.Option(metavar="SPLIT", help="Frames to measure after each epoch; `dev` or `val` by default, '' for none."),
]
Feature = Annotated[str, typer.Option(metavar="NAME", help="Keypoints to read.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where checkpoints, metrics and samples go; STORE-skeleton, say, by default."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder; begin if there is none.")]
Epochs = Annotated[int, typer.Option(metavar="N", help="At most so many.")]
Lr = Annotated[float, typer.Option(metavar="RATE", help="Highest learning rate of AdamW.")]
ScheduleOption = Annotated[Literal["cosine", "constant"], typer.Option(help="Of the learning rate, after a warm-up.")]
Warmup = Annotated[float, typer.Option(metavar="SHARE", help="Of all steps, in which the rate rises from 0.")]
WeightDecay = Annotated[float, typer.Option(metavar="X", help="Of AdamW.")]
ClipNorm = Annotated[float, typer.Option(metavar="X", help="Longest gradient; 0 does not clip.")]
PrecisionOption = Annotated[Literal["float32", "bf16"], typer.Option(help="bf16 computes most in bfloat16.")]
Patience = Annotated[
    int | None, typer.Option(metavar="N", help="End after so many epochs without a better loss on the dev frames.")
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="A GPU if there is one, by default.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of weights, order and dropout.")]
Limit = Annotated[
    int | None, typer.Option(metavar="N", help="Only so many frames of each split, evenly spread, to try something.")
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Numbers and pictures for TensorBoard too, in FOLDER/tensorboard.")
]
CheckpointSteps = Annotated[
    int, typer.Option(min=1, metavar="N", help="Steps from one checkpoint to the next, within an epoch.")
]


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    app = typer.Typer(no_args_is_help=True, help="Train a model from the keypoints of a store.")
    app.command(
        epilog="Examples:\n\nkpstore train skeleton phoenix.kps --out runs/skeleton\n\n"
        "kpstore train skeleton phoenix.kps --out runs/skeleton --resume\n\n"
        "torchrun --nproc-per-node 4 -m kpstore.cli.main train skeleton phoenix.kps --out runs/skeleton\n\n"
        "kpstore train skeleton phoenix.kps --limit-frames 64 --epochs 5 --image-size 64 --dev-split ''"
    )(skeleton)
    app.command(
        epilog="Examples:\n\nkpstore train keypoints phoenix.kps --at v1.0 --out runs/faces --device cuda\n\n"
        "kpstore train keypoints phoenix.kps --precision bf16 --patience 10 --json"
    )(keypoints)
    parent.add_typer(app, name="train")


def skeleton(
    store: StoreArgument,
    at: At = None,
    split: Split = "train",
    dev_split: DevSplit = None,
    feature: Feature = "keypoints",
    out: Out = None,
    resume: Resume = False,
    epochs: Epochs = 100,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Frames of a step, in each process.")] = 16,
    image_size: Annotated[int, typer.Option(metavar="PIXELS", help="Of the pictures; a multiple of 16.")] = 256,
    hands_weight: Annotated[float, typer.Option(metavar="X", help="Of the pixels around drawn hands.")] = 2.0,
    face_weight: Annotated[float, typer.Option(metavar="X", help="Of the pixels around the drawn face.")] = 1.5,
    rest_weight: Annotated[float, typer.Option(metavar="X", help="Of all other pixels.")] = 1.0,
    no_weighted_loss: Annotated[
        bool, typer.Option("--no-weighted-loss", help="Plain mean squared error: all pixels count alike.")
    ] = False,
    style: Annotated[Literal["kpstore", "phoenix"], typer.Option(help="How pictures are drawn.")] = "kpstore",
    missing_parts: Annotated[
        Literal["error", "allow"], typer.Option(help="When no frame at all has a certain part.")
    ] = "error",
    lr: Lr = 3e-4,
    schedule: ScheduleOption = "cosine",
    warmup: Warmup = 0.02,
    weight_decay: WeightDecay = 0.01,
    clip_norm: ClipNorm = 1.0,
    precision: PrecisionOption = "float32",
    patience: Patience = None,
    device: Device = "auto",
    seed: Seed = 0,
    limit_frames: Limit = None,
    checkpoint_steps: CheckpointSteps = 2000,
    tensorboard: Tensorboard = False,
    json: Json = False,
) -> None:
    """Train a transformer that draws skeletons: keypoints (143, 3) to a picture of 256 x 256.

    The pictures are drawn from the keypoints on the way. FOLDER gets checkpoint.safetensors, best.safetensors,
    metrics.csv, steps.csv and a picture of samples after each epoch. Killed at any moment, it goes on with --resume.
    """
    trainers = _import_trainers()
    task = trainers.SkeletonTask(hands=hands_weight, face=face_weight, rest=rest_weight, style=style)
    if no_weighted_loss:
        task = trainers.SkeletonTask(hands=1.0, face=1.0, rest=1.0, style=style)
    frames = trainers.Frames(split, dev_split, feature, limit_frames, missing_parts)
    options = _options(locals())
    config = trainers.SkeletonConfig(image_size=image_size)
    _train(
        trainers.train_skeleton, store, at, out, "skeleton", frames, batch_size, options, json, config=config, task=task
    )


def keypoints(
    store: StoreArgument,
    at: At = None,
    split: Split = "train",
    dev_split: DevSplit = None,
    feature: Feature = "keypoints",
    out: Out = None,
    resume: Resume = False,
    epochs: Epochs = 100,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Frames of a step, in each process.")] = 32,
    d_global: Annotated[int, typer.Option(metavar="N", help="Width of tokens of the whole face.")] = 256,
    d_region: Annotated[int, typer.Option(metavar="N", help="Width of tokens of points and regions.")] = 128,
    lr: Lr = 3e-4,
    schedule: ScheduleOption = "cosine",
    warmup: Warmup = 0.02,
    weight_decay: WeightDecay = 0.01,
    clip_norm: ClipNorm = 1.0,
    precision: PrecisionOption = "float32",
    patience: Patience = None,
    device: Device = "auto",
    seed: Seed = 0,
    limit_frames: Limit = None,
    checkpoint_steps: CheckpointSteps = 2000,
    tensorboard: Tensorboard = False,
    json: Json = False,
) -> None:
    """Train a transformer that encodes faces region by region and gives their 68 points again.

    Points are mapped to [0, 1] by the range of the training split's faces. FOLDER gets the same files as that of
    `train skeleton`.
    """
    trainers = _import_trainers()
    frames = trainers.Frames(split, dev_split, feature, limit_frames)
    config = trainers.KeypointConfig(d_global=d_global, d_region=d_region)
    _train(
        trainers.train_keypoints,
        store,
        at,
        out,
        "keypoints",
        frames,
        batch_size,
        _options(locals()),
        json,
        config=config,
    )


def _import_trainers() -> Any:
    """Return the module that trains; torch takes a second to import."""
    from kpstore.trainers import run

    return run


def _options(given: dict[str, Any]) -> RunOptions:
    """Return the options that every training takes, out of a command's."""
    names = ("epochs", "lr", "schedule", "warmup", "weight_decay", "precision", "patience", "seed")
    chosen = {name: given[name] for name in (*names, "device", "resume", "checkpoint_steps", "tensorboard")}
    return cast("RunOptions", {**chosen, "clip_norm": given["clip_norm"] or None})


def _train(
    train: Any,
    store: str,
    at: str | None,
    out: Path | None,
    kind: str,
    frames: Frames,
    batch_size: int,
    options: RunOptions,
    json: bool,
    **more: Any,
) -> None:
    import kpstore

    opened = kpstore.open(store, at)
    folder = out or Path(f"{Path(store.rstrip('/')).stem}-{kind}")
    with _watching() as watcher, _saying_how_to_go_on():
        report = train(
            opened,
            folder,
            frames=frames,
            batch_size=batch_size,
            on_plan=watcher.on_plan,
            on_step=watcher.on_step,
            on_epoch=watcher.on_epoch,
            **options,
            **more,
        )
    if _is_first():
        render.print_json(report.to_json()) if json else _print(report)


def _is_first() -> bool:
    """Whether this process, of those that torchrun started, is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _print(report: Report) -> None:
    why = "" if report.stopped == "finished" else ", ended early: the loss did not get better any more"
    since = "" if report.resumed_at is None else f", resumed at step {render.number(report.resumed_at)}"
    typer.echo(f"{render.count(report.epochs, 'epoch')}, {render.count(report.steps, 'step')}{since}{why}")
    typer.echo(f"best epoch {report.best_epoch + 1}, loss {report.best_loss:.4g}: {report.folder}/best.safetensors")
    if report.last is not None:
        speed = f"{render.number(round(report.last.frames_per_s))} frames/s"
        typer.echo(f"last epoch: {speed}, {report.last.wait_share:.1%} of the time waiting for frames")


class _LineWatcher:
    """Writes a line for each epoch, and now and then one for a step."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def on_plan(self, plan: Plan) -> None:
        """Say what will be done."""
        self._say(_plan_line(plan))

    def on_step(self, step: Step) -> None:
        """Say how far it is."""
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._say(f"step {render.number(step.step)} of {render.number(step.n_steps)}, loss {step.loss:.4g}")

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
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_step(self, step: Step) -> None:
        """Move the bar."""
        note = f"loss {step.loss:.4g}"
        description = f"epoch {step.epoch + 1}"
        self._bar.update(self._task, description=description, completed=step.step, total=step.n_steps, note=note)

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
        typer.echo("stopped; the same command with --resume goes on at the last checkpoint", err=True)
        raise


def _plan_line(plan: Plan) -> str:
    frames = ", ".join(f"{render.count(n, 'frame')} of {render.split_name(split)}" for split, n in plan.frames.items())
    return f"{frames}; {render.number(plan.parameters)} parameters on {plan.device}"


def _epoch_line(epoch: Epoch) -> str:
    def shown(figures: Any) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())

    dev = f"; dev {shown(epoch.dev)}" if epoch.dev else ""
    return f"epoch {epoch.epoch + 1}: train {shown(epoch.train)}{dev}"
