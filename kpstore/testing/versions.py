"""What every backend must do with versions and their names."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from kpstore.backends.base import MAIN, Backend
from kpstore.errors import (
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
)
from kpstore.testing.store_data import (
    BackendFixtures,
    add_array,
    another,
    commit_rows,
    meta,
    newest,
    numbers,
)


class VersionContract(BackendFixtures):
    """Commits, tags and branches."""

    def test_a_session_never_changes_while_others_write(self, made: Backend) -> None:
        old = made.session(add_array(made))
        changes = made.begin()
        changes.write("a", 0, numbers(10))
        changes.resize("a", 12)
        changes.set_attrs({"title": "other"})
        changes.create("b", meta())
        changes.commit("change everything")
        assert old.names() == ["a"]
        assert old.attrs() == {"title": "t"}
        assert old.meta("a").n_rows == 10
        assert np.isnan(old.read("a", 0, 10)).all()

    def test_a_writer_sees_its_own_changes_and_nobody_else_does(self, made: Backend) -> None:
        snapshot = add_array(made)
        changes = made.begin()
        changes.write("a", 3, numbers(4))
        np.testing.assert_array_equal(changes.read("a", 3, 7), numbers(4))
        assert changes.snapshot == snapshot
        assert np.isnan(newest(made).read("a", 0, 10)).all()

    def test_discard_leaves_nothing(self, made: Backend) -> None:
        before = add_array(made)
        changes = made.begin()
        changes.write("a", 0, numbers(10))
        changes.create("b", meta())
        changes.discard()
        assert made.branches() == {MAIN: before}
        assert changes.names() == ["a"]
        assert np.isnan(changes.read("a", 0, 10)).all()
        with pytest.raises(ReadOnlyError, match="committed or discarded"):
            changes.commit("too late")
        assert newest(made).names() == ["a"]

    def test_a_committed_session_is_spent(self, made: Backend) -> None:
        add_array(made)
        changes = made.begin()
        changes.write("a", 0, numbers(10))
        snapshot = changes.commit("write")
        for call in (
            lambda: changes.write("a", 0, numbers(10, 1)),
            lambda: changes.create("b", meta()),
            lambda: changes.commit("again"),
        ):
            with pytest.raises(ReadOnlyError, match="committed or discarded"):
                call()
        np.testing.assert_array_equal(made.session(snapshot).read("a", 0, 10), numbers(10))

    def test_a_commit_without_changes_makes_no_version(self, made: Backend) -> None:
        before = made.branches()
        assert made.begin().commit("nothing") == before[MAIN]
        assert made.branches() == before

    def test_halves_of_characters_as_in_names_of_files_break_no_version(
        self, made: Backend
    ) -> None:
        half = os.fsdecode(b"a\xff")
        changes = made.begin()
        changes.set_attrs({"title": half, "more": {half: [half]}})
        snapshot = changes.commit("from a file", {"file": half})
        found = made.session(snapshot).attrs()
        assert str(found["title"]).startswith("a")
        assert str(next(iter(made.history(snapshot))).metadata["file"]).startswith("a")

    def test_history_is_newest_first_with_metadata_and_utc_times(self, made: Backend) -> None:
        began = datetime.now(UTC) - timedelta(seconds=1)
        about = {"n": 3, "text": "ü", "nested": {"list": [1, None, True, 0.5]}}
        changes = made.begin()
        changes.create("a", meta())
        first = changes.commit("one", about)
        second = commit_rows(made, "a", 0, numbers(10))
        commits = list(made.history(second))
        assert [c.message for c in commits] == ["write a[0:]", "one", "created"]
        assert [c.id for c in commits[:2]] == [second, first]
        assert [c.parent for c in commits] == [first, commits[2].id, None]
        assert dict(commits[1].metadata) == about
        assert all(c.time.utcoffset() == timedelta(0) for c in commits)
        assert began <= commits[2].time <= commits[1].time <= commits[0].time <= datetime.now(UTC)

    def test_unknown_versions_are_not_found(self, made: Backend) -> None:
        known = made.branches()[MAIN]
        for call in (
            lambda: made.session("nothing"),
            lambda: list(made.history("nothing")),
            lambda: made.begin("nothing"),
            lambda: made.create_branch("b", "nothing"),
            lambda: made.reset_branch(MAIN, "nothing", expected=known),
            lambda: made.reset_branch("nothing", known, expected=known),
            lambda: made.create_tag("t", "nothing"),
            lambda: made.delete_tag("nothing"),
        ):
            with pytest.raises(NotFoundError, match=r"'nothing'.* not found"):
                call()
        made.create_tag("t", known)
        assert set(made.branches()) == {MAIN}

    # -- tags and branches -------------------------------------------------------------------------

    def test_tags_name_versions_and_never_move(self, made: Backend) -> None:
        old = made.branches()[MAIN]
        made.create_tag("v1.0", old)
        new = add_array(made)
        with pytest.raises(ExistsError, match=r"'v1.0'.* taken|'v1.0'.* exists"):
            made.create_tag("v1.0", new)
        made.create_tag("a-tag", new)
        assert list(made.tags().items()) == [("a-tag", new), ("v1.0", old)]

    def test_the_name_of_a_deleted_tag_is_not_given_out_again(self, made: Backend) -> None:
        snapshot = made.branches()[MAIN]
        made.create_tag("v1", snapshot)
        made.delete_tag("v1")
        assert made.tags() == {}
        assert made.session(snapshot).snapshot == snapshot
        with pytest.raises(ExistsError, match="'v1'"):
            made.create_tag("v1", snapshot)

    @pytest.mark.parametrize(
        "name", ["版本1", "v1-ö", "Ünïcode", "xn--", "xn--1-756b314a", "ভার্সন", "V1", "1.0+a_b"]
    )
    def test_names_are_found_again_as_they_were_given(self, made: Backend, name: str) -> None:
        old = made.branches()[MAIN]
        made.create_tag("v1", old)
        made.create_tag(name, old)
        new = add_array(made)
        again = another(made, made.location)
        assert again.tags() == {"v1": old, name: old}
        with pytest.raises(ExistsError, match=re.escape(name)):
            again.create_tag(name, new)
        again.delete_tag(name)
        assert made.tags() == {"v1": old}
        with pytest.raises(ExistsError, match=re.escape(name)):
            made.create_tag(name, new)
        if made.capabilities.branches:
            made.create_branch(name, new)
            newer = commit_rows(again, "a", 0, numbers(10), branch=name)
            made.reset_branch(name, new, expected=newer)
            assert another(made, made.location).branches() == {MAIN: new, name: new}

    def test_branches_grow_apart(self, made: Backend) -> None:
        self.needs_branches(made)
        start = add_array(made)
        made.create_branch("try", start)
        there = commit_rows(made, "a", 0, numbers(10, 1), branch="try")
        here = commit_rows(made, "a", 0, numbers(10, 2))
        assert made.branches() == {MAIN: here, "try": there}
        np.testing.assert_array_equal(newest(made, "try").read("a", 0, 10), numbers(10, 1))
        np.testing.assert_array_equal(newest(made).read("a", 0, 10), numbers(10, 2))
        with pytest.raises(ExistsError, match=r"branch 'try' .*exists already"):
            made.create_branch("try", start)

    def test_a_deleted_branch_is_gone_and_its_name_free(self, made: Backend) -> None:
        start = add_array(made)
        with pytest.raises(InvalidError, match=r"'main' .*cannot be deleted"):
            made.delete_branch(MAIN)
        with pytest.raises(NotFoundError, match=r"'try' .*not found"):
            made.delete_branch("try")
        self.needs_branches(made)
        made.create_branch("try", start)
        late = made.begin("try")
        there = commit_rows(made, "a", 0, numbers(10, 1), branch="try")
        made.delete_branch("try")
        assert another(made, made.location).branches() == {MAIN: start}
        np.testing.assert_array_equal(made.session(there).read("a", 0, 10), numbers(10, 1))
        late.write("a", 0, numbers(10, 2))
        with pytest.raises(NotFoundError, match=r"'try' .*not found"):
            late.commit("too late")
        made.create_branch("try", start)
        assert made.branches() == {MAIN: start, "try": start}

    def test_reset_branch_goes_back_and_the_versions_stay_readable(self, made: Backend) -> None:
        start = add_array(made)
        end = commit_rows(made, "a", 0, numbers(10))
        made.reset_branch(MAIN, start, expected=end)
        assert made.branches()[MAIN] == start
        assert np.isnan(newest(made).read("a", 0, 10)).all()
        np.testing.assert_array_equal(made.session(end).read("a", 0, 10), numbers(10))
        after = commit_rows(made, "a", 0, numbers(10, 5))
        assert [c.id for c in made.history(after)][1] == start

    def test_reset_branch_brings_back_an_array_that_has_another_fill_now(
        self, made: Backend
    ) -> None:
        start = add_array(made)
        changes = made.begin()
        changes.delete("a")
        changes.create("a", meta(fill=0.0))
        end = changes.commit("other fill")
        made.reset_branch(MAIN, start, expected=end)
        for snapshot, fill in ((start, np.nan), (end, 0.0)):
            session = another(made, made.location).session(snapshot)
            np.testing.assert_equal(session.meta("a").fill, fill)
            np.testing.assert_array_equal(session.read("a", 0, 10), np.full((10, 2), fill))

    def test_reset_branch_brings_back_an_array_that_was_made_anew(self, made: Backend) -> None:
        add_array(made)
        start = commit_rows(made, "a", 0, numbers(10, 1))
        changes = made.begin()
        changes.delete("a")
        changes.create("a", meta())
        changes.write("a", 0, numbers(3, 2))
        end = changes.commit("made anew")
        expected = {start: numbers(10, 1), end: np.full((10, 2), np.nan, dtype=np.float32)}
        expected[end][:3] = numbers(3, 2)
        for version, before in ((start, end), (end, start)):
            made.reset_branch(MAIN, version, expected=before)
            assert list(made.examine()) == []
            for snapshot, rows in expected.items():
                np.testing.assert_array_equal(made.session(snapshot).read("a", 0, 10), rows)

    def test_reset_branch_refuses_when_somebody_else_was_faster(self, made: Backend) -> None:
        start = add_array(made)
        seen = commit_rows(made, "a", 0, numbers(10))
        newer = commit_rows(made, "a", 0, numbers(10, 5))
        with pytest.raises(ConflictError, match="newer version meanwhile"):
            made.reset_branch(MAIN, start, expected=seen)
        assert made.branches()[MAIN] == newer
