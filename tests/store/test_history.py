"""Versions by name: tags, ids, branches, times; and going back."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

import kpstore
from kpstore.errors import BusyError, ExistsError, InvalidError, NotFoundError, UnsupportedError
from kpstore.store import history
from tests.conftest import location_of, memory_location
from tests.fakes import record
from tests.store.data import copy_store


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stores of :func:`build` on the disk, by kind."""
    folder = tmp_path_factory.mktemp("built")
    return {kind: build(location_of(kind, folder))[0].location for kind in ("icechunk", "hdf5")}


@pytest.fixture(params=["memory", "icechunk", "hdf5"])
def versions(
    request: pytest.FixtureRequest, tmp_path: Path, built: dict[str, str]
) -> list[kpstore.Store]:
    """Four versions, some milliseconds apart, with 0 to 3 videos."""
    if request.param == "memory":
        return build(memory_location())
    store = kpstore.open(copy_store(built[request.param], tmp_path), mode="a")
    return [store.at(commit.id) for commit in reversed(store.history())]


def build(location: str) -> list[kpstore.Store]:
    store = kpstore.create(location)
    made = [store]
    for number in range(3):
        time.sleep(0.005)
        with store.transaction(f"add v{number}") as tx:
            tx.add_videos([record(f"v{number}", 2)])
        made.append(store.at())
    return made


@pytest.fixture
def with_branches(versions: list[kpstore.Store]) -> list[kpstore.Store]:
    if not versions[0].backend.capabilities.branches:
        with pytest.raises(
            UnsupportedError, match="has no branches; name the version with a tag, or convert it"
        ):
            versions[1].branch("try")
        pytest.skip("a file holds one line of versions, and says so")
    return versions


def test_the_newest_version_is_the_default(versions: list[kpstore.Store]) -> None:
    assert len(versions[0].at().index) == 3
    assert [c.message for c in versions[0].at().history()][:3] == ["add v2", "add v1", "add v0"]
    assert [c.id for c in versions[3].history()] == [v.snapshot for v in reversed(versions)]


def test_at_a_tag_a_branch_or_an_id(with_branches: list[kpstore.Store]) -> None:
    versions = with_branches
    store = versions[0]
    versions[1].tag("v1.0")
    versions[2].branch("try")
    assert [store.at(name).snapshot for name in ("v1.0", "try", "main", versions[2].snapshot)] == [
        versions[n].snapshot for n in (1, 2, 3, 2)
    ]


def test_tags_and_branches_share_their_names(with_branches: list[kpstore.Store]) -> None:
    versions = with_branches
    versions[1].tag("one")
    versions[2].branch("two")
    with pytest.raises(ExistsError, match="'one' is a tag"):
        versions[2].branch("one")
    with pytest.raises(ExistsError, match="'two' is a branch"):
        versions[1].tag("two")


def test_at_a_time_is_the_newest_version_at_or_before_it(versions: list[kpstore.Store]) -> None:
    store, commits = versions[0], versions[3].history()
    for commit in commits:
        zoned = commit.time.astimezone(timezone(timedelta(hours=5, minutes=30)))
        local = commit.time.astimezone().replace(tzinfo=None)
        for at in (
            commit.time,
            zoned,
            local,
            commit.time.isoformat(),
            commit.time + timedelta(microseconds=1),
        ):
            assert store.at(at).snapshot == commit.id
    assert store.at(commits[0].time - timedelta(microseconds=1)).snapshot == commits[1].id
    assert store.at("2999-01-01").snapshot == versions[3].snapshot


def test_a_time_before_the_store_says_when_it_began(versions: list[kpstore.Store]) -> None:
    for at in ("1999-01-01", datetime(1999, 1, 1, tzinfo=UTC)):
        with pytest.raises(
            NotFoundError, match=r"is as old as 1999-01-01T00:00:00.*; the first is from 2"
        ):
            versions[0].at(at)


@pytest.mark.parametrize("at", ["v9", "", "no such thing", "ZZZZZZZZZZZZZZZZZZZZ"])
def test_unknown_versions_list_tags_and_branches(versions: list[kpstore.Store], at: str) -> None:
    versions[1].tag("v1.0")
    versions[1].tag("v1.1")
    with pytest.raises(
        NotFoundError, match=r"tags: v1.0, v1.1; branches: main; a snapshot id or a time"
    ):
        versions[0].at(at)


@pytest.mark.parametrize(
    "name", ["", " v1", "a/b", "a b", "a\\b", "v1\n", ".", "..", "-", "a\x00", "a:b"]
)
def test_names_that_could_be_something_else_are_refused(
    memory_store: kpstore.Store, name: str
) -> None:
    for call, kind in ((memory_store.tag, "tag"), (memory_store.branch, "branch")):
        with pytest.raises(InvalidError, match=f"{kind} name .*: use letters"):
            call(name)


def test_tags_never_move(versions: list[kpstore.Store]) -> None:
    versions[1].tag("v1")
    with pytest.raises(ExistsError, match="tags never move"):
        versions[2].tag("v1")
    assert versions[0].tags == {"v1": versions[1].snapshot}


def test_a_transaction_on_a_branch_leaves_main(with_branches: list[kpstore.Store]) -> None:
    versions = with_branches
    versions[1].branch("try")
    with versions[0].transaction("there", branch="try") as tx:
        tx.add_videos([record("other", 1)])
    assert versions[0].at("try").index.ids.tolist() == ["v0", "other"]
    assert versions[0].at().snapshot == versions[3].snapshot
    with pytest.raises(NotFoundError, match="branch 'none'"):
        versions[0].transaction("nowhere", branch="none")


def test_rollback_goes_back_and_keeps_a_branch(versions: list[kpstore.Store]) -> None:
    store = versions[0]
    kept = store.rollback(versions[1].snapshot)
    assert store.at().snapshot == versions[1].snapshot
    assert store.at(kept).snapshot == versions[3].snapshot
    with store.transaction("go on") as tx:
        tx.add_videos([record("v1", 5)])
    assert store.at().index.n_frames.tolist() == [2, 5]


def test_two_rollbacks_within_a_second_both_keep_a_branch(versions: list[kpstore.Store]) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    backend = versions[0].backend
    kept = [history.rollback(backend, versions[n].snapshot, now=now)[1] for n in (2, 1, 0)]
    assert kept == [f"before-rollback-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert [versions[0].at(name).snapshot for name in kept] == [
        versions[n].snapshot for n in (3, 2, 1)
    ]


def test_rollback_to_nowhere_is_refused(with_branches: list[kpstore.Store]) -> None:
    versions = with_branches
    store = versions[0]
    with pytest.raises(InvalidError, match="already is the newest version"):
        store.rollback("main")
    versions[1].branch("try")
    with store.transaction("elsewhere", branch="try") as tx:
        tx.add_videos([record("other", 1)])
    with pytest.raises(InvalidError, match="is not an ancestor of the newest version"):
        store.rollback("try")
    store.at("try").tag("tried")
    store.rollback("tried")
    assert store.at().index.ids.tolist() == store.at("try").index.ids.tolist()


def test_a_rollback_can_be_undone_by_its_branch(versions: list[kpstore.Store]) -> None:
    store = versions[0]
    kept = store.rollback(versions[1].snapshot)
    store.rollback(kept)
    assert store.at().snapshot == versions[3].snapshot


def test_rollback_does_not_disturb_a_run(versions: list[kpstore.Store]) -> None:
    with versions[0].backend.exclusive("ingest"), pytest.raises(BusyError, match="ingest"):
        versions[0].rollback(versions[1].snapshot)
    assert versions[0].branches == {"main": versions[3].snapshot}
