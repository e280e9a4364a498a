"""Rows of uncompressed chunks are read without the rest where chunks are not mapped into memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.icechunk_files import LocalChunks
from kpstore.backends.icechunk_strips import RawStrips, rows_per_read
from kpstore.errors import CorruptError
from kpstore.store.reader import RowReader

CHUNK, STRIP, WIDTH = 256, 8, 300
N_ROWS = 4 * CHUNK + 100
UNWRITTEN = 2
"""A chunk that nobody wrote."""


def meta(n_rows: int = N_ROWS, chunk_rows: int = CHUNK, width: int = WIDTH) -> ArrayMeta:
    shape, dims = (n_rows, width), ("frame", "x")
    return ArrayMeta(shape, "float32", chunk_rows, dims, fill=np.nan, codec="raw")


def values() -> NDArray[np.float32]:
    found = np.random.default_rng(0).standard_normal((N_ROWS, WIDTH)).astype(np.float32)
    found[UNWRITTEN * CHUNK : (UNWRITTEN + 1) * CHUNK] = np.nan
    return found


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A version in a process that may map no chunk more."""
    monkeypatch.setattr("kpstore.backends.mapping.MAX_PIECES", 0)
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    changes = backend.begin()
    changes.create("a", meta())
    changes.write("a", 0, values()[: UNWRITTEN * CHUNK])
    changes.write("a", (UNWRITTEN + 1) * CHUNK, values()[(UNWRITTEN + 1) * CHUNK :])
    return backend.session(changes.commit("values"))


def test_strips_are_what_its_chunk_holds(session: Any) -> None:
    chunks = session.chunks("a")
    assert chunks.mapped is None
    assert chunks.strips.rows == STRIP
    padded = np.full((5 * CHUNK, WIDTH), np.nan, np.float32)
    padded[:N_ROWS] = values()
    for number in range(5):
        places = {start: np.full((STRIP, WIDTH), 7, np.float32) for start in (0, 248, 64)}
        chunks.strips.read_into(number, places)
        for start, out in places.items():
            assert out.tobytes() == padded[number * CHUNK + start :][:STRIP].tobytes()


def test_a_chunk_is_read_once_to_check_it_and_then_by_strips(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, list[int] | None]] = []
    whole, part = LocalChunks.read_into, RawStrips.read_into

    def read_whole(chunks: LocalChunks, number: int, out: NDArray[Any]) -> None:
        read.append((number, None))
        whole(chunks, number, out)

    def read_part(strips: RawStrips, number: int, places: Mapping[int, NDArray[Any]]) -> None:
        read.append((number, list(places)))
        part(strips, number, places)

    monkeypatch.setattr(LocalChunks, "read_into", read_whole)
    monkeypatch.setattr(RawStrips, "read_into", read_part)
    reader = RowReader(session, arena_bytes=1)  # one strip
    for rows in ([70], [200, 199], [70], [N_ROWS - 1], [UNWRITTEN * CHUNK]):
        np.testing.assert_array_equal(reader.read("a", np.array(rows)), values()[rows])
    assert read[:5] == [(0, None), (0, [192]), (0, [200]), (0, [64]), (4, None)]
    np.testing.assert_array_equal(reader.read_slice("a", 3, 150), values()[3:150])


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_file_is_one_clear_line(session: Any, damage: str) -> None:
    chunks, out = session.chunks("a"), np.empty((STRIP, WIDTH), np.float32)
    path = Path(chunks._places[3].file)
    if damage == "cut":
        chunks.strips.read_into(3, {248: out})  # it stays open
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(CorruptError, match=r"chunk 3 at .*cannot be read"):
        chunks.strips.read_into(3, {248: out})


def test_how_many_rows_are_read_together() -> None:
    assert rows_per_read(meta()) == STRIP
    assert rows_per_read(meta(chunk_rows=100)) is None  # no multiple
    assert rows_per_read(meta(chunk_rows=8)) is None
    assert rows_per_read(meta(n_rows=2**22 * STRIP + 1)) == 2 * STRIP
