"""Files that stay open."""

from __future__ import annotations

import errno
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kpstore.backends import open_files
from kpstore.backends.open_files import OpenFile, OpenFiles


@pytest.fixture(autouse=True)
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_kept", weakref.WeakSet())
    monkeypatch.setattr(open_files, "MOST_OPEN", 3)


def made(folder: Path, count: int) -> list[str]:
    paths = [folder / f"{number}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%02d" % number)
    return [str(path) for path in paths]


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_a_file_is_opened_once_and_the_oldest_is_closed(tmp_path: Path) -> None:
    paths, files = made(tmp_path, 4), OpenFiles()
    assert [files.at(path) for path in paths[:3]] == [files.at(path) for path in paths[:3]]
    oldest, held = files.at(paths[0]).number, files.at(paths[1])
    files.at(paths[3])
    assert len(open_files._kept) == 3
    assert not is_open(oldest) or files.at(paths[3]).number == oldest
    files.drop(paths[1])
    assert os.pread(held.number, 2, 0) == b"01"  # somebody reads from it
    number = held.number
    del held
    assert not is_open(number)


def test_files_are_closed_with_their_reader(tmp_path: Path) -> None:
    paths, files = made(tmp_path, 3), OpenFiles()
    numbers = [files.at(path).number for path in paths]
    del files
    assert not any(map(is_open, numbers))


def test_readers_share_the_limit(tmp_path: Path) -> None:
    paths, one, other = made(tmp_path, 9), OpenFiles(), OpenFiles()
    for path in paths:
        one.at(path)
    for number, path in enumerate(paths):
        file = other.at(path)
        assert os.pread(file.number, 2, 0) == b"%02d" % number
    assert len(open_files._kept) == 3


def test_a_file_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OpenFiles().at(str(tmp_path / "no"))
    assert not len(open_files._kept)


def test_others_are_closed_when_the_process_may_open_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, files = made(tmp_path, 3), OpenFiles()
    kept = files.at(paths[0]).number

    class Few(OpenFile):
        __slots__ = ()

        def __init__(self, path: str) -> None:
            if is_open(kept):
                raise OSError(errno.EMFILE, "Too many open files")
            super().__init__(path)

    monkeypatch.setattr(open_files, "OpenFile", Few)
    assert os.pread(files.at(paths[1]).number, 2, 0) == b"01"


def test_threads_read_what_they_asked_for(tmp_path: Path) -> None:
    paths, files = made(tmp_path, 9), OpenFiles()

    def read(turn: int) -> bool:
        file = files.at(paths[turn % 9])
        return os.pread(file.number, 2, 0) == b"%02d" % (turn % 9)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(5_000)))
    assert len(open_files._kept) <= 3 + 8
