"""Several stores into one: whatever their order, all or nothing, conflicts said."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.errors import ConflictError, ExistsError, InvalidError, MismatchError
from kpstore.interop.merge import merge
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from tests.conftest import memory_location
from tests.fakes import fake_spec, record
from tests.store.data import rows_of

N = {"a": 4, "b": 3, "c": 0, "d": 5}


def store_of(
    videos: str, split: str = "train", *, feature: str = "points", change: float = 0.0, **how: Any
) -> str:
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        records = [record(v, N[v], split, **how.get("annotations", {})) for v in videos]
        if how.get("numbered"):
            records = [
                replace(r, frame_paths=tuple(f"{r.id}#{n}" for n in range(r.n_frames)))
                for r in records
            ]
        tx.add_videos([replace(r, fps=how.get("fps", r.fps)) for r in records])
        spec = fake_spec(how.get("chunk_rows", 4))
        tx.add_feature(
            replace(spec, name=feature), {"extractor": "fake", **how.get("provenance", {})}
        )
        for video in videos:
            rows = rows_of(video, N[video])
            if video in how.get("failed", ""):
                tx.fail(feature, video, how.get("reason", "no film"))
            elif video not in how.get("pending", ""):
                changed = FeatureRows(rows.values + np.float32(change), rows.companions)
                tx.write(
                    feature, video, changed, failed_frames=how.get("failed_frames", {}).get(video)
                )
    return store.location


def merged(*sources: str, **how: Any) -> kpstore.Store:
    location = memory_location()
    merge(sources, location, **how)
    return kpstore.open(location)


def test_disjoint_splits_come_together_in_any_order() -> None:
    parts = [
        store_of("ba", "train"),
        store_of("c", "dev"),
        store_of("d", "test", failed_frames={"d": {1: "torn"}}),
    ]
    stores = [merged(*order) for order in itertools.permutations(parts)]
    assert stores[0].index.ids.tolist() == ["a", "b", "c", "d"]
    assert stores[0].splits == ["train", "dev", "test"]
    for video in "abd":
        wanted = rows_of(video, N[video]).values
        if video == "d":
            wanted[1] = np.nan
        np.testing.assert_array_equal(stores[0].video(video)["points"], wanted)
    assert [(f.video_id, f.frame, f.reason) for f in stores[0].failures("points")] == [
        ("d", 1, "torn")
    ]
    for other in stores[1:]:
        assert not kpstore.diff(stores[0], other)
        np.testing.assert_array_equal(stores[0]["points"][:], other["points"][:])


def test_a_video_gets_the_features_of_all() -> None:
    one, other = store_of("ab", pending="b"), store_of("bad", feature="others")
    both = merged(one, other, store_of("b"))
    assert both.states("points").tolist() == [State.DONE, State.DONE, State.PENDING]
    assert both.states("others").tolist() == [State.DONE] * 3
    np.testing.assert_array_equal(both.video("b")["others"], rows_of("b", 3).values)


def test_done_wins_over_failed_and_the_same_twice_is_no_conflict() -> None:
    for order in (1, -1):
        both = merged(*[store_of("ab", failed="a"), store_of("ab")][::order])
        assert both.failures("points") == []
        assert both.states("points").tolist() == [State.DONE] * 2
    failed = merged(store_of("a", failed="a"), store_of("b"))
    assert [(f.video_id, f.reason) for f in failed.failures("points")] == [("a", "no film")]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: store_of("a", change=1.0), "'a' has other points in .* than in"),
        (lambda: store_of("a", annotations={"gloss": "Y"}), "'a' has another gloss in"),
        (lambda: store_of("a", "dev"), "'a' is in 'train' in .* and in 'dev'"),
        (lambda: store_of("a", failed_frames={"a": {0: "x"}}), "'a' has other points"),
        (lambda: store_of("a", fps=50.0), "'a' has another fps in"),
    ],
)
def test_conflicts_are_errors_or_are_decided(other: Callable[[], str], message: str) -> None:
    first, second = store_of("ab", annotations={"gloss": "X"}), other()
    out = memory_location()
    with pytest.raises(ConflictError, match=message):
        merge([first, second], out)
    with pytest.raises(kpstore.KpstoreError):
        kpstore.open(out)
    for choice, wanted in (("first", first), ("last", second)):
        chosen = merged(first, second, on_conflict=choice)
        expected = kpstore.open(wanted)
        np.testing.assert_array_equal(chosen.video("a")["points"], expected.video("a")["points"])
        assert chosen.video("a").split == expected.video("a").split
        assert chosen["gloss"][0] == (
            expected["gloss"][0] if "gloss" in expected.annotation_names else "X"
        )


def test_what_is_known_is_kept_whoever_knows_it() -> None:
    both = merged(store_of("a", ""), store_of("a", "dev", annotations={"gloss": "X"}))
    assert (both.video("a").split, both["gloss"][0]) == ("dev", "X")


def test_other_frames_or_other_features_do_not_fit() -> None:
    short = kpstore.create(memory_location())
    with short.transaction("x") as tx:
        tx.add_videos([record("a", 3)])
    with pytest.raises(ConflictError, match=r"'a' has 4 frames in .* and 3 in"):
        merged(store_of("a"), short.location, on_conflict="first")
    with pytest.raises(
        MismatchError, match=r".* and .* do not go together: .* was made with scale 1"
    ):
        merged(store_of("a", provenance={"scale": 1}), store_of("b", provenance={"scale": 2}))


def test_what_files_held_beside_the_features_is_left_out_if_it_differs() -> None:
    report = merge(
        [store_of(v, provenance={"document": {"n": n}}) for n, v in enumerate("ab")],
        location := memory_location(),
    )
    assert "what its files held" in report.notes[0]
    assert kpstore.open(location).provenance("points")["document"] == {}


def test_features_of_videos_and_wrong_use(tmp_path: Path) -> None:
    one = kpstore.open(store_of("a"), mode="a")
    with one.transaction("person") as tx:
        tx.add_feature(FeatureSpec("person", (2,), ("x",), axis="video"), {"extractor": "p"})
        tx.write_video_feature("person", "a", np.array([1, 2], np.float32))
    both = merged(one.location, store_of("b"))
    np.testing.assert_array_equal(both["person"][:], [[1, 2], [np.nan, np.nan]])
    with pytest.raises(InvalidError, match="two sources"):
        merge([one.location], tmp_path / "o.kps")
    with pytest.raises(InvalidError, match="on_conflict='newest'"):
        merge([one.location] * 2, tmp_path / "o.kps", on_conflict="newest")  # type: ignore[arg-type]
    with pytest.raises(ExistsError, match="already exists"):
        merge([one.location, both.location], one.location)


def test_the_order_is_by_the_split_that_somebody_knows() -> None:
    one, other = store_of("ab", ""), store_of("a", "train")
    assert [merged(*pair).index.ids.tolist() for pair in ((one, other), (other, one))] == [
        ["a", "b"]
    ] * 2


def test_splits_that_were_set_by_hand_stay_so() -> None:
    one = kpstore.open(store_of("a"), mode="a")
    with one.transaction("split anew") as tx:
        tx.set_splits({"a": "test"})
    assert merged(one.location, store_of("b")).own_splits
    assert not merged(store_of("a"), store_of("b")).own_splits


def test_paths_count_more_than_numbers_and_chunks_of_another_size_fit() -> None:
    paths, numbers = store_of("ab", chunk_rows=8), store_of("ab", numbered=True)
    for pair in ((paths, numbers), (numbers, paths)):
        both = merged(*pair)
        assert both["image_path"][0] == "a/0000.png"
        np.testing.assert_array_equal(both["points"][:4], rows_of("a", 4).values)
    other = kpstore.create(memory_location())
    with other.transaction("x") as tx:
        tx.add_videos([replace(record("a", 4), frame_paths=("w", "x", "y", "z"))])
    with pytest.raises(
        ConflictError, match=r"'a': frame 0 is 'w' in .* and 'a/0000\.png' elsewhere"
    ):
        merged(paths, other.location)


def test_of_several_reasons_one_is_kept_whatever_the_order() -> None:
    one, other = (
        store_of("a", failed="a", reason="no film"),
        store_of("a", failed="a", reason="black"),
    )
    torn = [store_of("b", failed_frames={"b": {1: reason}}) for reason in ("torn", "grey")]
    for order in ((one, other, *torn), (*torn[::-1], other, one)):
        report = merge(order, location := memory_location())
        assert [f.reason for f in kpstore.open(location).failures("points")] == ["black", "grey"]
        assert sum("failed for several reasons" in note for note in report.notes) == 2


def test_what_was_made_in_several_ways_is_put_together_only_if_asked_for() -> None:
    one, other = (
        store_of("a", provenance={"scale": 1}),
        store_of("bd", provenance={"scale": 2, "document": {"n": 1}}),
    )
    with pytest.raises(MismatchError, match="--mixed puts them together"):
        merged(one, other)
    stores = [merged(*order, mixed=True) for order in ((one, other), (other, one))]
    for store in stores:
        assert store.provenance("points")["extractor"] == "mixed"
        assert [way["scale"] for way in store.provenance("points")["ways"]] == [1, 2]
    third = store_of("c", provenance={"scale": 3})
    whole = merged(stores[0].location, third, mixed=True)
    assert [way["scale"] for way in whole.provenance("points")["ways"]] == [1, 2, 3]
    assert not kpstore.diff(whole, merged(third, other, one, mixed=True))


def test_files_of_different_kinds_go_together_unless_they_disagree() -> None:
    kinds = (
        {"format": "pickle"},
        {"format": "npz", "zeros": "missing"},
        {"format": "npz", "zeros": "values"},
    )
    one, other, third = (
        store_of(video, provenance={"extractor": "imported", **kind})
        for video, kind in zip("abd", kinds, strict=True)
    )
    assert len(merged(one, other).index) == 2
    with pytest.raises(MismatchError, match="zeros"):
        merged(other, third)
