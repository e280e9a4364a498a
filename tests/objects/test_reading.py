"""Objects are fetched once per machine, many at a time, and copies stay within their limit."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from kpstore.backends import object_reading
from kpstore.backends.object_address import parse_address
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.object_reading import Copies, ObjectReader
from kpstore.backends.optional import CopiesPlace
from kpstore.errors import UnreachableError


class Counted(ObjectFiles):
    """Objects in memory, which count how often each is read, and how many at once."""

    def __init__(self, objects: dict[str, bytes], together: int = 1) -> None:
        super().__init__(parse_address("s3://bucket/x.kps"))
        self.objects, self.reads = objects, Counter[str]()
        self.together = threading.Barrier(together)

    def fetch(self, name: str, offset: int = 0, length: int | None = None) -> memoryview:
        self.reads[name] += 1
        self.together.wait()  # broken, and the test fails, unless so many come at once
        found = self.objects[name]
        return memoryview(found)[offset : None if length is None else offset + length]


OBJECTS = {f"chunks/{number:020d}": bytes([number]) * 1000 for number in range(40)}


@pytest.fixture(params=["with copies", "without"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> CopiesPlace | None:
    return CopiesPlace(tmp_path, 10**6) if request.param == "with copies" else None


def reader_of(files: ObjectFiles, place: CopiesPlace | None) -> ObjectReader:
    return ObjectReader(files, None if place is None else Copies(place, files))


def test_what_is_asked_for_comes_many_at_a_time_and_once(place: CopiesPlace | None) -> None:
    files = Counted(OBJECTS, together=16)
    reader = reader_of(files, place)
    names = list(OBJECTS)[:32]
    for name in [*names, *names]:
        reader.ask(name, 1000)
    for name in names:
        assert bytes(reader.read(name, 10, 5)) == OBJECTS[name][10:15]
    assert set(files.reads.values()) == {1}
    assert len(files.reads) == 32


def test_what_is_not_asked_for_is_read_alone(place: CopiesPlace | None) -> None:
    files = Counted(OBJECTS)
    reader = reader_of(files, place)
    name = next(iter(OBJECTS))
    assert bytes(reader.read(name, 0, 1000)) == OBJECTS[name]
    assert files.reads == {name: 1}


def test_copies_are_found_by_other_processes(tmp_path: Path) -> None:
    files = Counted(OBJECTS)
    name = next(iter(OBJECTS))
    for _ in range(3):
        reader = reader_of(files, CopiesPlace(tmp_path, 10**6))
        assert Path(reader / name).read_bytes() == OBJECTS[name]
    assert files.reads == {name: 1}


def test_threads_that_want_one_object_fetch_it_once(tmp_path: Path) -> None:
    files = Counted(OBJECTS)
    copies = Copies(CopiesPlace(tmp_path, 10**6), files)
    name = next(iter(OBJECTS))
    threads = [threading.Thread(target=copies.bring, args=[name]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.reads == {name: 1}


def test_the_oldest_copies_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_reading, "_LOOK_EVERY", 1)
    files = Counted(OBJECTS)
    reader = reader_of(files, CopiesPlace(tmp_path, 10_000))
    for name in OBJECTS:
        assert bytes(reader.read(name, 0, 1000)) == OBJECTS[name]
    held = [path for path in tmp_path.rglob("chunks-*")]
    assert sum(path.stat().st_size for path in held) <= 10_000
    assert len(held) >= 8
    assert not list(tmp_path.rglob("*.part"))


def test_a_missing_object_is_no_lack_of_room(place: CopiesPlace | None) -> None:
    class Empty(Counted):
        def fetch(self, name: str, offset: int = 0, length: int | None = None) -> memoryview:
            raise FileNotFoundError(f"Object at location {name} not found")

    with pytest.raises(FileNotFoundError):
        reader_of(Empty({}), place).read("chunks/none", 0, 10)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file in its place")
    reader = reader_of(Counted(OBJECTS), CopiesPlace(tmp_path, 10**6))
    with pytest.raises(UnreachableError, match="set KPSTORE_CACHE to another folder"):
        reader.read(next(iter(OBJECTS)), 0, 10)


def test_copies_of_two_servers_are_kept_apart(tmp_path: Path) -> None:
    place = CopiesPlace(tmp_path, 10**6)
    folders = {
        Copies(place, ObjectFiles(parse_address(address))).folder
        for address in (
            "s3://bucket/x.kps",
            "s3://bucket/x.kps?region=eu-west-1",
            "s3://bucket/x.kps?endpoint=http://localhost:1",
            "s3://bucket/y.kps",
        )
    }
    assert len(folders) == 3
