"""Clips: which ones there are, what is in them, and what becomes of the rest."""

from __future__ import annotations

import pickle
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.views.clips import Short, plan_clips
from kpstore.views.missing import covered_rows
from tests.store.data import fill, rows_of


def naive_clips(n_frames: list[int], length: int, stride: int, short: Short) -> list[int]:
    starts, first = [], 0
    for n in n_frames:
        covered = -1
        for start in range(0, n, stride):
            whole = start + length <= n
            if whole or (short == "pad" and covered < n - 1):
                starts.append(first + start)
                covered = start + length - 1
        first += n
    return starts


@given(
    st.lists(st.integers(0, 20), max_size=6),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from(["skip", "pad"]),
)
def test_the_plan_is_that_of_a_plain_loop(
    n_frames: list[int], length: int, stride: int, short: Short
) -> None:
    lengths = np.array(n_frames, dtype=np.int64)
    first = np.cumsum(lengths) - lengths
    planned = plan_clips(first, lengths, length, stride, short)
    assert planned.dtype == np.int64
    assert planned.tolist() == naive_clips(n_frames, length, stride, short)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=6))
def test_covered_rows_are_those_in_a_run(runs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([run[i] for run in runs], dtype=np.int64) for i in (0, 1))
    expected = sorted({row for start, length in runs for row in range(start, start + length)})
    assert covered_rows(starts, lengths, 28).tolist() == expected


def test_a_million_frames_are_planned_at_once() -> None:
    n_frames = np.full(8257, 115, dtype=np.int64)
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        starts = plan_clips(np.cumsum(n_frames) - n_frames, n_frames, 16, 1, "skip")
    finally:
        sys.settrace(before)
    assert len(starts) == 8257 * 100
    assert lines < 1000, "no loop over videos or frames in Python"


@pytest.mark.parametrize("stride", [None, 2, 6])
def test_clips_are_rows_of_one_video(store: kpstore.Store, stride: int | None) -> None:
    filled = fill(store)
    view = filled.clips(["points", "points_detected"], 4, stride)
    assert view.starts.tolist() == naive_clips([5, 9, 0, 20], 4, stride or 4, "skip")
    batch = view.batch(np.arange(len(view))[::-1])
    for i, start in enumerate(view.starts[::-1].tolist()):
        np.testing.assert_array_equal(batch["points"][i], filled["points"][start : start + 4])
        np.testing.assert_array_equal(
            batch["points_detected"][i], filled["points_detected"][start : start + 4]
        )
    assert batch["row"].tolist() == view.starts[::-1].tolist()
    assert set(batch["video"].tolist()) == {0, 1, 3}
    assert set(view[0]) == {"points", "points_detected", "row", "video"}
    assert view.lengths.tolist() == [4] * len(view)


def test_padding_repeats_the_last_frame(store: kpstore.Store) -> None:
    view = fill(store).clips("points", 6, short="pad", videos=["b", "a"])
    assert view.first_rows.tolist() == [5, 11, 0]
    assert view.lengths.tolist() == [6, 3, 5]
    assert [sample["valid"].tolist() for sample in view] == [
        [True] * 6,
        [True] * 3 + [False] * 3,
        [True] * 5 + [False],
    ]
    b = rows_of("b", 9).values
    np.testing.assert_array_equal(view[1]["points"], b[[6, 7, 8, 8, 8, 8]])
    np.testing.assert_array_equal(view[2]["points"], rows_of("a", 5).values[[0, 1, 2, 3, 4, 4]])


def test_clips_with_missing_frames_are_kept_left_out_or_refused(store: kpstore.Store) -> None:
    with fill(store).transaction("fail") as tx:
        tx.write("points", "b", rows_of("b", 9), failed_frames={2: "no"})
    filled = store.at()
    assert len(filled.clips("points", 2, 1)) == 4 + 8 + 19
    kept = filled.clips("points", 2, 1, missing="skip")
    assert kept.starts.tolist() == [*range(4), 5, *range(8, 13)]
    assert filled.clips("points", 3, split="dev", missing="skip").starts.tolist() == [8, 11]
    with pytest.raises(NotFoundError, match=r"1 of 9 frames failed .*, the first in video 'b'"):
        filled.clips("points", 2, 1, split="dev", missing="error")
    assert len(filled.clips("points", 2, videos=["a"], missing="error")) == 2


def test_words_and_numbers_that_make_no_sense_are_refused(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with pytest.raises(
        InvalidError, match="clips of length=0 and stride=-1: use whole numbers of frames"
    ):
        filled.clips("points", 0, -1)
    with pytest.raises(InvalidError, match="short='drop': use 'skip' or 'pad'"):
        filled.clips("points", 2, short="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="missing='drop'"):
        filled.clips("points", 2, missing="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="'n_frames' lies on the axis 'video'"):
        filled.clips("n_frames", 2)


def test_it_pickles_and_has_subsets(store: kpstore.Store) -> None:
    view = fill(store).clips("points", 4, 3, short="pad", where={"gloss": "B"})
    again = pickle.loads(pickle.dumps(view)).subset([2, 0])
    np.testing.assert_array_equal(again.batch([0, 1])["points"], view.batch([2, 0])["points"])
    assert again.first_rows.tolist() == [11, 5]
    assert again.lengths.tolist() == [3, 4]
    assert repr(again).startswith("<2 of <ClipView of ")
    assert view[0]["points"].shape == (4, 5, 3)


def test_an_empty_selection_has_no_clips(memory_store: kpstore.Store) -> None:
    view = fill(memory_store).clips("points", 4, videos=["c"], missing="error")
    assert len(view) == 0
    assert view.batch([])["points"].shape == (0, 4, 5, 3)
