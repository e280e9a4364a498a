"""What every backend must do.

A test module of a new backend needs one class, and pytest finds the rest::

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(str(tmp_path / "store.mine"))
"""

from __future__ import annotations

import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Backend, Codec, ReadSession
from kpstore.backends.checksums import matches
from kpstore.errors import (
    BusyError,
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
)

CHUNK = 4


def meta(n_rows: int = 10, dtype: str = "float32", **changes: Any) -> ArrayMeta:
    """(rows, 2) numbers in chunks of four."""
    fill: Any = {"f": np.nan, "b": False}.get(np.dtype(dtype).kind, 0)
    chunk_rows = changes.pop("chunk_rows", CHUNK)
    return ArrayMeta((n_rows, 2), dtype, chunk_rows, ("frame", "xy"), **{"fill": fill, **changes})


def text_meta(n_rows: int) -> ArrayMeta:
    """(rows,) text in chunks of four."""
    return ArrayMeta((n_rows,), TEXT, CHUNK, ("frame",))


def numbers(n_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """(rows, 2) float32, others for each seed."""
    return np.random.default_rng(seed).standard_normal((n_rows, 2)).astype(np.float32)


def add_array(backend: Backend, name: str = "a", n_rows: int = 10) -> str:
    """Commit an array whose rows nobody wrote."""
    changes = backend.begin()
    changes.create(name, meta(n_rows))
    return changes.commit(f"add {name}")


def commit_rows(
    backend: Backend, name: str, start: int, values: NDArray[Any], branch: str = MAIN
) -> str:
    """Commit rows of an array; return the new version."""
    changes = backend.begin(branch)
    changes.write(name, start, values)
    return changes.commit(f"write {name}[{start}:]")


def newest(backend: Backend, branch: str = MAIN) -> ReadSession:
    """Open the newest version of a branch."""
    return backend.session(backend.branches()[branch])


def another(backend: Backend, location: str) -> Backend:
    """Return a further backend of the same class, as another process would make it."""
    kind: Any = type(backend)
    found: Backend = kind(location)
    return found


class BackendContract:
    """Tests for a subclass whose fixture ``backend`` returns a backend at a free place."""

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError

    @pytest.fixture
    def made(self, backend: Backend) -> Backend:
        backend.create({"title": "t"}, "created")
        return backend

    def needs_branches(self, backend: Backend) -> None:
        if not backend.capabilities.branches:
            pytest.skip("this backend has no branches")

    # -- a place -----------------------------------------------------------------------------------

    def test_a_place_without_a_store_says_so(self, backend: Backend) -> None:
        assert not backend.exists()
        with pytest.raises(NotFoundError, match="does not exist"):
            backend.branches()
        assert not backend.exists()

    def test_a_fork_that_has_written_passes_its_check_here(self, made: Backend) -> None:
        add_array(made)
        fork = pickle.loads(pickle.dumps(made.begin().fork()))
        fork.write("a", 4, numbers(6))
        pickle.loads(pickle.dumps(fork)).check()

    def test_create_makes_one_version_with_the_attributes(self, backend: Backend) -> None:
        first = backend.create({"title": "t", "nested": {"list": [1, 2]}}, "created")
        assert backend.exists()
        assert backend.branches() == {MAIN: first}
        assert backend.session(first).attrs() == {"title": "t", "nested": {"list": [1, 2]}}
        assert [(c.id, c.parent, c.message) for c in backend.history(first)] == [
            (first, None, "created")
        ]

    def test_create_over_a_store_is_refused(self, made: Backend) -> None:
        before = made.branches()
        with pytest.raises(ExistsError, match="already exists"):
            made.create({}, "again")
        assert made.branches() == before

    def test_a_store_can_be_moved_with_its_versions(self, made: Backend) -> None:
        add_array(made)
        commit_rows(made, "a", 0, numbers(10))
        folder, slash, last = made.location.rpartition("/")
        moved = another(made, f"{folder}{slash}moved-{last}")
        made.move(moved.location)
        assert not another(made, made.location).exists()
        assert len(list(moved.history(moved.branches()[MAIN]))) == 3
        np.testing.assert_array_equal(newest(moved).read("a", 0, 10), numbers(10))
        again = another(made, made.location)
        again.create({}, "another")
        with pytest.raises(ExistsError, match="moved-"):
            again.move(moved.location)
        assert again.exists()

    def test_a_removed_store_is_gone(self, made: Backend) -> None:
        again = another(made, made.location)
        again.remove()
        assert not again.exists()
        again.remove()

    def test_the_backend_pickles(self, made: Backend) -> None:
        add_array(made)
        again = pickle.loads(pickle.dumps(made))
        assert again.location == made.location
        assert newest(again).names() == ["a"]

    # -- arrays ------------------------------------------------------------------------------------

    def test_unwritten_rows_read_as_fill(self, made: Backend) -> None:
        add_array(made)
        assert np.isnan(newest(made).read("a", 0, 10)).all()

    @pytest.mark.parametrize(
        "dtype", ["float32", "float64", "float16", "bool", "uint8", "int32", "int64"]
    )
    def test_values_come_back_with_their_dtype(self, made: Backend, dtype: str) -> None:
        values = (np.random.default_rng(1).integers(0, 2, (10, 2)) * 1).astype(dtype)
        changes = made.begin()
        changes.create("a", meta(10, dtype))
        changes.write("a", 0, values)
        changes.commit("write")
        stored = newest(made).read("a", 0, 10)
        assert stored.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(stored, values)

    def test_text_comes_back_as_str(self, made: Backend) -> None:
        words = np.array(["", "Wörter", "日本語", "🙂", "a b\n", "x" * 1000], dtype=object)
        changes = made.begin()
        changes.create("words", text_meta(8))
        changes.write("words", 0, words)
        changes.commit("text")
        stored = newest(made).read("words", 0, 8)
        assert stored.dtype == object
        assert stored.tolist() == [*words.tolist(), "", ""]
        assert all(type(word) is str for word in stored)

    def test_meta_comes_back(self, made: Backend) -> None:
        changes = made.begin()
        wanted = meta(10, attrs={"units": "1", "flags": [0, 1]}, codec="raw")
        changes.create("a", wanted)
        changes.create("words", text_meta(3))
        changes.commit("add")
        stored = newest(made).meta("a")
        assert np.isnan(stored.fill)
        assert (stored.shape, stored.dtype, stored.chunk_rows) == ((10, 2), "float32", CHUNK)
        assert (stored.dims, dict(stored.attrs), stored.codec) == (
            ("frame", "xy"),
            wanted.attrs,
            "raw",
        )
        assert newest(made).meta("words").dtype == TEXT

    @pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
    @pytest.mark.parametrize("dtype", ["float32", "bool", "uint8", "int64"])
    def test_chunks_hold_what_reading_gives(self, made: Backend, codec: Codec, dtype: str) -> None:
        values = (numbers(2_500) * 3).astype(dtype)
        wanted = meta(5_500, dtype, codec=codec, chunk_rows=1024)
        changes = made.begin()
        changes.create("a", wanted)
        changes.write("a", 1_030, values)
        changes.write("a", 5_400, values[:100])
        changes.commit("two runs of rows; chunks 0 and 4 are not written, the last is short")
        session = newest(made)
        whole, chunks = session.read("a", 0, 5_500), session.chunks("a")
        np.testing.assert_array_equal(whole[1_030:3_530], values)
        if chunks.mapped is not None:
            assert not chunks.mapped.flags.writeable
            assert (chunks.mapped.dtype, chunks.mapped.tobytes()) == (whole.dtype, whole.tobytes())
        for number in range(6):
            out = np.full((1024, 2), 7, dtype=dtype)
            chunks.read_into(number, out)
            rows = whole[number * 1024 : (number + 1) * 1024]
            assert out[: len(rows)].tobytes() == rows.tobytes(), number

    def test_chunks_of_text_and_of_changes(self, made: Backend) -> None:
        changes = made.begin()
        changes.create("words", text_meta(6))
        changes.write("words", 0, np.array([*"abcdef"], dtype=object))
        out = np.empty(CHUNK, dtype=object)
        changes.chunks("words").read_into(1, out)
        assert out[:2].tolist() == ["e", "f"]
        changes.commit("text")
        newest(made).chunks("words").read_into(0, out)
        assert out.tolist() == [*"abcd"]

    def test_an_array_without_rows_can_be_made_and_grown(self, made: Backend) -> None:
        add_array(made, n_rows=0)
        assert newest(made).read("a", 0, 0).shape == (0, 2)
        changes = made.begin()
        changes.resize("a", 5)
        changes.write("a", 3, numbers(2))
        changes.commit("grow")
        stored = newest(made).read("a", 0, 5)
        assert np.isnan(stored[:3]).all()
        np.testing.assert_array_equal(stored[3:], numbers(2))

    def test_resize_keeps_rows_and_adds_unwritten_ones(self, made: Backend) -> None:
        add_array(made)
        commit_rows(made, "a", 0, numbers(10))
        changes = made.begin()
        changes.resize("a", 23)
        assert changes.meta("a").n_rows == 23
        changes.commit("grow")
        np.testing.assert_array_equal(newest(made).read("a", 0, 10), numbers(10))
        assert np.isnan(newest(made).read("a", 10, 23)).all()

    def test_resize_to_fewer_rows_is_refused(self, made: Backend) -> None:
        add_array(made)
        with pytest.raises(InvalidError, match="has 10 rows and cannot shrink to 9"):
            made.begin().resize("a", 9)

    def test_delete_removes_an_array_from_this_version_on(self, made: Backend) -> None:
        before = add_array(made)
        changes = made.begin()
        changes.delete("a")
        assert changes.names() == []
        changes.commit("delete")
        assert newest(made).names() == []
        assert made.session(before).names() == ["a"]

    def test_a_name_is_given_once(self, made: Backend) -> None:
        add_array(made)
        with pytest.raises(ExistsError, match="'a' exists already"):
            made.begin().create("a", meta())

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 11), (8, 7)])
    def test_rows_outside_an_array_are_refused(self, made: Backend, start: int, stop: int) -> None:
        add_array(made)
        with pytest.raises(InvalidError, match="'a' asked for; it has 10"):
            newest(made).read("a", start, stop)

    @pytest.mark.parametrize("shape", [(11, 2), (3, 3), (3, 1), (3,), (3, 2, 1)])
    def test_values_that_do_not_fit_are_refused(
        self, made: Backend, shape: tuple[int, ...]
    ) -> None:
        add_array(made)
        with pytest.raises(InvalidError, match="'a'"):
            made.begin().write("a", 0, np.zeros(shape, dtype=np.float32))

    def test_reads_are_copies(self, made: Backend) -> None:
        add_array(made)
        session = made.session(commit_rows(made, "a", 0, numbers(10)))
        session.read("a", 0, 10)[:] = 7
        attrs: Any = session.attrs()
        attrs["title"] = "other"
        np.testing.assert_array_equal(session.read("a", 0, 10), numbers(10))
        assert session.attrs()["title"] == "t"

    def test_attributes_are_replaced(self, made: Backend) -> None:
        add_array(made)
        changes = made.begin()
        changes.set_attrs({"new": [1]})
        changes.set_array_attrs("a", {"units": "m"})
        changes.commit("attrs")
        assert newest(made).attrs() == {"new": [1]}
        assert dict(newest(made).meta("a").attrs) == {"units": "m"}

    def test_unknown_arrays_are_not_found(self, made: Backend) -> None:
        snapshot = add_array(made)
        changes = made.begin()
        for call in (
            lambda: made.session(snapshot).read("b", 0, 1),
            lambda: made.session(snapshot).meta("b"),
            lambda: changes.write("b", 0, numbers(1)),
            lambda: changes.resize("b", 3),
            lambda: changes.delete("b"),
            lambda: changes.set_array_attrs("b", {}),
            lambda: made.begin().fork().write("b", 0, numbers(4)),
        ):
            with pytest.raises(NotFoundError, match="array 'b' not found"):
                call()

    # -- versions ----------------------------------------------------------------------------------

    def test_a_view_never_changes_while_others_write(self, made: Backend) -> None:
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

    def test_a_committed_view_is_spent(self, made: Backend) -> None:
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

    # -- several writers ---------------------------------------------------------------------------

    def test_two_writers_of_different_data_both_land(self, made: Backend) -> None:
        add_array(made, "a")
        add_array(made, "b")
        one, two, three = made.begin(), made.begin(), made.begin()
        one.write("a", 0, numbers(CHUNK, 1))
        two.write("a", CHUNK, numbers(CHUNK, 2))
        three.write("b", 0, numbers(10, 3))
        ids = [session.commit(f"writer {n}") for n, session in enumerate((one, two, three))]
        assert [c.id for c in made.history(ids[-1])][:3] == ids[::-1]
        np.testing.assert_array_equal(newest(made).read("a", 0, CHUNK), numbers(CHUNK, 1))
        np.testing.assert_array_equal(newest(made).read("a", CHUNK, 2 * CHUNK), numbers(CHUNK, 2))
        np.testing.assert_array_equal(newest(made).read("b", 0, 10), numbers(10, 3))

    def test_every_chunk_has_its_checksum_whoever_wrote_it(self, made: Backend) -> None:
        add_array(made, "a", n_rows=18)
        add_array(made, "gone")
        fork = made.begin().fork()
        one, two, three = made.begin(), made.begin(), made.begin()
        one.write("a", 0, numbers(CHUNK, 1))
        one.create("b", text_meta(6))
        one.write("b", 1, np.array(["x", "yy"], dtype=object))
        two.write("a", 2 * CHUNK, numbers(2, 2))
        two.create("c", meta(3, "bool"))
        two.delete("gone")
        fork.write("a", 3 * CHUNK, numbers(6, 3))
        three.merge([pickle.loads(pickle.dumps(fork))])
        for session in (one, two, three):
            session.commit("one of three")
        again = made.begin()
        again.resize("a", 30)
        again.write("a", 17, numbers(9, 4))
        again.create("gone", meta(9))
        again.write("gone", 8, numbers(1, 5))
        again.commit("longer, and made again")
        now = newest(made)
        assert now.names() == ["a", "b", "c", "gone"]
        for name in now.names():
            found, about = now.checksums(name), now.meta(name)
            if found is None:
                continue
            values = now.read(name, 0, about.n_rows)
            chunks = [
                values[row : row + about.chunk_rows]
                for row in range(0, about.n_rows, about.chunk_rows)
            ]
            assert len(found) == len(chunks)
            assert all(
                matches(about, rows, int(sum_)) for rows, sum_ in zip(chunks, found, strict=True)
            ), name
            written = {"a": [1, 0, 1, 1, 1, 1, 1, 0], "b": [1, 0], "c": [0], "gone": [0, 0, 1]}[
                name
            ]
            assert (found != 0).tolist() == [bool(chunk) for chunk in written], name

    def test_a_writer_sees_the_checksums_of_what_it_wrote(self, made: Backend) -> None:
        add_array(made)
        commit_rows(made, "a", 0, numbers(10))
        changes = made.begin()
        changes.write("a", 5, numbers(2, 1))
        before, now = newest(made).checksums("a"), changes.checksums("a")
        if before is not None and now is not None:
            assert (before != now).tolist() == [False, True, False]
            assert matches(changes.meta("a"), changes.read("a", 4, 8), int(now[1]))

    def test_two_writers_of_one_chunk_conflict_and_nothing_is_lost(self, made: Backend) -> None:
        add_array(made)
        one, two = made.begin(), made.begin()
        one.write("a", 0, numbers(2, 1))
        two.write("a", 2, numbers(2, 2))
        kept = one.commit("first")
        with pytest.raises(ConflictError, match="another writer has changed the same data"):
            two.commit("second")
        assert made.branches() == {MAIN: kept}
        np.testing.assert_array_equal(newest(made).read("a", 0, 2), numbers(2, 1))
        assert np.isnan(newest(made).read("a", 2, 10)).all()

    @pytest.mark.parametrize("first", ["attrs", "array", "resize"])
    def test_two_writers_of_one_description_conflict(self, made: Backend, first: str) -> None:
        add_array(made)
        one, two = made.begin(), made.begin()
        for session, n_rows in ((one, 12), (two, 14)):
            if first == "attrs":
                session.set_attrs({"rows": n_rows})
            elif first == "array":
                session.create("same", meta(n_rows))
            else:
                session.resize("a", n_rows)
        one.commit("one")
        with pytest.raises(ConflictError, match="'two' was not committed"):
            two.commit("two")

    def test_exclusive_refuses_a_second_holder_and_names_the_first(self, made: Backend) -> None:
        snapshot = add_array(made)
        with made.exclusive("the first ingest"):
            with (
                pytest.raises(
                    BusyError, match=r"being written by another process .*the first ingest"
                ),
                made.exclusive("another"),
            ):
                pass
            assert made.session(snapshot).names() == ["a"]
        with made.exclusive("another"):
            pass

    def test_exclusive_is_given_back_after_an_error(self, made: Backend) -> None:
        with pytest.raises(RuntimeError, match="boom"), made.exclusive("first"):
            raise RuntimeError("boom")
        with made.exclusive("second"):
            pass

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

    def test_reset_branch_goes_back_and_the_versions_stay_readable(self, made: Backend) -> None:
        start = add_array(made)
        end = commit_rows(made, "a", 0, numbers(10))
        made.reset_branch(MAIN, start, expected=end)
        assert made.branches()[MAIN] == start
        assert np.isnan(newest(made).read("a", 0, 10)).all()
        np.testing.assert_array_equal(made.session(end).read("a", 0, 10), numbers(10))
        after = commit_rows(made, "a", 0, numbers(10, 5))
        assert [c.id for c in made.history(after)][1] == start

    def test_reset_branch_refuses_when_somebody_else_was_faster(self, made: Backend) -> None:
        start = add_array(made)
        seen = commit_rows(made, "a", 0, numbers(10))
        newer = commit_rows(made, "a", 0, numbers(10, 5))
        with pytest.raises(ConflictError, match="newer version meanwhile"):
            made.reset_branch(MAIN, start, expected=seen)
        assert made.branches()[MAIN] == newer

    # -- forks -------------------------------------------------------------------------------------

    def test_forks_pickle_before_and_after_they_write(self, made: Backend) -> None:
        add_array(made)
        changes = made.begin()
        forks = [pickle.loads(pickle.dumps(changes.fork())) for _ in range(2)]
        forks[0].write("a", 0, numbers(CHUNK, 1))
        forks[1].write("a", CHUNK, numbers(6, 2))
        changes.merge([pickle.loads(pickle.dumps(fork)) for fork in forks])
        np.testing.assert_array_equal(
            changes.read("a", 0, 10), np.concatenate([numbers(CHUNK, 1), numbers(6, 2)])
        )
        assert np.isnan(newest(made).read("a", 0, 10)).all()
        changes.commit("merged")
        np.testing.assert_array_equal(newest(made).read("a", CHUNK, 10), numbers(6, 2))

    @pytest.mark.parametrize(("start", "stop"), [(0, 3), (1, 4), (2, 6), (4, 9), (9, 10), (0, 9)])
    def test_a_fork_writes_whole_chunks_only(self, made: Backend, start: int, stop: int) -> None:
        add_array(made)
        with pytest.raises(
            InvalidError, match=f"whole chunks of 4 rows of 'a', not {start}:{stop}"
        ):
            made.begin().fork().write("a", start, numbers(stop - start))

    @pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 8), (0, 8), (8, 10), (4, 10), (0, 10)])
    def test_a_fork_may_write_a_short_last_chunk(
        self, made: Backend, start: int, stop: int
    ) -> None:
        add_array(made)
        changes = made.begin()
        fork = changes.fork()
        fork.write("a", start, numbers(stop - start))
        changes.merge([fork])
        changes.commit("merged")
        stored = newest(made).read("a", 0, 10)
        np.testing.assert_array_equal(stored[start:stop], numbers(stop - start))
        assert np.isnan(np.delete(stored, slice(start, stop), axis=0)).all()

    def test_a_fork_refuses_rows_outside_the_array(self, made: Backend) -> None:
        add_array(made)
        with pytest.raises(InvalidError, match="rows 8:12 of 'a' asked for; it has 10"):
            made.begin().fork().write("a", 8, numbers(4))

    def test_a_fork_made_on_an_earlier_version_can_be_merged(self, made: Backend) -> None:
        add_array(made)
        fork = made.begin().fork()
        commit_rows(made, "a", 0, numbers(CHUNK, 1))
        fork.write("a", CHUNK, numbers(CHUNK, 2))
        changes = made.begin()
        changes.write("a", 8, numbers(2, 3))
        changes.merge([fork])
        changes.commit("merged later")
        wanted = np.concatenate([numbers(CHUNK, 1), numbers(CHUNK, 2), numbers(2, 3)])
        np.testing.assert_array_equal(newest(made).read("a", 0, 10), wanted)

    def test_a_fork_with_a_short_last_chunk_is_refused_once_the_array_has_grown(
        self, made: Backend
    ) -> None:
        add_array(made)
        fork = made.begin().fork()
        fork.write("a", 8, numbers(2, 3))
        growing = made.begin()
        growing.resize("a", 12)
        growing.write("a", 10, numbers(2, 4))
        growing.commit("two more rows in the fork's last chunk")
        late = made.begin()
        with pytest.raises(ConflictError, match="has grown from 10 to 12 rows"):
            late.merge([pickle.loads(pickle.dumps(fork))])
        np.testing.assert_array_equal(newest(made).read("a", 10, 12), numbers(2, 4))

    def test_what_a_fork_wrote_is_lost_without_a_merge(self, made: Backend) -> None:
        before = add_array(made)
        made.begin().fork().write("a", 0, numbers(10))
        assert made.branches()[MAIN] == before
        assert np.isnan(newest(made).read("a", 0, 10)).all()

    def test_a_view_with_changes_cannot_be_forked(self, made: Backend) -> None:
        add_array(made)
        changes = made.begin()
        changes.write("a", 0, numbers(1))
        with pytest.raises(InvalidError, match="before it has changes of its own"):
            changes.fork()
