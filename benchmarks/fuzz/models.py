"""Fuzzed weights, checkpoints, and the files of training runs."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

import kpstore
from kpstore.extractors.dinov2_weights import describe_weights
from kpstore.extractors.mediapipe import models_folder
from kpstore.extractors.mediapipe_models import HandRecropModel
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.store.store import backend_for
from kpstore.trainers.checkpoint import Checkpoint, prefixed, write_checkpoint
from kpstore.trainers.folder import open_journal
from kpstore.trainers.keypoints import (
    HierarchicalKeypointTransformer,
    KeypointConfig,
    KeypointTraining,
)
from kpstore.trainers.predict import open_predictor, predict_feature
from kpstore.trainers.ranks import Ranks
from kpstore.trainers.settings import TrainSettings
from kpstore.trainers.state import RunState, described_run

# -- weights ---------------------------------------------------------------------------------------

_TABLE = {
    "cls_token": torch.zeros(1, 1, 4),
    "pos_embed": torch.zeros(1, 2, 4),
    "blocks.0.norm1.weight": torch.zeros(4),
    "frontend3D.0.weight": torch.zeros(2, 1, 1, 1, 1),
}


def torch_files() -> Iterator[bytes]:
    """Yield small files of torch.save: of today, wrapped, and of before 2020."""
    for value, is_zip in ((_TABLE, True), ({"state_dict": _TABLE, "epoch": 3}, True), (_TABLE, 0)):
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=bool(is_zip))
        yield file.getvalue()


def safetensors_files() -> Iterator[bytes]:
    """Yield a small safetensors file."""
    yield safetensors.torch.save(_TABLE)


def tflite_files() -> Iterator[bytes]:
    """Yield the smallest model of Holistic."""
    yield (models_folder() / HandRecropModel.file).read_bytes()


def config(data: bytes, folder: Path) -> None:
    """Describe a folder of save_pretrained with this configuration."""
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors").write_bytes(b"")
    describe_weights(folder)


def shards(data: bytes, folder: Path) -> None:
    """Describe a folder of save_pretrained with this index of its files."""
    (folder / "config.json").write_text(CONFIG)
    (folder / "model.safetensors.index.json").write_bytes(data)
    (folder / "model-1.safetensors").write_bytes(b"")
    describe_weights(folder)


CONFIG = json.dumps(
    {
        "model_type": "dinov2_with_registers",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_register_tokens": 4,
        "patch_size": 14,
    }
)
SHARDS = json.dumps({"weight_map": {"layernorm.weight": "model-1.safetensors"}})


# -- runs ------------------------------------------------------------------------------------------


@cache
def _faces() -> kpstore.Store:
    """Return a store with two frames of faces."""
    store = kpstore.create("memory://fuzz-faces")
    spec = FeatureSpec("face", (68, 3), ("point", "space"), chunk_rows=4)
    with store.transaction("faces") as tx:
        tx.add_videos([VideoRecord("a", "train", ("a/0.png", "a/1.png"), 25.0, 8, 6)])
        tx.add_feature(spec, {"extractor": "sample"})
        values = np.random.default_rng(0).random((2, 68, 3), np.float32)
        tx.write("face", "a", values)
    return kpstore.open("memory://fuzz-faces", mode="a")


def predictor(path: Path) -> None:
    """Predict with a checkpoint."""
    store = _faces()
    try:
        predict_feature(store, open_predictor(path))
    finally:
        backend = backend_for("memory://fuzz-faces")
        newest = backend.branches()["main"]
        if newest != store.snapshot:
            backend.reset_branch("main", store.snapshot, expected=newest)


def predictors() -> Iterator[bytes]:
    """Yield a checkpoint that predicts faces."""
    yield _saved(_of_predictor())


@cache
def _of_predictor() -> Checkpoint:
    config = KeypointConfig(8, 8, region_layers=1, global_layers=1, heads=1)
    model = HierarchicalKeypointTransformer(config)
    inputs = {"feature": "face", "low": [0.0] * 3, "high": [1.0] * 3}
    about = {
        "model": {"name": type(model).__name__, "config": asdict(config)},
        "inputs": inputs,
        "store": {"location": "s.kps", "snapshot": "A"},
    }
    return Checkpoint(prefixed("model", model.state_dict()), about)


def resumed(path: Path) -> None:
    """Resume a run from a checkpoint."""
    state, here = _run()
    state.restore(path, here)
    state.sums = None


def resumed_seeds() -> Iterator[bytes]:
    """Yield the checkpoint of a run."""
    yield _saved(_of_run())


@cache
def _of_run() -> Checkpoint:
    state, here = _run()
    return state.to_checkpoint(here)


def _run() -> tuple[RunState, dict[str, object]]:
    view = _faces().frames("face", split="train")
    loader = kpstore.loader(view, batch_size=1, shuffle=None)
    settings, ranks = TrainSettings(epochs=2), Ranks(0, 1)
    torch.manual_seed(0)
    state = RunState(nn.Linear(2, 1), settings, loader, ("loss",), ranks, torch.device("cpu"))
    return state, described_run(state, KeypointTraining(), settings, {"train": view}, {})


def _saved(checkpoint: Checkpoint) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        write_checkpoint(path, checkpoint)
        return path.read_bytes()


def about_predictor(data: bytes, folder: Path) -> None:
    """Predict with a checkpoint that is described by this JSON."""
    _describe(_of_predictor(), data, folder / "x.safetensors")
    predictor(folder / "x.safetensors")


def about_run(data: bytes, folder: Path) -> None:
    """Resume from a checkpoint that is described by this JSON."""
    _describe(_of_run(), data, folder / "x.safetensors")
    resumed(folder / "x.safetensors")


def _describe(checkpoint: Checkpoint, data: bytes, path: Path) -> None:
    about = {"kpstore": data.decode("utf-8", "replace")}
    safetensors.torch.save_file(dict(checkpoint.tensors), path, metadata=about)


def abouts_predictor() -> Iterator[bytes]:
    """Yield the description of a checkpoint that predicts."""
    yield json.dumps({"format": 1, **_of_predictor().about}).encode()


def abouts_run() -> Iterator[bytes]:
    """Yield the description of the checkpoint of a run."""
    yield json.dumps({"format": 1, **_of_run().about}).encode()


def journal(path: Path) -> None:
    """Continue the numbers of a run."""
    with open_journal(path, ("step", "loss"), up_to_step=3) as opened:
        opened.append({"step": 4, "loss": 0.5})
    lines = path.read_text().splitlines()
    assert [lines[0], lines[-1]] == ["step,loss", "4,0.5"]


JOURNAL = "step,loss\n1,0.5\n2,0.25\n3,0.125\n4,0.1\n"
