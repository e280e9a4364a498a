"""TensorBoard beside the files, with a writer that remembers in its place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kpstore
from kpstore.errors import MissingExtraError
from kpstore.trainers.report import Step
from kpstore.trainers.train import train_keypoints
from tests.trainers.data import SMALL_KEYPOINTS, train_store

RUN: dict[str, Any] = {
    "batch_size": 8,
    "epochs": 2,
    "log_steps": 2,
    "checkpoint_steps": 4,
    "tensorboard": True,
}


class FakeWriter:
    """Has what kpstore uses of ``torch.utils.tensorboard.SummaryWriter``, under the same names."""

    made: list[FakeWriter]

    def __init__(self, log_dir: str, purge_step: int | None) -> None:
        self.log_dir, self.purge_step, self.closed = log_dir, purge_step, False
        self.scalars: list[tuple[str, int]] = []
        self.images: list[tuple[int, ...]] = []
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        self.scalars.append((tag, global_step))

    def add_image(self, tag: str, picture: Any, global_step: int, dataformats: str) -> None:
        assert (tag, dataformats, picture.shape[2]) == ("samples", "HWC", 3)
        self.images.append((global_step,))

    def flush(self) -> None:
        """Do as told."""

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[FakeWriter]:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    FakeWriter.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return FakeWriter.made


def test_numbers_and_pictures_go_there_too(
    memory_store: kpstore.Store, tmp_path: Path, writers: list[FakeWriter]
) -> None:
    train_keypoints(train_store(memory_store), tmp_path, config=SMALL_KEYPOINTS, **RUN)
    (writer,) = writers
    assert (writer.log_dir, writer.purge_step, writer.closed) == (
        str(tmp_path / "tensorboard"),
        None,
        True,
    )
    assert [at for tag, at in writer.scalars if tag == "step/loss"] == [2, 4, 6, 8, 10, 12]
    assert [at for tag, at in writer.scalars if tag == "dev/point_error"] == [6, 12]
    assert {tag.partition("/")[0] for tag, _ in writer.scalars} == {"step", "train", "dev"}
    assert writer.images == [(6,), (12,)]


def test_what_lies_beyond_the_checkpoint_is_hidden_on_resume(
    memory_store: kpstore.Store, tmp_path: Path, writers: list[FakeWriter]
) -> None:
    store = train_store(memory_store)

    def stop(step: Step) -> None:
        if step.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_keypoints(store, tmp_path, config=SMALL_KEYPOINTS, **RUN, on_step=stop)
    train_keypoints(store, tmp_path, config=SMALL_KEYPOINTS, **RUN, resume=True)
    first, second = writers
    assert first.closed
    assert second.purge_step == 5
    assert [at for tag, at in second.scalars if tag == "step/loss"] == [6, 8, 10, 12]


def test_without_tensorboard_nothing_begins(
    memory_store: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        MissingExtraError, match=r'--tensorboard needs .* pip install "kpstore\[tensorboard\]"'
    ):
        train_keypoints(train_store(memory_store), tmp_path / "run", config=SMALL_KEYPOINTS, **RUN)
    assert not (tmp_path / "run").exists()


def test_tensorboard_itself_reads_what_was_written(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_keypoints(train_store(memory_store), tmp_path, config=SMALL_KEYPOINTS, **RUN)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("dev/point_error")] == [6, 12]
    assert [image.step for image in board.Images("samples")] == [6, 12]
