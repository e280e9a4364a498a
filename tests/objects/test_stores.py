"""Stores in object storage do what those on a disk do, by the calls that people make."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.backends import icechunk_object_garbage
from kpstore.backends.base import Codec
from kpstore.backends.icechunk_objects import IcechunkObjects
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.object_lease import _machine
from kpstore.backends.object_reading import ObjectReader
from kpstore.errors import (
    BusyError,
    CorruptError,
    ExistsError,
    NotFoundError,
    UnreachableError,
    UnsupportedError,
)
from kpstore.ingest.options import Options
from kpstore.ingest.report import read_progress
from kpstore.ingest.run import run_ingest
from kpstore.inspect.summary import summarize
from kpstore.inspect.verify import verify, verify_all
from kpstore.interop.convert import convert
from kpstore.schema.layout import keypoints_spec
from kpstore.store.cache import DecodedCache
from tests.fakes import FakeSource, record
from tests.object_storage import KEYS, Bucket
from tests.objects.driver import LENGTHS, extractor
from tests.processes import start, until
from tests.store.data import fill


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own."""
    monkeypatch.setenv("KPSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def expected(tmp_path: Path) -> kpstore.Store:
    run_ingest(FakeSource(LENGTHS), tmp_path / "disk.kps", extractor(), Options(workers=0))
    return kpstore.open(tmp_path / "disk.kps")


ALL = ("a", "b", "d")


def far_store(bucket: Bucket, **how: Any) -> kpstore.Store:
    """A small store whose chunks are objects, and not in the descriptions of versions."""
    return fill(kpstore.create(bucket.address()), chunk_rows=16, **how)


def same(one: kpstore.Store, other: kpstore.Store) -> None:
    for name in ("points", "points_detected", "points_status", "video_id", "image_path"):
        np.testing.assert_array_equal(one[name][:], other[name][:])


def test_an_ingest_by_two_workers_equals_that_on_a_disk(
    bucket: Bucket, expected: kpstore.Store
) -> None:
    place = bucket.address()
    run_ingest(FakeSource(LENGTHS), place, extractor(), Options(workers=2, task_frames=60))
    store = kpstore.open(place)
    same(store, expected)
    assert not verify(store).problems
    assert not verify_all(place).problems
    again = run_ingest(FakeSource(LENGTHS), place, extractor(), Options(workers=0))
    assert (again.videos_before, again.videos_done) == (len(LENGTHS), 0)
    progress = read_progress(store.backend)
    assert progress is not None
    assert not progress.running
    told = summarize(store)
    assert told.disk is not None
    assert told.disk.size_bytes > 0


def test_one_that_was_killed_goes_on_where_it_was(
    bucket: Bucket, expected: kpstore.Store, tmp_path: Path
) -> None:
    place, stopped = bucket.address(), tmp_path / "stopped"
    with start([sys.executable, "-m", "tests.objects.driver", place, stopped]) as driver:
        until(stopped.exists, driver)
        with pytest.raises(BusyError, match="is being written by another process"):
            run_ingest(FakeSource(LENGTHS), place, extractor(), Options(workers=0))
        os.kill(driver.pid, signal.SIGKILL)
    done = int((kpstore.open(place).states("points") == kpstore.State.DONE).sum())
    assert 0 < done < len(LENGTHS)
    report = run_ingest(FakeSource(LENGTHS), place, extractor(), Options(workers=0))
    assert report.videos_before == done
    same(kpstore.open(place), expected)


def test_versions_names_and_removal(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = far_store(bucket)
    store.tag("版本1")
    store.branch("try")
    with store.transaction("more") as tx:
        tx.add_videos([record("e", 3)])
    newest = store.at()
    assert len(newest.index) == len(store.index) + 1
    assert kpstore.open(bucket.address(), at="版本1").snapshot == store.snapshot
    assert (newest.tags, set(newest.branches)) == ({"版本1": store.snapshot}, {"main", "try"})
    kept = newest.rollback("版本1")
    assert kept in newest.branches
    assert newest.at().snapshot == store.snapshot
    newest.delete_branch(kept)
    with pytest.raises(NotFoundError, match=r"main.*try"):
        kpstore.open(bucket.address(), at=kept)
    newest.collect_garbage(older_than=timedelta(0), apply=True)
    assert len(newest.at(newest.snapshot)["points"]) == 37
    assert not verify_all(bucket.address()).problems  # young objects stay, as somebody may write
    monkeypatch.setattr(icechunk_object_garbage, "YOUNG", timedelta(days=-1))
    garbage = newest.collect_garbage(older_than=timedelta(0), apply=True)
    assert newest.snapshot in garbage.versions
    assert garbage.bytes_freed > 0
    assert not verify_all(bucket.address()).problems
    with pytest.raises(NotFoundError, match=r"was removed after it had been opened|not found"):
        newest.at(newest.snapshot)["points"][:]
    newest.at().remove(videos=["a"])
    assert "a" not in newest.at().index
    assert kpstore.open(bucket.address(), at="版本1").video("a")["points"].shape == (5, 5, 3)


@pytest.mark.parametrize("compression", ["raw", "lz4", "zstd"])
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_every_way_to_read_gives_the_same(
    bucket: Bucket, tmp_path: Path, compression: Codec, cache: str
) -> None:
    stores = [
        fill(kpstore.create(place), done=ALL, chunk_rows=16, compression=compression)
        for place in (bucket.address(), tmp_path / "disk.kps")
    ]
    far, near = (kpstore.open(store.location, cache=cache) for store in stores)
    expected = near["points"][:]
    np.testing.assert_array_equal(far["points"][:], expected)
    np.testing.assert_array_equal(far["points"][3:11], expected[3:11])
    np.testing.assert_array_equal(far.video("d")["points"], near.video("d")["points"])
    rows = np.random.default_rng(0).integers(0, len(expected), 50)
    np.testing.assert_array_equal(far.read("points", rows), expected[rows])
    for check in ("always", "never"):
        again = kpstore.open(far.location, cache=cache, check=check)
        np.testing.assert_array_equal(again["points"][:], expected)
    for one, other in zip(
        kpstore.loader(far.frames("points"), 8),
        kpstore.loader(near.frames("points"), 8),
        strict=True,
    ):
        np.testing.assert_array_equal(one["points"], other["points"])
    np.testing.assert_array_equal(far.to_xarray()["points"], near.to_xarray()["points"])
    np.testing.assert_array_equal(far.to_dask("points").compute(), expected)


def test_a_data_loader_with_workers_reads_it(bucket: Bucket) -> None:
    from torch.utils.data import DataLoader

    store = far_store(bucket, done=ALL)
    view = store.frames("points")
    with pytest.raises(UnsupportedError, match="multiprocessing_context='forkserver'"):
        list(DataLoader(view, batch_size=5, num_workers=1, multiprocessing_context="fork"))
    # A server that forks would have been started by an earlier test, without this one's keys.
    found = DataLoader(view, batch_size=5, num_workers=1, multiprocessing_context="spawn")
    rows = np.concatenate([batch["points"].numpy() for batch in found])
    np.testing.assert_array_equal(rows, store["points"][:])


def test_copies_serve_the_second_time_without_a_request(
    bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = far_store(bucket, done=ALL).location
    expected = kpstore.open(place)["points"][:]
    again = kpstore.open(place)
    assert isinstance(again.backend, IcechunkObjects)
    again.index  # noqa: B018
    monkeypatch.setattr(again.backend.files, "fetch", None)  # a request would fail
    np.testing.assert_array_equal(again["points"][:], expected)
    assert any(cache.rglob("chunks-*"))


def test_nothing_secret_is_pickled_logged_or_shown(bucket: Bucket) -> None:
    store = far_store(bucket)
    session = store.backend.begin()
    held = pickle.dumps([store, store.backend, store.frames("points"), session.fork()])
    session.discard()
    secret = KEYS["AWS_SECRET_ACCESS_KEY"]
    assert secret.encode() not in held
    assert secret not in f"{store!r} {store.backend!r} {vars(store.backend)}"
    copied, *_ = pickle.loads(held)
    np.testing.assert_array_equal(copied["points"][:5], store["points"][:5])


def test_a_store_shows_when_it_is_complete(bucket: Bucket, tmp_path: Path) -> None:
    source = fill(kpstore.create(tmp_path / "disk.kps"))
    seen = []

    def look(*_: object) -> None:
        with pytest.raises(NotFoundError, match=r"is not complete yet|does not exist"):
            kpstore.open(bucket.address())
        seen.append(True)

    convert(source.location, bucket.address(), on_version=look)
    assert seen
    same(kpstore.open(bucket.address()), source)
    with pytest.raises(ExistsError, match="already exists"):
        convert(source.location, bucket.address())
    convert(bucket.address(), str(tmp_path / "back.h5"))
    same(kpstore.open(tmp_path / "back.h5"), source)


def killed(place: IcechunkObjects) -> None:
    """Let it look as if the process had ended that makes a store at a place."""
    assert place._making is not None
    place._making._held._end.set()
    dead = {"machine": _machine(), "pid": 2**22, "purpose": "creating the store"}
    place.files.write("kpstore/making", json.dumps(dead).encode())


def test_what_a_killed_process_left_unfinished_is_made_again(bucket: Bucket) -> None:
    place = IcechunkObjects(bucket.address(), building=True)
    place.create({}, "unfinished")
    assert not IcechunkObjects(bucket.address()).exists()
    with pytest.raises(BusyError, match="creating the store"):
        kpstore.create(bucket.address())
    killed(place)
    with pytest.raises(NotFoundError, match="being made, or that was stopped"):
        kpstore.open(bucket.address())
    assert far_store(bucket).name == "phoenix.kps"


def test_whoever_was_stopped_for_too_long_touches_nothing_of_the_next(bucket: Bucket) -> None:
    slow = IcechunkObjects(bucket.address(), building=True)
    slow.create({}, "slow")
    changes = slow.begin()
    changes.set_attrs({"by": "slow"})
    killed(slow)
    store = far_store(bucket, done=ALL)
    with pytest.raises(BusyError, match="another one has taken it"):
        changes.commit("too late")
    with pytest.raises(BusyError, match="another one has taken it"):
        slow.move(bucket.address())
    slow.remove()
    assert kpstore.open(bucket.address()).snapshot == store.snapshot
    assert not verify_all(bucket.address()).problems


def test_a_request_whose_answer_was_lost_is_known_as_ones_own(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_new, replaced = ObjectFiles.write_new, ObjectFiles.replace

    def new(files: ObjectFiles, name: str, content: bytes) -> str | None:
        found = write_new(files, name, content)
        return None if name.startswith("kpstore/") else found

    def replace_(files: ObjectFiles, name: str, content: bytes, tag: str) -> str | None:
        replaced(files, name, content, tag)
        return None

    monkeypatch.setattr(ObjectFiles, "write_new", new)
    monkeypatch.setattr(ObjectFiles, "replace", replace_)
    assert far_store(bucket).at().name == "phoenix.kps"


def test_other_objects_at_the_place_are_left_alone(bucket: Bucket, tmp_path: Path) -> None:
    near = fill(kpstore.create(tmp_path / "disk.kps"))
    files = IcechunkObjects(bucket.address()).files
    files.write("notes.txt", b"mine")
    for make in (kpstore.create, lambda place: convert(near.location, place)):
        with pytest.raises(ExistsError, match="already exists and is not empty"):
            make(bucket.address())
    assert files.read("notes.txt") == b"mine"


def test_who_comes_second_leaves_what_the_first_has_made(bucket: Bucket) -> None:
    first = IcechunkObjects(bucket.address(), building=True)
    first.create({}, "first")
    second = IcechunkObjects(bucket.address(), building=True)
    with pytest.raises(BusyError, match="creating the store"):
        second.create({}, "second")
    second.remove()
    first.move(bucket.address())
    with pytest.raises(ExistsError, match="already exists"):
        second.create({}, "second")
    second.remove()
    assert IcechunkObjects(bucket.address()).exists()


def test_a_store_lies_in_no_other(bucket: Bucket) -> None:
    kpstore.create(bucket.address("outer.kps"))
    with pytest.raises(ExistsError, match=r"lies in the store s3://.*outer\.kps"):
        kpstore.create(bucket.address("outer.kps/deeper/inner.kps"))


def test_a_missing_bucket_is_named_and_not_waited_for(bucket: Bucket) -> None:
    place = bucket.address().replace(bucket.name, "kpstore-none")
    with pytest.raises(UnreachableError, match="there is no such bucket; create it first"):
        kpstore.create(place)


def test_a_name_that_goes_while_names_are_listed_is_left_out(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = far_store(bucket)
    store.branch("try")
    names = store.backend.branches()
    repository = store.backend._repo()  # type: ignore[attr-defined]
    repository.delete_branch("try")
    monkeypatch.setattr(names, "_list", lambda: {"main", "try", ".."})
    assert dict(names) == {"main": store.snapshot}


def test_damage_is_found_repaired_and_never_read(bucket: Bucket) -> None:
    run_ingest(FakeSource(LENGTHS), bucket.address(), extractor(), Options(workers=0))
    store = kpstore.open(bucket.address(), cache="off")
    whole = store["points"][:]
    assert isinstance(store.backend, IcechunkObjects)
    files = store.backend.files
    name = max(files.names("chunks"), key=lambda one: one.size).name
    content = bytearray(files.read(name))
    content[100] ^= 1
    files.write(name, bytes(content))
    with pytest.raises(CorruptError, match=r"is damaged: rows \d+:\d+ \(video"):
        kpstore.open(bucket.address(), cache="off")["points"][:]
    assert verify(kpstore.open(bucket.address(), cache="off")).problems
    assert kpstore.repair(bucket.address()).features
    run_ingest(FakeSource(LENGTHS), bucket.address(), extractor(), Options(workers=0))
    np.testing.assert_array_equal(kpstore.open(bucket.address(), cache="off")["points"][:], whole)


def test_storage_that_does_not_answer_is_no_damage(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = far_store(bucket, done=ALL)
    far = kpstore.open(store.location, cache="off")
    assert len(far["points"]) == 34
    assert isinstance(far.backend, IcechunkObjects)

    def fail(*_: object, **__: object) -> memoryview:
        raise UnreachableError("the storage does not answer")

    monkeypatch.setattr(far.backend.files, "fetch", fail)
    with pytest.raises(UnreachableError, match="does not answer"):
        far["points"][:]
    with monkeypatch.context() as patched:
        patched.setattr(ObjectFiles, "fetch", fail)
        for check in (verify_all, kpstore.repair):
            with pytest.raises(UnreachableError, match="does not answer"):
                check(store.location)
    with pytest.raises(UnreachableError, match="there is no such bucket"):
        kpstore.open(store.location.replace(bucket.name, "kpstore-none"))


def test_without_keys_it_says_what_to_set(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    profiles = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(NotFoundError, match="profile 'mine' is not in"):
        kpstore.open(f"{bucket.address()}&profile=mine")
    lines = [f"{name.lower()} = {value}" for name, value in KEYS.items()]
    profiles.write_text("\n".join(["[mine]", *lines]))
    place = f"{bucket.address()}&profile=mine"
    store = fill(kpstore.create(place))
    np.testing.assert_array_equal(kpstore.open(place)["points"][:5], store["points"][:5])
    assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(store)


def test_copies_are_listed_and_cleared(bucket: Bucket) -> None:
    store = far_store(bucket, done=ALL)
    kpstore.open(store.location)["points"][:]
    other = kpstore.create(bucket.address("other.kps"))
    cache = DecodedCache()
    held = {entry.name: entry.size_bytes for entry in cache.entries()}
    assert held[store.location] > 3 * 960
    assert cache.clear({store.snapshot}, other.location) == held.get(other.location, 0)
    assert cache.clear({store.snapshot}, store.location) == held[store.location]
    assert store.location not in {entry.name for entry in cache.entries()}
    np.testing.assert_array_equal(kpstore.open(store.location)["points"][:5], store["points"][:5])


@pytest.mark.parametrize("rows", [16, 4096])
def test_a_damaged_copy_is_fetched_again(bucket: Bucket, cache: Path, rows: int) -> None:
    """Of chunks that are decoded, and of those that are mapped as they lie."""
    store = kpstore.create(bucket.address())
    values = np.random.default_rng(0).random((2 * rows, 143, 3), dtype=np.float32)
    with store.transaction("one video") as tx:
        tx.add_videos([record("a", 2 * rows)])
        tx.add_feature(replace(keypoints_spec(), chunk_rows=rows), {"extractor": "made up"})
        tx.write("keypoints", "a", values)
    np.testing.assert_array_equal(kpstore.open(store.location)["keypoints"][:], values)
    for path in cache.rglob("chunks-*"):
        path.write_bytes(bytes(path.stat().st_size))
    np.testing.assert_array_equal(kpstore.open(store.location)["keypoints"][:], values)
    for path in cache.rglob("chunks-*"):
        path.write_bytes(b"cut")
    np.testing.assert_array_equal(kpstore.open(store.location)["keypoints"][:], values)


def test_a_copy_that_goes_before_it_is_opened_is_fetched_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = far_store(bucket, done=ALL)
    expected = kpstore.open(store.location)["points"][:]
    path, gone = ObjectReader.path, set[str]()

    def path_of_what_goes(reader: ObjectReader, name: str) -> str:
        found = path(reader, name)
        if name.startswith("chunks/") and name not in gone:
            gone.add(name)
            Path(found).unlink()
        return found

    monkeypatch.setattr(ObjectReader, "path", path_of_what_goes)
    np.testing.assert_array_equal(kpstore.open(store.location)["points"][:], expected)
    assert gone


_SILENT = """
import os, signal, sys
import numpy as np
import kpstore
store = kpstore.open(sys.argv[1], cache=sys.argv[3])
view = store.frames("points")
os.kill(int(sys.argv[2]), signal.SIGSTOP)
view.ask(np.arange(len(view)))
print("asked", flush=True)
store["points"][:]
"""


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_an_interrupt_ends_a_read_of_silent_storage(tmp_path: Path, cache: str) -> None:
    fill(kpstore.create(tmp_path / "served" / "store.kps"), done=ALL, chunk_rows=16)
    command = [sys.executable, "-m", "benchmarks.slow_storage", tmp_path / "served"]
    with start([*command, "--delay-ms", "1"]) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        place = f"s3://bucket/store.kps?anonymous=true&endpoint={endpoint}"
        with start([sys.executable, "-c", _SILENT, place, server.pid, cache]) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "asked\n"
            reader.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in reader.communicate()[1]
        server.kill()
