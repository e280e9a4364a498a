"""Files that stay open."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kpstore.backends import open_files
from kpstore.backends.open_files import opened


@pytest.fixture(autouse=True)
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "_open", {})
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
    paths = made(tmp_path, 4)
    numbers = [opened(path).number for path in paths[:3]]
    assert [opened(path).number for path in paths[:3]] == numbers
    held = opened(paths[1])
    opened(paths[3])
    assert not is_open(numbers[0]) or opened(paths[3]).number == numbers[0]
    open_files._open.clear()
    assert is_open(held.number)  # somebody reads from it
    number = held.number
    del held
    assert not is_open(number)


def test_a_file_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(str(tmp_path / "no"))
    assert not open_files._open


def test_threads_read_what_they_asked_for(tmp_path: Path) -> None:
    paths = made(tmp_path, 9)

    def read(turn: int) -> bool:
        file = opened(paths[turn % 9])
        return os.pread(file.number, 2, 0) == b"%02d" % (turn % 9)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(5_000)))
    assert len(open_files._open) <= 3 + 8
