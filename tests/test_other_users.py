"""Others in the same place: a second user of the group, and users who may only look."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import kpstore
from kpstore.backends.base import Backend
from kpstore.backends.locks import is_held, looking_lock, waiting_lock
from kpstore.ingest.report import PROGRESS_FILE
from kpstore.store.cache import DecodedCache
from tests.as_user import ingest
from tests.processes import finish

GROUP = 41234
ANNA, BERT, STRANGER = 41001, 41002, 41003
ENDS = [f"{name} 0" for name in ("progress", "progress", "progress", "info", "log", "stats")]
ENDS += ["verify 0", "splits 0", "diff 1", "cache 0"]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="kpstore-users-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def run_as(user: int, group: int, *command: object, home: Path) -> list[str]:
    """Work as a user of a group, see :mod:`tests.as_user`; return the lines that were printed."""
    env = {**os.environ, "HOME": str(home / f"home-{user}"), "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.as_user", user, group, *command]
    done = finish(words, umask=0o002, env=env, cwd=Path(__file__).parent.parent)
    _, _, printed = done.stdout.partition("-- as the user\n")
    assert done.returncode == 0, done.stdout + done.stderr
    return [*printed.splitlines(), *done.stderr.splitlines()]


@as_root
@pytest.mark.parametrize("name", ["s.kps", "s.h5"])
def test_a_second_user_of_the_group_goes_on_with_the_work(place: Path, name: str) -> None:
    shared = place / "shared"
    shared.mkdir()
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2775)
    for user, n_videos in ((ANNA, 2), (BERT, 4), (ANNA, 6)):
        run_as(user, GROUP, "ingest", shared / name, n_videos, home=place)
    store = kpstore.open(shared / name)
    assert len(store.videos) == 6
    assert sorted(store.tags) == ["after-2", "after-4", "after-6"]
    entries = [path for path in shared.rglob("*")]
    assert {path.stat().st_gid for path in entries} == {GROUP}
    wanted = {True: 0o775 | stat.S_ISGID, False: 0o664}
    odd = {
        p: oct(p.stat().st_mode) for p in entries if p.stat().st_mode & 0o7777 != wanted[p.is_dir()]
    }
    assert not odd


def _killed_run(backend: Backend) -> None:
    """Leave what a killed ingest leaves: a lock that nobody holds, and a run that never ended."""
    with backend.exclusive("ingest"):
        pass
    assert backend.sidecar_dir is not None
    file = backend.sidecar_dir / PROGRESS_FILE
    about = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**about, "running": True}), encoding="utf-8")


@as_root
@pytest.mark.parametrize("name", ["s.kps", "s.h5"])
def test_who_may_only_read_can_look_at_everything(place: Path, name: str) -> None:
    ingest(place / name, "3")
    ingest(place / "o.kps", "2")
    _killed_run(kpstore.open(place / name).backend)
    cache = place / "cache"
    kpstore.open(place / name, cache=str(cache)).reader.cache("points")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    said = run_as(STRANGER, STRANGER, "look", place, name, home=place)
    assert not [line for line in said if "ermission" in line or "error" in line]
    ends = [line.removeprefix("== ") for line in said if line.startswith("== ")]
    assert ends == ENDS
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


@as_root
@pytest.mark.parametrize("name", ["s.kps", "s.h5"])
def test_who_may_only_read_is_told_that_nothing_was_changed(place: Path, name: str) -> None:
    ingest(place / name, "3")
    (place / "splits.csv").write_text("video_id,split\nv0,new\nv1,new\nv2,new\n")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    said = run_as(STRANGER, STRANGER, "change", place, name, home=place)
    told = "error: nothing was changed, which needs the right to write to the store: Permission"
    assert [line[: len(told)] for line in said] == [told] * 6
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


@as_root
def test_clearing_a_cache_says_what_belongs_to_others(place: Path) -> None:
    ingest(place / "s.kps", "3")
    cache = place / "cache"
    kpstore.open(place / "s.kps", cache=str(cache)).reader.cache("points")
    said = run_as(STRANGER, STRANGER, "clear", place, home=place)
    assert said[0].startswith("0")
    assert len(DecodedCache(cache).entries()) == 1


@as_root
def test_copies_in_a_cache_of_a_group_are_readable_by_the_group(place: Path) -> None:
    ingest(place / "s.kps", "3")
    private, shared = place / "private", place / "shared"
    shared.mkdir()
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2775)
    modes = []
    for folder in (private, shared):
        kpstore.open(place / "s.kps", cache=str(folder)).reader.cache("points")
        (entry,) = DecodedCache(folder).entries()
        modes.append((entry.path.stat().st_mode & 0o777, entry.path.stat().st_gid))
    assert modes == [(0o600, os.getgid()), (0o660, GROUP)]


def test_looking_at_a_lock_needs_no_right_to_write(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_held(lock)
    with looking_lock(lock):
        assert not lock.exists()
    with waiting_lock(lock):
        lock.chmod(0o400)
        assert is_held(lock)
    assert not is_held(lock)
    with looking_lock(lock):
        assert not is_held(lock)  # who looks does not look like a writer
