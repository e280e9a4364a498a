"""Two stores compared frame by frame, in whatever order they hold them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect import contents
from kpstore.inspect.contents import Difference, compare
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import PART_SLICES, PARTS, keypoints_spec
from tests.conftest import COSTLY, memory_location
from tests.fakes import fake_spec, record
from tests.store.data import fill, rows_of

N = {"a": 4, "b": 3, "c": 5}


def keypoints(video: str, n: int) -> FeatureRows:
    rng = np.random.default_rng([*video.encode()])
    values = rng.standard_normal((n, 143, 3)).astype(np.float32)
    detected = rng.random((n, 4)) < 0.7
    for column, part in enumerate(PARTS):
        values[~detected[:, column], PART_SLICES[part]] = np.nan
    return FeatureRows(values, {"detected": detected})


def store_of(order: str = "abc", change: Any = None, **annotations: str) -> kpstore.Store:
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        tx.add_videos([record(v, N[v], **annotations) for v in order])
        tx.add_feature(keypoints_spec())
        for video in order:
            rows = keypoints(video, N[video])
            if change:
                change(video, rows)
            others = {name: rows.companions[name] for name in rows.companions.keys() - {"detected"}}
            tx.write("keypoints", video, FeatureRows(rows.values, others) if change else rows)
    return store.at()


@pytest.mark.parametrize(("spare", "ahead"), [(2**28, True), (2**10, False)])
def test_rows_of_large_chunks_are_compared_one_after_another(
    monkeypatch: pytest.MonkeyPatch, spare: int, ahead: bool
) -> None:
    monkeypatch.setattr("kpstore.store.in_order.usable_cores", lambda: 8)
    monkeypatch.setattr("kpstore.store.in_order.SPARE_BYTES", spare)
    compared, threads = contents.unequal_rows, set[threading.Thread]()

    def noted(*given: Any) -> Any:
        threads.add(threading.current_thread())
        return compared(*given)

    monkeypatch.setattr(contents, "unequal_rows", noted)
    assert not compare(store_of("abc"), store_of("cab"))
    assert (threads != {threading.main_thread()}) is ahead


def test_order_makes_no_difference() -> None:
    found = compare(store_of("abc"), store_of("cab"))
    assert not found
    assert found.features["keypoints"].rows == 12
    assert found.frames == (12, 12)


def test_every_kind_of_difference_is_named() -> None:
    def change(video: str, rows: FeatureRows) -> None:
        hand, pose = PART_SLICES["left_hand"], PART_SLICES["pose"]
        if video == "b":
            rows.values[0, hand] = 1.0
            rows.values[1, hand] = np.nan
            rows.values[2, pose.start] = np.nan_to_num(rows.values[2, pose.start]) + np.float32(
                0.25
            )

    one, other = store_of("ab"), store_of("bc", change, gloss="X")
    found = compare(one, other)
    assert found
    assert (found.videos_only_a, found.videos_only_b) == (("a",), ("c",))
    assert (found.frames_only_a, found.frames_only_b) == (4, 5)
    assert found.columns == {"gloss": 1}
    hand = keypoints("b", 3).companions["detected"][:, PARTS.index("left_hand")]
    parts = found.features["keypoints"].parts
    assert parts["left_hand"].values == int(hand[0])
    assert parts["left_hand"].only_b == int(not hand[0])
    assert parts["left_hand"].only_a == int(hand[1])
    assert any(d.where == "b/0000.png" and d.part == "left_hand" for d in found.first)


@COSTLY
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_tolerance_is_absolute(by: float, atol: float) -> None:
    def change(video: str, rows: FeatureRows) -> None:
        rows.values[0] = np.where(np.isnan(rows.values[0]), np.nan, np.float32(1.0 + by))

    def base(video: str, rows: FeatureRows) -> None:
        rows.values[0] = np.where(np.isnan(rows.values[0]), np.nan, np.float32(1.0))

    apart = float(np.float32(1.0 + by)) - 1.0
    assert bool(compare(store_of("a", base), store_of("a", change), atol=atol)) == (apart > atol)


def test_states_features_and_videos_without_frames(tmp_path: Path) -> None:
    done, less = (
        fill(kpstore.create(tmp_path / "a.kps")),
        fill(kpstore.create(tmp_path / "b.kps"), done=("a",)),
    )
    found = compare(done, less)
    assert (found.features["points"].states, found.features["points"].differing) == (9, 9)
    assert found.first[0] == Difference("b/0000.png", "points", "", "state")
    assert len(found.first) == 9
    assert len(compare(done, less, limit=2).first) == 2
    with less.transaction("person") as tx:
        tx.add_feature(FeatureSpec("person", (2,), ("x",), axis="video"))
    assert compare(done, less.at()).features_only_b == ("person",)
    assert not compare(done, done, features=("points",))
    with pytest.raises(NotFoundError, match="feature 'none' is in neither"):
        compare(done, less, features=("none",))
    empty = kpstore.create(memory_location())
    assert compare(done, empty).frames_only_a == 34
    assert not compare(empty, empty)


def test_features_of_videos_are_compared_by_id() -> None:
    stores = []
    for order, value in (("ab", 1.0), ("ba", 2.0)):
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos([record(v, 1) for v in order])
            tx.add_feature(FeatureSpec("person", (2,), ("x",), axis="video"))
            tx.write_video_feature("person", "a", np.array([1.0, 1.0], np.float32))
            tx.write_video_feature("person", "b", np.array([value, 1.0], np.float32))
        stores.append(store.at())
    found = compare(*stores)
    assert found.first == [Difference("b", "person", "", "values", 1.0)]


def test_companions_and_other_slashes_count_too(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("x") as tx:
        video = record("a", 5)
        tx.add_videos(
            [
                type(video)(
                    video.id, video.split, tuple(p.replace("/", "\\") for p in video.frame_paths)
                )
            ]
        )
        tx.add_feature(fake_spec(4))
        tx.write("points", "a", rows_of("a", 5))
    assert compare(memory_store.at(), fill(kpstore.create(memory_location()))).frames_only_a == 0


def test_features_of_other_shapes_cannot_be_compared(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("x") as tx:
        tx.add_feature(FeatureSpec("keypoints", (68, 3), ("k", "s")))
    with pytest.raises(InvalidError, match=r"rows of \(143, 3\) per frame in A and of \(68, 3\)"):
        compare(store_of("a"), memory_store.at())
    with pytest.raises(InvalidError, match="atol"):
        compare(memory_store, memory_store, atol=float("nan"))


def test_what_one_of_them_cannot_hold_is_not_compared_and_said() -> None:
    def with_visibility(video: str, rows: FeatureRows) -> None:
        rows.companions["visibility"] = np.full((N[video], 33), 0.5, np.float32)  # type: ignore[index]

    found = compare(store_of("abc", with_visibility), store_of("abc"))
    assert not found
    assert found.notes == ["keypoints: visibility is in A only, and is not compared"]

    def otherwise(video: str, rows: FeatureRows) -> None:
        rows.companions["visibility"] = np.full((N[video], 33), 0.25, np.float32)  # type: ignore[index]

    parts = (
        compare(store_of("abc", with_visibility), store_of("abc", otherwise))
        .features["keypoints"]
        .parts
    )
    assert (parts["visibility"].values, parts["visibility"].largest) == (12, 0.25)


def test_videos_without_common_paths_are_matched_by_number_and_that_is_said(
    memory_store: kpstore.Store,
) -> None:
    with memory_store.transaction("fill") as tx:
        tx.add_videos(
            [
                type(record("a", 0))(v, "train", tuple(f"{v}.pose#{n}" for n in range(N[v])))
                for v in "cba"
            ]
        )
        tx.add_feature(keypoints_spec())
        for video in "abc":
            tx.write("keypoints", video, keypoints(video, N[video]))
    found = compare(store_of("abc"), memory_store.at())
    assert (found.frames_only_a, found.frames_only_b, found.features["keypoints"].differing) == (
        0,
        0,
        0,
    )
    assert found.notes == [
        "3 videos were matched by frame number: their paths have nothing in common"
    ]


def test_frames_of_one_path_in_several_videos_are_matched_within_videos_then_anywhere() -> None:
    def made(*videos: str) -> kpstore.Store:
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos([VideoRecord(video, "train", ("0.png",)) for video in videos])
        return store.at()

    found = compare(made("b", "a"), made("a", "c"))
    assert (found.frames_only_a, found.frames_only_b) == (0, 0)


def test_videos_that_call_their_frames_alike_are_matched_by_id() -> None:
    def made(order: str) -> kpstore.Store:
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos(
                [VideoRecord(v, "train", tuple(f"{n}.png" for n in range(N[v]))) for v in order]
            )
            tx.add_feature(keypoints_spec())
            for video in order:
                tx.write("keypoints", video, keypoints(video, N[video]))
        return store.at()

    assert not compare(made("abc"), made("cab"))


def test_an_infinity_in_both_hides_nothing() -> None:
    def made(by: float) -> kpstore.Store:
        store = store_of("a", lambda video, rows: rows.values.fill(0))
        with store.transaction("what older versions took") as tx:
            values = tx.session.read("keypoints", 0, 1)
            values[0, 100, :2] = np.inf, by
            tx.session.write("keypoints", 0, values)
        return store.at()

    found = compare(made(0), made(5))
    assert found.features["keypoints"].parts["right_hand"].largest == 5


def test_frame_rates_and_sizes_differ_only_where_both_are_known() -> None:
    def made(fps: float, width: int) -> kpstore.Store:
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos([VideoRecord("a", "train", ("0.png",), fps, width)])
        return store.at()

    assert compare(made(25, 100), made(30, 200)).columns == {"fps": 1, "width": 1}
    assert not compare(made(25, 100), made(float("nan"), 0))


def test_whole_numbers_are_compared_exactly() -> None:
    stores = []
    for value in (2**62, 2**62 + 1):
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos([record("a", 3)])
            tx.add_feature(FeatureSpec("count", (1,), ("x",), dtype="int64"))
            tx.write("count", "a", np.array([[-(2**63)], [value], [2**63 - 1]]))
        stores.append(store.at())
    found = compare(*stores)
    assert found.first == [Difference("a/0001.png", "count", "", "values", 1.0)]
    assert not compare(*stores, atol=1)


def test_a_video_without_frames_that_failed_in_one_is_a_difference() -> None:
    stores = []
    for fail in (True, False):
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos([record("a", 2), record("none", 0)])
            tx.add_feature(fake_spec(4))
            tx.write("points", "a", rows_of("a", 2))
            if fail:
                tx.fail("points", "none", "no film")
        stores.append(store.at())
    found = compare(*stores)
    assert (found.features["points"].states, found.features["points"].differing) == (1, 1)
    assert found.first == [Difference("none", "points", "", "state")]
