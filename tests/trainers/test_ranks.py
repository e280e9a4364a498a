"""Two processes train as one would with both of their batches."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

import kpstore
from kpstore.trainers.checkpoint import read_checkpoint
from kpstore.trainers.keypoints import HierarchicalKeypointTransformer, KeypointTraining
from kpstore.trainers.settings import TrainSettings
from kpstore.views.batch_sampler import BatchSampler
from tests.processes import finish
from tests.trainers.data import SMALL_KEYPOINTS, train_store
from tests.trainers.ranks_driver import RANKS_RUN


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folders of the driver's runs, beside the store, and what it said."""
    folder = tmp_path_factory.mktemp("ranks")
    train_store(kpstore.create(folder / "people.kps"))
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    )
    words = (
        *torchrun,
        "-m",
        "tests.trainers.ranks_driver",
        str(folder / "people.kps"),
        str(folder),
    )
    done = finish(words)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_processes_step_as_one_with_both_batches(runs: tuple[Path, str]) -> None:
    folder, _ = runs
    store = kpstore.open(folder / "people.kps")
    view = store.face_keypoints(
        split="train", normalize=store.statistics("keypoints", split="train")
    )
    torch.manual_seed(0)
    model, training = HierarchicalKeypointTransformer(SMALL_KEYPOINTS), KeypointTraining()
    settings = TrainSettings(epochs=2, lr=3e-3)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    found = [float(row["loss"]) for row in rows(folder / "plain" / "steps.csv")]
    halves = [BatchSampler(view, 4, rank=rank, world_size=2) for rank in (0, 1)]
    seen: list[int] = []
    for step, (first, second) in enumerate(zip(*halves, strict=True)):
        seen += [*first.tolist(), *second.tolist()]
        batch = {"keypoints": torch.from_numpy(view.batch(seen[-8:])["keypoints"])}
        optimizer.param_groups[0]["lr"] = settings.lr_at(step, len(found))
        optimizer.zero_grad()
        loss = training.measure(model, batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert found[step] == pytest.approx(loss.item(), rel=1e-3)
    assert sorted(seen) == list(range(48))


def test_figures_are_means_over_all_frames_of_all_processes(runs: tuple[Path, str]) -> None:
    folder, _ = runs
    row = rows(folder / "plain" / "metrics.csv")[-1]
    store = kpstore.open(folder / "people.kps")
    view = store.face_keypoints(split="dev", normalize=store.statistics("keypoints", split="train"))
    model = HierarchicalKeypointTransformer(SMALL_KEYPOINTS)
    model.load_state_dict(
        read_checkpoint(folder / "plain" / "checkpoint.safetensors").under("model")
    )
    with torch.inference_mode():
        measured = KeypointTraining().measure(
            model.eval(), {"keypoints": torch.from_numpy(view.batch(range(16))["keypoints"])}
        )
    assert float(row["dev_loss"]) == pytest.approx(measured.loss.item(), rel=1e-4)
    assert float(row["dev_point_error"]) == pytest.approx(
        measured.figures["point_error"].item(), rel=1e-4
    )
    steps = [float(step["loss"]) for step in rows(folder / "plain" / "steps.csv")]
    assert len(steps) == 12
    assert float(row["train_loss"]) == pytest.approx(sum(steps[6:]) / 6, rel=1e-4)


def test_two_processes_go_on_as_if_nothing_had_been(runs: tuple[Path, str]) -> None:
    folder, said = runs
    whole, parts = (
        read_checkpoint(folder / name / "checkpoint.safetensors") for name in ("whole", "parts")
    )
    assert whole.tensors.keys() == parts.tensors.keys()
    assert "rng.1.cpu" in whole.tensors
    assert whole.about["ranks"] == 2
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], tensor, rtol=1e-5, atol=1e-7)
    losses = [
        [float(row["loss"]) for row in rows(folder / name / "steps.csv")]
        for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1])
    assert (
        said.count("holds a run; resume it") == 2
    )  # each process says so, none waits for the other


def test_another_number_of_processes_is_refused(runs: tuple[Path, str]) -> None:
    from kpstore.trainers.train import train_keypoints

    folder, _ = runs
    with pytest.raises(kpstore.KpstoreError, match="ranks 2 then, 1 now"):
        train_keypoints(
            kpstore.open(folder / "people.kps"),
            folder / "plain",
            config=SMALL_KEYPOINTS,
            resume=True,
            **RANKS_RUN,
        )
