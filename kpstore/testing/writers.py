"""What every backend must do for several writers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from kpstore.backends.base import MAIN, Backend
from kpstore.backends.checksums import matches
from kpstore.errors import (
    BusyError,
    ConflictError,
    InvalidError,
)
from kpstore.testing.store_data import (
    CHUNK,
    BackendFixtures,
    add_array,
    commit_rows,
    meta,
    newest,
    numbers,
    text_meta,
)


class WriterContract(BackendFixtures):
    """Conflicts, and forks for other processes."""

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

    def test_a_session_with_changes_cannot_be_forked(self, made: Backend) -> None:
        add_array(made)
        changes = made.begin()
        changes.write("a", 0, numbers(1))
        with pytest.raises(InvalidError, match="before it has changes of its own"):
            changes.fork()
