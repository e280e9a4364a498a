"""Any sequence of writes, commits, tags, branches and rollbacks, against a model of plain dicts."""

from __future__ import annotations

import copy
import itertools
import pickle
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.inspect.verify import verify_all
from kpstore.schema.feature import FeatureSpec, State
from tests.conftest import memory_location
from tests.fakes import record

Model = dict[str, Any]
"""A version: by video the value that all its frames hold, ``"pending"``, or why it failed."""

SPEC = FeatureSpec("f", (2,), ("x",), chunk_rows=4)


class StoreMachine(RuleBasedStateMachine):
    """The store may do nothing that a dict of versions does not do."""

    snapshots = Bundle("snapshots")

    def location(self) -> str:
        return memory_location()

    @initialize(target=snapshots)
    def create(self) -> str:
        self.store = kpstore.create(self.location())
        with self.store.transaction("feature") as tx:
            tx.add_feature(SPEC)
        self.tip = self.store.at().snapshot
        self.versions: dict[str, Model] = {self.tip: {}}
        self.branches = {"main": self.tip}
        self.tags: dict[str, str] = {}
        self.used_tags: set[str] = set()
        self.parents = {self.tip: self.store.snapshot}
        return self.tip

    def apply(self, tx: Any, model: Model, changes: list[tuple[str, int, Any]]) -> None:
        for video_id, n_frames, value in changes:
            if video_id not in model:
                tx.add_videos([record(video_id, n_frames)])
                model[video_id] = (n_frames, "pending")
            n_frames = model[video_id][0]
            if isinstance(value, str):
                tx.fail("f", video_id, value)
            else:
                tx.write("f", video_id, np.full((n_frames, 2), value, dtype=np.float32))
            model[video_id] = (n_frames, value)

    changes = st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.integers(0, 9),
            st.integers(0, 99) | st.sampled_from(["no", "ü"]),
        ),
        min_size=1,
        max_size=4,
    )

    @rule(target=snapshots, changes=changes, data=st.data())
    def commit(self, changes: list[tuple[str, int, Any]], data: st.DataObject) -> str:
        branch = data.draw(st.sampled_from(sorted(self.branches)))
        parent = self.branches[branch]
        model = copy.deepcopy(self.versions[parent])
        with self.store.transaction("commit", branch=branch) as tx:
            self.apply(tx, model, changes)
        assert tx.snapshot is not None
        assert tx.snapshot not in self.versions
        self.versions[tx.snapshot], self.parents[tx.snapshot] = model, parent
        self.branches[branch] = tx.snapshot
        return tx.snapshot

    @rule(changes=changes)
    def break_off(self, changes: list[tuple[str, int, Any]]) -> None:
        with pytest.raises(RuntimeError, match="boom"), self.store.transaction("bad") as tx:  # noqa: PT012
            self.apply(tx, copy.deepcopy(self.versions[self.branches["main"]]), changes)
            raise RuntimeError("boom")

    @rule(name=st.sampled_from(["v1", "v2", "v3"]), snapshot=snapshots)
    def tag(self, name: str, snapshot: str) -> None:
        if self.is_gone(snapshot):
            return
        if name in self.used_tags:
            with pytest.raises(ExistsError, match="tag"):
                self.store.at(snapshot).tag(name)
        else:
            self.store.at(snapshot).tag(name)
            self.tags[name] = snapshot
            self.used_tags.add(name)

    @precondition(lambda self: any(name.startswith("v") for name in self.tags))
    @rule(data=st.data())
    def delete_tag(self, data: st.DataObject) -> None:
        name = data.draw(
            st.sampled_from(sorted(name for name in self.tags if name.startswith("v")))
        )
        self.store.delete_tag(name)
        del self.tags[name]

    @precondition(lambda self: self.store.backend.capabilities.branches)
    @rule(name=st.sampled_from(["one", "two"]), snapshot=snapshots)
    def branch(self, name: str, snapshot: str) -> None:
        if self.is_gone(snapshot):
            return
        if name in self.branches:
            with pytest.raises(ExistsError, match="branch"):
                self.store.at(snapshot).branch(name)
        else:
            self.store.at(snapshot).branch(name)
            self.branches[name] = snapshot

    def ancestors(self, snapshot: str) -> list[str]:
        found = []
        while snapshot in self.parents:
            found.append(snapshot)
            snapshot = self.parents[snapshot]
        return [*found, snapshot]

    def is_gone(self, snapshot: str) -> bool:
        """Return whether garbage collection has removed a version, which cannot be opened then."""
        if snapshot in self.versions:
            return False
        with pytest.raises(NotFoundError, match=snapshot):
            self.store.at(snapshot)
        return True

    @precondition(lambda self: len(self.branches) > 1)
    @rule(data=st.data())
    def delete_branch(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.branches.keys() - {"main"})))
        self.store.delete_branch(name)
        del self.branches[name]

    @rule(snapshot=snapshots)
    def roll_back(self, snapshot: str) -> None:
        if self.is_gone(snapshot):
            return
        tip = self.branches["main"]
        names = {**self.tags, **self.branches}
        kept = [target for name, target in names.items() if name.startswith("before-rollback-")]
        held = {one for start in (tip, *kept) for one in self.ancestors(start)}
        if snapshot == tip or snapshot not in held.union(self.tags.values()):
            with pytest.raises(InvalidError, match=r"nothing to roll back|not an ancestor"):
                self.store.rollback(snapshot)
            return
        kept_names = self.branches if self.store.backend.capabilities.branches else self.tags
        kept_names[self.store.rollback(snapshot)] = tip
        self.branches["main"] = snapshot

    @rule(snapshot=snapshots)
    def read(self, snapshot: str) -> None:
        if self.is_gone(snapshot):
            return
        self.check(self.store.at(snapshot), self.versions[snapshot])
        assert [c.id for c in self.store.at(snapshot).history()] == self.ancestors(snapshot)

    @rule()
    def reopen(self) -> None:
        self.store = kpstore.open(self.store.location, mode="a")
        self.check(pickle.loads(pickle.dumps(self.store)), self.versions[self.branches["main"]])

    @invariant()
    def names_lead_where_they_should(self) -> None:
        assert self.store.branches == dict(sorted(self.branches.items()))
        assert self.store.tags == dict(sorted(self.tags.items()))
        self.check(self.store.at(), self.versions[self.branches["main"]])

    def check(self, store: kpstore.Store, model: Model) -> None:
        assert store.index.ids.tolist() == list(model)
        assert store.index.n_frames.tolist() == [n for n, _ in model.values()]
        values = [np.full((n, 2), np.nan if isinstance(v, str) else v) for n, v in model.values()]
        np.testing.assert_array_equal(store["f"][:], np.concatenate([np.empty((0, 2)), *values]))
        states = {"pending": State.PENDING, "no": State.FAILED, "ü": State.FAILED}
        assert store.states("f").tolist() == [states.get(v, State.DONE) for _, v in model.values()]
        failed = [(video_id, v) for video_id, (_, v) in model.items() if v in ("no", "ü")]
        assert [(f.video_id, f.reason) for f in store.failures("f")] == failed


class IcechunkMachine(StoreMachine):
    """The same on disk, where old versions can be removed."""

    @rule(keep=st.integers(1, 3))
    def collect_garbage(self, keep: int) -> None:
        found = self.store.collect_garbage(older_than=timedelta(0), keep=keep, apply=True)
        newest = [self.ancestors(tip)[:keep] for tip in self.branches.values()]
        kept = {*itertools.chain(*newest), *self.tags.values()} & self.versions.keys()
        assert kept.isdisjoint(found.versions)
        self.versions = {s: m for s, m in self.versions.items() if s not in found.versions}
        before, self.parents = {s: self.ancestors(s) for s in self.versions}, {}
        for snapshot, model in self.versions.items():
            store = self.store.at(snapshot)
            self.check(store, model)
            history = [commit.id for commit in store.history()]
            assert history == [s for s in before[snapshot] if s in history]
            self.parents.update(itertools.pairwise(history))
        assert verify_all(self.store.location).problems == []

    def location(self) -> str:
        self.directory = Path(tempfile.mkdtemp())
        return str(self.directory / "store.kps")

    def teardown(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class HDF5Machine(IcechunkMachine):
    """The same in one file, and the file is plain HDF5 after every step."""

    def location(self) -> str:
        super().location()
        return str(self.directory / "store.h5")

    @invariant()
    def the_newest_version_is_plain_hdf5(self) -> None:
        with h5py.File(self.store.location) as file:
            np.testing.assert_array_equal(file["f"][:], self.store.at()["f"][:])

    @invariant()
    def nothing_is_left_beside_the_file(self) -> None:
        assert {path.name for path in self.directory.iterdir()} <= {"store.h5", ".store.h5.kpstore"}


# A thorough run (KPSTORE_HYPOTHESIS) tries many more.
TIMES = max(1, settings.default.max_examples // 40)

TestMemoryStore = StoreMachine.TestCase
TestMemoryStore.settings = settings(max_examples=25 * TIMES, stateful_step_count=25, deadline=None)
TestIcechunkStore = pytest.mark.slow(IcechunkMachine.TestCase)
TestIcechunkStore.settings = settings(max_examples=5 * TIMES, stateful_step_count=12, deadline=None)
TestHDF5Store = pytest.mark.slow(HDF5Machine.TestCase)
TestHDF5Store.settings = settings(max_examples=5 * TIMES, stateful_step_count=20, deadline=None)
