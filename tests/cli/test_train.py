"""``kpstore train``: runs, and what it says when it cannot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch

import kpstore
from kpstore.options import Option
from kpstore.trainers.checkpoint import read_checkpoint
from kpstore.trainers.keypoints import HierarchicalKeypointTransformer, KeypointTraining
from kpstore.trainers.report import TrainReport
from kpstore.trainers.train import train_views
from kpstore.trainers.trainings import NamedTraining
from tests.cli.conftest import Kpstore
from tests.fakes import record
from tests.trainers.data import SMALL_KEYPOINTS, train_store

SMALL = ("--limit-frames", 8, "--batch-size", 4, "--epochs", 1, "--device", "cpu")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    train_store(kpstore.create(tmp_path / "people.kps")).tag("v1")
    return tmp_path / "people.kps"


def test_keypoints_train_and_go_on(kpstore_: Kpstore, people: Path, tmp_path: Path) -> None:
    narrow = ("--d-global", 32, "--d-region", 16)
    command = (
        "train",
        "keypoints",
        people,
        "--out",
        tmp_path / "run",
        *SMALL,
        *narrow,
        "--at",
        "v1",
    )
    first = kpstore_(*command)
    assert first.code == 0, first.err
    assert "1 epoch, 2 steps" in first.out
    assert first.lines[0].startswith("8 frames of train, 8 frames of dev; ")
    assert any(line.startswith("epoch 1: train loss ") for line in first.lines)
    taken = kpstore_(*command)
    assert taken.code == 2
    assert taken.lines == [
        f"error: {tmp_path / 'run'} holds a run; resume it (resume=True, --resume) or choose "
        "another folder"
    ]
    again = kpstore_(*command, "--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["resumed_at"] == 2


def test_skeletons_train_beside_the_store_by_default(
    kpstore_: Kpstore, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kpstore_(
        "train",
        "skeleton",
        people,
        *SMALL,
        "--image-size",
        32,
        "--dev-split",
        "",
        "--no-weighted-loss",
    )
    assert result.code == 0, result.err
    assert (tmp_path / "people-skeleton" / "best.safetensors").exists()
    assert (tmp_path / "people-skeleton" / "samples" / "epoch_0001.png").exists()
    assert "dev" not in result.lines[0]


def test_what_cannot_be_trained_is_one_line(
    kpstore_: Kpstore, people: Path, tmp_path: Path
) -> None:
    with kpstore.open(people, mode="a").transaction("other things") as tx:
        tx.add_videos([record("later", 5, "test")])
        tx.add_feature(kpstore.FeatureSpec("embedding", (7,), ("feature",)))
    cases = [
        (("--feature", "embedding"), "'embedding' has rows of (7,)"),
        (("--feature", "nothing"), "'nothing'"),
        (("--split", "test"), "split 'test' has no frames with 'keypoints'"),
        (("--split", "tset"), "split 'tset' not found"),
        (("--dev-split", "none"), "split 'none' not found"),
        (("--device", "tpu7"), "device 'tpu7'"),
        (("--epochs", "0"), "epochs=0 (1 or more)"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--limit-frames", "0"), "limit=0"),
    ]
    if not torch.cuda.is_available():
        cases.append((("--device", "cuda"), "finds no GPU here; use cpu"))
    for options, expected in cases:
        for kind in ("skeleton", "keypoints"):
            result = kpstore_("train", kind, people, "--out", tmp_path / "no", *options)
            errors = [line for line in result.lines if line.startswith("error: ")]
            assert result.code == 2, (kind, options, result)
            assert len(errors) == 1, (kind, options, result)
            assert expected in errors[0], (kind, options, result)
            assert not (tmp_path / "no").exists()


@dataclass(frozen=True)
class Scale:
    """Options of somebody else's training."""

    scale: Annotated[float, Option("Of all points.", "X")] = 1.0


def train_scaled(
    store: kpstore.Store,
    folder: Path,
    *,
    config: Scale | None = None,
    batch_size: Annotated[int, Option("Frames of a step.", "N")] = 8,
    **options: Any,
) -> TrainReport:
    """A training that is not kpstore's."""
    high = (config or Scale()).scale
    view = store.face_keypoints(split="train", normalize=([0.0] * 3, [high] * 3))
    return train_views(
        lambda: HierarchicalKeypointTransformer(SMALL_KEYPOINTS),
        {"train": view},
        KeypointTraining(),
        folder=folder,
        batch_size=batch_size,
        inputs={"high": high},
        **options,
    )


def test_somebody_elses_training_is_a_command_with_its_options(
    kpstore_: Kpstore, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kpstore.plugins._registered", {})
    scaled = NamedTraining("scaled", "Train on scaled faces.", f"{__name__}:train_scaled")
    kpstore.plugins.register("kpstore.trainings", "scaled", scaled)
    listed = kpstore_("train", "--help").out
    assert all(text in listed for text in ("keypoints", "skeleton", "Train on scaled faces."))
    assert "--scale" in kpstore_("train", "scaled", "--help").out
    options = ("--scale", 2.0, "--batch-size", 16, "--epochs", 1, "--device", "cpu")
    result = kpstore_("train", "scaled", people, "--out", tmp_path / "run", *options)
    assert result.code == 0, result.err
    assert "1 epoch, 3 steps" in result.out
    about = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors").about
    assert about["inputs"] == {"high": 2.0}
