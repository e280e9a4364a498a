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

import kpstore
from kpstore.errors import NotFoundError
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import State
from tests.ingest.kill_driver import extractor, source
from tests.processes import start, until

KILLS = int(os.environ.get("KPSTORE_KILLS", "8"))


def start_driver(store: Path, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.ingest.kill_driver", store, log]
    with log.with_suffix(".stderr").open("ab") as stderr:
        return start(command, cwd=Path(__file__).parents[2], stdout=None, stderr=stderr)


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that the driver's fork server made, which is a child of the driver."""
    try:
        children = psutil.Process(driver.pid).children(recursive=True)
        return [child for child in children if child.ppid() != driver.pid]
    except psutil.Error:
        return []


def wait_for_a_moment(driver: subprocess.Popen[str], log: Path, rng: random.Random) -> None:
    """Wait until the driver is in its start-up, by its CPU time, or near one of its commits."""
    if rng.random() < 0.5:
        process, cpu_s = psutil.Process(driver.pid), rng.uniform(0.0, 1.0)
        until(lambda: sum(process.cpu_times()[:2]) >= cpu_s, driver)
    else:
        n_commits = acknowledged(log) + rng.randint(1, 3)
        until(lambda: acknowledged(log) >= n_commits, driver)
        time.sleep(rng.uniform(0.0, 0.2))  # any moment will do


def acknowledged(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def check(path: Path, log: Path, expected: kpstore.Store, done_before: int) -> int:
    """Whatever is visible must be whole, and every acknowledged commit must be in the history."""
    try:
        store = kpstore.open(path)
    except NotFoundError:
        assert not path.exists()
        return 0
    commits = log.read_text().split() if log.exists() else []
    assert set(commits) <= {commit.id for commit in store.history()}
    if "points" not in store.features:
        return 0
    done = np.flatnonzero(store.states("points") == State.DONE)
    rows = store.index.rows_of(done)
    for name in ("points", "points_detected", "points_status"):
        np.testing.assert_array_equal(store[name][:][rows], expected[name][:][rows])
    assert len(done) >= done_before
    return len(done)


def test_killed_at_random_moments_nothing_is_lost_and_the_result_is_the_same(
    tmp_path: Path,
) -> None:
    run_ingest(source(), tmp_path / "undisturbed", extractor(), Options(workers=0))
    expected = kpstore.open(tmp_path / "undisturbed")
    path, log, rng = tmp_path / "killed.kps", tmp_path / "acknowledged", random.Random(7)
    kills = done = 0
    driver = start_driver(path, log)
    while kills < KILLS:
        wait_for_a_moment(driver, log, rng)
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
            driver = start_driver(path, log)
        kills += 1
    assert driver.wait() == 0, log.with_suffix(".stderr").read_text()[-3000:]
    check(path, log, expected, done)
    final = kpstore.open(path)
    assert not kpstore.diff(expected, final)
    np.testing.assert_array_equal(expected["points"][:], final["points"][:])
    assert final.failures("points") == expected.failures("points")
    assert (final.states("points") == State.DONE).all()
