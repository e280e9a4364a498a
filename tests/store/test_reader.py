"""Reads return what numpy would, and touch each chunk once."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.chunks import Chunks
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import CorruptError, InvalidError
from kpstore.store import keys, reader
from kpstore.store.cache import DecodedCache
from kpstore.store.reader import RowReader


class CountingSession:
    """One array that has to be decoded chunk by chunk, or with ``mapped`` lies in memory.

    It notes every read.
    """

    def __init__(self, values: NDArray[Any], chunk_rows: int, *, mapped: bool = False) -> None:
        self.values, self.reads, self.snapshot, self.mapped = (
            values,
            list[tuple[int, int]](),
            "s",
            mapped,
        )
        self._meta = ArrayMeta(
            values.shape, values.dtype.name, chunk_rows, ("frame", *"xyz"[: values.ndim - 1])
        )

    def attrs(self) -> dict[str, Any]:
        return {}

    def names(self) -> list[str]:
        return ["a"]

    def meta(self, name: str) -> ArrayMeta:
        return self._meta

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        self._meta.check_rows(name, start, stop - start)
        self.reads.append((start, stop))
        return self.values[start:stop].copy()

    def checksums(self, name: str) -> None:
        return None

    def place(self, name: str, chunk: int) -> str:
        return f"chunk {chunk}"

    def chunks(self, name: str) -> Chunks:
        return SessionChunks(self, name, self.values if self.mapped else None)


def view_of(
    n_rows: int, chunk_rows: int = 4, shape: tuple[int, ...] = (3, 2), *, mapped: bool = False
) -> CountingSession:
    values = np.random.default_rng(n_rows).standard_normal((n_rows, *shape))
    return CountingSession(values, chunk_rows, mapped=mapped)


def read_key(view: CountingSession, name: str, key: Any) -> NDArray[Any]:
    return keys.read_key(RowReader(view), name, key)


def read_rows(view: CountingSession, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    return RowReader(view).read(name, rows)


def check(view: CountingSession, key: Any) -> None:
    found, wanted = read_key(view, "a", key), view.values[key]
    assert np.shape(found) == np.shape(wanted)
    np.testing.assert_array_equal(found, wanted)


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (0,)])
@pytest.mark.parametrize("rows", [[], [5], [0, 19, 7, 7, 3]])
def test_rows_that_are_asked_for_ahead_are_the_same(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], rows: list[int]
) -> None:
    for bound in ("_LARGE_BYTES", "_WIDE_BYTES", "_MANY_ROWS"):
        monkeypatch.setattr(reader, bound, 0)
    view = view_of(20, shape=shape, mapped=True)
    found = RowReader(view).read("a", np.array(rows, dtype=np.int64))
    np.testing.assert_array_equal(found, view.values[rows])


@given(sizes, st.data())
def test_read_rows_equals_numpy_for_any_rows_in_any_order(
    size: tuple[int, int], data: st.DataObject
) -> None:
    view = view_of(*size)
    rows = np.array(data.draw(st.lists(st.integers(0, size[0] - 1), max_size=60)), dtype=np.int64)
    np.testing.assert_array_equal(read_rows(view, "a", rows), view.values[rows])


@given(sizes, st.data())
def test_slices_equal_numpy(size: tuple[int, int], data: st.DataObject) -> None:
    bound = st.none() | st.integers(-50, 50)
    step = data.draw(st.none() | st.integers(-5, 5).filter(bool))
    check(view_of(*size), slice(data.draw(bound), data.draw(bound), step))


@given(sizes, st.data())
def test_lists_arrays_and_masks_equal_numpy(size: tuple[int, int], data: st.DataObject) -> None:
    n_rows = size[0]
    rows = data.draw(st.lists(st.integers(-n_rows, n_rows - 1), min_size=1, max_size=60))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows)))
    for key in (
        rows,
        np.array(rows, dtype=np.int16),
        np.array(rows),
        mask,
        mask.tolist(),
        rows[0],
        np.int32(rows[0]),
    ):
        check(view_of(*size), key)


@pytest.mark.parametrize(
    "key",
    [
        (),
        ...,
        (..., 0),
        (..., 0, 1),
        (..., slice(1), slice(None)),
        (slice(None), slice(None), ..., 0),
        (3, ...),
        (slice(2, 9), ..., 1),
        (slice(2, 9, 3), 1),
        ([3, 1, 1], slice(1, 3)),
        ([3, 1, 1], slice(None), 0),
        ([3, 1, 1], [0, 1, 2]),
        ([3, 1, 1], [0, 1, 2], [1, 0, 1]),
        ([3, 1, 1], ..., [1, 0, 1]),
        (5, [0, 2]),
        (-1, 2, 1),
        (slice(None), [0, 2]),
        (slice(None), None, 1),
        (np.arange(20) % 3 == 0, 1),
        [],
        ([], 0),
        slice(7, 3),
    ],
    ids=repr,
)
def test_keys_with_more_axes_equal_numpy(key: Any) -> None:
    check(
        view_of(20), [] if isinstance(key, list) and not key else key
    ) if key != [] else check_empty()


def check_empty() -> None:
    assert read_key(view_of(20), "a", []).shape == (0, 3, 2)


@pytest.mark.parametrize(
    "key", [..., (..., 3), (3, ...), (), slice(None, None, 2), ([1, 2], ...)], ids=repr
)
def test_keys_of_one_axis_equal_numpy(key: Any) -> None:
    check(view_of(20, shape=()), key)


@given(sizes, st.booleans(), st.integers(1, 3), st.data())
def test_any_reads_one_after_the_other_equal_numpy_however_small_the_arena(
    size: tuple[int, int], mapped: bool, chunks_kept: int, data: st.DataObject
) -> None:
    view = view_of(*size, mapped=mapped)
    reader = RowReader(view, arena_bytes=chunks_kept * size[1] * 48)
    for _ in range(4):
        rows = np.array(
            data.draw(st.lists(st.integers(0, size[0] - 1), max_size=30)), dtype=np.int64
        )
        start = data.draw(st.integers(0, size[0]))
        stop = data.draw(st.integers(start, size[0]))
        out = np.empty((len(rows), 3, 2))
        assert reader.read("a", rows, out) is out
        np.testing.assert_array_equal(out, view.values[rows])
        np.testing.assert_array_equal(reader.read_slice("a", start, stop), view.values[start:stop])


def test_a_chunk_is_decoded_once_while_it_is_kept() -> None:
    view = view_of(40)
    reader = RowReader(view)
    for rows in ([7, 33, 0, 5, 2], [6, 4, 1], [32, 35, 0]):
        reader.read("a", np.array(rows))
    assert view.reads == [(0, 4), (4, 8), (32, 36)]
    reader.read_slice("a", 0, 8)
    assert view.reads[3:] == [(0, 4), (4, 8)], "whole chunks go straight into the result"


def test_threads_that_want_the_same_chunks_decode_them_once() -> None:
    view = view_of(400)
    reader, together = RowReader(view), threading.Barrier(4)

    def work(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 400, 200)
        together.wait()
        return np.array_equal(reader.read("a", rows), view.values[rows])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [True] * 4
    assert len(view.reads) == len(set(view.reads))


def test_a_chunk_that_cannot_be_decoded_is_tried_again_and_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = view_of(40)
    reader, original = RowReader(view, arena_bytes=2 * 4 * 48), view.read
    reader.read("a", np.array([0, 39]))

    def torn(name: str, start: int, stop: int) -> NDArray[Any]:
        raise CorruptError("torn")

    monkeypatch.setattr(view, "read", torn)
    with pytest.raises(CorruptError):
        reader.read("a", np.array([20, 0]))
    monkeypatch.setattr(view, "read", original)
    rows = np.array([20, 0, 39, 22])
    np.testing.assert_array_equal(reader.read("a", rows), view.values[rows])


def test_the_chunks_used_last_are_kept() -> None:
    view = view_of(40)
    reader = RowReader(view, arena_bytes=3 * 4 * 48)
    for row in (0, 4, 8, 0, 12, 0, 8):
        reader.read("a", np.array([row]))
    assert view.reads == [(0, 4), (4, 8), (8, 12), (12, 16)]


@pytest.mark.parametrize(
    ("out", "found"),
    [
        (np.empty((2, 3, 2), np.float32), "float32"),
        (np.empty((3, 3, 2)), r"\(3, 3, 2\)"),
        (np.empty((2, 2, 3)).transpose(0, 2, 1), r"\(2, 3, 2\)"),
    ],
    ids=["type", "rows", "order"],
)
def test_an_out_that_does_not_fit_is_refused(out: NDArray[Any], found: str) -> None:
    with pytest.raises(InvalidError, match=f"out for 'a' has shape .*{found}"):
        RowReader(view_of(20)).read("a", np.array([1, 2]), out)


def test_reading_here_and_there_decodes_the_whole_array_to_disk_in_the_end(tmp_path: Path) -> None:
    view = view_of(400, chunk_rows=40)
    reader = RowReader(view, arena_bytes=0, cache=DecodedCache(tmp_path))
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.integers(0, 400, 3)
        np.testing.assert_array_equal(reader.read("a", rows), view.values[rows])
    n_reads = len(view.reads)
    assert n_reads < 60, "at most two passes over ten chunks and a few reads"
    reader.read("a", rng.integers(0, 400, 300))
    assert len(view.reads) == n_reads
    other = RowReader(view, cache=DecodedCache(tmp_path))
    np.testing.assert_array_equal(other.read_slice("a", 3, 399), view.values[3:399])
    assert len(view.reads) == n_reads, "another process finds it there"


@pytest.mark.parametrize("step", [1, 3, 40])
def test_reading_everything_once_or_twice_in_order_needs_no_cache(
    tmp_path: Path, step: int
) -> None:
    view = view_of(400, chunk_rows=40)
    reader = RowReader(view, arena_bytes=0, cache=DecodedCache(tmp_path))
    for _ in range(2):
        for start in range(0, 400, step):
            reader.read("a", np.arange(start, min(start + step, 400)))
    assert not list(tmp_path.iterdir())
    for start in range(0, 400, step):
        reader.read("a", np.arange(start, min(start + step, 400)))
    assert list(tmp_path.iterdir()), "who comes a third time comes again"


def slow_view(n_rows: int, chunk_rows: int, broken: tuple[int, ...] = ()) -> CountingSession:
    """Decoding takes a moment, in which other threads run; some chunks cannot be decoded."""

    class Slow(CountingSession):
        def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
            time.sleep(0.0005)
            if start // chunk_rows in broken:
                raise CorruptError(f"chunk {start // chunk_rows} cannot be read")
            return super().read(name, start, stop)

    return Slow(view_of(n_rows).values, chunk_rows)


@pytest.mark.parametrize("slots", [1, 3, 10, 12])
def test_threads_that_need_more_places_than_there_are_get_the_right_rows(slots: int) -> None:
    """Their waves do not fit together, so that they wait for each other's places."""
    view = slow_view(100, 4)
    reader = RowReader(view, arena_bytes=slots * 4 * 48)
    wrong: list[Any] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            rows = rng.integers(0, 100, rng.integers(1, 30))
            if not np.array_equal(reader.read("a", rows), view.values[rows]):
                wrong.append(rows)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert not wrong


def test_a_broken_chunk_fails_only_those_who_ask_for_it() -> None:
    view = slow_view(100, 4, broken=(0,))
    reader = RowReader(view)

    def read(number: int) -> str:
        rows = np.arange(0 if number % 2 else 4, 8 + number % 5 * 4)
        try:
            np.testing.assert_array_equal(reader.read("a", rows), view.values[rows])
        except CorruptError:
            return "broken" if number % 2 else "wrong"
        return "wrong" if number % 2 else "right"

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(read, range(60)))
    assert found == ["right", "broken"] * 30


class Stop(BaseException):
    """What a signal handler raises."""


def test_an_interrupt_in_the_middle_of_a_read_leaves_nothing_behind() -> None:
    view = slow_view(400, 4)
    reader = RowReader(view, arena_bytes=12 * 4 * 48)
    rng, stopped, armed, over = np.random.default_rng(0), 0, False, threading.Event()

    def stop(*_: object) -> None:
        if armed:
            raise Stop

    def interrupt() -> None:
        while not over.wait(random.random() * 0.008):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    gc.disable()  # hypothesis watches it, and an exception there would be nobody's
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        while stopped <= 20:  # however the interrupts fall
            try:
                armed = True
                reader.read("a", rng.integers(0, 400, 10))
                armed = False
            except Stop:
                armed = False
                stopped += 1
    finally:
        over.set()
        interrupter.join()
        signal.signal(signal.SIGUSR1, before)
        gc.enable()
    rows = rng.integers(0, 400, 300)
    np.testing.assert_array_equal(reader.read("a", rows), view.values[rows])


def test_a_read_past_the_end_names_the_last_row() -> None:
    for rows, worst in (([3, 20], 20), ([-1], -1)):
        with pytest.raises(InvalidError, match=f"row {worst} of 'a' asked for; its last row is 19"):
            read_rows(view_of(20), "a", np.array(rows))
    with pytest.raises(InvalidError, match="its last row is 19"):
        read_key(view_of(20), "a", [-21])
    with pytest.raises(IndexError, match="row 20 of 'a' asked for; it has 20 rows"):
        read_key(view_of(20), "a", 20)


@pytest.mark.parametrize("key", ["a", None, True, [0.5], [[1, 2]], np.zeros((2, 2), int)], ids=repr)
def test_other_keys_are_refused(key: Any) -> None:
    with pytest.raises(
        InvalidError, match=r"a mask for 'a' needs|rows of 'a' are an int, a slice, a mask"
    ):
        read_key(view_of(20), "a", key)


def test_a_mask_needs_the_length_of_the_array() -> None:
    with pytest.raises(InvalidError, match=r"a mask for 'a' needs shape \(20,\), found \(3,\)"):
        read_key(view_of(20), "a", np.ones(3, dtype=bool))
