"""Small stores to train on, and models that learn in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import kpstore
from kpstore.schema.layout import N_POINTS, PART_SLICES, keypoints_spec
from kpstore.trainers.keypoints import KeypointConfig
from kpstore.trainers.skeleton import SkeletonConfig
from tests.fakes import record

SMALL_SKELETON = SkeletonConfig(
    image_size=32,
    width=16,
    part_layers=1,
    global_layers=1,
    decoder_layers=1,
    channels=(16, 16, 8),
    heads=2,
)
SMALL_KEYPOINTS = KeypointConfig(
    d_global=32, d_region=16, region_layers=1, global_layers=1, heads=2
)
WITH_DROPOUT = replace(SMALL_KEYPOINTS, dropout=0.2)
"""Which draws random numbers in every step."""
VIDEOS: Mapping[str, tuple[str, int]] = {"a": ("train", 30), "b": ("train", 18), "c": ("dev", 16)}


def people(n: int, seed: int) -> NDArray[np.float32]:
    """One figure that moves and grows a little, (n, 143, 3); other seeds give other frames."""
    shape = np.random.default_rng(0).normal(0, 0.1, (N_POINTS, 3))
    for part, x, y, size in (
        ("face", 0.0, -0.2, 0.5),
        ("left_hand", 0.25, 0.1, 0.4),
        ("right_hand", -0.25, 0.1, 0.4),
    ):
        shape[PART_SLICES[part]] = shape[PART_SLICES[part]] * size + np.array([x, y, 0])
    rng = np.random.default_rng([1, seed])
    grown = shape * rng.uniform(0.7, 1.1, (n, 1, 1))
    moved = grown + np.array([0.5, 0.5, 0]) + rng.uniform(-0.1, 0.1, (n, 1, 3))
    return moved.astype(np.float32)


def train_store(store: kpstore.Store, *, without: tuple[str, ...] = ()) -> kpstore.Store:
    """Fill a store with three videos.

    Every fifth frame lacks the left hand, all lack the parts ``without``.
    """
    with store.transaction("people") as tx:
        tx.add_videos([record(video, n, split) for video, (split, n) in VIDEOS.items()])
        tx.add_feature("keypoints")
        for seed, (video, (_, n)) in enumerate(VIDEOS.items()):
            rows = keypoints_spec().empty_rows(n)
            rows.values[:] = people(n, seed)
            rows.companions["detected"][:] = True
            for number, (part, points) in enumerate(PART_SLICES.items()):
                missing = np.arange(n) % 5 == 0 if part == "left_hand" else np.zeros(n, dtype=bool)
                missing |= part in without
                rows.values[missing, points] = np.nan
                rows.companions["detected"][missing, number] = False
            tx.write("keypoints", video, rows)
    return store.at()
