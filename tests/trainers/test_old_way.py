"""Training as users' scripts do it, from their pickle, and from the store: the same losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import bench_old_training as old


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("old")
    assert old._prepare(made, None, 150, 32) == 150
    return made


@pytest.mark.parametrize("kind", ["keypoints", "skeleton"])
def test_the_same_batches_give_the_same_losses(folder: Path, kind: str) -> None:
    pairs = list(
        zip(*(old.batches_of(way, kind, folder, 32) for way in ("old", "store")), strict=True)
    )
    assert sum(len(ours["keypoints"]) for _, ours in pairs) == 150
    for theirs, ours in pairs:
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert not np.array_equal(np.load(folder / f"{kind}.npy"), np.arange(150))
    losses = [old.train(way, kind, folder, 32, 2)["losses"] for way in ("old", "store")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_missing_parts_are_zeros_that_count_for_the_range_as_in_the_scripts(folder: Path) -> None:
    faces = old.OldFaces(folder / old.PICKLE).points
    assert (np.ptp(faces, axis=1) == 0).all(axis=1).sum() == 15  # every tenth frame has no face
    assert faces.min() == 0
    assert faces.max() == 1
