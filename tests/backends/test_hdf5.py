"""What is particular to HDF5: one file that is always whole, and that h5py reads without kpstore."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import kpstore
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Codec
from kpstore.backends.hdf5 import HDF5Backend
from kpstore.backends.memory import MemoryBackend
from kpstore.errors import BusyError, CorruptError, ExistsError, InvalidError, NotFoundError
from kpstore.ingest.run import Options, run_ingest
from kpstore.schema.feature import FeatureSpec
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


# -- the file ---------------------------------------------------------------------------------------------------


def test_h5py_reads_the_newest_version_without_us(tmp_path: Path) -> None:
    store = fill(kpstore.create(tmp_path / "s.h5"))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["video_id"].asstr()[:].tolist() == ["a", "b", "c", "d"]
        np.testing.assert_array_equal(file["points"][:5], rows_of("a", 5).values)
        assert [dim.label for dim in file["points"].dims] == ["frame", "point", "space"]
        assert file["points"].attrs["units"] == "1"
        assert file["space"].asstr()[:].tolist() == ["x", "y", "z"]
        assert file.attrs["Conventions"] == store.view.attrs()["Conventions"]


def test_a_file_that_h5py_holds_open_can_be_read_and_written(backend: HDF5Backend) -> None:
    with h5py.File(backend.location) as file:
        changes = backend.begin()
        changes.write("a", 0, VALUES[:10] + 1)
        changes.commit("more")
        np.testing.assert_array_equal(file["a"][:10], VALUES[:10])
        np.testing.assert_array_equal(
            HDF5Backend(backend.location).view(head(backend)).read("a", 0, 10), VALUES[:10] + 1
        )


def test_attributes_of_any_length(backend: HDF5Backend) -> None:
    long = {"text": "x" * 200_000, "list": list(range(50_000)), "odd": "json:", "zero": "a\0b"}
    changes = backend.begin()
    changes.set_attrs(long)
    changes.set_array_attrs("a", long)
    view = backend.view(changes.commit("long"))
    assert view.attrs() == long
    assert view.meta("a").attrs == long


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
        kinds, match=r"x.h5 (is a folder|is not a kpstore store in HDF5|cannot be opened as HDF5: trun)"
    ):
        kpstore.open(path)


def test_a_file_that_another_program_writes_is_busy(backend: HDF5Backend) -> None:
    script = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", script, backend.location]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BusyError, match="open for writing in another program"):
            HDF5Backend(backend.location).branches()
        holder.kill()


def test_a_link_stays_a_link_and_both_names_lead_to_one_store(tmp_path: Path, backend: HDF5Backend) -> None:
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
    view = HDF5Backend(backend.location).view(head(backend))
    assert (view.names(), dict(view.attrs()), dict(view.meta("a").attrs)) == (["a"], {"title": "t"}, {})
    changes = HDF5Backend(backend.location).begin()
    changes.set_attrs({"title": "u"})
    changes.set_array_attrs("a", {"units": "1"})
    with pytest.raises(ExistsError, match=r"'mine' is taken .* not kpstore's"):
        changes.create("mine", PAGES)
    changes.commit("more")
    with h5py.File(backend.location) as file:
        assert (file.attrs["comment"], file["mine"][2]) == (5, 2)


@pytest.mark.parametrize("where", ["array", "record", "delta", "tags", "root"])
def test_damage_outside_of_the_chunks_is_said_to_be_damage(tmp_path: Path, where: str) -> None:
    store = fill(kpstore.create(tmp_path / "made.h5"))
    new, old = (commit.id for commit in (*list(store.history())[:1], *list(store.history())[-1:]))
    shutil.copy(store.location, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        home = file["_kpstore"]
        if where == "array":
            file["video_id"].attrs["kpstore_meta"] = '{"dtype": "f'
        elif where == "record":
            home["versions"][new]["record"][:3] = 0
        elif where == "delta":
            del home["versions"][old]["delta"]["about"]
        elif where == "tags":
            home.attrs["tags"] = "{"
        else:
            file.attrs[next(name for name, value in file.attrs.items() if str(value).startswith("json:"))] = "json:{"
    with pytest.raises(CorruptError, match=r"s.h5: what it says of its arrays and versions .* it is damaged"):
        _read_versions(tmp_path / "s.h5", old)


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
    with pytest.raises(CorruptError, match="'a' lies in another file"):
        HDF5Backend(backend.location).view(head(backend))


def test_two_that_move_to_one_place_do_not_overwrite_each_other(tmp_path: Path, backend: HDF5Backend) -> None:
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


def test_a_full_disk_is_an_error_before_hdf5_meets_it(backend: HDF5Backend, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert sorted(path.name for path in Path(backend.location).parent.iterdir()) == [".s.h5.kpstore", "s.h5"]


def test_small_commits_cost_little(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.h5")
    with store.transaction("plan") as tx:
        tx.add_videos([record(f"v{n}", 10) for n in range(40)])
        tx.add_feature(FeatureSpec("wide", (400,), ("x",)))
    sizes = []
    for n in range(40):
        with store.transaction(f"{n}") as tx:
            tx.write("wide", f"v{n}", np.full((10, 400), n, np.float32))
        sizes.append((tmp_path / "s.h5").stat().st_size)
    assert (sizes[-1] - sizes[0]) / 39 < 200_000, "a whole chunk is 1.6 MB"
    first = store.at(store.at().history()[-4].id)
    assert np.isnan(first["wide"][20:]).all()


def test_history_costs_what_was_overwritten(tmp_path: Path) -> None:
    """Extraction writes rows that nobody wrote before; their versions cost nothing but a record."""
    source = FakeSource({f"v{n}": 200 for n in range(20)})
    path = tmp_path / "s.h5"
    options = Options(workers=0, checkpoint_frames=400, task_frames=400)
    run_ingest(source, path, FakeExtractor(chunk_rows=100), options)
    store = kpstore.open(path)
    assert len(store.history()) > 8
    kept = 0
    with h5py.File(path) as file:
        for group in file["_kpstore/versions"].values():
            if "delta" in group:
                kept += sum(array.shape[0] for name, array in group["delta/chunks"].items() if name == "points")
    assert kept == 0


# -- old versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_all_versions_equal_those_of_the_memory_backend(tmp_path: Path, seed: int, codec: Codec) -> None:
    """Any mixture of changes, commits and steps back, and every version reads as it did when it was made."""
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
        views = one.begin(), other.begin()
        for _ in range(rng.randint(1, 4)):
            names = views[0].names()
            action = rng.choice(["create", "write", "write", "write", "resize", "delete", "attrs", "array attrs"])
            name = rng.choice(names) if names else ""
            if action == "create":
                meta = ArrayMeta((rng.randint(0, 12), 3), "float32", 4, ("frame", "x"), float("nan"), codec=codec)
                text = ArrayMeta((rng.randint(0, 12),), TEXT, 4, ("frame",))
                new = rng.choice([n for n in "abcdef" if n not in names] or [""])
                for view in views if new else ():
                    view.create(new, text if new in "ef" else meta)
            elif action == "attrs":
                for view in views:
                    view.set_attrs({"n": step})
            elif name and action == "delete":
                for view in views:
                    view.delete(name)
            elif name and action == "resize":
                for view in views:
                    view.resize(name, view.meta(name).n_rows + 3)
            elif name and action == "array attrs":
                for view in views:
                    view.set_array_attrs(name, {"step": step})
            elif name and action == "write" and views[0].meta(name).n_rows:
                start = rng.randrange(views[0].meta(name).n_rows)
                n_rows = rng.randint(1, views[0].meta(name).n_rows - start)
                words = np.array([f"w{rng.randint(0, 99)}" for _ in range(n_rows)], dtype=object)
                values = words if name in "ef" else numbers.random((n_rows, 3), dtype=np.float32)
                for view in views:
                    view.write(name, start, values)
        pairs.append((views[0].commit(f"{step}"), views[1].commit(f"{step}")))
        for mine, theirs in pairs:
            here, there = HDF5Backend(one.location).view(mine), other.view(theirs)
            assert (here.attrs(), here.names()) == (there.attrs(), there.names())
            for name in here.names():
                assert here.meta(name).attrs == there.meta(name).attrs
                n_rows = there.meta(name).n_rows
                assert here.meta(name).n_rows == n_rows
                np.testing.assert_array_equal(here.read(name, 0, n_rows), there.read(name, 0, n_rows))
                np.testing.assert_array_equal(
                    here.read(name, n_rows // 3, n_rows // 2), there.read(name, n_rows // 3, n_rows // 2)
                )
                if name not in "ef":
                    chunks, out = here.chunks(name), np.empty((4, 3), np.float32)
                    for number in range(-(-n_rows // 4)):
                        chunks.read_into(number, out)
                        wanted = there.read(name, number * 4, min(number * 4 + 4, n_rows))
                        np.testing.assert_array_equal(out[: len(wanted)], wanted)


# -- reading ----------------------------------------------------------------------------------------------------


def test_raw_chunks_are_mapped_from_their_place(backend: HDF5Backend) -> None:
    old = head(backend)
    mapped = backend.view(old).chunks("a").mapped
    np.testing.assert_array_equal(mapped, VALUES)
    changes = backend.begin()
    changes.write("a", 1500, VALUES[:100] - 1)
    changes.resize("a", 6000)
    newest = backend.view(changes.commit("changed")).chunks("a").mapped
    wanted = np.concatenate([VALUES, np.zeros((1000, 4), np.float32)])
    wanted[1500:1600] = VALUES[:100] - 1
    np.testing.assert_array_equal(newest, wanted)
    before, out = backend.view(old).chunks("a"), np.empty((1024, 4), np.float32)
    assert before.mapped is None, "what a version lost since is kept compressed"
    before.read_into(1, out)
    np.testing.assert_array_equal(out, VALUES[1024:2048])
    backend.remove()
    np.testing.assert_array_equal(mapped, VALUES)


def test_a_file_that_ends_early_is_said(backend: HDF5Backend) -> None:
    view = backend.view(head(backend))
    chunks = view.chunks("a")
    os.truncate(backend.location, 60_000)
    with pytest.raises(CorruptError, match="cannot be read"):
        chunks.read_into(3, np.empty((1024, 4), np.float32))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_processes_read_also_forked_ones(backend: HDF5Backend, method: str) -> None:
    snapshot = head(backend)
    backend.view(snapshot).read("a", 0, 10)
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=read_first_row, args=(backend, snapshot, answers))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert answers.get() == f"read {VALUES[0]}"


# -- writing ----------------------------------------------------------------------------------------------------


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
    stored = backend.view(head(backend)).read("a", 0, 5000)
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
    while kills < int(os.environ.get("KPSTORE_KILLS", "25")) // 2 or not killed_in_a_copy:
        kills += 1
        run = subprocess.Popen([sys.executable, "-c", COMMITTER, backend.location], stdout=subprocess.PIPE, text=True)
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
        stored = backend.view(newest.id).read("a", 0, 5000)
        assert (stored[:3000] == int(newest.message)).all()
        np.testing.assert_array_equal(stored[3000:], VALUES[3000:])
    backend.create_tag("after", head(backend))
    assert not list(Path(backend.location).parent.glob(".writing-*"))


def test_an_ingest_gives_the_same_as_in_the_other_backend(tmp_path: Path) -> None:
    source = FakeSource({f"v{n}": (n * 7) % 40 for n in range(12)}, broken={"v3": [0]}, unreadable=("v5",))
    options = Options(workers=1, task_frames=60, checkpoint_frames=100)
    for path in (tmp_path / "s.h5", tmp_path / "s.kps"):
        run_ingest(source, path, FakeExtractor(chunk_rows=8), options)
    one, other = kpstore.open(tmp_path / "s.h5"), kpstore.open(tmp_path / "s.kps")
    assert not kpstore.diff(one, other)
    assert len(one.history()) == len(other.history())


def test_file_systems_without_second_names_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "link", refuse)
    backend = HDF5Backend(str(tmp_path / "a.h5"))
    backend.create({"a": 1}, "new")
    backend.move(str(tmp_path / "b.h5"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".h5"] == ["b.h5"]
    with pytest.raises(ExistsError):
        HDF5Backend(str(tmp_path / "b.h5")).create({}, "new")
