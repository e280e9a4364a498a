"""The folder of a run: checkpoints, numbers as CSV, pictures of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kpstore.errors import ExistsError
from kpstore.render.skeleton import contact_sheet
from kpstore.trainers.board import Board, writer_type
from kpstore.trainers.checkpoint import Checkpoint, write_checkpoint
from kpstore.trainers.journal import Journal, open_journal
from kpstore.trainers.pictures import write_picture
from kpstore.trainers.report import Epoch, Step
from kpstore.trainers.settings import device_named
from kpstore.trainers.training import Drawing

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
METRICS, STEPS, SAMPLES, TENSORBOARD = "metrics.csv", "steps.csv", "samples", "tensorboard"
_STEP_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")


def check_start(
    folder: Path | str | None,
    *,
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = False,
    **_: Any,
) -> torch.device:
    """Return the device of a run that may start; all processes call it, before there is a folder.

    The parameters are those of :func:`kpstore.trainers.fit.fit`.

    Raises
    ------
    ExistsError
        If the folder holds a run that is not to be resumed.
    MissingExtraError
        If TensorBoard is asked for and not installed.
    UnsupportedError, InvalidError
        If the device does not exist.
    """
    where = device_named(device)
    if tensorboard:
        writer_type()
    if folder is None:
        return where
    folder = Path(folder)
    if (folder / CHECKPOINT).exists() and not resume:
        raise ExistsError(
            f"{folder} holds a run; resume it (resume=True, --resume) or choose another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ExistsError(f"{folder} is a file; choose a folder")
    return where


@dataclass(frozen=True)
class RunFolder:
    """The open files of a run; only its first process has one. :func:`open_folder` makes it."""

    path: Path
    steps: Journal
    metrics: Journal
    board: Board | None

    def add_step(self, step: Step) -> None:
        """Write a line for a step."""
        row = {name: getattr(step, name) for name in _STEP_COLUMNS}
        self.steps.append(row)
        if self.board:
            self.board.add_numbers("step", {n: row[n] for n in _STEP_COLUMNS[2:]}, step.step)

    def add_epoch(self, done: Epoch) -> None:
        """Write a line for an epoch."""
        if self.board:
            for split, figures in done.figures.items():
                self.board.add_numbers(split, figures, done.step)
        measured = {
            f"{split}_{name}": value
            for split, figures in done.figures.items()
            for name, value in figures.items()
        }
        self.metrics.append(
            {
                "epoch": done.epoch + 1,
                "step": done.step,
                "lr": done.lr,
                **measured,
                "seconds": round(done.seconds, 3),
                "frames_per_s": round(done.frames_per_s, 1),
                "wait_share": round(done.wait_share, 4),
            }
        )

    def add_samples(self, done: Epoch, drawings: Sequence[Drawing]) -> None:
        """Write an epoch's picture of samples."""
        pictures = [
            picture for drawn in drawings for picture in (drawn.input, drawn.target, drawn.output)
        ]
        sheet = contact_sheet(pictures, 3, ["input", "target", "output"] * len(drawings))
        write_picture(self.path / SAMPLES / f"epoch_{done.epoch + 1:04d}.png", sheet)
        if self.board:
            self.board.add_picture("samples", sheet, done.step)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, after all numbers up to it are on disk."""
        for journal in (self.steps, self.metrics):
            journal.sync()
        if self.board:
            self.board.sync()
        write_checkpoint(self.path / CHECKPOINT, checkpoint)

    def write_best(self, checkpoint: Checkpoint) -> None:
        """Write the weights of the best epoch so far."""
        write_checkpoint(self.path / BEST, checkpoint)


@contextmanager
def open_folder(
    path: Path, figures: Sequence[str], *, up_to_step: int, tensorboard: bool
) -> Iterator[RunFolder]:
    """Open the files of a run, without what they hold beyond a step.

    Parameters
    ----------
    path : created if it is not there.
    figures : names of what is measured, without ``"loss"``.
    up_to_step : where the run goes on.
    tensorboard : whether to write files for TensorBoard too.
    """
    (path / SAMPLES).mkdir(parents=True, exist_ok=True)
    measured = [f"{split}_{name}" for split in ("train", "dev") for name in ("loss", *figures)]
    columns = ("epoch", "step", "lr", *measured, "seconds", "frames_per_s", "wait_share")
    with ExitStack() as files:
        steps, metrics = (
            files.enter_context(open_journal(path / name, names, up_to_step=up_to_step))
            for name, names in ((STEPS, _STEP_COLUMNS), (METRICS, columns))
        )
        board = Board(path / TENSORBOARD, up_to_step=up_to_step) if tensorboard else None
        if board:
            files.enter_context(closing(board))
        yield RunFolder(path, steps, metrics, board)
