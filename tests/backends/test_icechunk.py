"""What only the Icechunk backend can get wrong: files, processes, and what it prints."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr

import kpstore
from kpstore.backends import icechunk_manifests, mapping
from kpstore.backends.base import ArrayMeta, Codec
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.icechunk_files import LocalChunks
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError, ExistsError, InvalidError, NotFoundError
from kpstore.store.reader import RowReader
from kpstore.testing.store_data import mapped_rows
from tests.backends.workers import COMMITS, commit_often, read_first_row


@pytest.fixture
def backend(tmp_path: Path) -> IcechunkBackend:
    """A store with a hundred rows, one a chunk."""
    backend = IcechunkBackend(str(tmp_path / "store"))
    backend.create({}, "created")
    changes = backend.begin()
    changes.create("a", ArrayMeta((100,), "float32", 1, ("frame",)))
    changes.create("big", ArrayMeta((4, 5000), "float32", 4, ("frame", "x"), codec="raw"))
    changes.write("big", 0, np.random.default_rng(0).standard_normal((4, 5000), dtype=np.float32))
    changes.commit("arrays")
    return backend


def test_opening_a_missing_path_makes_no_directory(tmp_path: Path) -> None:
    with pytest.raises(
        NotFoundError, match="does not exist; 'kpstore ingest' and 'kpstore import' make one"
    ):
        kpstore.open(tmp_path / "missing.kps")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(NotFoundError, match="is not a kpstore store"):
        kpstore.open(tmp_path / "notes")
    with pytest.raises(ExistsError, match="is not empty; choose another path"):
        kpstore.create(tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_a_file_where_a_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotFoundError, match="is not a kpstore store"):
        kpstore.open(tmp_path / "file")
    with pytest.raises(ExistsError, match="already exists"):
        kpstore.create(tmp_path / "file")


def test_create_in_an_empty_directory_works_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "empty.kps").mkdir()
    kpstore.create(tmp_path / "empty.kps")
    assert [p.name for p in tmp_path.iterdir()] == ["empty.kps"]


def test_someone_elses_arrays_are_no_kpstore_store(tmp_path: Path) -> None:
    IcechunkBackend(str(tmp_path / "other")).create({"title": "weather"}, "created")
    with pytest.raises(InvalidError, match="holds arrays but is not a kpstore store"):
        kpstore.open(tmp_path / "other")


def test_an_icechunk_repository_without_arrays_is_no_kpstore_store(tmp_path: Path) -> None:
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "bare")))
    with pytest.raises(InvalidError, match="not a kpstore store"):
        kpstore.open(tmp_path / "bare")


@pytest.mark.parametrize("kind", ["refs", "snapshots", "manifests"])
@pytest.mark.parametrize("damage", ["cut", "overwritten", "missing"])
def test_a_damaged_file_is_one_clear_line(backend: IcechunkBackend, kind: str, damage: str) -> None:
    for path in [p for p in (Path(backend.location) / kind).rglob("*") if p.is_file()]:
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(
                content[: len(content) // 2] if damage == "cut" else b"\xff" * len(content)
            )
    again = IcechunkBackend(backend.location)
    with pytest.raises((CorruptError, NotFoundError)) as caught:
        again.session(again.branches()["main"]).read("big", 0, 4)
    assert "\n" not in str(caught.value)
    assert backend.location in str(caught.value)
    with pytest.raises((CorruptError, NotFoundError)):
        again.session(again.branches()["main"]).chunks("big").read_into(0, np.empty((1, 1)))


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_a_chunk_that_holds_too_little_is_said(tmp_path: Path, codec: Codec) -> None:
    """A whole, valid chunk of another size must not leave in the buffer what was there before."""
    places = []
    for n_rows in (1024, 100):
        backend = IcechunkBackend(str(tmp_path / f"{n_rows}.kps"))
        backend.create({}, "made")
        changes = backend.begin()
        changes.create(
            "a", ArrayMeta((n_rows, 400), "float32", n_rows, ("frame", "x"), codec=codec)
        )
        changes.write("a", 0, np.random.default_rng(0).random((n_rows, 400), dtype=np.float32))
        chunks = backend.session(changes.commit("values")).chunks("a")
        assert isinstance(chunks, LocalChunks)
        places.append(chunks)
    large, small = places
    large._places = small._places
    with pytest.raises(CorruptError, match="160000 bytes, 1638400 were expected"):
        large.read_into(0, np.empty((1024, 400), np.float32))


def test_a_flipped_bit_is_found_by_a_read_of_a_session(tmp_path: Path) -> None:
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    changes = backend.begin()
    changes.create("a", ArrayMeta((2048, 4), "float32", 1024, ("frame", "x"), codec="raw"))
    changes.write("a", 0, np.ones((2048, 4), np.float32))
    snapshot = changes.commit("values")
    chunk = max((tmp_path / "s.kps" / "chunks").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(chunk.read_bytes())
    content[1000] ^= 4
    chunk.write_bytes(bytes(content))
    with pytest.raises(CorruptError, match="checksum"):
        backend.session(snapshot).read("a", 0, 2048)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_chunk_names_the_rows(backend: IcechunkBackend, damage: str) -> None:
    (path,) = (Path(backend.location) / "chunks").iterdir()
    path.write_bytes(path.read_bytes()[:1000]) if damage == "cut" else path.unlink()
    again = IcechunkBackend(backend.location)
    with pytest.raises(
        CorruptError, match=r"rows 0:4 of 'big' in .* cannot be read: \S.*"
    ) as caught:
        again.session(again.branches()["main"]).read("big", 0, 4)
    assert "\n" not in str(caught.value)


def test_nothing_is_printed(tmp_path: Path) -> None:
    code = (
        "import sys, kpstore, numpy as np\n"
        "store = kpstore.create(sys.argv[1])\n"
        "with store.transaction('add') as tx:\n"
        "    tx.add_videos([kpstore.VideoRecord('a', 'train', ('0.png',))])\n"
        "kpstore.open(sys.argv[1]).videos\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "s"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_open_and_commit_print_nothing_here(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    IcechunkBackend(str(tmp_path / "s")).create({}, "created")
    IcechunkBackend(str(tmp_path / "s")).branches()
    assert capfd.readouterr() == ("", "")


def test_no_commit_is_lost_when_four_processes_commit_at_once(backend: IcechunkBackend) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=commit_often, args=(backend.location, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    tip = backend.branches()["main"]
    messages = {commit.message for commit in backend.history(tip)}
    assert messages == {"created", "arrays"} | {
        f"{n}-{i}" for n in range(4) for i in range(COMMITS)
    }
    assert backend.session(tip).read("a", 0, 4 * COMMITS).tolist() == [1.0] * 4 * COMMITS


def answer_from(method: str, backend: IcechunkBackend) -> str:
    snapshot = backend.branches()["main"]
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=read_first_row, args=(backend, snapshot, answers), daemon=True)
    with warnings.catch_warnings():
        # Python 3.12 warns of fork() beside threads, which is the very thing under test.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    child.join()
    assert child.exitcode == 0
    answer = answers.get()
    answers.close()
    answers.join_thread()
    return answer


def test_a_forked_child_is_told_what_to_do_and_does_not_hang(backend: IcechunkBackend) -> None:
    assert "forkserver" in answer_from("fork", backend)
    said = "UnsupportedError: an Icechunk store cannot be read in a process made by"
    assert answer_from("fork", backend).startswith(said)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_started_anew_can_read(backend: IcechunkBackend, method: str) -> None:
    assert answer_from(method, backend) == "read 0.0"


def test_an_open_view_does_not_hang_in_a_forked_child(backend: IcechunkBackend) -> None:
    code = (
        "import os, sys, kpstore\n"
        "store = kpstore.create(sys.argv[1])\n"
        "session, changes = store.session, store.backend.begin()\n"
        "calls = session.names, lambda: session.meta('a'), lambda: changes.set_attrs({}), lambda: "
        "changes.commit('x'), repr\nfor call in calls:\n    pid = os.fork()\n    if pid == 0:\n    "
        "    try:\n            call() if call is not repr else repr(store)\n        except "
        "kpstore.KpstoreError as error:\n            os._exit(7 if 'forkserver' in str(error) else "
        "8)\n        os._exit(9)\n    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        code,
        backend.location + "-2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7"] * 5


def test_threads_can_read_at_once(backend: IcechunkBackend) -> None:
    session = backend.session(backend.branches()["main"])
    expected, found = session.read("big", 0, 4), []
    threads = [
        threading.Thread(target=lambda: found.append(session.read("big", 0, 4))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(expected, values) for values in found)


def test_a_store_can_be_moved(backend: IcechunkBackend, tmp_path: Path) -> None:
    shutil.move(backend.location, tmp_path / "elsewhere")
    moved = IcechunkBackend(str(tmp_path / "elsewhere"))
    assert moved.session(moved.branches()["main"]).names() == ["a", "big"]


def test_written_chunks_exist_even_if_all_of_them_is_fill(backend: IcechunkBackend) -> None:
    changes = backend.begin()
    changes.write("a", 0, np.zeros(2, dtype=np.float32))
    snapshot = changes.commit("zeros")
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(backend.location))
    session = repository.readonly_session(snapshot_id=snapshot)
    array = zarr.open_array(session.store, path="a", mode="r")
    assert array.nchunks_initialized == 2


def test_raw_chunks_are_mapped_as_they_lie(tmp_path: Path) -> None:
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    changes = backend.begin()
    values = np.arange(5000 * 4, dtype=np.float32).reshape(5000, 4)
    changes.create("a", ArrayMeta((5000, 4), "float32", 1024, ("frame", "x"), codec="raw"))
    changes.write("a", 0, values)
    mapped = mapped_rows(backend.session(changes.commit("values")), "a")
    assert mapped is not None
    for chunk in (tmp_path / "s.kps" / "chunks").iterdir():
        chunk.unlink()
    np.testing.assert_array_equal(mapped, values)
    kept = mapped[4990:]
    del mapped
    np.testing.assert_array_equal(kept, values[4990:])


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_a_torn_chunk_is_said_and_never_read_as_something_else(
    tmp_path: Path, codec: Codec
) -> None:
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    changes = backend.begin()
    changes.create("a", ArrayMeta((4096, 4), "float32", 1024, ("frame", "x"), codec=codec))
    changes.write("a", 0, np.random.default_rng(0).random((4096, 4), dtype=np.float32))
    snapshot = changes.commit("values")
    torn = max((tmp_path / "s.kps" / "chunks").iterdir(), key=lambda path: path.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:-200])
    chunks, out = backend.session(snapshot).chunks("a"), np.empty((1024, 4), np.float32)
    assert (chunks.mapped is not None) == (codec == "raw")
    ways = [lambda number: chunks.read_into(number, out)]
    for read in [*ways, *([chunks.bring] if codec == "raw" else [])]:
        failures = []
        for number in range(4):
            try:
                read(number)
            except CorruptError as error:
                failures.append(str(error))
        assert len(failures) == 1
        assert torn.name in failures[0]


def test_a_chunk_is_mapped_when_it_is_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    changes = backend.begin()
    values = np.arange(50 * 1024 * 2, dtype=np.float64).reshape(-1, 2)
    changes.create("a", ArrayMeta(values.shape, "float64", 1024, ("frame", "x"), codec="raw"))
    changes.write("a", 0, values)
    session = backend.session(changes.commit("values"))
    mapped, place = [], mapping._Memory.place
    monkeypatch.setattr(
        mapping._Memory, "place", lambda *given: mapped.append(given[3]) or place(*given)
    )
    reader = RowReader(session)
    for _ in range(2):
        np.testing.assert_array_equal(reader.read_slice("a", 5000, 5100), values[5000:5100])
        np.testing.assert_array_equal(reader.read("a", np.array([0, 51199, 1])), values[[0, -1, 1]])
    assert mapped == [n * 1024 * 16 for n in (4, 0, 49)]


def test_where_the_metadata_is_not_understood_reading_goes_through_icechunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "made")
    changes = backend.begin()
    values = np.random.default_rng(0).random((2500, 4), dtype=np.float32)
    changes.create("a", ArrayMeta((2500, 4), "float32", 1024, ("frame", "x"), codec="raw"))
    changes.write("a", 0, values)
    snapshot = changes.commit("values")
    monkeypatch.setattr(icechunk_manifests, "_FORMAT_1", 2)
    chunks = backend.session(snapshot).chunks("a")
    assert isinstance(chunks, SessionChunks)
    out = np.empty((1024, 4), np.float32)
    chunks.read_into(2, out)
    np.testing.assert_array_equal(out[:452], values[2048:])
