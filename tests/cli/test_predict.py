"""``kpstore predict``, also called ``reconstruct``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kpstore
from kpstore.trainers.train import train_keypoints
from tests.cli.conftest import Kpstore
from tests.trainers.data import SMALL_KEYPOINTS, train_store


@pytest.fixture
def people(tmp_path: Path) -> Path:
    store = train_store(kpstore.create(tmp_path / "people.kps"))
    train_keypoints(store, tmp_path / "run", config=SMALL_KEYPOINTS, epochs=1, samples=0)
    return tmp_path / "people.kps"


def test_predictions_go_to_the_store_or_to_pictures(
    kpstore_: Kpstore, people: Path, tmp_path: Path
) -> None:
    best = tmp_path / "run" / "best.safetensors"
    first = kpstore_("predict", best, people, "--split", "dev", "--as", "again", "--device", "cpu")
    assert first.code == 0, first.err
    assert first.out.startswith("again: 16 frames, version ")
    assert kpstore.open(people).video("c")["again"].shape == (16, 68, 3)
    again = kpstore_("reconstruct", best, people, "--split", "dev", "--as", "again", "--json")
    assert json.loads(again.out)["done_before"] == 16
    drawn = kpstore_("predict", best, people, "--png", tmp_path / "png", "--limit-frames", 3)
    assert drawn.out.splitlines()[0] == f"{tmp_path / 'png'}: 3 frames"
    assert len(list((tmp_path / "png").rglob("*.png"))) == 3


def test_what_cannot_be_predicted_is_one_line(
    kpstore_: Kpstore, people: Path, tmp_path: Path
) -> None:
    best, half = tmp_path / "run" / "best.safetensors", tmp_path / "half.safetensors"
    half.write_bytes(best.read_bytes()[:5000])
    before = kpstore.open(people).snapshot
    for words, code, expected in (
        ((half, people), 1, "cannot be read as a checkpoint"),
        ((people, people), 2, "no checkpoint found"),
        ((best, people, "--split", "tset"), 2, "split 'tset' not found"),
        ((best, people, "--feature", "hands"), 2, "'hands'"),
        ((best, people, "--as", "keypoints"), 2, "choose another name (--as)"),
        ((best, people, "--at", "v1"), 2, "are for --png"),
        ((best, people, "--as", "x", "--png", tmp_path / "no"), 2, "choose one"),
        ((best, people, "--as", "No Name"), 2, "array name 'No Name'"),
        ((best, people, "--batch-size", 0), 2, "batch_size=0"),
        ((best, people, "--split", "tset", "--png", tmp_path / "no"), 2, "split 'tset' not found"),
    ):
        result = kpstore_("predict", *words)
        errors = [line for line in result.lines if line.startswith("error: ")]
        assert (result.code, len(errors)) == (code, 1), (words, result)
        assert expected in errors[0], (words, result)
    assert kpstore.open(people).snapshot == before
    assert not (tmp_path / "no").exists()
