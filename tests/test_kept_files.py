"""Stores, exports and a checkpoint of an earlier kpstore open, and hold what they held.

``format2.tar.xz`` was made before the code was rearranged (November 2026): three videos of
keypoints, one with a failed frame, one that failed; a tag; the store as HDF5; exports; the
checkpoint of a training of one epoch.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.inspect.contents import compare
from kpstore.inspect.verify import verify
from kpstore.interop.transfer import export_file, opened
from kpstore.trainers.checkpoint import read_checkpoint
from kpstore.trainers.keypoints import KeypointConfig
from kpstore.trainers.settings import TrainSettings
from kpstore.trainers.train import Frames, load_model, train_keypoints


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(Path(__file__).parent / "data" / "format2.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", ["format2.kps", "format2.h5"])
def test_stores_hold_what_they_held(kept: Path, name: str) -> None:
    store = kpstore.open(kept / name, "版本1")
    assert verify(store).problems == []
    assert not compare(store, kpstore.open(kept / "format2.kps"))
    assert [(f.video_id, f.frame, f.image_path, f.reason) for f in store.failures("keypoints")] == [
        ("a", 2, "a/0002.png", "torn"),
        ("c", None, "", "no film"),
    ]
    assert (store.lacks, store.states("keypoints").tolist()) == ("", [1, 1, 2])
    hands = store["keypoints_detected"][:, 1]
    assert np.flatnonzero(~hands).tolist() == [0, 2, 8, 12, 13]


@pytest.mark.parametrize(
    ("name", "path"), [("npz", "npz"), ("pickle", "keypoints.pkl"), ("hdf5", "export.h5")]
)
def test_exports_are_made_as_they_were(kept: Path, tmp_path: Path, name: str, path: str) -> None:
    export_file(kpstore.open(kept / "format2.kps"), tmp_path / path, name)
    with opened(kept / path) as before, opened(tmp_path / path) as now:
        assert not compare(before, now)
        assert before.failures("keypoints") == now.failures("keypoints")


def test_a_checkpoint_loads(kept: Path) -> None:
    path = kept / "run" / "checkpoint.safetensors"
    found, model = read_checkpoint(path), load_model(path)
    for name, tensor in found.under("model").items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), tensor.numpy())
    assert TrainSettings(**found.about["settings"]) == TrainSettings(epochs=1, seed=3)


def test_a_run_of_before_is_resumed(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept / "run", tmp_path / "run")
    found = read_checkpoint(kept / "run" / "checkpoint.safetensors").about
    report = train_keypoints(
        kpstore.open(kept / "format2.kps"),
        tmp_path / "run",
        frames=Frames(split="train", dev_split="dev"),
        config=KeypointConfig(**found["model"]["config"]),
        batch_size=found["batch_size"],
        epochs=1,
        seed=3,
        resume=True,
    )
    assert report.resumed_at == found["step"]
