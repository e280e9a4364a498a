"""The loop: learning, resuming bit for bit, and what it says when it cannot go on."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn

import kpstore
from kpstore.errors import (
    CorruptError,
    ExistsError,
    InvalidError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.trainers.checkpoint import read_checkpoint, write_checkpoint
from kpstore.trainers.fit import fit
from kpstore.trainers.keypoints import HierarchicalKeypointTransformer, KeypointTraining
from kpstore.trainers.ranks import Ranks
from kpstore.trainers.report import Step, TrainReport
from kpstore.trainers.settings import TrainSettings, device_named
from kpstore.trainers.skeleton import HierarchicalSkeletonTransformer
from kpstore.trainers.train import Frames, load_model, train_keypoints, train_skeleton
from tests.conftest import memory_location
from tests.trainers.data import (
    SMALL_KEYPOINTS,
    SMALL_SKELETON,
    WITH_DROPOUT,
    people,
    train_store,
)

RUN: dict[str, Any] = {
    "batch_size": 8,
    "epochs": 3,
    "lr": 3e-3,
    "log_steps": 1,
    "checkpoint_steps": 5,
    "samples": 0,
}
TIMES = ("seconds", "frames_per_s", "wait_share")


class Stopped(Exception):
    """Ends a run in the middle."""


@pytest.fixture
def store(memory_store: kpstore.Store) -> kpstore.Store:
    return train_store(memory_store)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> tuple[kpstore.Store, Path]:
    """A store that no test changes, and the folder of a run of one epoch, to copy."""
    store, folder = train_store(kpstore.create(memory_location())), tmp_path_factory.mktemp("one")
    keypoints(store, folder, epochs=1)
    return store, folder


@pytest.fixture
def run(one_epoch: tuple[kpstore.Store, Path], tmp_path: Path) -> tuple[kpstore.Store, Path]:
    """The store and a copy of the run of one epoch."""
    store, folder = one_epoch
    return store, shutil.copytree(folder, tmp_path / "run")


def keypoints(store: kpstore.Store, folder: Path, **options: Any) -> TrainReport:
    return train_keypoints(store, folder, config=SMALL_KEYPOINTS, **{**RUN, **options})


def stop_at(last: int) -> Any:
    def on_step(step: Step) -> None:
        if step.step == last:
            raise Stopped

    return on_step


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(a: Path, b: Path) -> None:
    assert (a / "steps.csv").read_bytes() == (b / "steps.csv").read_bytes()
    assert lines(a / "metrics.csv") == lines(b / "metrics.csv")
    for name in ("checkpoint.safetensors", "best.safetensors"):
        first, second = (read_checkpoint(folder / name).tensors for folder in (a, b))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


# -- learning --------------------------------------------------------------------------------------


def test_faces_are_learnt_for_frames_that_were_not_trained_on(
    store: kpstore.Store, tmp_path: Path
) -> None:
    report = keypoints(
        store, tmp_path / "run", epochs=6, lr=1e-2, clip_norm=None, checkpoint_steps=None
    )
    assert report.steps == 6 * 6
    first, last = (lines(tmp_path / "run" / "metrics.csv")[i] for i in (0, -1))
    dev = store.face_keypoints(split="dev", normalize=store.statistics("keypoints", split="train"))
    points = dev.batch(range(len(dev)))["keypoints"]
    mean = (
        store.face_keypoints(split="train", normalize="train_minmax")
        .batch(range(48))["keypoints"]
        .mean(axis=0)
    )
    of_the_mean_face = float(np.square(points - mean).mean())
    assert float(last["dev_loss"]) < of_the_mean_face / 2
    assert float(last["dev_loss"]) < float(first["dev_loss"]) / 4
    assert report.best_loss == min(
        float(row["dev_loss"]) for row in lines(tmp_path / "run" / "metrics.csv")
    )


def test_skeletons_are_learnt_for_frames_that_were_not_trained_on(
    store: kpstore.Store, tmp_path: Path
) -> None:
    report = train_skeleton(
        store, tmp_path / "run", config=SMALL_SKELETON, **{**RUN, "epochs": 6, "lr": 1e-2}
    )
    assert report.last is not None
    images = store.skeletons(split="dev", size=32).batch(range(16))["image"]
    train = store.skeletons(split="train", size=32).batch(range(48))["image"]
    of_the_mean_picture = float(np.square(images - train.mean(axis=0)).mean())
    assert report.last.dev["mse"] < 0.7 * of_the_mean_picture
    assert report.last.dev["ink"] > 0.5


def test_each_epoch_leaves_a_picture_of_samples(store: kpstore.Store, tmp_path: Path) -> None:
    train_skeleton(
        store,
        tmp_path,
        config=SMALL_SKELETON,
        frames=Frames(limit=8),
        batch_size=8,
        epochs=2,
        samples=3,
    )
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [path.name for path in pictures] == ["epoch_0001.png", "epoch_0002.png"]
    with Image.open(pictures[1]) as sheet:
        assert sheet.width >= 3 * 32
        assert sheet.height >= 3 * 32
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 10


def test_a_saved_model_draws_what_the_trained_one_drew(
    one_epoch: tuple[kpstore.Store, Path],
) -> None:
    _, folder = one_epoch
    model = load_model(folder / "best.safetensors")
    assert isinstance(model, HierarchicalKeypointTransformer)
    assert model.config == SMALL_KEYPOINTS
    assert not model.training
    stored = read_checkpoint(folder / "checkpoint.safetensors").under("model")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_frames_a_second_are_those_that_came(store: kpstore.Store, tmp_path: Path) -> None:
    last = keypoints(store, tmp_path, epochs=1, batch_size=32).last
    assert last is not None
    assert last.frames_per_s * last.seconds == pytest.approx(48)  # a batch of 32 and one of 16


def test_bfloat16_learns_too(store: kpstore.Store, tmp_path: Path) -> None:
    report = keypoints(store, tmp_path, precision="bf16", epochs=4)
    rows = lines(tmp_path / "metrics.csv")
    assert report.epochs == 4
    assert float(rows[-1]["dev_loss"]) < float(rows[0]["dev_loss"]) / 2
    assert all(
        p.dtype == torch.float32 for p in load_model(tmp_path / "best.safetensors").parameters()
    )


def test_training_ends_early_when_nothing_gets_better(store: kpstore.Store, tmp_path: Path) -> None:
    settings = {"epochs": 30, "patience": 2, "lr": 1e-30}
    report = keypoints(store, tmp_path, **settings)
    assert report.stopped == "early"
    assert report.epochs == report.best_epoch + 3 < 30
    again = keypoints(store, tmp_path, resume=True, **settings)
    assert (again.stopped, again.epochs, again.last) == ("early", report.epochs, None)


# -- resuming --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[kpstore.Store, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    store = train_store(kpstore.create(folder / "people.kps"))
    train_keypoints(store, folder / "run", config=WITH_DROPOUT, **RUN)
    return store, folder / "run"


@pytest.mark.parametrize("stop", [3, 12, 14, 18])
def test_an_interrupted_run_goes_on_bit_for_bit(
    uninterrupted: tuple[kpstore.Store, Path], tmp_path: Path, stop: int
) -> None:
    (store, whole), parts, config = uninterrupted, tmp_path / "parts", WITH_DROPOUT
    with pytest.raises(Stopped):
        train_keypoints(store, parts, config=config, **RUN, on_step=stop_at(stop))
    report = train_keypoints(store, parts, config=config, resume=True, **RUN)
    assert report.resumed_at == {3: None, 12: 10, 14: 12, 18: 15}[stop]
    assert_same_run(whole, parts)


def test_skeletons_go_on_bit_for_bit(store: kpstore.Store, tmp_path: Path) -> None:
    options = {**RUN, "config": SMALL_SKELETON, "epochs": 2}
    train_skeleton(store, tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        train_skeleton(store, tmp_path / "parts", **options, on_step=stop_at(11))
    assert train_skeleton(store, tmp_path / "parts", **options, resume=True).resumed_at == 10
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_was_killed_goes_on_bit_for_bit(
    uninterrupted: tuple[kpstore.Store, Path], tmp_path: Path
) -> None:
    store, whole = uninterrupted
    command = [
        sys.executable,
        "-m",
        "tests.trainers.kill_driver",
        store.location,
        str(tmp_path / "parts"),
    ]
    killed = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (
        lines(tmp_path / "parts" / "steps.csv")[-1]["step"] == "17"
    )  # one line more than the checkpoint knows of
    with (tmp_path / "parts" / "steps.csv").open("a") as file:
        file.write("18,2,0.0")  # and half a line
    report = train_keypoints(store, tmp_path / "parts", config=WITH_DROPOUT, resume=True, **RUN)
    assert report.resumed_at == 15
    assert_same_run(whole, tmp_path / "parts")


def test_a_finished_run_is_not_trained_again(store: kpstore.Store, tmp_path: Path) -> None:
    first = keypoints(store, tmp_path, epochs=2)
    again = keypoints(store, tmp_path, epochs=2, resume=True)
    assert (again.steps, again.best_loss, again.last) == (first.steps, first.best_loss, None)


def test_the_callers_random_numbers_are_left_alone(store: kpstore.Store, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    keypoints(store, tmp_path, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_another_version_of_the_store_is_one_line_that_names_both(
    store: kpstore.Store, tmp_path: Path
) -> None:
    keypoints(store, tmp_path, epochs=1)
    with kpstore.open(store.location, mode="a").transaction("one word more") as tx:
        tx.set_splits({"b": "test"})
    newer = kpstore.open(store.location)
    with pytest.raises(MismatchError) as caught:
        keypoints(newer, tmp_path, epochs=1, resume=True)
    assert store.snapshot in str(caught.value)
    assert newer.snapshot in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (
        keypoints(
            kpstore.open(store.location, at=store.snapshot), tmp_path, epochs=1, resume=True
        ).epochs
        == 1
    )


def test_other_settings_are_named_together(run: tuple[kpstore.Store, Path]) -> None:
    store, folder = run
    with pytest.raises(
        MismatchError, match=r"settings.lr 0.003 then, 0.1 now; batch_size 8 then, 4 now"
    ):
        keypoints(store, folder, epochs=1, lr=0.1, batch_size=4, resume=True)


def test_as_many_frames_of_another_split_are_not_taken_for_the_same(
    store: kpstore.Store, tmp_path: Path
) -> None:
    def train(split: str, dev_split: str, epochs: int, *, resume: bool = True) -> TrainReport:
        frames = Frames(split, dev_split, limit=8)
        run = {**RUN, "epochs": epochs, "resume": resume, "schedule": "constant", "warmup": 0}
        return train_skeleton(store, tmp_path, config=SMALL_SKELETON, frames=frames, **run)

    train("train", "dev", 1, resume=False)
    with pytest.raises(
        MismatchError,
        match=r"with other settings: train frames are others .*; dev frames are others",
    ):
        train("dev", "train", 2)
    assert train("train", "dev", 2).epochs == 2


def test_frames_are_not_measured_by_those_that_are_trained_on() -> None:
    with pytest.raises(InvalidError, match="dev_split='train' is the split that is trained on"):
        Frames("train", "train")


def test_a_folder_with_a_run_is_not_overwritten(run: tuple[kpstore.Store, Path]) -> None:
    store, folder = run
    before = (folder / "steps.csv").read_bytes()
    with pytest.raises(ExistsError, match="holds a run; resume it"):
        keypoints(store, folder, epochs=1)
    assert (folder / "steps.csv").read_bytes() == before


def test_a_run_is_not_written_into_a_store(store: kpstore.Store, tmp_path: Path) -> None:
    kpstore.create(tmp_path / "s.kps")
    with pytest.raises(ExistsError, match="lies in one; choose another place for the run"):
        keypoints(store, tmp_path / "s.kps" / "run", epochs=1)


def test_a_torn_checkpoint_is_one_line(run: tuple[kpstore.Store, Path]) -> None:
    store, folder = run
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptError, match="cannot be read as a checkpoint"):
        keypoints(store, folder, epochs=1, resume=True)
    with pytest.raises(NotFoundError, match="no checkpoint found"):
        load_model(folder / "other.safetensors")


def test_weights_alone_are_not_gone_on_from(run: tuple[kpstore.Store, Path]) -> None:
    store, folder = run
    (folder / "best.safetensors").replace(folder / "checkpoint.safetensors")
    with pytest.raises(InvalidError, match="holds weights alone, as best"):
        keypoints(store, folder, epochs=1, resume=True)


def test_weights_of_another_model_are_one_line(store: kpstore.Store, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(3, width)
            self.out = nn.Linear(width, 3)

        def forward(self, points: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.out(self.layer(points))
            return found

    def train(width: int, *, resume: bool) -> TrainReport:
        loader = kpstore.loader(store.face_keypoints(split="train"), 8)
        return fit(
            Own(width),
            loader,
            training=KeypointTraining(),
            folder=tmp_path,
            epochs=1,
            resume=resume,
            samples=0,
        )

    train(4, resume=False)
    with pytest.raises(InvalidError, match="tensors are not those of this Own"):
        train(5, resume=True)
    assert train(4, resume=True).epochs == 1


def test_a_checkpoint_of_a_newer_model_is_one_line(run: tuple[kpstore.Store, Path]) -> None:
    _, folder = run
    found = read_checkpoint(folder / "best.safetensors")
    model = {**found.about["model"], "config": {**found.about["model"]["config"], "memory": 1}}
    write_checkpoint(
        folder / "newer.safetensors", replace(found, about={**found.about, "model": model})
    )
    with pytest.raises(InvalidError, match="its model has memory, which this kpstore"):
        load_model(folder / "newer.safetensors")
    fewer = dict(list(found.tensors.items())[1:])
    write_checkpoint(folder / "fewer.safetensors", replace(found, tensors=fewer))
    with pytest.raises(
        InvalidError, match="tensors are not those of this HierarchicalKeypointTransformer"
    ):
        load_model(folder / "fewer.safetensors")


def test_a_full_disk_leaves_the_checkpoint_before(
    run: tuple[kpstore.Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = run
    path = folder / "checkpoint.safetensors"
    before = path.read_bytes()

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("kpstore.trainers.checkpoint.save_file", full)
    with pytest.raises(
        OSError, match=r"checkpoint\.safetensors: cannot be written \(.*No space left"
    ):
        write_checkpoint(path, read_checkpoint(path))
    assert path.read_bytes() == before
    assert not list(folder.glob(".checkpoint*"))


def test_the_wrapped_model_is_gone_before_the_group_of_processes_is(
    store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapper(nn.Sequential):
        """As DistributedDataParallel, which ends with the group only if it ends first."""

    class Pair(Ranks):
        def wrapped(self, model: nn.Module, device: torch.device) -> nn.Module:
            wrapper = Wrapper(model)
            wrappers.append(weakref.ref(wrapper))
            return wrapper

    @contextmanager
    def joined(device: torch.device) -> Iterator[Ranks]:
        yield Pair()
        at_the_end.extend(wrapper() for wrapper in wrappers)

    wrappers: list[weakref.ref[nn.Module]] = []
    at_the_end: list[nn.Module | None] = []
    monkeypatch.setattr("kpstore.trainers.fit.joined", joined)
    loader = kpstore.loader(store.face_keypoints(split="train"), 8)
    fit(
        HierarchicalKeypointTransformer(SMALL_KEYPOINTS),
        loader,
        training=KeypointTraining(),
        epochs=1,
    )
    assert at_the_end == [None]


# -- what can be wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "dev"])
def test_loaders_that_drop_all_their_frames_are_one_line(store: kpstore.Store, name: str) -> None:
    view = store.face_keypoints(split="train")
    loaders = {"train": kpstore.loader(view, 8), "dev": kpstore.loader(view, 8, shuffle=None)}
    loaders[name] = kpstore.loader(view, 100, drop_last=True)
    model = HierarchicalKeypointTransformer(SMALL_KEYPOINTS)
    with pytest.raises(InvalidError, match=f"the {name} loader drops all of its 48 frames"):
        fit(model, loaders["train"], loaders["dev"], training=KeypointTraining(), epochs=1)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_ends_in_the_mode_it_came_in(store: kpstore.Store, training: bool) -> None:
    view = store.face_keypoints(split="train")
    model = HierarchicalKeypointTransformer(SMALL_KEYPOINTS).train(training)
    fit(
        model,
        kpstore.loader(view, 16),
        kpstore.loader(view, 16, shuffle=None),
        training=KeypointTraining(),
        epochs=1,
    )
    assert model.training is training


def test_a_loss_that_is_no_number_stops_before_the_checkpoint(
    store: kpstore.Store, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Diverging(KeypointTraining):
        def measure(self, model: nn.Module, batch: Any) -> Any:
            measured = super().measure(model, batch)
            return replace(measured, loss=measured.loss * float("nan"))

    view = store.face_keypoints(split="train")
    model = HierarchicalKeypointTransformer(SMALL_KEYPOINTS)
    with pytest.raises(InvalidError, match=r"the loss is nan at step 1; .*lower lr= \(--lr\)"):
        fit(model, kpstore.loader(view, 8), training=Diverging(), folder=tmp_path, log_steps=1)
    model = HierarchicalKeypointTransformer(SMALL_KEYPOINTS)
    with pytest.raises(InvalidError, match=r"no longer finite|is nan"):
        fit(
            model,
            kpstore.loader(view, 8),
            training=Diverging(),
            folder=tmp_path / "b",
            log_steps=99,
            checkpoint_steps=2,
        )
    assert not (tmp_path / "b" / "checkpoint.safetensors").exists()


def test_any_model_and_loader_can_be_fitted_without_a_folder(store: kpstore.Store) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.face = nn.Parameter(torch.zeros(68, 3))

        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            return self.face.expand(len(faces), -1, -1)

    loader = kpstore.loader(store.face_keypoints(split="train"), 16)
    report = fit(Mean(), loader, training=KeypointTraining(), epochs=30, lr=0.1, weight_decay=0.0)
    assert report.folder is None
    assert report.best_loss < 0.05
    assert report.parameters == 204


def test_the_rate_rises_then_falls_to_nothing() -> None:
    settings = TrainSettings(lr=1.0, warmup=0.1)
    rates = [settings.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[99] < 0.001
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert replace(settings, schedule="constant").lr_at(99, 100) == 1.0


def test_wrong_settings_are_named_together() -> None:
    with pytest.raises(InvalidError, match=r"epochs=0 \(1 or more\); lr=-1.*; precision='half'"):
        TrainSettings(epochs=0, lr=-1, precision="half")  # type: ignore[arg-type]


def test_devices_that_are_not_there_are_one_line() -> None:
    with pytest.raises(InvalidError, match="device 'gpu9'"):
        device_named("gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match="finds no GPU here"):
            device_named("cuda")


def test_parts_that_no_frame_has_are_named(memory_store: kpstore.Store, tmp_path: Path) -> None:
    store = train_store(memory_store, without=("face", "right_hand"))
    with pytest.raises(
        InvalidError, match=r"face and right hand: missing in all 48 frames of split 'train'"
    ):
        train_skeleton(store, tmp_path, config=SMALL_SKELETON)
    with pytest.raises(InvalidError, match=r"face: missing in all 48 frames of split 'train'"):
        keypoints(store, tmp_path)
    frames = Frames(missing_parts="allow", dev_split="")
    assert (
        train_skeleton(store, tmp_path, config=SMALL_SKELETON, frames=frames, epochs=1).epochs == 1
    )


def test_keypoints_of_faces_alone_train_too(memory_store: kpstore.Store, tmp_path: Path) -> None:
    from tests.fakes import record

    with memory_store.transaction("faces") as tx:
        tx.add_videos([record("a", 20, "train")])
        tx.add_feature(kpstore.FeatureSpec("faces", (68, 3), ("point", "space")))
        tx.write("faces", "a", people(20, 0)[:, :68])
    report = keypoints(memory_store.at(), tmp_path, frames=Frames(feature="faces"), epochs=1)
    assert report.steps == 3
    with pytest.raises(InvalidError, match=r"'faces' has rows of \(68, 3\)"):
        train_skeleton(memory_store.at(), tmp_path / "s", frames=Frames(feature="faces"))


def test_skeletons_without_regions_in_the_batch_train_alike(store: kpstore.Store) -> None:
    from kpstore.trainers.skeleton import SkeletonTraining, SkeletonTrainingView

    model = HierarchicalSkeletonTransformer(SMALL_SKELETON)
    training = SkeletonTraining(edges=())
    with_regions = SkeletonTrainingView(store, size=32, fill=float("nan"), split="dev").batch(
        range(4)
    )
    without = store.skeletons(size=32, fill=float("nan"), split="dev").batch(range(4))
    losses = [
        training.measure(model, {k: torch.from_numpy(v) for k, v in batch.items()}).loss.item()
        for batch in (with_regions, without)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_zeros_that_look_like_points_are_refused(store: kpstore.Store, tmp_path: Path) -> None:
    from kpstore.trainers.skeleton import SkeletonTraining

    model = HierarchicalSkeletonTransformer(SMALL_SKELETON)
    loader = kpstore.loader(store.skeletons(size=32).subset(range(8)), 4)
    with pytest.raises(
        InvalidError, match="missing points are 0 in this view, which a model takes for coordinates"
    ):
        fit(model, loader, training=SkeletonTraining(), epochs=1, folder=tmp_path / "run")
    known = kpstore.loader(store.skeletons(size=32, fill=float("nan")).subset(range(8)), 4)
    assert (
        fit(model, known, training=SkeletonTraining(), epochs=1, folder=tmp_path / "run").last
        is not None
    )
