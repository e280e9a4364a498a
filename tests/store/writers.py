"""What other processes write, which import no more than that needs."""

from __future__ import annotations

import os
import signal
from multiprocessing.synchronize import Event

import numpy as np

import kpstore
from kpstore.schema.feature import FeatureRows

N_FRAMES = 1000


def rows(seed: int) -> FeatureRows:
    values = np.random.default_rng(seed).standard_normal((N_FRAMES, 5, 3)).astype(np.float32)
    return FeatureRows(values, {"detected": np.ones((N_FRAMES, 2), dtype=bool)})


def hold(location: str, written: Event, done: Event) -> None:
    store = kpstore.open(location, mode="a")
    with store.transaction("of another process") as tx:
        tx.write("points", "a", rows(8))
        written.set()
        done.wait()


def die(location: str) -> None:
    tx = kpstore.open(location, mode="a").transaction("killed")
    tx.write("points", "a", rows(7))
    os.kill(os.getpid(), signal.SIGKILL)
