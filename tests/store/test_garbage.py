"""Old versions go, and what killed writers have left; what is kept is never disturbed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.backends.garbage import kept_versions
from kpstore.backends.locks import SharedLock, lock_alone
from kpstore.errors import (
    BusyError,
    CorruptError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.inspect.verify import verify_all
from kpstore.interop.convert import convert
from kpstore.store.history import collect_garbage
from tests.conftest import location_of
from tests.fakes import fake_spec, record
from tests.store.data import copy_store
from tests.store.killed import killer
from tests.store.writers import N_FRAMES, die, hold, rows

NOW = timedelta(0)
EVERY = 2
"""Of the steps at which a collection is killed, 12 to 19, one in so many is tried; 1 tries all."""


def write(store: kpstore.Store, seed: int, branch: str = "main") -> kpstore.Store:
    with store.transaction(f"rows {seed}", branch=branch) as tx:
        tx.write("points", "a", rows(seed))
    return store.at(branch)


def values(store: kpstore.Store) -> np.ndarray:
    return np.asarray(store["points"][:])


def size_of(location: str) -> int:
    path = Path(location)
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def check_sound(location: str) -> None:
    assert verify_all(location).problems == []


def build(location: str, *, last: int, tagged: int) -> str:
    """Make versions with rows of seeds 0 to ``last``; the tag ``v1`` names one of them."""
    store = kpstore.create(location)
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", N_FRAMES, "train")])
        tx.add_feature(replace(fake_spec(250), compression="raw"), {"extractor": "fake"})
        tx.write("points", "a", rows(0))
    for seed in range(1, last + 1):
        write(store, seed)
        if seed == tagged:
            store.at().tag("v1")
    return store.location


@pytest.fixture(scope="module", params=["icechunk", "hdf5"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six versions with rows of seeds 0 to 5; the tag ``v1`` names that of seed 2."""
    location = location_of(request.param, tmp_path_factory.mktemp("built"))
    return build(location, last=5, tagged=2)


@pytest.fixture
def store(built: str, tmp_path: Path) -> kpstore.Store:
    """A copy of the store that was built."""
    return kpstore.open(copy_store(built, tmp_path), mode="a")


def test_a_dry_run_says_what_goes_and_removes_nothing(store: kpstore.Store) -> None:
    before, n_bytes = [c.id for c in store.history()], size_of(store.location)
    found = store.collect_garbage(older_than=NOW)
    assert sorted(found.versions) == list(found.versions)
    assert set(found.versions) == {*before} - {store.snapshot, store.tags["v1"]}
    assert found.kept == 2
    assert 0.3 * n_bytes < found.bytes_freed < n_bytes
    assert [c.id for c in store.at().history()] == before
    assert size_of(store.location) == pytest.approx(n_bytes, rel=0.01)
    removed = store.collect_garbage(older_than=NOW, apply=True)
    assert (removed.versions, removed.kept) == (found.versions, found.kept)
    assert removed.bytes_freed == pytest.approx(found.bytes_freed, rel=0.01)
    assert n_bytes - size_of(store.location) == pytest.approx(removed.bytes_freed, rel=0.05)


def test_what_is_kept_stays_as_it_was_and_is_sound(store: kpstore.Store) -> None:
    ids = {"v1": store.tags["v1"], "main": store.snapshot}
    store.collect_garbage(older_than=NOW, apply=True)
    again = kpstore.open(store.location, mode="a")
    assert {"v1": again.tags["v1"], "main": again.snapshot} == ids
    np.testing.assert_array_equal(values(again), rows(5).values)
    np.testing.assert_array_equal(values(again.at("v1")), rows(2).values)
    assert [c.message for c in again.at("v1").history()] == ["rows 2"]
    check_sound(store.location)
    newer = write(again, 6)
    np.testing.assert_array_equal(values(newer), rows(6).values)
    assert [c.message for c in newer.history()][:2] == ["rows 6", "rows 5"]
    check_sound(store.location)
    assert store.collect_garbage(older_than=NOW, apply=True).kept == 2
    check_sound(store.location)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_store_is_hardly_larger_than_a_copy_of_what_is_kept(
    store: kpstore.Store, tmp_path: Path, keep: int
) -> None:
    store.delete_tag("v1")
    assert store.collect_garbage(older_than=NOW, keep=keep, apply=True).kept == keep
    copy = str(tmp_path / ("copy" + Path(store.location).suffix))
    convert(store.location, copy, with_history=True)
    assert size_of(store.location) <= 1.1 * size_of(copy)


def test_the_newest_n_versions_stay(store: kpstore.Store) -> None:
    ids = [c.id for c in store.history()]
    found = store.collect_garbage(older_than=NOW, keep=3, apply=True)
    assert [c.id for c in store.at().history()][:3] == ids[:3]
    assert found.kept == 4
    for snapshot, seed in zip(ids[:3], (5, 4, 3), strict=True):
        np.testing.assert_array_equal(values(store.at(snapshot)), rows(seed).values)
    with pytest.raises(NotFoundError, match="not found"):
        store.at(ids[4])
    check_sound(store.location)


def test_young_versions_stay(store: kpstore.Store) -> None:
    before = [c.id for c in store.history()]
    found = store.collect_garbage(apply=True)
    assert found.versions == ()
    assert [c.id for c in store.at().history()] == before
    later = collect_garbage(store.backend, now=datetime.now(UTC) + timedelta(days=8))
    assert len(later.versions) == len(before) - 2


def test_a_version_is_kept_if_it_is_named_or_young() -> None:
    time = [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 10)]
    parents = {"a": None, "b": "a", "c": "b", "d": "c", "e": "b"}
    made = {"a": time[0], "b": time[1], "c": time[2], "d": time[3], "e": time[1]}

    def kept(*tips: str, old: datetime) -> str:
        about = {v: (parents[v], made[v]) for v in parents}
        return "".join(sorted(kept_versions(tips, about.get, old)))

    assert kept("d", old=time[0]) == "abcd"
    assert kept("d", old=time[2]) == "cd"
    assert kept("d", old=time[8]) == "d"
    assert kept("d", "b", old=time[8]) == "bd"
    assert kept("d", "e", old=time[1]) == "bcde"


# -- writers and readers ---------------------------------------------------------------------------


def test_an_open_transaction_keeps_it_away(store: kpstore.Store) -> None:
    with store.transaction("slow") as tx:
        tx.write("points", "a", rows(9))
        for apply in (False, True):
            with pytest.raises(BusyError, match="not committed yet"):
                store.collect_garbage(older_than=NOW, apply=apply)
    np.testing.assert_array_equal(values(store.at()), rows(9).values)
    store.collect_garbage(older_than=NOW, apply=True)
    np.testing.assert_array_equal(values(store.at()), rows(9).values)
    tx = store.transaction("given up")
    tx.session.discard()
    store.collect_garbage(older_than=NOW, apply=True)


def test_a_fork_keeps_it_away_as_long_as_its_maker_has_it(store: kpstore.Store) -> None:
    if not store.backend.capabilities.parallel_writers:
        pytest.skip("a fork holds its rows itself")
    fork = store.backend.begin().fork()
    sent = pickle.loads(pickle.dumps(fork))
    with pytest.raises(BusyError, match="not committed yet"):
        store.collect_garbage(older_than=NOW)
    del fork
    store.collect_garbage(older_than=NOW)
    assert sent is not None


def test_a_lock_that_many_hold_ends_with_the_last_of_them(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def is_held() -> bool:
        try:
            with lock_alone(path, location="s.kps"):
                return False
        except BusyError:
            return True

    one, two = SharedLock(path), SharedLock(path)
    one.release()
    assert is_held()
    child = os.fork()
    if child == 0:
        two.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert is_held()
    del two
    assert not is_held()


def test_a_transaction_of_another_process_keeps_it_away(store: kpstore.Store) -> None:
    context = multiprocessing.get_context("spawn")
    written, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(store.location, written, done))
    process.start()
    written.wait()
    with pytest.raises(BusyError, match="not committed yet"):
        store.collect_garbage(older_than=NOW, apply=True)
    done.set()
    process.join()
    np.testing.assert_array_equal(values(store.at()), rows(8).values)
    store.collect_garbage(older_than=NOW, apply=True)
    np.testing.assert_array_equal(values(store.at()), rows(8).values)


def test_whoever_reserved_the_store_keeps_it_away(store: kpstore.Store) -> None:
    with (
        store.backend.exclusive("an ingest"),
        pytest.raises(BusyError, match="an ingest, process"),
    ):
        store.collect_garbage(older_than=NOW)


def test_what_killed_writers_left_goes(store: kpstore.Store) -> None:
    store.collect_garbage(older_than=NOW, apply=True)
    clean = size_of(store.location)
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        process = context.Process(target=die, args=(store.location,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    store.collect_garbage(older_than=NOW, apply=True)
    assert size_of(store.location) == pytest.approx(clean, rel=0.02)
    assert not list(Path(store.location).parent.glob(".writing-*"))
    check_sound(store.location)


def test_readers_of_kept_versions_are_not_disturbed(store: kpstore.Store) -> None:
    newest, tagged = kpstore.open(store.location), kpstore.open(store.location, "v1")
    lazy, first = tagged["points"], newest["points"][:10]
    writer = kpstore.open(store.location, mode="a")
    assert len(writer.history()) == 7
    store.collect_garbage(older_than=NOW, apply=True)
    np.testing.assert_array_equal(first, rows(5).values[:10])
    np.testing.assert_array_equal(values(newest), rows(5).values)
    np.testing.assert_array_equal(np.asarray(lazy[:]), rows(2).values)
    assert [c.message for c in writer.history()] == ["rows 5"] + (
        [] if writer.backend.capabilities.branches else ["rows 2"]
    )
    assert [c.message for c in write(writer, 6).history()][:2] == ["rows 6", "rows 5"]


def test_a_reader_of_a_removed_version_is_told_so_or_goes_on(store: kpstore.Store) -> None:
    removed = store.history()[1].id
    started, fresh = kpstore.open(store.location, removed), kpstore.open(store.location, removed)
    seen = started["points"][:10]
    lazy = fresh["points"]
    store.collect_garbage(older_than=NOW, apply=True)
    np.testing.assert_array_equal(seen, rows(4).values[:10])
    for call in (
        lambda: lazy[:10],
        lambda: started["points"][750:],
        lambda: fresh["points_detected"][:10],
    ):
        if store.backend.capabilities.branches:
            with pytest.raises(NotFoundError, match=rf"^version '?{removed}'? of [^\n]*$"):
                call()
    if not store.backend.capabilities.branches:
        np.testing.assert_array_equal(np.asarray(lazy[:]), rows(4).values)
    with pytest.raises(NotFoundError, match=f"{removed}.* not found"):
        kpstore.open(store.location, removed)


# -- names -----------------------------------------------------------------------------------------


def test_a_tag_that_was_kept_can_be_rolled_back_to_and_that_undone(store: kpstore.Store) -> None:
    store.collect_garbage(older_than=NOW, apply=True)
    again = kpstore.open(store.location, mode="a")
    kept = again.rollback("v1")
    np.testing.assert_array_equal(values(again.at()), rows(2).values)
    write(again.at(), 7)
    check_sound(store.location)
    again.rollback(kept)
    np.testing.assert_array_equal(values(kpstore.open(store.location)), rows(5).values)
    check_sound(store.location)


def test_a_deleted_branch_takes_its_versions_along(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", N_FRAMES, "train")])
        tx.add_feature(replace(fake_spec(500), compression="raw"), {"extractor": "fake"})
        tx.write("points", "a", rows(0))
    store = store.at()
    store.branch("seite-ö")
    there = write(store, 1, branch="seite-ö").snapshot
    store.collect_garbage(older_than=NOW, apply=True)
    np.testing.assert_array_equal(values(store.at("seite-ö")), rows(1).values)
    check_sound(store.location)
    store.delete_branch("seite-ö")
    assert list(store.branches) == ["main"]
    check_sound(store.location)
    with pytest.raises(NotFoundError, match=r"'seite-ö'.* not found"):
        store.delete_branch("seite-ö")
    with pytest.raises(InvalidError, match=r"'main'.* cannot be deleted"):
        store.delete_branch("main")
    assert there in store.collect_garbage(older_than=NOW, apply=True).versions
    check_sound(store.location)
    store.branch("seite-ö")
    write(store, 2, branch="seite-ö")
    check_sound(store.location)


def test_names_that_icechunk_does_not_see_stop_it(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    repository = store.backend._repo()  # type: ignore[attr-defined]
    repository.create_tag("版本1", store.snapshot)
    with pytest.raises(InvalidError, match=r"tag '版本1' .*nothing was removed"):
        store.collect_garbage(older_than=NOW, apply=True)


# -- damage, kills, refusals -----------------------------------------------------------------------


def test_a_damaged_record_stops_it(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    file = tmp_path / "s.kps" / "transactions" / store.snapshot
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    n_bytes = size_of(store.location)
    with pytest.raises(CorruptError, match="nothing was removed"):
        store.collect_garbage(older_than=NOW, apply=True)
    assert size_of(store.location) == pytest.approx(n_bytes, abs=1000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["icechunk", "hdf5"])
def test_a_kill_at_any_step_leaves_a_sound_store(kind: str, tmp_path: Path) -> None:
    location = build(location_of(kind, tmp_path), last=3, tagged=1)
    with killer() as killed:
        for number in itertools.count(1, EVERY):
            folder = tmp_path / f"try-{number}"
            folder.mkdir()
            copy = copy_store(location, folder)
            code = killed(copy, number)
            again = kpstore.open(copy, mode="a")
            np.testing.assert_array_equal(values(again), rows(3).values)
            np.testing.assert_array_equal(values(again.at("v1")), rows(1).values)
            check_sound(copy)
            write(again, 6)
            assert again.collect_garbage(older_than=NOW, apply=True).kept == 2
            check_sound(copy)
            shutil.rmtree(folder)
            if code == 0:
                break
            assert code == -signal.SIGKILL
    assert number > 3


def test_what_it_refuses(tmp_path: Path, memory_store: kpstore.Store) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    with pytest.raises(InvalidError, match="keep=0: use a whole number, 1 or more"):
        store.collect_garbage(keep=0)
    with pytest.raises(InvalidError, match="give a timedelta of 0 or more"):
        store.collect_garbage(older_than=timedelta(days=-1))
    with pytest.raises(InvalidError, match="older_than is 7; give a timedelta of 0 or more"):
        store.collect_garbage(older_than=7)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="cannot remove versions"):
        memory_store.collect_garbage()


def test_the_ledger_knows_kept_versions_only(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    for number in range(5):
        with store.transaction("more") as tx:
            tx.add_videos([record(f"v{number}", 2)])
    store = store.at()
    store.collect_garbage(older_than=NOW, apply=True)
    lines = (tmp_path / "s.kps" / "kpstore" / "ledger").read_text().splitlines()
    records = [json.loads(line[17:]) for line in lines]
    versions = [found["version"] for found in records if "version" in found]
    assert versions[1:] == [store.snapshot]
    assert {"branch": "main", "is": [store.snapshot]} in records
