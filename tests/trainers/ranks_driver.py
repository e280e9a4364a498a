"""Trainings in two processes.

``torchrun --nproc-per-node 2 -m tests.trainers.ranks_driver STORE FOLDER``
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import kpstore
from kpstore.errors import KpstoreError
from kpstore.trainers.ranks import joined
from kpstore.trainers.report import Step
from kpstore.trainers.train import train_keypoints
from tests.trainers.data import SMALL_KEYPOINTS

RANKS_RUN: dict[str, Any] = {
    "batch_size": 4,
    "epochs": 2,
    "lr": 3e-3,
    "log_steps": 1,
    "checkpoint_steps": 4,
}


class Stopped(Exception):
    """Ends a run in the middle, in both processes."""


def stop_at_5(step: Step) -> None:
    """After the checkpoint of step 4, before that at the end of the epoch, step 6."""
    if step.step == 5:
        raise Stopped


if __name__ == "__main__":
    torch.set_num_threads(1)
    store, folder = kpstore.open(sys.argv[1]), Path(sys.argv[2])
    with joined(torch.device("cpu")):
        train_keypoints(store, folder / "plain", config=SMALL_KEYPOINTS, **RANKS_RUN)
        config = replace(SMALL_KEYPOINTS, dropout=0.2)
        train_keypoints(store, folder / "whole", config=config, **RANKS_RUN)
        with suppress(Stopped):
            train_keypoints(store, folder / "parts", config=config, **RANKS_RUN, on_step=stop_at_5)
        train_keypoints(store, folder / "parts", config=config, **RANKS_RUN, resume=True)
        try:
            train_keypoints(store, folder / "parts", config=config, **RANKS_RUN)
        except KpstoreError as error:
            print(error, flush=True)
