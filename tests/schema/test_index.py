"""The video index against a plain list of (video, frame) pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.errors import CorruptError, InvalidError, NotFoundError
from kpstore.schema.index import VideoIndex, VideoRecord

videos = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "dev", ""])), max_size=30)
Videos = list[tuple[int, str]]


def index_of(videos: Videos) -> VideoIndex:
    return VideoIndex(
        np.array([f"v{i}" for i in range(len(videos))], dtype=object),
        np.array([split for _, split in videos], dtype=object),
        np.array([n for n, _ in videos], dtype=np.int64),
    )


def owners(videos: Videos) -> list[int]:
    """The model: which video holds row 0, 1, 2, …"""
    return [i for i, (n_frames, _) in enumerate(videos) for _ in range(n_frames)]


@given(videos)
def test_rows_of_videos_tile_the_frame_axis(videos: Videos) -> None:
    index = index_of(videos)
    rows = [
        row for i in range(len(videos)) for row in range(index.rows(i).start, index.rows(i).stop)
    ]
    assert rows == list(range(index.total_frames)) == list(range(len(owners(videos))))
    assert index.offsets.dtype == np.int64
    assert len(index.offsets) == len(videos) + 1


@given(videos)
def test_video_of_a_row_is_its_owner(videos: Videos) -> None:
    index = index_of(videos)
    assert index.video_of(np.arange(index.total_frames)).tolist() == owners(videos)


@given(videos, st.data())
def test_rows_of_positions_are_their_rows_one_after_another(
    videos: Videos, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, len(videos) - 1), max_size=10)) if videos else []
    rows = index_of(videos).rows_of(np.array(positions, dtype=np.int64))
    assert rows.dtype == np.int64
    assert rows.tolist() == [
        row for p in positions for row, owner in enumerate(owners(videos)) if owner == p
    ]


@given(videos, st.data())
def test_select_keeps_the_videos_of_the_splits(videos: Videos, data: st.DataObject) -> None:
    index = index_of(videos)
    names = index.split_names()
    assert names == list(dict.fromkeys(split for _, split in videos))
    wanted = data.draw(st.lists(st.sampled_from(names))) if names else []
    assert index.select(split=wanted).tolist() == [
        i for i, (_, split) in enumerate(videos) if split in wanted
    ]
    assert index.select().tolist() == list(range(len(videos)))


def test_select_gives_videos_in_the_order_asked_for() -> None:
    index = index_of([(1, "train"), (2, "dev"), (3, "train")])
    assert index.select(videos=["v2", "v0"]).tolist() == [2, 0]
    assert index.select(videos=["v2", "v1"], split="dev").tolist() == [1]
    assert index.select(split="dev").tolist() == [1]


def test_unknown_names_list_what_there_is() -> None:
    index = index_of([(1, "train"), (2, "dev")])
    with pytest.raises(
        NotFoundError, match=r"split 'test' not found; there are \['train', 'dev'\]"
    ):
        index.select(split="test")
    with pytest.raises(NotFoundError, match="video 'xv1' not found; did you mean 'v1'"):
        index.position("xv1")
    with pytest.raises(NotFoundError, match="there are 2 videos"):
        index.position("???")
    assert "v1" in index
    assert "w1" not in index


def test_an_index_that_contradicts_itself_is_corrupt() -> None:
    ids, lengths = np.array(["a", "b"], dtype=object), np.array([1, 2])
    with pytest.raises(CorruptError, match="2 ids, 1 splits and 2 lengths"):
        VideoIndex(ids, ids[:1], lengths)
    with pytest.raises(CorruptError, match="negative"):
        VideoIndex(ids, ids, -lengths)
    with pytest.raises(CorruptError, match="the same id twice"):
        VideoIndex(np.array(["a", "a"], dtype=object), ids, lengths)


def test_a_video_needs_an_id() -> None:
    with pytest.raises(InvalidError, match="a video needs an id"):
        VideoRecord("", "train", ("a.png",))
    assert VideoRecord("a", "", ("a#0", "a#1")).n_frames == 2
