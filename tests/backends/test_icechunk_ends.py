"""Many small commits share the file of the last chunk, and every version keeps its rows."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr

from kpstore.backends.base import ArrayMeta, Codec
from kpstore.backends.garbage import Before
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.testing.store_data import mapped_rows

META = ArrayMeta((0, 16), "float32", 1024, ("frame", "x"), fill=float("nan"), codec="raw")
CHUNK_BYTES = META.chunk_rows * META.row_bytes


def values(n_rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, 16), dtype=np.float32)


def store(tmp_path: Path, codec: Codec = "raw") -> IcechunkBackend:
    backend = IcechunkBackend(str(tmp_path / "store"))
    backend.create({}, "created")
    changes = backend.begin()
    changes.create("a", ArrayMeta((0, 16), "float32", 1024, META.dims, META.fill, codec=codec))
    changes.commit("array")
    return backend


def append(backend: IcechunkBackend, rows: np.ndarray, branch: str = "main") -> str:
    """Commit more rows; return the version."""
    changes = backend.begin(branch)
    n_rows = changes.meta("a").n_rows
    changes.resize("a", n_rows + len(rows))
    changes.write("a", n_rows, rows)
    return changes.commit("more rows")


def read(backend: IcechunkBackend, version: str) -> np.ndarray:
    """Read all rows in a way that checks them, and see that other programs read the same."""
    session = IcechunkBackend(backend.location).session(version)
    found = session.read("a", 0, session.meta("a").n_rows)
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(backend.location))
    group = zarr.open_group(repository.readonly_session(snapshot_id=version).store, mode="r")
    np.testing.assert_array_equal(group["a"][:], found)
    mapped = mapped_rows(session, "a")
    if mapped is not None:
        np.testing.assert_array_equal(mapped, found)
    return found


def files(backend: IcechunkBackend) -> dict[str, int]:
    """Return large chunk files: their inodes by name."""
    return {
        entry.name: entry.inode()
        for entry in os.scandir(Path(backend.location) / "chunks")
        if entry.stat().st_size >= CHUNK_BYTES
    }


def test_small_commits_cost_their_rows_and_not_a_chunk_each(tmp_path: Path) -> None:
    backend, rows = store(tmp_path), values(1200)
    versions = {n: append(backend, rows[n - 40 : n]) for n in range(40, 1201, 40)}
    names = files(backend)
    assert len(names) == len(versions) + 1, "a commit crosses from the first chunk to the second"
    assert len(set(names.values())) == 2
    for n_rows, version in versions.items():
        np.testing.assert_array_equal(read(backend, version), rows[:n_rows])
    assert not list(backend.examine())


def test_garbage_collection_counts_a_file_once_and_frees_what_it_says(tmp_path: Path) -> None:
    backend, rows = store(tmp_path), values(300)
    for n in range(100, 301, 100):
        version = append(backend, rows[n - 100 : n])
    now = datetime.now(UTC)
    found = backend.collect_garbage(Before(now, now), apply=True)
    assert found.kept == 1
    assert found.bytes < 2 * CHUNK_BYTES
    assert found.bytes_freed < CHUNK_BYTES
    np.testing.assert_array_equal(read(backend, version), rows)


def test_a_version_whose_rows_were_changed_keeps_its_file(tmp_path: Path) -> None:
    backend, rows = store(tmp_path), values(200)
    before = append(backend, rows[:100])
    changes = backend.begin()
    changes.resize("a", 200)
    changes.write("a", 50, values(150, seed=1))
    after = changes.commit("overwritten")
    assert len(set(files(backend).values())) == 2
    np.testing.assert_array_equal(read(backend, before), rows[:100])
    np.testing.assert_array_equal(read(backend, after)[50:], values(150, seed=1))


def test_rows_that_were_there_but_not_written_stay_so_in_the_version_before(tmp_path: Path) -> None:
    backend = store(tmp_path)
    changes = backend.begin()
    changes.resize("a", 100)
    changes.write("a", 0, values(50))
    before = changes.commit("fifty of a hundred")
    changes = backend.begin()
    changes.resize("a", 200)
    changes.write("a", 50, values(150))
    changes.commit("the rest")
    found = read(backend, before)
    np.testing.assert_array_equal(found[:50], values(50))
    assert np.isnan(found[50:]).all()


def test_branches_that_go_on_from_one_version_do_not_disturb_each_other(tmp_path: Path) -> None:
    backend, rows = store(tmp_path), values(100)
    backend.create_branch("other", append(backend, rows))
    expected = {}
    for seed in range(1, 4):
        for branch in ("main", "other"):
            more = values(60, seed if branch == "main" else -seed % 100)
            before = expected.get(branch, (None, rows))[1]
            expected[branch] = append(backend, more, branch), np.concatenate([before, more])
            for version, all_rows in expected.values():
                np.testing.assert_array_equal(read(backend, version), all_rows)


def test_rows_appended_but_not_written_after_a_rollback_are_fill(tmp_path: Path) -> None:
    backend, rows = store(tmp_path), values(300)
    first, _, newest = (append(backend, rows[n : n + 100]) for n in (0, 100, 200))
    backend.reset_branch("main", first, expected=newest)
    changes = backend.begin()
    changes.resize("a", 250)
    again = changes.commit("longer")
    found = read(backend, again)
    np.testing.assert_array_equal(found[:100], rows[:100])
    assert np.isnan(found[100:]).all()
    np.testing.assert_array_equal(read(backend, newest), rows)
    append(backend, rows[:50])
    assert np.isnan(read(backend, again)[100:]).all()


def test_rows_that_one_branch_has_not_written_stay_fill_when_another_appends(
    tmp_path: Path,
) -> None:
    backend, rows = store(tmp_path), values(300)
    backend.create_branch("other", append(backend, rows[:100]))
    changes = backend.begin("other")
    changes.resize("a", 250)
    longer = changes.commit("longer")
    append(backend, rows[100:])
    found = read(backend, longer)
    np.testing.assert_array_equal(found[:100], rows[:100])
    assert np.isnan(found[100:]).all()


def test_an_end_that_no_note_names_keeps_its_file(tmp_path: Path) -> None:
    backend, rows = store(tmp_path), values(300)
    append(backend, rows[:100])
    (Path(backend.location) / "kpstore" / "last-chunks").unlink()
    append(backend, rows[100:200])
    assert len(set(files(backend).values())) == 2
    append(backend, rows[200:])
    assert len(set(files(backend).values())) == 2


def test_rows_of_versions_that_are_gone_do_not_stay_behind_the_ends_of_others(
    tmp_path: Path,
) -> None:
    backend, rows = store(tmp_path), values(400)
    versions = [append(backend, rows[n : n + 100]) for n in (0, 100, 200, 300)]
    for number in (0, 1):
        backend.create_tag(f"v{number}", versions[number])
    backend.reset_branch("main", versions[0], expected=versions[3])
    folder = Path(backend.location)
    (folder / "kpstore" / "last-chunk").hardlink_to(folder / "chunks" / next(iter(files(backend))))
    (folder / "chunks" / f"{next(iter(files(backend)))}#1").write_bytes(rows.tobytes())
    reader = mapped_rows(backend.session(versions[1]), "a")
    now = datetime.now(UTC)
    backend.collect_garbage(Before(now, now), apply=True)
    stays = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert rows[199].tobytes() in stays
    assert rows[200].tobytes() not in stays
    assert len(set(files(backend).values())) == 1
    for number in (0, 1):
        np.testing.assert_array_equal(read(backend, versions[number]), rows[: 100 + 100 * number])
    np.testing.assert_array_equal(reader, rows[:200])
    assert not list(backend.examine())


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_packed_chunks_keep_their_files(tmp_path: Path, codec: Codec) -> None:
    backend, rows = store(tmp_path, codec), values(300)
    versions = {n: append(backend, rows[n - 100 : n]) for n in (100, 200, 300)}
    for n_rows, version in versions.items():
        np.testing.assert_array_equal(read(backend, version), rows[:n_rows])


def test_without_hard_links_all_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    backend, rows = store(tmp_path), values(200)
    versions = {n: append(backend, rows[n - 100 : n]) for n in (100, 200)}
    assert len(set(files(backend).values())) == 2
    for n_rows, version in versions.items():
        np.testing.assert_array_equal(read(backend, version), rows[:n_rows])


@pytest.mark.parametrize(
    "note", [b"", b"[1, 2]", b'{"a": 5}', b'{"a": ["../../mine", "NAME"]}', b'{"a": [7]}', b"\xff"]
)
def test_a_note_of_strangers_leads_nowhere(tmp_path: Path, note: bytes) -> None:
    backend, rows = store(tmp_path), values(4096)
    mine = tmp_path / "mine"
    mine.write_bytes(b"\x07" * (CHUNK_BYTES + 4))
    whole = append(backend, rows[:1024])
    (another,) = files(backend)
    append(backend, rows[1024:1124])
    path = Path(backend.location) / "kpstore" / "last-chunks"
    path.write_bytes(note.replace(b"NAME", another.encode()))
    (path.parent / "last-chunk").write_bytes(b"of a writer that was killed")
    newest = append(backend, rows[1124:1224])
    assert mine.read_bytes() == b"\x07" * (CHUNK_BYTES + 4)
    np.testing.assert_array_equal(read(backend, whole), rows[:1024])
    np.testing.assert_array_equal(read(backend, newest), rows[:1224])
    assert list(json.loads(path.read_text())) == ["a"]


def test_ends_of_arrays_that_share_a_file_keep_the_longer_one_in_bytes(tmp_path: Path) -> None:
    backend, wide = store(tmp_path), values(100)
    narrow = wide.reshape(-1, 8)
    changes = backend.begin()
    changes.resize("a", 100)
    changes.write("a", 0, wide)
    changes.create("b", ArrayMeta((120, 8), "float32", 2048, META.dims, META.fill, codec="raw"))
    changes.write("b", 0, narrow[:120])
    shorter = changes.commit("as many bytes in a chunk")
    changes = backend.begin()
    changes.resize("b", 200)
    changes.write("b", 120, narrow[120:])
    longer = changes.commit("equal chunks")
    now, first = datetime.now(UTC), datetime.fromtimestamp(0, UTC)
    backend.collect_garbage(Before(first, now), apply=True)
    assert len(set(files(backend).values())) == 1
    backend.reset_branch("main", shorter, expected=longer)
    now = datetime.now(UTC)
    backend.collect_garbage(Before(first, now), apply=True)
    np.testing.assert_array_equal(read(backend, shorter), wide)
    np.testing.assert_array_equal(backend.session(shorter).read("b", 0, 120), narrow[:120])
