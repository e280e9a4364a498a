"""Strips of compressed chunks are read and decoded alone, and hold what their chunk does."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from kpstore.backends import open_files
from kpstore.backends.base import ArrayMeta
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.icechunk_files import LocalChunks
from kpstore.backends.icechunk_manifests import ChunkPlace, RowPlaces
from kpstore.backends.icechunk_strips import BloscStrips, rows_in_strips, rows_per_strip
from kpstore.errors import CorruptError
from kpstore.store.reader import RowReader

CHUNK, STRIP, WIDTH = 256, 64, 300
N_ROWS = 4 * CHUNK + 100
UNWRITTEN = 2
"""A chunk that nobody wrote."""


def meta(n_rows: int = N_ROWS, width: int = WIDTH, chunk_rows: int = CHUNK) -> ArrayMeta:
    return ArrayMeta((n_rows, width), "float32", chunk_rows, ("frame", "x"), codec="lz4")


def values() -> NDArray[np.float32]:
    """Rows that shrink, but for the second chunk's."""
    found = np.cumsum(np.full((N_ROWS, WIDTH), 0.25, np.float32), axis=0)
    noise = np.random.default_rng(0).integers(0, 2**32, (CHUNK, WIDTH), dtype=np.uint32)
    found[CHUNK : 2 * CHUNK] = noise.view(np.float32)
    found[UNWRITTEN * CHUNK : (UNWRITTEN + 1) * CHUNK] = 0
    return found


@pytest.fixture
def backend(tmp_path: Path) -> IcechunkBackend:
    found = IcechunkBackend(str(tmp_path / "s.kps"))
    found.create({}, "made")
    return found


def commit(backend: IcechunkBackend) -> str:
    changes = backend.begin()
    changes.create("a", meta())
    changes.write("a", 0, values()[: UNWRITTEN * CHUNK])
    changes.write("a", (UNWRITTEN + 1) * CHUNK, values()[(UNWRITTEN + 1) * CHUNK :])
    return changes.commit("values")


def chunks_of(backend: IcechunkBackend, snapshot: str) -> LocalChunks:
    found = backend.session(snapshot).chunks("a")
    assert isinstance(found, LocalChunks)
    return found


def check_strips(chunks: LocalChunks) -> None:
    assert chunks.strips is not None
    assert chunks.strips.rows == STRIP
    padded = np.zeros((5 * CHUNK, WIDTH), np.float32)
    padded[:N_ROWS] = values()
    for number in range(5):
        for some in ([0], [192], [128, 64], [0, 64, 128, 192]):
            places = {start: np.full((STRIP, WIDTH), 7, np.float32) for start in some}
            chunks.strips.read_into(number, places)
            for start, out in places.items():
                wanted = padded[number * CHUNK + start :][:STRIP]
                assert out.tobytes() == wanted.tobytes(), (number, some, start)


def file_of(chunks: LocalChunks, number: int) -> Path:
    place = chunks._places[number]
    assert place is not None
    return Path(place.file)


def replace(path: Path, body: bytes) -> None:
    """Put another chunk in a file, with the check at its end."""
    path.write_bytes(body + google_crc32c.value(body).to_bytes(4, "little"))


def test_a_store_may_not_claim_any_number_of_strips(backend: IcechunkBackend) -> None:
    places = chunks_of(backend, commit(backend))._places
    assert rows_in_strips(places, meta(n_rows=2**22 * STRIP)) == STRIP
    assert rows_in_strips(places, meta(n_rows=2**22 * STRIP + 1)) is None


def test_strips_are_what_its_chunk_holds(backend: IcechunkBackend) -> None:
    check_strips(chunks_of(backend, commit(backend)))


def test_chunks_are_divided_as_the_format_says() -> None:
    assert rows_per_strip(meta()) == STRIP
    assert rows_per_strip(meta(width=429, chunk_rows=1024)) == 64  # keypoints
    assert rows_per_strip(meta(width=2**16)) == 1
    assert rows_per_strip(meta(width=1)) == CHUNK
    assert rows_per_strip(meta(chunk_rows=100)) == 100  # 64 rows would leave a rest


def test_strips_that_threads_have_put_in_any_order_are_found(backend: IcechunkBackend) -> None:
    chunks = chunks_of(backend, commit(backend))
    path = file_of(chunks, 0)
    body = path.read_bytes()[:-4]
    n_strips = CHUNK // STRIP
    starts = struct.unpack_from(f"<{n_strips}I", body, 16)
    parts = [body[start:stop] for start, stop in pairwise([*starts, len(body)])]
    order, moved, at = [2, 0, 3, 1], [0] * n_strips, 16 + 4 * n_strips
    for strip in order:
        moved[strip] = at
        at += len(parts[strip])
    shuffled = body[:16] + struct.pack(f"<{n_strips}I", *moved)
    replace(path, shuffled + b"".join(parts[strip] for strip in order))
    check_strips(chunks)


def test_a_chunk_that_is_divided_otherwise_is_decoded_as_a_whole(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = chunks_of(backend, commit(backend))
    other = numcodecs.blosc.compress(values()[:CHUNK], b"lz4", 5, numcodecs.blosc.SHUFFLE, 0, 4)
    assert other[8:12] != (STRIP * WIDTH * 4).to_bytes(4, "little")
    replace(file_of(chunks, 0), bytes(other))
    place = ChunkPlace(str(file_of(chunks, 0)), 0, len(other) + 4)
    found = RowPlaces.__getitem__
    monkeypatch.setattr(
        RowPlaces, "__getitem__", lambda self, chunk: found(self, chunk) if chunk else place
    )
    check_strips(chunks)


def test_arrays_of_older_stores_are_read_by_chunks(tmp_path: Path) -> None:
    """Their strips, as Blosc chooses them, are not of whole rows."""
    import icechunk

    storage = icechunk.local_filesystem_storage(str(tmp_path / "s.kps"))
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    session = icechunk.Repository.open(storage).writable_session("main")
    array = zarr.open_group(session.store, mode="r+").create_array(
        "a",
        shape=(N_ROWS, WIDTH),
        chunks=(CHUNK, WIDTH),
        dtype="float32",
        compressors=(BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()),
        dimension_names=("frame", "x"),
    )
    array[:] = values()
    chunks = chunks_of(backend, session.commit("values"))
    assert chunks.strips is None
    out = np.empty((CHUNK, WIDTH), np.float32)
    chunks.read_into(1, out)
    assert out.tobytes() == values()[CHUNK : 2 * CHUNK].tobytes()


@pytest.mark.parametrize("damage", ["cut", "header", "starts", "body", "missing"])
def test_a_damaged_file_is_one_clear_line(backend: IcechunkBackend, damage: str) -> None:
    snapshot = commit(backend)
    chunks = chunks_of(backend, snapshot)
    path = file_of(chunks, 3)
    content = bytearray(path.read_bytes())
    match damage:
        case "cut":
            del content[len(content) // 2 :]
        case "header":
            content[:16] = b"\xff" * 16
        case "starts":
            content[16:32] = b"\xff" * 16
        case "body":
            content[32:] = b"\xff" * len(content[32:])
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content)
    assert chunks.strips is not None
    with pytest.raises(CorruptError, match=r"chunk 3 at .*cannot be read") as caught:
        chunks.strips.read_into(3, {CHUNK - STRIP: np.empty((STRIP, WIDTH), np.float32)})
    assert "\n" not in str(caught.value)


def test_a_file_that_was_copied_again_is_read_again(
    backend: IcechunkBackend, tmp_path: Path
) -> None:
    """Files stay open; one that could not be read does not, as another may come in its place."""
    chunks = chunks_of(backend, commit(backend))
    path, place = file_of(chunks, 3), {CHUNK - STRIP: np.empty((STRIP, WIDTH), np.float32)}
    whole = path.read_bytes()
    assert chunks.strips is not None
    chunks.strips.read_into(3, place)
    os.truncate(path, 100)
    with pytest.raises(CorruptError):
        chunks.strips.read_into(3, place)
    (tmp_path / "again").write_bytes(whole)
    os.replace(tmp_path / "again", path)
    check_strips(chunks)


def test_too_many_open_files_are_no_damage(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = chunks_of(backend, commit(backend))

    def none_left(path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(open_files, "OpenFile", none_left)
    assert chunks.strips is not None
    with pytest.raises(OSError, match="Too many open files"):
        chunks.strips.read_into(3, {0: np.empty((STRIP, WIDTH), np.float32)})


class Counts:
    """What was decoded, (chunk, first rows of its strips; None for all of it)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[tuple[int, list[int] | None]] = []
        whole, part = LocalChunks.read_into, BloscStrips.read_into

        def read_whole(chunks: LocalChunks, number: int, out: NDArray[Any]) -> None:
            self.decoded.append((number, None))
            whole(chunks, number, out)

        def read_part(strips: BloscStrips, number: int, places: Mapping[int, NDArray[Any]]) -> None:
            self.decoded.append((number, list(places)))
            part(strips, number, places)

        monkeypatch.setattr(LocalChunks, "read_into", read_whole)
        monkeypatch.setattr(BloscStrips, "read_into", read_part)


def test_a_chunk_is_decoded_and_checked_once_and_then_by_strips(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(monkeypatch)
    session = backend.session(commit(backend))
    reader = RowReader(session, arena_bytes=1)  # one strip
    for rows in ([70], [200, 199], [70]):
        found = reader.read("a", np.array(rows))
        np.testing.assert_array_equal(found, values()[rows])
    assert counts.decoded == [(0, None), (0, [192]), (0, [64])]
    reader.read_slice("a", 0, CHUNK)
    assert counts.decoded[-1] == (0, None)
    unchecked = RowReader(session, check="never")
    unchecked.read_slice("a", 100, 150)
    assert counts.decoded[-1] == (0, [64, 128])
    unchecked.read_slice("a", 100, 120)
    assert counts.decoded[-1] == (0, [64, 128])
    assert len(counts.decoded) == 5
    found = unchecked.read_slice("a", 60, 200)
    np.testing.assert_array_equal(found, values()[60:200])
    assert counts.decoded[5:] == [(0, [0, 64, 128, 192])]  # all that are needed, at once
    always = RowReader(session, check="always")
    always.read("a", np.array([70]))
    assert counts.decoded[-1] == (0, None)


def test_a_loader_decodes_whole_chunks(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = RowReader(backend.session(commit(backend)), check="never")
    reader.reserve("a", 1)
    counts = Counts(monkeypatch)
    reader.read("a", np.array([70, 200, 199]))
    assert counts.decoded == [(0, None)]


def test_a_loader_may_begin_while_others_read(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, part = RowReader(backend.session(commit(backend)), check="never"), BloscStrips.read_into

    def begin(strips: BloscStrips, *given: Any) -> None:
        reader.reserve("a", 1)
        part(strips, *given)

    monkeypatch.setattr(BloscStrips, "read_into", begin)
    found = reader.read_slice("a", 130, CHUNK + 130)
    np.testing.assert_array_equal(found, values()[130 : CHUNK + 130])


def test_damage_anywhere_in_a_chunk_is_found_when_one_strip_is_read(
    backend: IcechunkBackend,
) -> None:
    snapshot = commit(backend)
    path = file_of(chunks_of(backend, snapshot), 0)
    other = values()[:CHUNK].copy()
    other[-1, -1] += 1
    size = STRIP * WIDTH
    replace(
        path, bytes(numcodecs.blosc.compress(other, b"lz4", 5, numcodecs.blosc.SHUFFLE, size, 4))
    )
    reader = RowReader(backend.session(snapshot), location="s.kps")
    for _ in range(2):
        with pytest.raises(CorruptError, match="rows 0:256"):
            reader.read("a", np.array([3]))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> RowReader:
    backend = IcechunkBackend(str(tmp_path_factory.mktemp("strips") / "s.kps"))
    backend.create({}, "made")
    # Room for three strips, so that they replace one another.
    return RowReader(backend.session(commit(backend)), arena_bytes=3 * STRIP * WIDTH * 4)


@settings(max_examples=50, deadline=None)
@given(reads=st.lists(st.lists(st.integers(0, N_ROWS - 1), max_size=40), min_size=1, max_size=4))
def test_any_rows_are_those_that_were_written(reader: RowReader, reads: list[list[int]]) -> None:
    wanted = values()
    with ThreadPoolExecutor(len(reads)) as pool:
        found = list(pool.map(lambda rows: reader.read("a", np.array(rows, dtype=np.int64)), reads))
    for rows, strip in zip(reads, found, strict=True):
        assert strip.tobytes() == wanted[rows].tobytes()
