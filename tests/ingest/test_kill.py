"""An ingest that is killed again and again loses nothing and ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import kpstore
from kpstore.errors import NotFoundError
from kpstore.ingest.run import Options, run_ingest
from kpstore.schema.feature import State
from tests.ingest.kill_driver import extractor, source

KILLS = int(os.environ.get("KPSTORE_KILLS", "25"))


def start(store: Path, log: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.ingest.kill_driver", str(store), str(log)]
    with log.with_suffix(".stderr").open("ab") as stderr:
        return subprocess.Popen(command, cwd=root, stderr=stderr)


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def check(path: Path, log: Path, expected: kpstore.Store, done_before: int) -> int:
    """Whatever is visible must be whole, and every acknowledged commit must be in the history."""
    try:
        store = kpstore.open(path)
    except NotFoundError:
        assert not path.exists()
        return 0
    acknowledged = log.read_text().split() if log.exists() else []
    assert set(acknowledged) <= {commit.id for commit in store.history()}
    if "points" not in store.features:
        return 0
    done = np.flatnonzero(store.states("points") == State.DONE)
    rows = store.index.rows_of(done)
    for name in ("points", "points_detected", "points_status"):
        np.testing.assert_array_equal(store[name][:][rows], expected[name][:][rows])
    assert len(done) >= done_before
    return len(done)


@pytest.mark.timeout(400)
def test_killed_at_random_moments_nothing_is_lost_and_the_result_is_the_same(tmp_path: Path) -> None:
    run_ingest(source(), tmp_path / "undisturbed", extractor(), Options(workers=0))
    expected = kpstore.open(tmp_path / "undisturbed")
    path, log, rng = tmp_path / "killed.kps", tmp_path / "acknowledged", random.Random(7)
    kills = done = 0
    driver = start(path, log)
    while kills < KILLS:
        # Early in the start-up, in the middle of work, and around commits.
        time.sleep(rng.choice((rng.uniform(0.0, 1.0), rng.uniform(1.0, 2.5))))
        assert driver.poll() is None, f"ended after {kills} kills: {log.with_suffix('.stderr').read_text()[-3000:]}"
        victims = workers_of(driver)
        if victims and rng.random() < 0.4:
            try:
                rng.choice(victims).kill()
            except psutil.NoSuchProcess:
                continue
        else:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            done = check(path, log, expected, done)
            driver = start(path, log)
        kills += 1
    assert driver.wait(timeout=120) == 0
    check(path, log, expected, done)
    final = kpstore.open(path)
    assert not kpstore.diff(expected, final)
    np.testing.assert_array_equal(expected["points"][:], final["points"][:])
    assert final.failures("points") == expected.failures("points")
    assert (final.states("points") == State.DONE).all()
