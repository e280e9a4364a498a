"""The folder of a run: checkpoints, numbers as CSV, pictures of samples, TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from kpstore.errors import ExistsError, MissingExtraError
from kpstore.render.skeleton import contact_sheet
from kpstore.store.store import keep_out_of_stores
from kpstore.trainers.checkpoint import Checkpoint, write_checkpoint
from kpstore.trainers.pictures import write_picture
from kpstore.trainers.report import Epoch, Step
from kpstore.trainers.settings import device_named
from kpstore.trainers.training import Drawing
from kpstore.visible import logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logger(__name__)

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
METRICS, STEPS, SAMPLES, TENSORBOARD = "metrics.csv", "steps.csv", "samples", "tensorboard"
_STEP = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9.]+(e[-+]?[0-9]+)?|-?inf|nan|")
_STEP_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")


def check_start(
    folder: Path | str | None,
    *,
    device: str = "cpu",
    resume: bool = False,
    tensorboard: bool = False,
    **_: object,
) -> torch.device:
    """Return the device of a run that may start; every process calls it before a folder is made.

    The parameters are those of :func:`kpstore.trainers.fit.fit`.

    Raises
    ------
    ExistsError
        If the folder holds a run that is not to be resumed, or lies in a store.
    MissingExtraError
        If TensorBoard is asked for and not installed.
    UnsupportedError, InvalidError
        If the device does not exist.
    """
    where = device_named(device)
    if tensorboard:
        _writer_type()
    if folder is None:
        return where
    folder = Path(folder)
    if (folder / CHECKPOINT).exists() and not resume:
        raise ExistsError(
            f"{folder} holds a run; resume it (resume=True, --resume) or choose another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise ExistsError(f"{folder} is a file; choose a folder")
    keep_out_of_stores(folder, "the run")
    return where


def _writer_type() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("--tensorboard", extra="tensorboard") from None
    return SummaryWriter


@dataclass(frozen=True)
class Journal:
    """An open CSV file with a column ``step``; :func:`open_journal` makes one."""

    file: TextIO
    columns: Sequence[str]

    def append(self, row: Mapping[str, object]) -> None:
        """Add a line and flush it; floats keep all bits, missing columns stay empty."""
        csv.DictWriter(self.file, self.columns, lineterminator="\n").writerow(row)
        self.file.flush()

    def sync(self) -> None:
        """Write the lines to disk before a checkpoint that relies on them."""
        os.fsync(self.file.fileno())


@contextmanager
def open_journal(path: Path, columns: Sequence[str], *, up_to_step: int) -> Iterator[Journal]:
    """Open a CSV file for appending; of its lines, the complete ones up to a step are kept."""
    kept = _lines_up_to(path, columns, up_to_step) if up_to_step else []
    aside = path.with_name(f".{path.name}.aside")
    lines = [_header(columns), *map(",".join, kept)]
    aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    aside.replace(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        yield Journal(file, columns)


def _header(columns: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(columns)  # names of splits may hold commas
    return line.getvalue()


def _lines_up_to(path: Path, columns: Sequence[str], step: int) -> list[list[str]]:
    if not path.is_file():
        return []
    at, kept, n_damaged = list(columns).index("step"), [], 0
    # The last line has no end if the process was killed while it wrote it, after the checkpoint.
    header, *lines = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1] or [""]
    if header != _header(columns):
        n_damaged += 1
    for row in (line.split(",") for line in lines):
        is_whole = len(row) == len(columns) and all(map(_NUMBER.fullmatch, row))
        if not is_whole or not _STEP.fullmatch(row[at]):
            n_damaged += 1
        elif int(row[at]) <= step:
            kept.append(row)
    if n_damaged:
        _log.warning("%s: damaged lines, %d of them, are left out", path, n_damaged)
    return kept


@dataclass(frozen=True)
class RunFolder:
    """The open files of a run; only its first process has them. :func:`open_folder` makes one."""

    path: Path
    steps: Journal
    metrics: Journal
    board: SummaryWriter | None

    def add_step(self, step: Step) -> None:
        """Write a line for a step."""
        row = {name: getattr(step, name) for name in _STEP_COLUMNS}
        self.steps.append(row)
        self._show("step", {name: row[name] for name in _STEP_COLUMNS[2:]}, step.step)

    def add_epoch(self, done: Epoch) -> None:
        """Write a line for an epoch."""
        measured: dict[str, float] = {}
        for split, figures in done.figures.items():
            self._show(split, figures, done.step)
            measured |= {f"{split}_{name}": value for name, value in figures.items()}
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

    def _show(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)

    def add_samples(self, done: Epoch, drawings: Sequence[Drawing]) -> None:
        """Write an epoch's picture of samples."""
        pictures = [
            picture for drawn in drawings for picture in (drawn.input, drawn.target, drawn.output)
        ]
        sheet = contact_sheet(pictures, 3, ["input", "target", "output"] * len(drawings))
        write_picture(self.path / SAMPLES / f"epoch_{done.epoch + 1:04d}.png", sheet)
        if self.board:
            self.board.add_image("samples", sheet, done.step, dataformats="HWC")

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint once all numbers up to it are on disk."""
        for journal in (self.steps, self.metrics):
            journal.sync()
        if self.board:
            self.board.flush()
        write_checkpoint(self.path / CHECKPOINT, checkpoint)

    def write_best(self, checkpoint: Checkpoint) -> None:
        """Write the weights of the best epoch so far."""
        write_checkpoint(self.path / BEST, checkpoint)


@contextmanager
def open_folder(
    path: Path, figures: Sequence[str], *, up_to_step: int, tensorboard: bool
) -> Iterator[RunFolder]:
    """Open the files of a run and drop what they hold beyond a step.

    Parameters
    ----------
    path : created if it does not exist.
    figures : names of what is measured, without ``"loss"``.
    up_to_step : the step from which the run continues.
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
        board = None
        if tensorboard:
            # TensorBoard hides what was written beyond the step at which a run resumes.
            purge_step = up_to_step + 1 if up_to_step else None
            board = _writer_type()(log_dir=str(path / TENSORBOARD), purge_step=purge_step)
            files.enter_context(closing(board))
        yield RunFolder(path, steps, metrics, board)
