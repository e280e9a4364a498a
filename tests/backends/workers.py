"""What other processes do in test_icechunk.py; importable, so that spawned ones find it."""

from __future__ import annotations

from multiprocessing.queues import Queue

import numpy as np

from kpstore.backends.base import Backend
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.errors import KpstoreError

COMMITS = 10


def commit_often(location: str, worker: int) -> None:
    """Commit ``COMMITS`` times to a row of one's own, one chunk each."""
    backend = IcechunkBackend(location)
    for number in range(COMMITS):
        changes = backend.begin()
        changes.write("a", worker * COMMITS + number, np.ones(1, dtype=np.float32))
        changes.commit(f"{worker}-{number}")


def read_first_row(backend: Backend, snapshot: str, answers: Queue[str]) -> None:
    """Say what became of a read."""
    try:
        answers.put(f"read {backend.session(snapshot).read('a', 0, 1)[0]}")
    except KpstoreError as error:
        answers.put(f"{type(error).__name__}: {error}")
