"""``kpstore train``: models from the keypoints of a store, one command for each training."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

from kpstore import plugins
from kpstore.options import Option

from . import render
from .arguments import At, Json, StoreArgument
from .commands import LazyCommand, loaded, one_command, takes
from .watcher import LINE_EVERY_S, noted_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from kpstore.trainers.report import Epoch, Step, TrainReport
    from kpstore.trainers.train import TrainPlan
    from kpstore.trainers.trainings import NamedTraining

GROUP: plugins.Group = "kpstore.trainings"

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for checkpoints, metrics and samples; STORE-TRAINING by default.",
    ),
]


@dataclass(frozen=True)
class Running:
    """Where a training runs and what it writes; no option here changes the results."""

    device: Annotated[
        str, Option("Where to train; auto takes a GPU if there is one.", "auto|cpu|cuda|cuda:N")
    ] = "auto"
    resume: Annotated[bool, Option("Resume the run in the folder; start one if there is none.")] = (
        False
    )
    checkpoint_steps: Annotated[
        int, Option("Steps between two checkpoints within an epoch.", "N", least=1)
    ] = 2000
    tensorboard: Annotated[
        bool, Option("Also write numbers and pictures for TensorBoard to FOLDER/tensorboard.")
    ] = False


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    app = typer.Typer(
        cls=_TrainGroup, no_args_is_help=True, help="Train a model from the keypoints of a store."
    )
    app.callback()(lambda: None)
    parent.add_typer(app, name="train")


class _TrainGroup(TyperGroup):
    """Makes a command when it runs, since its options come from modules that import torch."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the trainings."""
        return plugins.names(GROUP)

    def get_command(self, ctx: object, cmd_name: str) -> Any:
        """Return the command of a training; None if no training has the name."""
        if cmd_name not in plugins.names(GROUP):
            return None
        found, refusing = loaded(GROUP, cmd_name)
        if refusing is not None:
            return refusing
        text = f"{found.summary}\n\n{found.details}"
        return LazyCommand(
            cmd_name,
            found.summary,
            lambda: one_command(cmd_name, _training(found), text, found.examples),
        )


def _training(found: NamedTraining) -> Callable[..., None]:
    """Return the command of a training, with an option for each keyword of its function."""
    from kpstore.trainers.settings import TrainSettings

    function = plugins.imported(found.name, found.home)
    hints = get_type_hints(function, include_extras=True)
    plain: list[tuple[str, object, object]] = []
    kinds: dict[str, Any] = {}
    for keyword in inspect.signature(function).parameters.values():
        hint = hints.get(keyword.name)
        if keyword.kind is not keyword.KEYWORD_ONLY:
            continue
        if get_origin(hint) is Annotated:
            plain.append((keyword.name, hint, keyword.default))
        elif kind := next(filter(is_dataclass, (hint, *get_args(hint))), None):
            kinds[keyword.name] = kind

    @takes(
        make_dataclass("Plain", plain),
        without=found.without,
        **(kinds | {"settings": TrainSettings, "running": Running}),
    )
    def train(
        store: StoreArgument,
        running: Running,
        at: At = None,
        out: Out = None,
        json: Json = False,
        **options: object,
    ) -> None:
        import kpstore

        opened = kpstore.open(store, at)
        folder = out or Path(f"{Path(store.partition('?')[0].rstrip('/')).stem}-{found.name}")
        try:
            with _watching() as watcher:
                report = function(
                    opened,
                    folder,
                    on_plan=watcher.on_plan,
                    on_step=watcher.on_step,
                    on_epoch=watcher.on_epoch,
                    **asdict(running),
                    **options,
                )
        except KeyboardInterrupt:
            render.say(
                "stopped; the same command with --resume continues from the last checkpoint",
                err=True,
            )
            raise
        if _is_first():
            render.show(report, json, _print)

    return train


def _is_first() -> bool:
    """Return whether this is the one process, of those that torchrun started, that prints."""
    return os.environ.get("RANK", "0") == "0"


def _print(report: TrainReport) -> None:
    why = ", ended early: the loss stopped improving" if report.stopped == "early" else ""
    since = (
        "" if report.resumed_at is None else f", resumed at step {render.number(report.resumed_at)}"
    )
    render.say(
        f"{render.count(report.epochs, 'epoch')}, {render.count(report.steps, 'step')}{since}{why}"
    )
    render.say(
        f"best epoch {report.best_epoch + 1}, loss {report.best_loss:.4g}: "
        f"{report.folder}/best.safetensors"
    )
    if report.last is not None:
        speed = f"{render.number(round(report.last.frames_per_s))} frames/s"
        render.say(
            f"last epoch: {speed}, {report.last.wait_share:.1%} of the time waiting for frames"
        )


class _Watcher:
    """Prints a line for each epoch; steps move a bar or, without one, print a line now and then.

    Parameters
    ----------
    say : prints a line.
    bar : drawn on a terminal; None elsewhere.
    """

    def __init__(self, say: Callable[[str], None], bar: Progress | None = None) -> None:
        self._print, self._bar = say, bar
        self._task = None if bar is None else bar.add_task("starting", total=None, note="")
        self._last = time.monotonic()

    def on_plan(self, plan: TrainPlan) -> None:
        """Print what will be done."""
        frames = ", ".join(
            f"{render.count(n, 'frame')} of {render.split_name(split)}"
            for split, n in plan.frames.items()
        )
        self._say(f"{frames}; {render.number(plan.parameters)} parameters on {plan.device}")

    def on_step(self, step: Step) -> None:
        """Show progress."""
        note = f"loss {step.loss:.4g}"
        if self._bar is not None and self._task is not None:
            epoch = f"epoch {step.epoch + 1}"
            self._bar.update(
                self._task, description=epoch, completed=step.step, total=step.n_steps, note=note
            )
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._say(f"step {render.number(step.step)} of {render.number(step.n_steps)}, {note}")

    def on_epoch(self, epoch: Epoch) -> None:
        """Print the figures of an epoch."""
        dev = f"; dev {_shown(epoch.dev)}" if epoch.dev else ""
        self._say(f"epoch {epoch.epoch + 1}: train {_shown(epoch.train)}{dev}")

    def _say(self, line: str) -> None:
        self._last = time.monotonic()
        self._print(line)


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())


@contextmanager
def _watching() -> Iterator[_Watcher]:
    if not _is_first():
        yield _Watcher(lambda _: None)
    elif not sys.stderr.isatty():
        yield _Watcher(lambda line: render.say(line, err=True))
    else:
        from rich.progress import MofNCompleteColumn, TimeRemainingColumn

        with noted_bar(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            yield _Watcher(partial(render.say_above, bar), bar)
