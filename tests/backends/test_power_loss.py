"""A power cut: whatever of the unsynced files survives, a branch leads to a whole version."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.backends import hdf5_file, icechunk_directory
from kpstore.backends import icechunk as icechunk_module
from kpstore.inspect.verify import verify, verify_all
from tests.fakes import record

REF = "refs/branch.main/ref.json"


def filled(path: Path) -> kpstore.Store:
    store = kpstore.create(path)
    with store.transaction("videos") as tx:
        tx.add_videos([record("a", 4)])
        tx.add_feature(kpstore.FeatureSpec("k", (2, 3), ("point", "space")), {})
    return kpstore.open(path, mode="a")


def write(store: kpstore.Store) -> None:
    with store.transaction("rows") as tx:
        tx.write("k", "a", np.ones((4, 2, 3), np.float32))


def test_when_a_branch_is_moved_all_that_it_leads_to_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s.kps")
    synced: list[Path] = []

    def sync(path: Path) -> None:
        synced.append(tmp_path / f"synced-{len(synced)}.kps")
        shutil.copytree(path, synced[-1])

    monkeypatch.setattr(icechunk_directory, "sync_disk", sync)
    write(store)
    before, after = synced
    assert kpstore.open(before).snapshot == store.snapshot
    # The branch's new file may reach the disk before anything else that was written since.
    shutil.copy(after / REF, before / REF)
    survived = kpstore.open(before)
    assert survived.snapshot == kpstore.open(tmp_path / "s.kps").snapshot
    assert survived["k"][:].tolist() == np.ones((4, 2, 3)).tolist()
    assert not verify(survived).problems


def test_a_disk_that_cannot_be_synced_leaves_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s.kps")

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(icechunk_directory, "sync_disk", fail)
        with pytest.raises(OSError, match="Input/output error"):
            write(store)
    assert kpstore.open(tmp_path / "s.kps").snapshot == store.snapshot
    write(store)
    assert kpstore.open(tmp_path / "s.kps").snapshot != store.snapshot


def test_an_hdf5_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s.h5")
    synced: list[bool] = []

    def sync(path: Path) -> None:
        synced.append(kpstore.open(tmp_path / "s.h5").snapshot == store.snapshot)

    monkeypatch.setattr(hdf5_file, "make_durable", sync)
    write(store)
    assert synced == [True, False]


@pytest.mark.parametrize("change", ["rollback", "delete"])
def test_a_name_that_moves_is_in_the_ledger_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    store = filled(tmp_path / "s.kps")
    first = store.snapshot
    write(store)
    store.branch("try")
    synced: list[Path] = []

    def sync(path: Path) -> None:
        synced.append(tmp_path / f"synced-{len(synced)}.kps")
        shutil.copytree(path, synced[-1])

    monkeypatch.setattr(icechunk_module, "sync_disk", sync)
    newest = kpstore.open(tmp_path / "s.kps", mode="a")
    if change == "rollback":
        newest.backend.reset_branch("main", first, expected=newest.snapshot)
    else:
        newest.delete_branch("try")
    # Of what was written after the first sync, the branch's file alone survived.
    survived = synced[0]
    shutil.rmtree(survived / "refs")
    shutil.copytree(tmp_path / "s.kps" / "refs", survived / "refs")
    wanted = first if change == "rollback" else newest.snapshot
    assert kpstore.open(survived).snapshot == wanted
    assert not verify_all(str(survived)).problems
