"""A training in a process of its own, which a test kills.

``python -m tests.trainers.kill_driver STORE FOLDER``
"""

from __future__ import annotations

import os
import signal
import sys

import torch

import kpstore
from kpstore.trainers.report import Step
from kpstore.trainers.train import train_keypoints
from tests.trainers.data import WITH_DROPOUT


def die_at_17(step: Step) -> None:
    """Between the checkpoints of step 15 and 18."""
    if step.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests it is compared with
    train_keypoints(
        kpstore.open(sys.argv[1]),
        sys.argv[2],
        config=WITH_DROPOUT,
        batch_size=8,
        epochs=3,
        lr=3e-3,
        log_steps=1,
        checkpoint_steps=5,
        samples=0,
        on_step=die_at_17,
    )
