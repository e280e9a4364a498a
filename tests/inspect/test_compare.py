"""What differs between two versions, by video and by feature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.inspect import compare
from kpstore.schema.feature import FeatureSpec
from tests.conftest import memory_location
from tests.fakes import fake_spec, record
from tests.store.data import PROVENANCE, fill, rows_of


def test_a_version_equals_itself_and_its_like_elsewhere(
    store: kpstore.Store, tmp_path: Path
) -> None:
    filled = fill(store)
    assert not compare.diff(filled, filled)
    assert not compare.diff(filled, fill(kpstore.create(tmp_path / "other.kps"), chunk_rows=8))


def test_a_new_video_and_feature_are_named_and_the_reverse(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("more") as tx:
        tx.add_videos([record("e", 3)])
        tx.add_feature(FeatureSpec("pose"))
    change, back = compare.diff(filled, store.at()), compare.diff(store.at(), filled)
    assert change
    assert (change.videos_added, change.features_added, change.videos_removed) == (
        ("e",),
        ("pose",),
        (),
    )
    assert (back.videos_removed, back.features_removed, back.videos_added) == (
        ("e",),
        ("pose",),
        (),
    )
    assert change.features_changed == {}
    assert change.videos_changed == ()


@pytest.mark.parametrize("what", ["value", "mask", "state", "nan", "frame"])
def test_the_video_whose_rows_changed_is_named(memory_store: kpstore.Store, what: str) -> None:
    filled, rows = fill(memory_store), rows_of("b", 9)
    with filled.transaction("change") as tx:
        if what == "value":
            rows.values[8, 4, 2] += 1
        elif what == "mask":
            rows.companions["detected"][0] ^= True
        elif what == "nan":
            rows.values[3, 0, 0] = np.nan
        if what == "state":
            tx.fail("points", "b", "no")
        else:
            tx.write("points", "b", rows, failed_frames={4: "no"} if what == "frame" else None)
    change = compare.diff(filled, memory_store.at())
    assert change.features_changed == {"points": compare.FeatureChange(("b",))}
    assert change.videos_changed == ()


def test_missing_values_count_as_equal(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store, done=())
    with filled.transaction("same") as tx:
        tx.write("points", "a", fake_spec().empty_rows(5))
    change = compare.diff(filled, memory_store.at())
    assert change.features_changed["points"].videos == ("a",)  # pending before, done now
    assert not compare.diff(memory_store.at(), memory_store.at())


def test_videos_are_matched_by_id_wherever_they_lie(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    other = kpstore.create(memory_location())
    with other.transaction("fill backwards") as tx:
        videos = [
            record(v, n, s, gloss=v.upper()) for v, n, s in (("b", 9, "dev"), ("a", 5, "train"))
        ]
        tx.add_videos(videos)
        tx.add_feature(fake_spec(4), PROVENANCE)
        for video in videos:
            tx.write("points", video.id, rows_of(video.id, video.n_frames))
    change = compare.diff(filled, other.at())
    assert change == compare.VersionDiff(videos_removed=("c", "d"))


@pytest.mark.parametrize("what", ["split", "fps", "width", "annotation", "path", "length"])
def test_a_video_described_otherwise_is_named(memory_store: kpstore.Store, what: str) -> None:
    video = record("a", 5, gloss="A")
    paths = video.frame_paths
    changed = {
        "split": replace(video, split="dev"),
        "fps": replace(video, fps=float("nan")),
        "width": replace(video, width=1),
        "annotation": replace(video, annotations={"gloss": "B"}),
        "path": replace(video, frame_paths=(*paths[:-1], "elsewhere.png")),
        "length": replace(video, frame_paths=paths[:-1]),
    }[what]
    stores = []
    for v in (video, changed):
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos([v, record("b", 4, gloss="B")])
            tx.add_feature(fake_spec(4))
        stores.append(store.at())
    change = compare.diff(*stores)
    assert change.videos_changed == ("a",)
    assert change.features_changed == (
        {"points": compare.FeatureChange(("a",))} if what == "length" else {}
    )


def test_another_way_of_making_a_feature_is_told(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with filled.transaction("anew") as tx:
        tx.remove_feature("points")
        tx.add_feature(fake_spec(4), {"extractor": "other"})
    change = compare.diff(filled, memory_store.at())
    assert change.features_changed == {
        "points": compare.FeatureChange(("a", "b"), provenance_changed=True)
    }


def test_empty_stores_can_be_compared(memory_store: kpstore.Store) -> None:
    empty = kpstore.create(memory_location())
    assert not compare.diff(empty, memory_store)
    assert compare.diff(empty, fill(memory_store)).videos_added == ("a", "b", "c", "d")
