from __future__ import annotations

import numpy as np
import pytest

import kpstore
from kpstore.errors import NotFoundError
from kpstore.inspect.coverage import Coverage, coverage, coverage_by_split
from kpstore.inspect.summary import disk_usage, read_log, read_named, summarize
from kpstore.schema.feature import FeatureSpec
from tests.store.data import LENGTHS, fill, rows_of


def test_coverage_equals_a_count_by_hand(store: kpstore.Store) -> None:
    filled = fill(store)
    with store.transaction("more") as tx:
        tx.write("points", "d", rows_of("d", 20), failed_frames={3: "broken", 7: "broken"})
    by_split = coverage_by_split(store.at(), "points")
    mask = np.concatenate(
        [
            rows_of("a", 5).companions["detected"],
            np.delete(rows_of("d", 20).companions["detected"], [3, 7], 0),
        ]
    )
    assert by_split["train"] == Coverage(
        23, 2, 0, dict(zip(["part_0", "part_1"], mask.sum(axis=0).tolist(), strict=True))
    )
    assert (by_split["dev"].done, by_split["dev"].failed, by_split["dev"].pending) == (9, 0, 0)
    assert coverage(filled, "points").pending == LENGTHS["d"]
    assert coverage(store.at(), "points").rows == sum(LENGTHS.values())
    assert coverage(store.at(), "points", "dev") == by_split["dev"]


def test_blocks_do_not_change_the_counts(
    memory_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = fill(memory_store, done=("a", "b", "d"))
    whole = coverage_by_split(filled, "points")
    monkeypatch.setattr("kpstore.inspect.coverage._BLOCK_CHUNKS", 1)
    assert coverage_by_split(filled, "points") == whole


def test_shares_are_of_done_rows_and_nothing_without_them() -> None:
    cover = Coverage(4, 1, 2, {"face": 3})
    assert cover.share("face") == 0.75
    assert Coverage(0, 0, 5, {"face": 0}).share("face") is None
    assert (cover + Coverage(1, 0, 0, {"face": 1})).detected == {"face": 4}


def test_unknown_features_and_splits_are_named(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with pytest.raises(NotFoundError, match="feature 'lips' not found"):
        coverage(filled, "lips")
    with pytest.raises(NotFoundError, match="split 'val' not found"):
        coverage(filled, "points", "val")


def test_a_feature_of_videos_counts_videos(memory_store: kpstore.Store) -> None:
    fill(memory_store)
    with memory_store.transaction("faces") as tx:
        tx.add_feature(FeatureSpec("face_feature", (4,), ("number",), axis="video"))
        tx.write_video_feature("face_feature", "a", np.ones(4, dtype=np.float32))
    assert coverage(memory_store.at(), "face_feature") == Coverage(1, 0, 3)


def test_a_summary_of_an_empty_store(store: kpstore.Store) -> None:
    summary = summarize(store)
    assert (summary.videos, summary.frames, summary.features) == (0, 0, ())


def test_a_summary_tells_what_is_there(disk_store: kpstore.Store) -> None:
    fill(disk_store)
    disk_store.at().tag("v1")
    summary = summarize(disk_store.at())
    told = summary.to_json()
    assert (told["videos"], told["frames"]) == (4, 34)
    assert [(s["name"], s["videos"], s["frames"]) for s in told["splits"]] == [
        ("train", 3, 25),
        ("dev", 1, 9),
    ]
    points = told["features"]["points"]
    assert (points["videos_done"], points["videos_failed"], points["videos_pending"]) == (2, 0, 2)
    assert told["tags"] == {"v1": disk_store.at().snapshot}
    usage = disk_usage(disk_store)
    assert usage is not None
    assert usage.files > 3
    assert usage.size_bytes > 1000


def test_the_log_is_newest_first_and_named(memory_store: kpstore.Store) -> None:
    fill(memory_store).at()
    memory_store.at().tag("v1")
    entries = read_log(memory_store.at())
    assert entries[0].commit.message == "fill"
    assert (entries[0].tags, entries[0].branches) == (("v1",), ("main",))
    assert len(read_log(memory_store.at(), limit=1)) == 1
    assert list(read_named(memory_store, memory_store.tags)) == ["v1"]
