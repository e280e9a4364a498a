"""What training for weeks meets: hundreds of epochs, writers at work, versions taken back."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.backends.base import Codec
from tests.processes import finish
from tests.store.data import fill, rows_of
from tests.views.test_loader import long_store

EPOCHS = """
import gc, sys
import psutil
import kpstore

process = psutil.Process()
for epoch in range(1, 241):
    location = sys.argv[1 + epoch % 2]
    store = kpstore.open(location, cache=sys.argv[3] if epoch % 4 > 1 else "off")
    for batch in kpstore.loader(store.frames("points"), 32, epoch=epoch, pool_mib=0.001):
        pass
    if epoch in (60, 240):
        gc.collect()
        print(process.num_fds(), process.num_threads(), process.memory_info().rss // 2**20)
"""


@pytest.mark.slow
def test_hundreds_of_epochs_of_open_and_close_leave_nothing_behind(tmp_path: Path) -> None:
    stores = [
        fill(
            kpstore.create(tmp_path / f"{codec}.kps"), compression=codec, done=("a", "b", "c", "d")
        )
        for codec in ("raw", "lz4")
    ]
    command = [
        sys.executable,
        "-c",
        EPOCHS,
        *(store.location for store in stores),
        str(tmp_path / "cache"),
    ]
    # What threads free in heaps of their own goes back to the system at no moment that could be
    # waited for.
    run = finish(command, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
    assert run.returncode == 0, run.stderr
    early, late = ([int(word) for word in line.split()] for line in run.stdout.splitlines())
    assert late[0] <= early[0], "file handles"
    assert late[1] <= early[1] + 12, "threads, of pools that still fill"
    assert late[2] <= early[2] + 4, (
        "MiB: memory settles with the threads (0 to 1 more; 1 to epoch 800)"
    )


def test_a_reader_is_not_disturbed_by_commits(tmp_path: Path) -> None:
    """A view keeps its version, and chunks that are written anew do not show through."""
    made = long_store(kpstore.create(tmp_path / "a.kps"))
    loader = kpstore.loader(made.frames("points"), 8, pool_mib=0.001)
    expected = [batch["points"].clone() for batch in loader]
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            with kpstore.open(made.location, mode="a").transaction(f"change {number}") as tx:
                tx.write("points", "v1", np.full((9, 5, 3), -number, dtype=np.float32))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            again = kpstore.loader(
                kpstore.open(made.location, made.snapshot).frames("points"), 8, pool_mib=0.001
            )
            assert all((a == b["points"]).all() for a, b in zip(expected, again, strict=True))
    finally:
        done.set()
        writer.join()
    changed = kpstore.open(made.location)
    assert changed.snapshot != made.snapshot
    assert (changed.video("v1")["points"] < 0).all()


@pytest.mark.parametrize("compression", ["raw", "lz4"])
def test_a_reader_goes_on_after_a_rollback(tmp_path: Path, compression: Codec) -> None:
    first = fill(kpstore.create(tmp_path / "a.kps"), compression=compression)
    with first.transaction("more") as tx:
        tx.write("points", "d", rows_of("d", 20))
    second = first.at()
    batches = iter(
        kpstore.loader(second.frames("points", missing="skip"), 8, pool_mib=0.001, prefetch=1)
    )
    next(batches)
    second.rollback(first.snapshot)
    assert sum(len(batch["row"]) for batch in batches) == 5 + 9 + 20 - 8
    assert len(kpstore.open(first.location).frames("points", missing="skip")) == 5 + 9
    old = kpstore.open(first.location, second.snapshot)
    np.testing.assert_array_equal(old.video("d")["points"], rows_of("d", 20).values)
