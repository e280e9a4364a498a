"""Nothing in a store leads out of it: links in folders and in HDF5 files are refused."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

import kpstore
from kpstore.backends.base import MAIN, ArrayMeta
from kpstore.backends.garbage import Before
from kpstore.backends.hdf5 import HDF5Backend, _circles
from kpstore.backends.hdf5_records import HOME, read_json, write_json
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.links import open_inside, read_inside, write_inside
from kpstore.errors import CorruptError, InvalidError, KpstoreError, NotFoundError
from kpstore.ingest.report import read_progress
from tests.processes import finish
from tests.store.data import fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An Icechunk store."""
    path = tmp_path / "s.kps"
    with kpstore.create(path) as store:
        fill(store)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An HDF5 store with an older version of each kind of difference."""
    path = tmp_path / "s.h5"
    backend = HDF5Backend(str(path))
    backend.create({"title": "t"}, "made")
    changes = backend.begin()
    for name in ("a", "b"):
        changes.create(name, ArrayMeta((10,), "float32", 4, ("frame",)))
        changes.write(name, 0, np.arange(10, dtype="f4"))
    changes.commit("values")
    changes = backend.begin()
    changes.write("a", 0, np.zeros(2, dtype="f4"))
    changes.delete("b")
    changes.commit("changed")
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file of the user, which nothing may change."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    return path


# -- folders ---------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.symlink_to(path.parents[2] / "mine.txt"), "a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
        (lambda path: path.symlink_to(path.parents[2]), "a symbolic link"),
        (os.mkfifo, r"a pipe \(FIFO\)"),
        (_socket, "a socket"),
    ],
)
@pytest.mark.parametrize("place", ["chunks", "refs", "kpstore", "snapshots"])
def test_a_folder_with_anything_but_files_and_folders_is_refused(
    folder: Path, mine: Path, place: str, make: Callable[[Path], None], what: str
) -> None:
    (folder / place).mkdir(exist_ok=True)
    make(folder / place / "odd")
    with pytest.raises(InvalidError, match=rf"{place}/odd' is {what}.*remove it if you know it"):
        kpstore.open(folder)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["writer.lock", "commit.lock", "ledger", "progress.json"])
def test_writing_never_follows_a_link_in_the_store(folder: Path, mine: Path, name: str) -> None:
    path = folder / "kpstore" / name
    path.unlink(missing_ok=True)
    path.symlink_to(mine)
    backend = IcechunkBackend(str(folder))
    for write in (lambda: backend.exclusive("test"), backend.commit_lock, backend.begin):
        with pytest.raises(InvalidError, match="is a symbolic link"):
            write()
    assert mine.read_text() == "mine"


def test_a_folder_that_is_a_link_inside_a_store_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "kpstore", tmp_path / "elsewhere")
    (folder / "kpstore").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidError, match="kpstore' is a symbolic link"):
        IcechunkBackend(str(folder)).exclusive("test")


def test_the_store_itself_may_be_a_link_and_hold_hard_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.kps").symlink_to(folder)
    subprocess.run(["cp", "-al", folder, tmp_path / "copy.kps"], check=True)
    for path in (tmp_path / "link.kps", tmp_path / "copy.kps"):
        with kpstore.open(path, mode="a") as store, store.backend.exclusive("test"):
            assert len(store)
            store.tag(path.stem)


def test_a_link_that_appears_after_the_store_was_opened_is_not_followed(
    folder: Path, mine: Path
) -> None:
    backend = IcechunkBackend(str(folder))
    backend.begin()
    for name in ("writer.lock", "commit.lock"):
        (folder / "kpstore" / name).unlink(missing_ok=True)
        (folder / "kpstore" / name).symlink_to(mine)
    with pytest.raises(InvalidError, match="is a symbolic link"), backend.exclusive("test"):
        pass
    with pytest.raises(InvalidError, match="is a symbolic link"), backend.commit_lock():
        pass
    assert mine.read_text() == "mine"


def test_a_small_file_is_written_and_read_but_no_link_pipe_or_folder(
    tmp_path: Path, mine: Path
) -> None:
    write_inside(tmp_path / "small", "longer than before")
    write_inside(tmp_path / "small", "größer")
    assert read_inside(tmp_path / "small") == "größer"
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(InvalidError, match=f"{name}' is a"):
            write_inside(tmp_path / name, "x")
        with pytest.raises(InvalidError, match=f"{name}' is a"):
            read_inside(tmp_path / name)
    with pytest.raises(FileNotFoundError), open_inside(tmp_path / "missing", os.O_RDONLY):
        pass


# -- the folder beside an HDF5 file ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["writer.lock", "commit.lock", "progress.json"])
def test_links_beside_an_hdf5_file_are_not_followed(file: Path, mine: Path, name: str) -> None:
    backend = HDF5Backend(str(file))
    backend.sidecar_dir.mkdir(exist_ok=True)
    (backend.sidecar_dir / name).unlink(missing_ok=True)
    (backend.sidecar_dir / name).symlink_to(mine)
    for use in (
        lambda: backend.exclusive("test"),
        backend.commit_lock,
        lambda: backend.create_tag("t", backend.branches()[MAIN]),
        lambda: read_progress(backend),
    ):
        with pytest.raises(InvalidError, match=f"{name}' is a symbolic link"):
            use()
    assert mine.read_text() == "mine"


def test_a_folder_beside_an_hdf5_file_that_is_a_link_is_refused(file: Path, tmp_path: Path) -> None:
    backend = HDF5Backend(str(file))
    shutil.rmtree(backend.sidecar_dir, ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    backend.sidecar_dir.symlink_to(tmp_path / "elsewhere")
    for use in (lambda: backend.exclusive("test"), lambda: read_progress(backend)):
        with pytest.raises(InvalidError, match="is a symbolic link"):
            use()
    assert not list((tmp_path / "elsewhere").iterdir())


# -- inside an HDF5 file ---------------------------------------------------------------------------


def _items(path: Path) -> list[str]:
    names: list[str] = []
    with h5py.File(path) as opened:
        opened.visit(names.append)
    return names


def _soft(file: h5py.File, name: str, _: Path) -> None:
    del file[name]
    file[name] = h5py.SoftLink("/gone")


def _external(file: h5py.File, name: str, other: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(other), name)


def _virtual(file: h5py.File, name: str, other: Path) -> None:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    layout = h5py.VirtualLayout(found.shape, found.dtype)
    layout[...] = h5py.VirtualSource(str(other), name, shape=found.shape)
    attrs = dict(found.attrs)
    del file[name]
    file.create_virtual_dataset(name, layout)
    file[name].attrs.update(attrs)


def _raw(file: h5py.File, name: str, other: Path) -> None:
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    shape, dtype, attrs = found.shape, found.dtype, dict(found.attrs)
    values = other.with_name("values")
    values.write_bytes(found[()].tobytes())
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(values), 0, values.stat().st_size)])
    file[name].attrs.update(attrs)


def _use(path: Path) -> None:
    """Read and change all that a store holds."""
    backend = HDF5Backend(str(path))
    newest = backend.branches()[MAIN]
    list(backend.history(newest))
    problems = list(backend.examine())
    if problems:
        raise InvalidError(problems[0])
    for commit in backend.history(newest):
        session = backend.session(commit.id)
        for name in session.names():
            session.read(name, 0, 10)
    changes = backend.begin()
    changes.write("a", 0, np.ones(10, dtype="f4"))
    changes.commit("more")


@pytest.mark.parametrize("replace", [_soft, _external, _virtual, _raw])
def test_no_item_of_an_hdf5_store_may_be_elsewhere(
    file: Path, tmp_path: Path, replace: Callable[[h5py.File, str, Path], None]
) -> None:
    names = _items(file)
    assert any(name.endswith("delta/chunks/a") for name in names)
    assert any(name.endswith("delta/arrays/b") for name in names)
    _use(shutil.copy(file, tmp_path / "sound.h5"))
    other, unused = file.rename(tmp_path / "other.h5"), []
    for number, name in enumerate(names):
        evil = Path(shutil.copy(other, tmp_path / f"evil{number}.h5"))
        with h5py.File(evil, "r+") as opened:
            is_group = isinstance(opened[name], h5py.Group)
            if is_group and replace in (_virtual, _raw):
                continue
            # What it leads to is missing, so that following it would be a CorruptError.
            replace(opened, name, tmp_path / "gone.h5")
        (tmp_path / "values").unlink(missing_ok=True)
        with suppress(InvalidError):
            _use(evil)
            unused.append(name.rpartition("/delta/")[2])
    assert set(unused) <= {"arrays", "chunks", "checksums"}, "nothing of an empty version is read"
    assert len(unused) <= 4


def test_a_link_to_a_pipe_is_not_opened(file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(file, "r+") as opened:
        del opened[HOME]
        opened[HOME] = h5py.ExternalLink(str(tmp_path / "pipe"), "/")
    with pytest.raises(InvalidError, match="a link into another file"):
        kpstore.open(file)


def test_versions_in_a_circle_end_in_one_line(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        versions = opened[HOME]["versions"]
        older = [name for name in versions if "delta" in versions[name]]
        for name, other in zip(older, reversed(older), strict=True):
            group = versions[name]["delta"]
            write_json(group, "about", {**read_json(group, "about"), "base": other})
            record = read_json(versions[name], "record")
            write_json(versions[name], "record", {**record, "parent": other})
    backend = HDF5Backend(str(file))
    for name in older:
        with pytest.raises(CorruptError, match="described by versions that are described by it"):
            backend.session(name)
        with pytest.raises(CorruptError, match="it follows itself"):
            list(backend.history(name))
    assert [line for line in backend.examine() if "follows itself" in line]


def test_groups_in_groups_without_end_are_refused_in_one_line(tmp_path: Path) -> None:
    code = """
import sys, h5py
from kpstore.errors import InvalidError
from kpstore.interop.hdf5.read import Hdf5Import
from pathlib import Path
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    group = file
    for _ in range(20_000):
        group = group.create_group("g", track_order=False)
    group["loop"] = file["g"]
try:
    Hdf5Import().open(Path(sys.argv[1]))
except InvalidError as error:
    print(error)
"""
    done = finish([sys.executable, "-c", code, tmp_path / "deep.h5"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "nested more than 100 deep" in done.stdout


def test_a_missing_item_is_not_a_link(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        del opened["a"]
    with pytest.raises(KpstoreError) as caught:
        _use(file)
    assert isinstance(caught.value, CorruptError | InvalidError)
    with pytest.raises(NotFoundError):
        HDF5Backend(str(file)).session("x/y")


def test_a_long_circle_of_versions_is_walked_once() -> None:
    n = 20_000
    parents = {f"{number:05d}": f"{(number + 1) % n:05d}" for number in range(n)}
    parents |= {"leads there": "00000", "alone": None}
    lines = list(_circles(parents))
    assert len(lines) == n + 1
    assert not [line for line in lines if "alone" in line]


def test_gc_copies_nothing_that_lies_in_another_file(file: Path, tmp_path: Path) -> None:
    private = tmp_path / "private.h5"
    with h5py.File(private, "w") as opened:
        opened["secret"] = [42]
    with h5py.File(file, "r+") as opened:
        versions = opened[HOME]["versions"]
        delta = next(v["delta"] for v in versions.values() if "delta" in v)
        del delta["arrays"]
        delta["arrays"] = h5py.ExternalLink(str(private), "/")
    before = file.read_bytes()
    old = datetime(2000, 1, 1, tzinfo=UTC)
    with pytest.raises(KpstoreError, match="a link into another file"):
        HDF5Backend(str(file)).collect_garbage(Before(old, old), apply=True)
    assert file.read_bytes() == before


def test_no_lock_is_made_beside_a_file_in_a_folder_that_is_a_link(
    file: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    backend = HDF5Backend(str(file))
    shutil.rmtree(backend.sidecar_dir, ignore_errors=True)
    backend.sidecar_dir.symlink_to(elsewhere)
    for use in (backend.begin, backend.commit_lock, lambda: backend.exclusive("test")):
        with pytest.raises(InvalidError, match="is a symbolic link"):
            use()
    assert list(elsewhere.iterdir()) == []
