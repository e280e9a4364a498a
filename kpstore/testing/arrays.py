"""What every backend must do with its place and its arrays."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from kpstore.backends.base import MAIN, TEXT, Backend, Codec
from kpstore.errors import (
    ExistsError,
    InvalidError,
    NotFoundError,
)
from kpstore.testing.store_data import (
    CHUNK,
    BackendFixtures,
    add_array,
    another,
    commit_rows,
    mapped_rows,
    meta,
    newest,
    numbers,
    text_meta,
)


class ArrayContract(BackendFixtures):
    """Creating a store, and writing and reading arrays."""

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
        place, question, how = made.location.partition("?")
        folder, slash, last = place.rpartition("/")
        moved = another(made, f"{folder}{slash}moved-{last}{question}{how}")
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

    def test_chunks_that_are_not_stored_read_as_fill(self, made: Backend) -> None:
        add_array(made)
        session = made.session(commit_rows(made, "a", 4, numbers(4)))
        about, stored = session.meta("a"), session.stored("a")
        assert (stored.shape, stored.dtype) == ((about.n_chunks,), np.dtype(bool))
        for chunk in range(about.n_chunks):
            values = session.read("a", *about.rows_of(chunk))
            assert stored[chunk] or np.isnan(values).all()

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
        mapped = mapped_rows(session, "a")
        if mapped is not None:
            assert not mapped.flags.writeable
            assert (mapped.dtype, mapped.tobytes()) == (whole.dtype, whole.tobytes())
        for number in range(6):
            out = np.full((1024, 2), 7, dtype=dtype)
            chunks.read_into(number, out)
            rows = whole[number * 1024 : (number + 1) * 1024]
            assert out[: len(rows)].tobytes() == rows.tobytes(), number

    @pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
    def test_strips_hold_what_their_chunk_does(self, made: Backend, codec: Codec) -> None:
        """They are optional: ``strips`` is None where chunks are decoded as a whole."""
        changes = made.begin()
        changes.create("a", meta(40_000, codec=codec, chunk_rows=16_384))
        changes.write("a", 0, numbers(40_000))
        changes.commit("chunks that are large enough to be divided")
        chunks = newest(made).chunks("a")
        whole = np.empty((16_384, 2), dtype="float32")
        rows = 16_384 if chunks.strips is None else chunks.strips.rows
        for number in range(2 if chunks.strips is not None else 0):
            assert chunks.strips is not None
            chunks.read_into(number, whole)
            places = {start: np.empty_like(whole[:rows]) for start in range(0, 16_384, rows)}
            chunks.strips.read_into(number, places)
            assert np.concatenate(list(places.values())).tobytes() == whole.tobytes()

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

    def test_an_array_made_lengthened_and_deleted_leaves_nothing(self, made: Backend) -> None:
        changes = made.begin()
        for name in ("a", "b"):
            changes.create(name, meta(n_rows=0))
            changes.resize(name, 5)
        changes.delete("a")
        changes.commit("b alone")
        assert newest(made).names() == ["b"]

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
