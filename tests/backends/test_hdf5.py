"""What only HDF5 has: one file that is always complete and that h5py reads without kpstore."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

import kpstore
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Codec
from kpstore.backends.checksums import checksum, text_digest
from kpstore.backends.garbage import Before
from kpstore.backends.hdf5 import HDF5Backend
from kpstore.backends.hdf5_changes import OPEN
from kpstore.backends.hdf5_records import HOME, read_json, write_json
from kpstore.backends.memory import MemoryBackend
from kpstore.errors import BusyError, CorruptError, ExistsError, InvalidError, NotFoundError
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import FeatureSpec
from kpstore.testing.store_data import mapped_rows
from tests.backends.workers import read_first_row
from tests.conftest import memory_location
from tests.fakes import FakeExtractor, FakeSource, record
from tests.store.data import fill, rows_of

PAGES = ArrayMeta((5000, 4), "float32", 1024, ("frame", "x"), codec="raw")
VALUES = np.arange(5000 * 4, dtype=np.float32).reshape(5000, 4)


@pytest.fixture
def backend(tmp_path: Path) -> HDF5Backend:
    backend = HDF5Backend(str(tmp_path / "s.h5"))
    backend.create({"title": "t"}, "made")
    changes = backend.begin()
    changes.create("a", PAGES)
    changes.write("a", 0, VALUES)
    changes.commit("values")
    return backend


def head(backend: HDF5Backend) -> str:
    return backend.branches()[MAIN]


@pytest.mark.parametrize("damage", [False, True])
def test_garbage_collection_keeps_no_rows_that_only_later_versions_had(
    tmp_path: Path, *, damage: bool
) -> None:
    backend, path = HDF5Backend(str(tmp_path / "s.h5")), tmp_path / "s.h5"
    backend.create({}, "made")
    changes = backend.begin()
    changes.create("a", ArrayMeta((40, 4), "float32", 16, ("frame", "x"), codec="raw"))
    changes.write("a", 0, VALUES[:40])
    tagged = changes.commit("values")
    backend.create_tag("kept", tagged)
    changes = backend.begin()
    changes.resize("a", 60)
    changes.write("a", 40, VALUES[40:60])
    changes.commit("more rows")
    changes = backend.begin()
    changes.write("a", 16, VALUES[100:116])
    later = changes.commit("other rows")
    changes = backend.begin()
    changes.delete("a")
    changes.commit("gone")
    if damage:
        at = int(backend.session(later).place("a", 2).split()[1])
        content = bytearray(path.read_bytes())
        content[at + 5] ^= 255
        path.write_bytes(content)
        backend = HDF5Backend(str(path))
    now = datetime.now(UTC)
    backend.collect_garbage(Before(now, now), apply=True)
    stays = path.read_bytes()
    assert VALUES[0].tobytes() in stays
    assert not [n for n in (*range(40, 60), *range(100, 116)) if VALUES[n].tobytes() in stays]
    session = HDF5Backend(str(path)).session(tagged)
    np.testing.assert_array_equal(session.read("a", 0, 32), VALUES[:32])
    if damage:
        with pytest.raises(CorruptError, match="rows 32:40 of 'a'"):
            session.read("a", 32, 40)
    else:
        np.testing.assert_array_equal(session.read("a", 32, 40), VALUES[32:40])
    assert list(backend.examine()) == []


# -- the file --------------------------------------------------------------------------------------


def test_h5py_reads_the_newest_version_without_us(tmp_path: Path) -> None:
    store = fill(kpstore.create(tmp_path / "s.h5"))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["video_id"].asstr()[:].tolist() == ["a", "b", "c", "d"]
        np.testing.assert_array_equal(file["points"][:5], rows_of("a", 5).values)
        assert [dim.label for dim in file["points"].dims] == ["frame", "point", "space"]
        assert file["points"].attrs["units"] == "1"
        assert file["space"].asstr()[:].tolist() == ["x", "y", "z"]
        assert file.attrs["Conventions"] == store.session.attrs()["Conventions"]


def test_a_file_that_h5py_holds_open_can_be_read_and_written(backend: HDF5Backend) -> None:
    with h5py.File(backend.location) as file:
        changes = backend.begin()
        changes.write("a", 0, VALUES[:10] + 1)
        changes.commit("more")
        np.testing.assert_array_equal(file["a"][:10], VALUES[:10])
        np.testing.assert_array_equal(
            HDF5Backend(backend.location).session(head(backend)).read("a", 0, 10), VALUES[:10] + 1
        )


def test_attributes_of_any_length(backend: HDF5Backend) -> None:
    long = {"text": "x" * 200_000, "list": list(range(50_000)), "odd": "json:", "zero": "a\0b"}
    changes = backend.begin()
    changes.set_attrs(long)
    changes.set_array_attrs("a", long)
    session = backend.session(changes.commit("long"))
    assert session.attrs() == long
    assert session.meta("a").attrs == long


def test_text_with_a_zero_is_refused_rather_than_cut(backend: HDF5Backend) -> None:
    changes = backend.begin()
    changes.create("words", ArrayMeta((1,), TEXT, 4, ("video",)))
    with pytest.raises(InvalidError, match="zero character"):
        changes.write("words", 0, np.array(["a\0b"], dtype=object))


@pytest.mark.parametrize("kind", ["folder", "text", "torn", "foreign"])
def test_what_is_no_store_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.h5"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "foreign":
        with h5py.File(path, "w") as file:
            file["keypoints"] = VALUES
    else:
        fill(kpstore.create(path))
        path.write_bytes(path.read_bytes()[:3000])
    kinds = (NotFoundError, CorruptError)
    with pytest.raises(
        kinds,
        match=r"x.h5 (is a folder|is not a kpstore store in HDF5|cannot be opened as HDF5: trun)",
    ):
        kpstore.open(path)


def test_a_file_that_another_program_writes_is_busy(backend: HDF5Backend) -> None:
    script = (
        "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); "
        "sys.stdin.readline()"
    )
    command = [sys.executable, "-c", script, backend.location]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BusyError, match="open for writing in another program"):
            HDF5Backend(backend.location).branches()
        holder.kill()


def test_a_link_stays_a_link_and_both_names_lead_to_one_store(
    tmp_path: Path, backend: HDF5Backend
) -> None:
    link = tmp_path / "link.h5"
    link.symlink_to(backend.location)
    HDF5Backend(str(link)).create_tag("v1", head(backend))
    assert link.is_symlink()
    assert list(backend.tags()) == ["v1"]


def test_mode_and_group_stay(backend: HDF5Backend) -> None:
    os.chmod(backend.location, 0o664)
    backend.create_tag("v1", head(backend))
    assert os.stat(backend.location).st_mode & 0o777 == 0o664


def test_what_others_add_by_h5py_does_no_harm(backend: HDF5Backend) -> None:
    with h5py.File(backend.location, "r+") as file:
        file.attrs["comment"] = 5
        file["a"].attrs["checked"] = np.arange(3)
        file["mine"] = np.arange(3)
        file["away"] = h5py.ExternalLink("elsewhere.h5", "/a")
    session = HDF5Backend(backend.location).session(head(backend))
    assert (session.names(), dict(session.attrs()), dict(session.meta("a").attrs)) == (
        ["a"],
        {"title": "t"},
        {},
    )
    changes = HDF5Backend(backend.location).begin()
    changes.set_attrs({"title": "u"})
    changes.set_array_attrs("a", {"units": "1"})
    with pytest.raises(ExistsError, match=r"'mine' is taken .* not kpstore's"):
        changes.create("mine", PAGES)
    changes.commit("more")
    with h5py.File(backend.location) as file:
        assert (file.attrs["comment"], file["mine"][2]) == (5, 2)


@pytest.mark.parametrize("where", ["tree", "record", "delta", "tags"])
def test_damage_outside_of_the_chunks_is_said_to_be_damage(tmp_path: Path, where: str) -> None:
    store = fill(kpstore.create(tmp_path / "made.h5"))
    new, old = (commit.id for commit in (*list(store.history())[:1], *list(store.history())[-1:]))
    shutil.copy(store.location, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        home = file["_kpstore"]
        if where == "tree":
            home["tree"][30] ^= 1
        elif where == "record":
            home["versions"][new]["record"][:3] = 0
        elif where == "delta":
            del home["versions"][old]["delta"]["about"]
        else:
            home["names"][10] ^= 1
    version = {"tree": new, "record": new, "delta": old, "tags": "arrays and versions"}[where]
    with pytest.raises(
        CorruptError, match=rf"s.h5: its record of .*{version} cannot be read .* it is damaged"
    ):
        _read_versions(tmp_path / "s.h5", old)
    assert any(
        version in line or where == "tags" for line in HDF5Backend(str(tmp_path / "s.h5")).examine()
    )


def _read_versions(path: Path, old: str) -> None:
    opened = kpstore.open(path)
    assert opened.tags == {}
    assert list(opened.history())
    kpstore.open(path, old)


def test_arrays_in_other_files_are_not_read(tmp_path: Path, backend: HDF5Backend) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = VALUES
    layout = h5py.VirtualLayout(shape=VALUES.shape, dtype="f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", shape=VALUES.shape)
    with h5py.File(backend.location, "r+") as file:
        about = file["a"].attrs["kpstore_meta"]
        del file["a"]
        file.create_virtual_dataset("a", layout)
        file["a"].attrs["kpstore_meta"] = about
    with pytest.raises(InvalidError, match="the values of 'a' lie in other files"):
        HDF5Backend(backend.location).session(head(backend)).read("a", 0, 10)


def test_two_that_move_to_one_place_do_not_overwrite_each_other(
    tmp_path: Path, backend: HDF5Backend
) -> None:
    other = HDF5Backend(str(tmp_path / "other.h5"))
    other.create({}, "other")
    target = HDF5Backend(str(tmp_path / "target.h5"))
    check, turns = HDF5Backend.check_free, [1]

    def overtaken(self: HDF5Backend) -> None:
        check(self)
        if turns:
            turns.pop()
            other.move(target.location)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HDF5Backend, "check_free", overtaken)
        with pytest.raises(ExistsError):
            backend.move(target.location)
    assert backend.exists()
    assert not other.exists()


def test_a_full_disk_is_an_error_before_hdf5_meets_it(
    backend: HDF5Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = head(backend)
    changes = backend.begin()
    changes.write("a", 0, VALUES[:10])
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(OSError, match="No space left"):
        changes.write("a", 2000, VALUES[:10])
    changes.discard()
    with pytest.raises(OSError, match="No space left"):
        backend.create_tag("v1", before)
    monkeypatch.undo()
    assert head(backend) == before
    assert sorted(path.name for path in Path(backend.location).parent.iterdir()) == [
        ".s.h5.kpstore",
        "s.h5",
    ]


def test_small_commits_cost_little(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.h5")
    with store.transaction("plan") as tx:
        tx.add_videos([record(f"v{n}", 10) for n in range(12)])
        tx.add_feature(FeatureSpec("wide", (400,), ("x",)))
    sizes = []
    for n in range(12):
        with store.transaction(f"{n}") as tx:
            tx.write("wide", f"v{n}", np.full((10, 400), n, np.float32))
        sizes.append((tmp_path / "s.h5").stat().st_size)
    assert (sizes[-1] - sizes[0]) / 11 < 200_000, "a whole chunk is 1.6 MB"
    first = store.at(store.at().history()[-4].id)
    assert np.isnan(first["wide"][20:]).all()


def test_history_costs_what_was_overwritten(tmp_path: Path) -> None:
    """Extraction writes rows that nobody wrote before; their versions cost nothing but a record."""
    source = FakeSource({f"v{n}": 20 for n in range(20)})
    path = tmp_path / "s.h5"
    options = Options(workers=0, checkpoint_frames=40, task_frames=40)
    run_ingest(source, path, FakeExtractor(chunk_rows=10), options)
    store = kpstore.open(path)
    assert len(store.history()) > 8
    kept = 0
    with h5py.File(path) as file:
        for group in file["_kpstore/versions"].values():
            if "delta" in group:
                kept += sum(
                    array.shape[0]
                    for name, array in group["delta/chunks"].items()
                    if name == "points"
                )
    assert kept == 0


# -- old versions ----------------------------------------------------------------------------------


def check_equal(one: HDF5Backend, other: MemoryBackend, pairs: list[tuple[str, str]]) -> None:
    for mine, theirs in pairs:
        here, there = HDF5Backend(one.location).session(mine), other.session(theirs)
        assert (here.attrs(), here.names()) == (there.attrs(), there.names())
        for name in here.names():
            assert here.meta(name).attrs == there.meta(name).attrs
            n_rows = there.meta(name).n_rows
            assert here.meta(name).n_rows == n_rows
            np.testing.assert_array_equal(here.read(name, 0, n_rows), there.read(name, 0, n_rows))
            np.testing.assert_array_equal(
                here.read(name, n_rows // 3, n_rows // 2),
                there.read(name, n_rows // 3, n_rows // 2),
            )
            if name not in "ef":
                chunks, out = here.chunks(name), np.empty((4, 3), np.float32)
                for number in range(-(-n_rows // 4)):
                    chunks.read_into(number, out)
                    wanted = there.read(name, number * 4, min(number * 4 + 4, n_rows))
                    np.testing.assert_array_equal(out[: len(wanted)], wanted)


@pytest.mark.parametrize(
    ("seed", "codec"), [(seed, ["raw", "zstd"][seed % 2]) for seed in range(6)]
)
def test_all_versions_equal_those_of_the_memory_backend(
    tmp_path: Path, seed: int, codec: Codec
) -> None:
    """After any mixture of changes, commits and steps back, every version reads as committed.

    All of them are read now and then, and the last few after every commit.
    """
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    one, other = HDF5Backend(str(tmp_path / "s.h5")), MemoryBackend(memory_location())
    pairs = [(one.create({"n": 0}, "made"), other.create({"n": 0}, "made"))]
    for step in range(25):
        if rng.random() < 0.15 and len(pairs) > 1:
            target = rng.choice(pairs)
            for backend, snapshot in zip((one, other), target, strict=True):
                backend.reset_branch(MAIN, snapshot, expected=backend.branches()[MAIN])
            continue
        sessions = one.begin(), other.begin()
        for _ in range(rng.randint(1, 4)):
            names = sessions[0].names()
            action = rng.choice(
                ["create", "write", "write", "write", "resize", "delete", "attrs", "array attrs"]
            )
            name = rng.choice(names) if names else ""
            if action == "create":
                meta = ArrayMeta(
                    (rng.randint(0, 12), 3), "float32", 4, ("frame", "x"), float("nan"), codec=codec
                )
                text = ArrayMeta((rng.randint(0, 12),), TEXT, 4, ("frame",))
                new = rng.choice([n for n in "abcdef" if n not in names] or [""])
                for session in sessions if new else ():
                    session.create(new, text if new in "ef" else meta)
            elif action == "attrs":
                for session in sessions:
                    session.set_attrs({"n": step})
            elif name and action == "delete":
                for session in sessions:
                    session.delete(name)
            elif name and action == "resize":
                for session in sessions:
                    session.resize(name, session.meta(name).n_rows + 3)
            elif name and action == "array attrs":
                for session in sessions:
                    session.set_array_attrs(name, {"step": step})
            elif name and action == "write" and sessions[0].meta(name).n_rows:
                start = rng.randrange(sessions[0].meta(name).n_rows)
                n_rows = rng.randint(1, sessions[0].meta(name).n_rows - start)
                words = np.array([f"w{rng.randint(0, 99)}" for _ in range(n_rows)], dtype=object)
                values = words if name in "ef" else numbers.random((n_rows, 3), dtype=np.float32)
                for session in sessions:
                    session.write(name, start, values)
        pairs.append((sessions[0].commit(f"{step}"), sessions[1].commit(f"{step}")))
        check_equal(one, other, pairs if step % 6 == 0 else pairs[-3:])
    check_equal(one, other, pairs)


# -- reading ---------------------------------------------------------------------------------------


def test_raw_chunks_are_mapped_from_their_place(backend: HDF5Backend) -> None:
    old = head(backend)
    mapped = mapped_rows(backend.session(old), "a")
    np.testing.assert_array_equal(mapped, VALUES)
    changes = backend.begin()
    changes.write("a", 1500, VALUES[:100] - 1)
    changes.resize("a", 6000)
    newest = mapped_rows(backend.session(changes.commit("changed")), "a")
    wanted = np.concatenate([VALUES, np.zeros((1000, 4), np.float32)])
    wanted[1500:1600] = VALUES[:100] - 1
    np.testing.assert_array_equal(newest, wanted)
    before, out = backend.session(old).chunks("a"), np.empty((1024, 4), np.float32)
    assert before.mapped is None, "what a version lost since is kept compressed"
    before.read_into(1, out)
    np.testing.assert_array_equal(out, VALUES[1024:2048])
    backend.remove()
    np.testing.assert_array_equal(mapped, VALUES)


def test_a_file_that_ends_early_is_said(backend: HDF5Backend) -> None:
    session = backend.session(head(backend))
    chunks = session.chunks("a")
    os.truncate(backend.location, 60_000)
    with pytest.raises(CorruptError, match="cannot be read"):
        chunks.read_into(3, np.empty((1024, 4), np.float32))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_processes_read_also_forked_ones(backend: HDF5Backend, method: str) -> None:
    snapshot = head(backend)
    backend.session(snapshot).read("a", 0, 10)
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=read_first_row, args=(backend, snapshot, answers))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert answers.get() == f"read {VALUES[0]}"


# -- writing ---------------------------------------------------------------------------------------


def test_threads_that_commit_at_once_lose_nothing(backend: HDF5Backend) -> None:
    def commit(worker: int) -> None:
        mine = HDF5Backend(backend.location)
        for number in range(5):
            changes = mine.begin()
            changes.write("a", 1024 * worker + number, np.full((1, 4), -worker, np.float32))
            changes.commit(f"{worker}-{number}")

    threads = [threading.Thread(target=commit, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(backend.history(head(backend)))) == 2 + 20
    stored = backend.session(head(backend)).read("a", 0, 5000)
    for worker in range(4):
        assert (stored[1024 * worker : 1024 * worker + 5] == -worker).all()


COMMITTER = """
import sys
import numpy as np
from kpstore.backends.hdf5 import HDF5Backend

backend = HDF5Backend(sys.argv[1])
for number in range(10**6):
    changes = backend.begin()
    changes.write("a", 0, np.full((3000, 4), number, np.float32))
    changes.commit(str(number))
    print(number, flush=True)
"""


def test_a_killed_commit_leaves_the_last_version_or_the_next(backend: HDF5Backend) -> None:
    moment = random.Random(5)
    kills = killed_in_a_copy = 0
    while kills < int(os.environ.get("KPSTORE_KILLS", "25")) // 4 or not killed_in_a_copy:
        kills += 1
        run = subprocess.Popen(
            [sys.executable, "-c", COMMITTER, backend.location], stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        run.stdout.readline()
        time.sleep(moment.random() * 0.06)
        run.send_signal(signal.SIGKILL)
        acknowledged = ["0", *run.stdout.read().split()]
        run.wait()
        run.stdout.close()
        folder = Path(backend.location).parent
        killed_in_a_copy += bool(list(folder.glob(".writing-*")))
        newest = next(iter(backend.history(head(backend))))
        assert int(newest.message) - int(acknowledged[-1]) in (0, 1)
        stored = backend.session(newest.id).read("a", 0, 5000)
        assert (stored[:3000] == int(newest.message)).all()
        np.testing.assert_array_equal(stored[3000:], VALUES[3000:])
    backend.create_tag("after", head(backend))
    assert not list(Path(backend.location).parent.glob(".writing-*"))


def test_an_ingest_gives_the_same_as_in_the_other_backend(tmp_path: Path) -> None:
    source = FakeSource(
        {f"v{n}": (n * 7) % 40 for n in range(12)}, broken={"v3": [0]}, unreadable=("v5",)
    )
    for path, workers in ((tmp_path / "s.h5", 1), (tmp_path / "s.kps", 0)):
        options = Options(workers=workers, task_frames=60, checkpoint_frames=100)
        run_ingest(source, path, FakeExtractor(chunk_rows=8), options)
    one, other = kpstore.open(tmp_path / "s.h5"), kpstore.open(tmp_path / "s.kps")
    assert not kpstore.diff(one, other)
    assert len(one.history()) == len(other.history())


def test_file_systems_without_second_names_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "link", refuse)
    backend = HDF5Backend(str(tmp_path / "a.h5"))
    backend.create({"a": 1}, "new")
    backend.move(str(tmp_path / "b.h5"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".h5"] == ["b.h5"]
    with pytest.raises(ExistsError):
        HDF5Backend(str(tmp_path / "b.h5")).create({}, "new")


# -- damage ----------------------------------------------------------------------------------------

WORDS = np.array([f"clips/{number}.mp4" for number in range(300)], dtype=object)


@pytest.fixture
def three(tmp_path: Path) -> tuple[HDF5Backend, list[str]]:
    """A store in chunks of 64 rows, and its versions: empty, all rows, some rows changed."""
    backend = HDF5Backend(str(tmp_path / "t.h5"))
    versions = [backend.create({"title": "t"}, "made")]
    changes = backend.begin()
    for name, codec in (("raw", "raw"), ("small", "lz4")):
        changes.create(name, ArrayMeta((300, 16), "float32", 64, ("frame", "x"), codec=codec))  # type: ignore[arg-type]
        changes.write(name, 0, ROWS)
    changes.create("words", ArrayMeta((300,), TEXT, 64, ("frame",)))
    changes.write("words", 0, WORDS)
    versions.append(changes.commit("all"))
    changes = backend.begin()
    changes.write("raw", 10, ROWS[:30] + 1)
    changes.write("words", 10, WORDS[::-1][:30])
    versions.append(changes.commit("some"))
    return backend, versions


ROWS = np.arange(300 * 16, dtype=np.float32).reshape(300, 16)


def damage(backend: HDF5Backend, name: str, chunk: int, how: str = "flip") -> None:
    """Damage a chunk of the newest version, on the disk."""
    with h5py.File(backend.location) as file:
        dataset = file[name]
        corner = (chunk * dataset.chunks[0], *(0 for _ in dataset.shape[1:]))
        found = dataset.id.get_chunk_info_by_coord(corner)
        heaps = [
            match.start() for match in re.finditer(b"GCOL", Path(backend.location).read_bytes())
        ]
    with open(backend.location, "r+b") as opened:
        if how == "heap":  # a size of nothing, over which HDF5's own library never ends
            for heap in heaps:
                opened.seek(heap + 16)
                opened.write(bytes(2000))
        else:
            opened.seek(found.byte_offset + 9)
            byte = opened.read(1)[0]
            opened.seek(found.byte_offset + 9)
            opened.write(bytes([byte ^ 4]))


def swap(backend: HDF5Backend, name: str, one: int, other: int) -> None:
    """Let two chunks of raw numbers change places."""
    with h5py.File(backend.location, "r+") as file:
        corners = [(chunk * 64, 0) for chunk in (one, other)]
        stored = [file[name].id.read_direct_chunk(corner)[1] for corner in corners]
        for corner, content in zip(corners, reversed(stored), strict=True):
            file[name].id.write_direct_chunk(corner, content)


def reopened(backend: HDF5Backend) -> HDF5Backend:
    return HDF5Backend(backend.location)


@pytest.mark.parametrize(
    ("name", "how"), [("raw", "flip"), ("small", "flip"), ("words", "flip"), ("words", "heap")]
)
def test_a_damaged_chunk_is_never_read_and_the_others_are(
    three: tuple[HDF5Backend, list[str]], name: str, how: str
) -> None:
    backend, versions = three
    damage(backend, name, 2, how)
    for snapshot in versions[1:]:
        session = reopened(backend).session(snapshot)
        with pytest.raises(
            CorruptError, match=rf"rows (128:192|130:131) of '{name}' in .*t.h5 cannot be read"
        ):
            session.read(name, 130, 131)
        if how == "flip":
            session.read(name, 0, 128)
            assert re.fullmatch(r"byte \d+ of the file", session.place(name, 2))


def test_chunks_that_change_places_are_told_apart(three: tuple[HDF5Backend, list[str]]) -> None:
    backend, versions = three
    swap(backend, "raw", 1, 3)
    for snapshot in versions[1:]:
        session = reopened(backend).session(snapshot)
        np.testing.assert_array_equal(session.read("raw", 128, 192), ROWS[128:192])
        for chunk in (1, 3):
            with pytest.raises(
                CorruptError,
                match=rf"rows {chunk * 64}:{chunk * 64 + 64} of .* do not match their checksum",
            ):
                session.read("raw", chunk * 64, chunk * 64 + 1)


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", ["raw", "small", "words"])
def test_damage_that_is_overwritten_stays_damage_in_older_versions(
    three: tuple[HDF5Backend, list[str]], name: str, chunk: int
) -> None:
    backend, versions = three
    damage(backend, name, chunk)
    start, stop = chunk * 64, min(chunk * 64 + 64, 300)
    values = (WORDS if name == "words" else ROWS)[::-1][start:stop]
    changes = reopened(backend).begin()
    with pytest.raises(
        CorruptError, match=f"rows {start}:{stop} of '{name}' .* give all, or use 'kpstore repair'"
    ):
        changes.write(name, start + 1, values[1:])
    changes.discard()
    changes = reopened(backend).begin()
    changes.write(name, start, values)
    changes.write(name, start + 3, values[3:5])
    repaired = changes.commit("good rows in the place of bad ones")
    np.testing.assert_array_equal(
        reopened(backend).session(repaired).read(name, start, stop), values
    )
    for snapshot in versions[1:]:
        old = reopened(backend).session(snapshot)
        with pytest.raises(CorruptError, match=f"'{name}' .*cannot be read"):
            old.read(name, start, stop)
        old.read(name, 128, 192)
    assert not list(backend.examine())
    with pytest.raises(CorruptError, match="so that version cannot become the newest one again"):
        backend.reset_branch(MAIN, versions[-1], expected=repaired)


def test_checksums_are_those_of_the_rows(three: tuple[HDF5Backend, list[str]]) -> None:
    backend, versions = three
    changes = backend.begin()
    changes.resize("raw", 340)
    changes.write("raw", 290, np.ones((20, 16), np.float32))
    changes.create("empty", ArrayMeta((200, 2), "float64", 64, ("frame", "x"), float("nan")))
    for session in (
        changes,
        *(backend.session(snapshot) for snapshot in [*versions[1:], changes.commit("longer")]),
    ):
        for name in session.names():
            meta, found = session.meta(name), session.checksums(name)
            assert found is not None
            rows = [
                session.read(name, at, min(at + 64, meta.n_rows))
                for at in range(0, meta.n_rows, 64)
            ]
            written = (
                [False] * 4 if name == "empty" else [at < 320 for at in range(0, meta.n_rows, 64)]
            )
            wanted = [
                checksum(meta, block) if there else 0
                for block, there in zip(rows, written, strict=True)
            ]
            assert found.tolist() == wanted, name


@pytest.mark.parametrize("what", ["tables", "table of an older version", "base", "parent", "tag"])
def test_examine_names_what_no_chunk_shows(three: tuple[HDF5Backend, list[str]], what: str) -> None:
    backend, versions = three
    with h5py.File(backend.location, "r+") as file:
        home = file[HOME]
        version, older = home["versions"][versions[2]], home["versions"][versions[1]]["delta"]
        if what == "tables":
            home["checksums"][3] ^= 1
            wanted = f"version {versions[2]}: 'raw': the table of its checksums is damaged"
        elif what == "table of an older version":
            older["checksums"][3] ^= 1
            wanted = f"version {versions[1]}: 'raw': the table of its checksums is damaged"
        elif what == "base":
            about = read_json(older, "about")
            write_json(older, "about", {**about, "base": versions[1]})
            wanted = (
                f"version {versions[1]}: it is described by version {versions[1]}, which leads "
                "nowhere"
            )
        elif what == "parent":
            record = read_json(version, "record")
            write_json(version, "record", {**record, "parent": versions[2]})
            wanted = f"version {versions[2]}: it follows itself"
        else:
            write_json(
                home, "names", {"head": versions[2], "tags": {"v1": "GONE"}, "used_tags": ["v1"]}
            )
            wanted = "tag 'v1' names version GONE, which is missing"
    opened = reopened(backend)
    assert wanted in list(opened.examine())
    if what == "base":
        with pytest.raises(
            CorruptError, match=f"version {versions[1]} cannot be read .*described by versions"
        ):
            opened.session(versions[1])
    if what == "parent":
        with pytest.raises(CorruptError, match="it follows itself"):
            list(opened.history(versions[2]))


def test_records_that_change_places_are_damage(three: tuple[HDF5Backend, list[str]]) -> None:
    backend, versions = three
    with h5py.File(backend.location, "r+") as file:
        groups = [file[HOME]["versions"][snapshot] for snapshot in versions[1:]]
        stored = [group["record"][()] for group in groups]
        for group, content in zip(groups, reversed(stored), strict=True):
            del group["record"]
            group["record"] = content
    with pytest.raises(CorruptError, match=f"version {versions[2]} cannot be read .* its checksum"):
        reopened(backend).session(versions[2])


# -- small commits ---------------------------------------------------------------------------------


def append(backend: HDF5Backend, n_rows: int, *, also: tuple[int, int] = (0, 0)) -> str:
    """Commit ``n_rows`` more rows in two writes, and other values for rows ``also`` at the end."""
    changes = backend.begin()
    start = changes.meta("a").n_rows
    rows = np.full((n_rows, 4), start, dtype=np.float32)
    changes.resize("a", start + n_rows)
    changes.write("a", start, rows[: n_rows // 2])
    changes.write("a", start + n_rows // 2, rows[n_rows // 2 :])
    if also[1]:
        changes.write("a", also[0], np.full((also[1] - also[0], 4), -1, dtype=np.float32))
    return changes.commit("more rows")


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_small_commits_do_not_keep_a_chunk_each(tmp_path: Path, codec: Codec) -> None:
    backend = HDF5Backend(str(tmp_path / "s.h5"))
    backend.create({}, "made")
    changes = backend.begin()
    changes.create("a", ArrayMeta((0, 4), "float32", 65536, ("frame", "x"), codec=codec))
    start = changes.commit("array")
    versions = [append(backend, 100) for _ in range(3)]
    with h5py.File(tmp_path / "s.h5") as file:
        assert not any(
            len(file[HOME]["versions"][version]["delta"]["chunks"])
            for version in (start, *versions[:2])
        )
        assert file[HOME].attrs["format"] == 3, "who does not know such deltas has to refuse it"
    versions += [append(backend, 100, also=(40, 60)), append(backend, 100, also=(290, 310))]
    versions.append(append(backend, 70000))
    expected = np.repeat(np.arange(0, 600, 100, dtype=np.float32), [100, 100, 100, 100, 100, 70000])
    changed = {3: slice(40, 60), 4: slice(290, 310)}
    for number, version in enumerate(versions):
        rows = expected[: (number + 1) * 100 if number < 5 else None].copy()
        for since, rows_changed in changed.items():
            if number >= since:
                rows[rows_changed] = -1
        session = HDF5Backend(backend.location).session(version)
        np.testing.assert_array_equal(session.read("a", 0, session.meta("a").n_rows)[:, 0], rows)
    assert not list(backend.examine())
    backend.reset_branch(MAIN, versions[1], expected=versions[-1])
    for version, n_rows in ((versions[0], 100), (versions[1], 200), (versions[4], 500)):
        session = HDF5Backend(backend.location).session(version)
        assert session.meta("a").n_rows == n_rows
        session.read("a", 0, n_rows)
    assert not list(backend.examine())


# -- files of format 1 -----------------------------------------------------------------------------


@pytest.fixture
def old_file(tmp_path: Path) -> HDF5Backend:
    """Give a file as kpstore made it before chunks had checksums by place."""
    with h5py.File(tmp_path / "old.h5", "x", **OPEN) as file:
        file.attrs["title"] = "t"
        home = file.create_group(HOME)
        home.attrs.update({"format": 1, "head": "FIRST", "tags": "{}", "used_tags": "[]"})
        record = {
            "parent": None,
            "message": "made",
            "time": "2026-01-01T00:00:00+00:00",
            "metadata": {},
            "touched": [],
        }
        write_json(home.create_group("versions/FIRST"), "record", record)
    backend = HDF5Backend(str(tmp_path / "old.h5"))
    changes = backend.begin()
    changes.create("raw", ArrayMeta((300, 16), "float32", 64, ("frame", "x"), codec="raw"))
    changes.create("words", ArrayMeta((300,), TEXT, 64, ("frame",)))
    changes.write("raw", 0, ROWS)
    changes.write("words", 0, WORDS)
    changes.commit("rows")
    return backend


def test_a_file_of_format_1_stays_one(old_file: HDF5Backend) -> None:
    before = head(old_file)
    old_file.create_tag("v1", before)
    changes = old_file.begin()
    changes.write("raw", 10, ROWS[:20] + 1)
    changes.write("words", 0, WORDS[:2][::-1])
    after = old_file.session(changes.commit("more"))
    assert (after.checksums("raw"), changes.checksums("words")) == (None, None)
    assert after.digest("words") == text_digest(after.read("words", 0, 300))
    old = old_file.session(before)
    np.testing.assert_array_equal(old.read("raw", 0, 300), ROWS)
    assert old.read("words", 0, 300).tolist() == WORDS.tolist()
    assert not list(old_file.examine())
    with h5py.File(old_file.location) as file:
        assert file[HOME].attrs["format"] == 1
        assert "names" not in file[HOME]
    old_file.reset_branch(MAIN, before, expected=after.snapshot)
    np.testing.assert_array_equal(old_file.session(before).read("raw", 0, 300), ROWS)


def test_damage_in_a_file_of_format_1_can_be_overwritten_and_stays_in_the_older_version(
    old_file: HDF5Backend,
) -> None:
    before = head(old_file)
    damage(old_file, "raw", 1)
    changes = reopened(old_file).begin()
    with pytest.raises(CorruptError, match=r"rows 64:128 of 'raw' .* give all"):
        changes.write("raw", 70, ROWS[:3])
    changes.write("raw", 64, ROWS[:64])
    np.testing.assert_array_equal(
        reopened(old_file).session(changes.commit("good")).read("raw", 64, 128), ROWS[:64]
    )
    with pytest.raises(CorruptError, match="rows 64:128 of 'raw'"):
        reopened(old_file).session(before).read("raw", 64, 128)


def test_a_file_of_a_later_format_is_refused(backend: HDF5Backend) -> None:
    with h5py.File(backend.location, "r+") as file:
        file[HOME].attrs["format"] = 4
    with pytest.raises(
        InvalidError, match="has layout 4 of kpstore's HDF5 files, this kpstore reads up to 3"
    ):
        reopened(backend).branches()
