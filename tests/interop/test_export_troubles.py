"""Exports into places that cannot take them: one line says so, and nothing half written is seen."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

import kpstore
from kpstore import plugins
from kpstore.errors import UnsupportedError
from kpstore.interop import transfer
from kpstore.interop.base import ExportReport, FileExporter, Format
from kpstore.store.store import BaseStore
from tests.cli.conftest import Kpstore, kpstore_
from tests.interop.test_documents import MADE

__all__ = ["kpstore_"]

FORMATS = plugins.names("kpstore.formats")


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A format, and a store that it can write."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "given").mkdir()
    kpstore.import_file(MADE[request.param](folder / "given"), folder / "s.kps", request.param)
    return request.param, folder / "s.kps"


def seen(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def full_disk(n_bytes: int = 0) -> Iterator[None]:
    """Let this process write no longer files, as a full disk does; HDF5 asks for space before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        with patch.object(os, "statvfs", lambda path: SimpleNamespace(f_bavail=9, f_frsize=9)):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failure(case: Any, out: Path, **how: Any) -> OSError:
    """Return the error of an export, which has to be one line that names where it was to go."""
    (name, store), tmp = case, out.parent
    how |= {"empty": "keep"} if name == "npz" else {}
    with pytest.raises(
        OSError, match=f"the export was not finished: .*{re.escape(str(tmp))}"
    ) as raised:
        kpstore.export_file(kpstore.open(store), out, name, **how)
    assert "\n" not in str(raised.value)
    assert ".making" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("n_bytes", [0, 100])
def test_a_disk_that_is_full_leaves_nothing_half_written(
    case: Any, tmp_path: Path, n_bytes: int
) -> None:
    out = tmp_path / "x.out"
    with full_disk(n_bytes):
        error = failure(case, out)
    assert error.errno in (errno.EFBIG, errno.ENOSPC)
    assert seen(tmp_path) in ([], ["x.out"])
    assert not out.is_file()


def test_an_older_export_stays_as_it_was_when_a_new_one_fails(case: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.out"
    kpstore.export_file(kpstore.open(case[1]), out, case[0])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with full_disk(100):
        failure(case, out, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_place_that_goes_while_it_is_written_is_one_line(case: Any, tmp_path: Path) -> None:
    place = tmp_path / "place"

    def remove(n_frames: int) -> None:
        shutil.rmtree(place, ignore_errors=True)

    assert failure(case, place / "x.out", on_progress=remove).errno == errno.ENOENT
    assert seen(tmp_path) in ([], ["place"], ["place", "place/x.out"])


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")


@pytest.mark.parametrize(
    "make", [os.mkfifo, make_device, lambda path: path.symlink_to("/dev/null")]
)
@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_no_device_and_no_pipe_is_replaced(
    case: Any, kpstore_: Kpstore, tmp_path: Path, make: Callable[[Path], None], words: list[str]
) -> None:
    target = tmp_path / "x.out"
    make(target)
    before = target.lstat().st_ino
    for place in (target, target / "deeper"):
        result = kpstore_("export", case[0], case[1], place, *words)
        assert result.code == 2
        assert len(result.lines) == 1
        assert str(target) in result.err
        assert "choose another" in result.err
    assert target.lstat().st_ino == before
    assert seen(tmp_path) == ["x.out"]


@pytest.mark.parametrize("leads", ["nowhere", "x.out"])
def test_a_link_that_leads_nowhere_is_no_place_to_write_through(
    case: Any, kpstore_: Kpstore, tmp_path: Path, leads: str
) -> None:
    target = tmp_path / "x.out"
    target.symlink_to(tmp_path / leads)
    for place in (target, target / "deeper"):
        result = kpstore_("export", case[0], case[1], place)
        assert result.code == 2
        assert len(result.lines) == 1
        assert "choose another" in result.err
    assert seen(tmp_path) == ["x.out"]


class Clumsy(FileExporter):
    def _write(self, store: BaseStore, path: Path, overwrite: bool, report: Any) -> ExportReport:
        raise zipfile.LargeZipFile("too\nlarge")


def test_what_a_library_raises_in_an_exporter_is_one_line(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clumsy = Format(case[0], "Fails.", exporter=Clumsy)
    monkeypatch.setattr(transfer, "get_format", lambda name: clumsy)
    with pytest.raises(UnsupportedError, match=r"x\.out cannot be written \(LargeZip.*too large"):
        kpstore.export_file(kpstore.open(case[1]), tmp_path / "x.out", case[0])
