"""Errors of the system and of Icechunk reach users as one line that says what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import icechunk
import pytest

import kpstore
from kpstore.backends import icechunk_home, locks
from kpstore.backends.icechunk_errors import translation
from kpstore.cli.main import run
from kpstore.errors import ConflictError, CorruptError, InvalidError, UnsupportedError
from kpstore.inspect.verify import verify_all
from kpstore.interop.files import reading
from tests.fakes import record
from tests.processes import finish
from tests.store.data import fill

BOTH = pytest.mark.parametrize("ending", [".kps", ".h5"])


@BOTH
def test_a_rollback_during_a_transaction_is_a_conflict(tmp_path: Path, ending: str) -> None:
    store = kpstore.create(tmp_path / f"s{ending}")
    first = store.at().snapshot
    fill(store)
    tx = kpstore.open(store.location, mode="a").transaction("late")
    tx.add_videos([record("n", 3, "train")])
    kpstore.open(store.location, mode="a").rollback(first)
    with pytest.raises(ConflictError, match=r"'late' was not committed.*repeat the change"):
        tx.commit()
    assert kpstore.open(store.location).snapshot == first


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        (
            "x copy failed: No space left on device (os error 28)",
            OSError,
            "not done: No space left",
        ),
        ("x write: Disk quota exceeded (os error 122)", OSError, "make room, then repeat it"),
        ("x open: Permission denied (os error 13)", OSError, "Permission denied"),
        ("x not found: No such file or directory (os error 2)", CorruptError, "verify --all"),
        ("x invalid snapshot timestamp ordering. parent: a", UnsupportedError, "clocks"),
        ("x whatever", CorruptError, "not done: whatever"),
    ],
)
def test_errors_of_icechunk_are_translated_by_their_cause(
    text: str, kind: type[Exception], told: str
) -> None:
    found = translation(icechunk.IcechunkError(text), "s.kps", "not done")
    assert isinstance(found, kind)
    assert told in str(found)
    assert "s.kps" in str(found)
    if isinstance(found, OSError):
        assert found.errno


def test_a_full_disk_at_a_commit_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fill(kpstore.create(tmp_path / "s.kps"))
    (tmp_path / "splits.json").write_text('{"a": "dev", "b": "dev", "c": "dev", "d": "train"}')

    def full(*_: object, **__: object) -> str:
        raise icechunk.IcechunkError("  x copy: No space left on device (os error 28)\n  | context")

    with monkeypatch.context() as patch:
        patch.setattr(icechunk.Session, "flush", full)
        assert run(["splits", "set", store.location, str(tmp_path / "splits.json")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "was not committed: No space left on device (make room, then repeat it)" in err
    assert kpstore.open(store.location).snapshot == store.snapshot
    assert run(["splits", "set", store.location, str(tmp_path / "splits.json")]) == 0


class _Clock(datetime):
    late = timedelta()

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) - cls.late


def test_a_clock_behind_the_newest_version_is_said_before_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(kpstore.create(tmp_path / "s.kps"))
    monkeypatch.setattr(icechunk_home, "datetime", _Clock)
    monkeypatch.setattr(_Clock, "late", timedelta(minutes=5))
    with pytest.raises(UnsupportedError, match=r"clock says .*, but the newest .*NTP"):
        kpstore.open(store.location, mode="a").transaction("t").session.names()
    slept: list[float] = []
    monkeypatch.setattr(icechunk_home, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(_Clock, "late", timedelta(seconds=3))
    with kpstore.open(store.location, mode="a").transaction("t") as tx:
        tx.set_splits({"a": "dev"})
    assert slept
    assert all(0 < seconds < 3.1 for seconds in slept)


@BOTH
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, number: int
) -> None:
    store = fill(kpstore.create(tmp_path / f"s{ending}"))

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UnsupportedError, match="its file system has no locks"):
        store.tag("t")
    with (
        pytest.raises(UnsupportedError, match="reading needs none"),
        store.backend.exclusive("test"),
    ):
        pass
    assert store.backend.sidecar_dir is not None
    assert not locks.is_held(store.backend.sidecar_dir / "commit.lock")
    assert run(["progress", store.location]) == 0


@BOTH
def test_a_store_may_have_a_name_of_240_letters(tmp_path: Path, ending: str) -> None:
    name = tmp_path / ("n" * (240 - len(ending)) + ending)
    store = fill(kpstore.create(name))
    store.tag("t")
    assert kpstore.open(name, "t").snapshot == store.snapshot


@pytest.mark.parametrize("name", ["n" * 300 + ".kps", "n" * 300 + ".h5", "n" * 249 + ".h5"])
def test_a_name_that_no_file_can_have_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises((OSError, InvalidError), match=r"too long|choose a shorter name"):
        kpstore.create(tmp_path / name)
    assert not list(tmp_path.iterdir())
    assert run(["info", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), OverflowError("y"), OSError("no number")])
def test_what_a_library_raises_while_a_file_is_read_names_the_file(error: Exception) -> None:
    with pytest.raises(InvalidError, match=r"f\.bin cannot be read: it is"), reading("f.bin"):
        raise error
    with pytest.raises(PermissionError), reading("f.bin"):
        raise PermissionError(errno.EACCES, "Permission denied", "f.bin")


@pytest.mark.parametrize(
    ("limit", "command"),
    [
        (0, ["tag", "new"]),
        (100, ["rollback", "--to", "v1"]),
        (3_000, ["tag", "new"]),
        (3_000, ["rollback", "--to", "v1"]),
    ],
)
def test_names_on_a_full_disk_are_given_or_not(
    tmp_path: Path, limit: int, command: list[str]
) -> None:
    location = tmp_path / "s.kps"
    store = kpstore.create(location)
    store.tag("v1")
    newest = fill(store)
    argv = [sys.executable, "-m", "kpstore.cli.start", command[0], location, *command[1:]]
    done = finish(
        argv, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.returncode in (0, 1)
    assert done.stderr.count("error: ") == done.returncode
    assert not verify_all(location).problems
    if done.returncode:
        assert kpstore.open(location).snapshot == newest.snapshot
        assert finish(argv).returncode == 0
        assert not verify_all(location).problems


@pytest.mark.parametrize("room", [0, 2_000, 20_000])
def test_a_quota_that_ends_while_hdf5_writes_is_one_line(tmp_path: Path, room: int) -> None:
    location = tmp_path / "s.h5"
    fill(kpstore.create(location))
    (tmp_path / "splits.csv").write_text("id,split\na,dev\n")
    before = location.read_bytes()
    limit = len(before) + room
    done = finish(
        [
            sys.executable,
            "-m",
            "kpstore.cli.start",
            "splits",
            "set",
            location,
            tmp_path / "splits.csv",
            "--keep-others",
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert done.stderr == f"error: nothing was kept: File too large: {location}\n"
    assert location.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "s.h5",
        "splits.csv",
    ]
