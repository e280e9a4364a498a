"""Whole videos: padded in batches, whole again as samples."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.views.whole_videos import pad
from tests.store.data import fill, rows_of


@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.sampled_from(["float32", "float16", "int64", "bool", "object"]),
)
def test_padding_keeps_every_row_and_fills_the_rest(n_frames: list[int], dtype: str) -> None:
    lengths = np.array(n_frames, dtype=np.int64)
    values = np.arange(1, 2 * lengths.sum() + 1).reshape(-1, 2).astype(dtype)
    valid = np.arange(lengths.max(initial=0)) < lengths[:, None]
    padded = pad(values, valid)
    assert padded.dtype == values.dtype
    rows = [padded[i, :n] for i, n in enumerate(n_frames)]
    np.testing.assert_array_equal(np.concatenate([values[:0], *rows]), values)
    rest = padded[~valid]
    expected = {"f": np.nan, "O": ""}.get(values.dtype.kind, 0)
    np.testing.assert_array_equal(rest, np.full(rest.shape, expected, dtype=rest.dtype))


def test_a_sample_is_a_whole_video(store: kpstore.Store) -> None:
    filled = fill(store)
    view = filled.whole_videos(["points", "points_detected", "image_path"])
    assert [sample["video_id"] for sample in view] == ["a", "b", "d"]  # c has no frames
    for sample in view:
        video = filled.video(sample["video_id"])
        assert set(sample) == {"points", "points_detected", "image_path", "video_id", "n_frames"}
        assert sample["n_frames"] == video.n_frames
        for name in view.features:
            np.testing.assert_array_equal(sample[name], video[name])
    assert view.lengths.tolist() == [5, 9, 20]
    assert view.first_rows.tolist() == [0, 5, 14]


def test_a_batch_is_padded_to_the_longest(store: kpstore.Store) -> None:
    view = fill(store).whole_videos(["points", "points_detected"], videos=["b", "a"])
    batch = view.batch([0, 1, 0])
    assert batch["points"].shape == (3, 9, 5, 3)
    assert batch["n_frames"].tolist() == [9, 5, 9]
    assert batch["video_id"].tolist() == ["b", "a", "b"]
    assert batch["valid"].sum(axis=1).tolist() == [9, 5, 9]
    assert np.isnan(batch["points"][1, 5:]).all()
    assert not batch["points_detected"][1, 5:].any()
    np.testing.assert_array_equal(batch["points"][1, :5], rows_of("a", 5).values)


def test_videos_with_missing_frames_are_kept_left_out_or_refused(store: kpstore.Store) -> None:
    with fill(store).transaction("fail") as tx:
        tx.write("points", "b", rows_of("b", 9), failed_frames={8: "no"})
    filled = store.at()
    assert len(filled.whole_videos("points")) == 3
    assert filled.whole_videos("points", missing="skip").positions.tolist() == [0]
    with pytest.raises(NotFoundError, match=r"21 of 34 frames failed .* the first in video 'b'"):
        filled.whole_videos("points", missing="error")
    assert len(filled.whole_videos("points", missing="error", videos=["a", "c"])) == 1


def test_wrong_arrays_and_words_are_refused(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with pytest.raises(
        InvalidError, match="'n_frames' lies on the axis 'video', this view needs 'frame'"
    ):
        filled.whole_videos("n_frames")
    with pytest.raises(InvalidError, match="missing='drop'"):
        filled.whole_videos("points", missing="drop")  # type: ignore[arg-type]


def test_it_pickles_transforms_and_has_subsets(store: kpstore.Store) -> None:
    view = fill(store).whole_videos("points", where="n_frames > 5")
    again = pickle.loads(pickle.dumps(view)).subset([1, 0])
    assert [sample["n_frames"] for sample in again] == [20, 9]
    assert again.batch([0, 1])["valid"].shape == (2, 20)
    assert view.batch([])["points"].shape == (0, 0, 5, 3)
    view.transform = lambda sample: len(sample["points"])
    assert list(view) == [9, 20]
