"""Reads are compared with the committed values: when, how often, and what happens to damage."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.checksums import checksum
from kpstore.backends.chunks import NearChunks
from kpstore.errors import CorruptError, UnsupportedError
from kpstore.store.cache import DecodedCache
from kpstore.store.checked import Check
from kpstore.store.reader import RowReader

N_ROWS, CHUNK_ROWS = 70, 8


class StoredSession:
    """One array in files that may be damaged: ``files`` holds their values now, mapped or not."""

    def __init__(self, *, mapped: bool, knows_places: bool = True) -> None:
        self.values = np.random.default_rng(1).standard_normal((N_ROWS, 3))
        self.files, self.snapshot = self.values.copy(), "s"
        self._mapped, self._meta = (
            mapped,
            ArrayMeta((N_ROWS, 3), "float64", CHUNK_ROWS, ("row", "x")),
        )
        starts = range(0, N_ROWS, CHUNK_ROWS)
        sums = [checksum(self._meta, self.values[start : start + CHUNK_ROWS]) for start in starts]
        self._sums = np.array(sums, dtype=np.uint64) if knows_places else None
        self.torn: set[int] = set()
        """Chunks of which the backend's own library says that they are damaged."""
        self.read_whole: list[int] = []
        self.decoded: list[int] = []

    def attrs(self) -> dict[str, Any]:
        return {}

    def names(self) -> list[str]:
        return ["a"]

    def meta(self, name: str) -> ArrayMeta:
        return self._meta

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        self.read_whole.append(start // CHUNK_ROWS)
        if start // CHUNK_ROWS in self.torn:
            raise CorruptError(f"rows {start}:{stop} of 'a' cannot be read: wrong CRC")
        return self.files[start:stop].copy()

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        return self._sums

    def place(self, name: str, chunk: int) -> str:
        return f"chunks/{chunk}"

    def digest(self, name: str) -> None:
        return None

    def chunks(self, name: str) -> StoredChunks:
        return StoredChunks(self)

    def swap(self, one: int, other: int) -> None:
        """Let two chunks change places, each whole."""
        a, b = (slice(n * CHUNK_ROWS, (n + 1) * CHUNK_ROWS) for n in (one, other))
        self.files[a], self.files[b] = self.files[b].copy(), self.files[a].copy()


class StoredChunks(NearChunks):
    how = "from their files"
    strips = None

    def __init__(self, view: StoredSession) -> None:
        self._view = view
        self.mapped = view.files if view._mapped else None

    def bring(self, number: int) -> None:
        pass

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        self._view.decoded.append(number)
        part = self._view.files[number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS]
        out[: len(part)] = part


@pytest.fixture(params=[True, False], ids=["mapped", "decoded"])
def view(request: pytest.FixtureRequest) -> StoredSession:
    return StoredSession(mapped=request.param)


Read = Callable[[RowReader, int, int], NDArray[Any]]
WAYS: dict[str, Read] = {
    "rows": lambda reader, start, stop: reader.read("a", np.arange(start, stop)),
    "slice": lambda reader, start, stop: reader.read_slice("a", start, stop),
}


@pytest.fixture(params=WAYS)
def read(request: pytest.FixtureRequest) -> Read:
    return WAYS[request.param]


@pytest.mark.parametrize("damaged", [0, 3, 8], ids=["first", "middle", "short last"])
def test_a_damaged_chunk_is_an_error_and_the_others_are_read(
    view: StoredSession, read: Read, damaged: int
) -> None:
    view.files[damaged * CHUNK_ROWS + 2, 1] += 1
    reader = RowReader(view, location="s.kps")
    wanted = (
        rf"'a' of s.kps is damaged: rows {damaged * 8}:\d+, chunks/{damaged}: .*; "
        "'kpstore verify s.kps' .*repair"
    )
    for _ in range(2):
        with pytest.raises(CorruptError, match=wanted):
            read(reader, 0, N_ROWS)
    for start in range(0, N_ROWS, CHUNK_ROWS):
        if start != damaged * CHUNK_ROWS:
            stop = min(start + CHUNK_ROWS, N_ROWS)
            np.testing.assert_array_equal(read(reader, start, stop), view.values[start:stop])


def test_chunks_that_changed_places_are_an_error(view: StoredSession, read: Read) -> None:
    view.swap(2, 5)
    for start in (16, 40):
        with pytest.raises(CorruptError, match="holds other values than were committed"):
            read(RowReader(view), start + 3, start + 5)


@pytest.mark.parametrize(
    ("check", "sees_early", "sees_late"),
    [("first", True, False), ("always", True, True), ("never", False, False)],
)
def test_the_policy_says_when_a_chunk_is_looked_at(
    view: StoredSession, read: Read, check: Check, sees_early: bool, sees_late: bool
) -> None:
    reader = RowReader(view, check=check, arena_bytes=0)
    read(reader, 0, 16)
    view.files[3] = 0
    view.files[20] = 0
    np.testing.assert_array_equal(read(reader, 24, 40), view.values[24:40])
    for rows, sees in (((0, 8), sees_late), ((16, 24), sees_early)):
        if sees:
            with pytest.raises(CorruptError, match="is damaged"):
                read(reader, *rows)
        else:
            np.testing.assert_array_equal(read(reader, *rows), view.files[slice(*rows)])


def test_without_checksums_by_place_each_chunk_is_read_once_by_the_backends_own_library(
    read: Read,
) -> None:
    for mapped in (True, False):
        view = StoredSession(mapped=mapped, knows_places=False)
        view.torn = {4}
        reader = RowReader(view, arena_bytes=0)
        for _ in range(3):
            np.testing.assert_array_equal(read(reader, 0, 30), view.values[:30])
            with pytest.raises(
                CorruptError, match=r"rows 32:40.*: wrong CRC; 'kpstore verify STORE'"
            ):
                read(reader, 30, 40)
        assert sorted(set(view.read_whole)) == [0, 1, 2, 3, 4]
        assert sorted(n for n in view.read_whole if n != 4) == [0, 1, 2, 3]


def test_where_the_backends_library_is_out_of_reach_format_1_is_read_as_it_was(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mapped in (True, False):
        view = StoredSession(mapped=mapped, knows_places=False)

        def forked(name: str, start: int, stop: int) -> NDArray[Any]:
            raise UnsupportedError("not in a forked process")

        monkeypatch.setattr(view, "read", forked)
        np.testing.assert_array_equal(read(RowReader(view), 0, N_ROWS), view.values)


def test_threads_read_right_rows_beside_a_damaged_chunk(view: StoredSession) -> None:
    view.files[33] = 0
    reader, together = RowReader(view, arena_bytes=4 * CHUNK_ROWS * 24), threading.Barrier(4)

    def work(seed: int) -> int:
        rng, refused = np.random.default_rng(seed), 0
        together.wait()
        for _ in range(30):
            rows = rng.integers(0, N_ROWS, 3)
            try:
                np.testing.assert_array_equal(reader.read("a", rows), view.values[rows])
                assert not (rows // CHUNK_ROWS == 4).any()
            except CorruptError:
                assert (rows // CHUNK_ROWS == 4).any()
                refused += 1
        return refused

    with ThreadPoolExecutor(4) as threads:
        assert min(threads.map(work, range(4))) > 0


# -- the decoded copy ------------------------------------------------------------------------------


def cached(folder: Path, view: StoredSession, check: Check = "first") -> RowReader:
    return RowReader(view, cache=DecodedCache(folder), check=check)


def copy_of(folder: Path) -> Path:
    (path,) = folder.rglob("*.kpstore.npy")
    return path


@pytest.mark.parametrize("knows_places", [True, False])
@pytest.mark.parametrize("where", ["a value", "a checksum"])
def test_a_damaged_copy_is_made_anew_and_nobody_notices(
    tmp_path: Path, read: Read, knows_places: bool, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    view = StoredSession(mapped=False, knows_places=knows_places)
    assert cached(tmp_path, view).cache("a")
    content = bytearray(copy_of(tmp_path).read_bytes())
    content[-100 if where == "a value" else -3] ^= 1
    copy_of(tmp_path).write_bytes(content)
    reader = cached(tmp_path, view)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read(reader, 0, N_ROWS), view.values)
    assert len(caplog.records) == 1
    assert cached(tmp_path, view).cache("a")
    view.decoded.clear()
    np.testing.assert_array_equal(read(cached(tmp_path, view), 0, N_ROWS), view.values)
    assert view.decoded == [], "the copy is whole again"


def test_a_copy_of_another_version_is_not_taken(tmp_path: Path, read: Read) -> None:
    view, other = StoredSession(mapped=False), StoredSession(mapped=False)
    cached(tmp_path, view).cache("a")
    other._sums = other.checksums("a")[::-1].copy()  # type: ignore[index]
    other.files = other.values = np.zeros((N_ROWS, 3))
    starts = range(0, N_ROWS, CHUNK_ROWS)
    other._sums = np.array(
        [checksum(other._meta, other.values[s : s + CHUNK_ROWS]) for s in starts], np.uint64
    )
    np.testing.assert_array_equal(read(cached(tmp_path, other), 0, N_ROWS), other.values)


@pytest.mark.parametrize("check", ["first", "never"])
def test_damage_is_not_copied(tmp_path: Path, check: Check) -> None:
    view = StoredSession(mapped=False)
    view.files[20] = 0
    reader = cached(tmp_path, view, check)
    assert not reader.cache("a")
    assert "'a' of STORE is damaged: rows 16:24" in reader.cache_refusal
    assert not list(tmp_path.rglob("*.npy"))
    np.testing.assert_array_equal(reader.read("a", np.array([0, 50])), view.values[[0, 50]])


def test_a_damaged_chunk_stops_nobody_who_reads_others_here_and_there(tmp_path: Path) -> None:
    view = StoredSession(mapped=False)
    view.files[0] = 0
    reader = RowReader(view, cache=DecodedCache(tmp_path), arena_bytes=0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = rng.integers(CHUNK_ROWS, N_ROWS, 5)
        np.testing.assert_array_equal(reader.read("a", rows), view.values[rows])
