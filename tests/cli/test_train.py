"""``kpstore train``: runs, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import kpstore
from tests.cli.conftest import Kpstore
from tests.fakes import record
from tests.trainers.data import train_store

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
    assert first.lines[1].startswith("epoch 1: train loss ")
    taken = kpstore_(*command)
    assert taken.code == 2
    assert taken.lines == [
        f"error: {tmp_path / 'run'} holds a run; resume it (--resume) or choose another folder"
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
        cases.append((("--device", "cuda"), "finds no GPU here; use --device cpu"))
    for options, expected in cases:
        for kind in ("skeleton", "keypoints"):
            result = kpstore_("train", kind, people, "--out", tmp_path / "no", *options)
            errors = [line for line in result.lines if line.startswith("error: ")]
            assert result.code == 2, (kind, options, result)
            assert len(errors) == 1, (kind, options, result)
            assert expected in errors[0], (kind, options, result)
            assert not (tmp_path / "no").exists()
