"""Statistics equal numpy's, merge, are kept for one version, and never mix splits."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect import measuring as module
from kpstore.inspect.measuring import measure
from kpstore.inspect.moments import RELATIVE_ERROR, SMALLEST, Moments, Sketch, measure_runs
from kpstore.inspect.statistics import PROBABILITIES, Statistics, statistics
from kpstore.schema.array import ArraySpec
from kpstore.schema.feature import FeatureRows, FeatureSpec
from tests.conftest import COSTLY, memory_location
from tests.fakes import record
from tests.store.data import fill

PARTS = {"head": slice(0, 2), "hand": slice(2, 5)}
SPEC = FeatureSpec(
    "points",
    (5, 3),
    ("point", "space"),
    labels={"space": ("x", "y", "z"), "part": tuple(PARTS)},
    companions=(ArraySpec("detected", (2,), ("part",), "bool"),),
    chunk_rows=4,
    attrs={"parts": {name: [rows.start, rows.stop] for name, rows in PARTS.items()}},
)
Values = dict[str, tuple[str, np.ndarray, np.ndarray, set[int]]]
"""By video: split, values (T, 5, 3), mask (T, 2), frames that failed."""


def sound(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and a mask that agree: a part is NaN exactly where it was not detected."""
    for part, points in enumerate(PARTS.values()):
        values[~mask[:, part], points] = np.nan
        mask[:, part] = ~np.isnan(values[:, points]).all(axis=(1, 2))
    return values, mask


@st.composite
def videos(draw: st.DrawFn) -> Values:
    drawn: Values = {}
    scale = draw(st.sampled_from([1.0, 1e-3, 1e6]))
    for number in range(draw(st.integers(1, 5))):
        length = draw(st.integers(0, 9))
        rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        values = (
            draw(st.sampled_from([0.0, 0.5, 1e4])) + scale * rng.standard_normal((length, 5, 3))
        ).astype("f4")
        values[rng.random(values.shape[:2]) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
        values[..., 3 - draw(st.integers(0, 1)) :] = np.nan  # no depth
        failed = {frame for frame in range(length) if rng.random() < 0.2}
        drawn[f"v{number}"] = (
            draw(st.sampled_from(["train", "dev", ""])),
            *sound(values, rng.random((length, 2)) < 0.7),
            failed,
        )
    return drawn


def store_of(drawn: Values, location: str | Path | None = None, pending: str = "") -> kpstore.Store:
    store = kpstore.create(location or memory_location())
    with store.transaction("fill") as tx:
        tx.add_videos([record(v, len(values), split) for v, (split, values, _, _) in drawn.items()])
        tx.add_feature(SPEC)
        for video, (_, values, mask, failed) in drawn.items():
            if video != pending:
                rows = FeatureRows(values, {"detected": mask})
                tx.write("points", video, rows, failed_frames=dict.fromkeys(failed, "broken"))
    return store.at()


def by_hand(drawn: Values, chosen: list[str], part: int, column: int) -> tuple[np.ndarray, int]:
    """All values that count, float64, and how many do not."""
    kept, missing = [np.empty(0)], 0
    points = list(PARTS.values())[part]
    for video in chosen:
        _, values, mask, failed = drawn[video]
        frames = [frame for frame in range(len(values)) if frame not in failed]
        found = np.where(
            mask[frames, part, None], values[frames][:, points, column], np.nan
        ).astype(float)
        kept.append(found[np.isfinite(found)])
        missing += int(np.isnan(found).sum())
    return np.concatenate(kept), missing


def check(found: Statistics, drawn: Values, chosen: list[str], quantiles: bool = True) -> None:
    for part, column in np.ndindex(2, 3):
        values, missing = by_hand(drawn, chosen, part, column)
        assert (found.count[part, column], found.missing[part, column]) == (len(values), missing)
        if len(values) == 0:
            assert np.isnan(
                [found.low[part, column], found.mean[part, column], found.std[part, column]]
            ).all()
            continue
        size = np.abs(values).max()
        assert (found.low[part, column], found.high[part, column]) == (values.min(), values.max())
        np.testing.assert_allclose(
            found.mean[part, column], values.mean(), rtol=1e-12, atol=1e-13 * size
        )
        np.testing.assert_allclose(
            found.std[part, column], values.std(), rtol=1e-9, atol=1e-13 * size
        )
        if quantiles:
            exact = np.quantile(values, PROBABILITIES, method="lower")
            assert (
                np.abs(found.quantiles[:, part, column] - exact) <= RELATIVE_ERROR * np.abs(exact)
            ).all()


@COSTLY
@given(videos())
def test_they_equal_numpy_for_any_split_and_any_missing_pattern(drawn: Values) -> None:
    store = store_of(drawn)
    for split in (None, *store.splits):
        chosen = [v for v, (of, *_) in drawn.items() if split is None or of == split]
        check(store.statistics("points", split=split, workers=1), drawn, chosen)


@COSTLY
@given(videos(), st.data())
def test_any_choice_of_videos_has_its_moments(drawn: Values, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(drawn)), unique=True))
    found = store_of(drawn).statistics("points", videos=chosen, workers=1)
    check(found, drawn, chosen, quantiles=False)
    assert np.isnan(found.quantiles).all()


@COSTLY
@given(videos())
def test_moments_of_videos_merge_to_those_of_the_whole(drawn: Values) -> None:
    per_video = measure(store_of(drawn), "points", workers=1).moments
    whole = per_video.total()
    one_by_one = reduce(Moments.merged, [per_video[i : i + 1] for i in range(len(drawn))])
    for name in ("count", "missing", "low", "high"):
        np.testing.assert_array_equal(getattr(one_by_one, name)[0], getattr(whole, name))
    np.testing.assert_allclose(one_by_one.mean[0], whole.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(one_by_one.std[0], whole.std, rtol=1e-6, atol=1e-9)


@COSTLY
@given(
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e30, 1e30)),
    st.integers(0, 40),
)
def test_a_sketch_is_right_to_a_thousandth_however_it_is_put_together(
    values: np.ndarray, cut: int
) -> None:
    merged = Sketch.merge([Sketch.of(values[:cut]), Sketch.of(values[cut:])])
    whole = Sketch.of(values)
    np.testing.assert_array_equal(merged.bins, whole.bins)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    exact = np.quantile(values, [0, 0.3, 0.5, 1], method="lower")
    # float32 may round a value up into the next bin; SMALLEST is where its precision ends.
    bound = RELATIVE_ERROR * (1 + 1e-3) * np.abs(exact) + SMALLEST
    assert (np.abs(merged.quantiles([0, 0.3, 0.5, 1]) - exact) <= bound).all()


def test_values_far_from_zero_keep_their_deviation() -> None:
    values = (1e9 + np.array([0.0, 1.0, 2.0, 3.0])).reshape(4, 1, 1)
    runs = measure_runs(values, np.ones_like(values, dtype=bool), np.array([0, 1, 3]))
    assert runs.total().std[0] == pytest.approx(np.std([0, 1, 2, 3]), rel=1e-12)


def test_threads_and_blocks_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    drawn: Values = {
        f"v{n}": (
            ("train", "dev")[n % 2],
            *sound(rng.random((37, 5, 3)).astype("f4"), rng.random((37, 2)) < 0.8),
            set(),
        )
        for n in range(9)
    }
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    store = kpstore.open(store_of(drawn, tmp_path / "s.kps").location, cache="off")
    serial, threads = (statistics(store, "points", split="dev", workers=n) for n in (1, 3))
    monkeypatch.setattr(module, "_dask", lambda: None)
    without = statistics(store, "points", split="dev", workers=3)
    for name in ("count", "missing", "low", "high", "mean", "std", "quantiles"):
        np.testing.assert_array_equal(getattr(serial, name), getattr(threads, name))
        np.testing.assert_array_equal(getattr(serial, name), getattr(without, name))
    check(serial, drawn, [v for v in drawn if drawn[v][0] == "dev"])


def small(seed: int = 0) -> Values:
    rng = np.random.default_rng(seed)
    return {
        video: (split, rng.random((6, 5, 3)).astype("f4"), np.ones((6, 2), dtype=bool), set())
        for video, split in (("a", "train"), ("b", "test"), ("c", "train"))
    }


@pytest.fixture(params=["s.kps", "s.h5"])
def kept(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> kpstore.Store:
    """A store on disk, on either backend, whose statistics are kept."""
    monkeypatch.setenv("KPSTORE_CACHE", str(tmp_path / "cache"))
    return store_of(small(), tmp_path / request.param)


def test_a_second_call_reads_no_row(kept: kpstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept.statistics("points", split="train")
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("measured again"))
    again = kpstore.open(kept.location).statistics("points", split="train")
    assert again.to_json() == first.to_json()
    assert (
        kpstore.open(kept.location).statistics("points", split="test").to_json() != first.to_json()
    )
    entries = kept.decoded_cache.entries()  # type: ignore[union-attr]
    assert [(e.name, e.snapshot) for e in entries] == [
        ("points_detected (statistics)", kept.snapshot)
    ]
    assert kept.decoded_cache.clear([kept.snapshot]) > 0  # type: ignore[union-attr]
    assert kept.decoded_cache.entries() == []  # type: ignore[union-attr]


def test_another_version_is_measured_anew(kept: kpstore.Store) -> None:
    before = kept.statistics("points", split="train")
    values = np.full((6, 5, 3), 9, dtype=np.float32)
    with kpstore.open(kept.location, mode="a").transaction("other") as tx:
        tx.write("points", "a", FeatureRows(values, {"detected": np.ones((6, 2), dtype=bool)}))
    after = kpstore.open(kept.location).statistics("points", split="train")
    assert (after.high == 9).all()
    assert kept.statistics("points", split="train").to_json() == before.to_json()


def test_a_damaged_file_is_measured_anew(kept: kpstore.Store) -> None:
    before = kept.statistics("points").to_json()
    (entry,) = kept.decoded_cache.entries()  # type: ignore[union-attr]
    for damage in (b"", entry.path.read_bytes()[:-40], b"PK" + bytes(500)):
        entry.path.write_bytes(damage)
        assert kept.statistics("points").to_json() == before
    assert [path.name for path in entry.path.parent.iterdir()] == [entry.path.name]


def test_a_file_of_another_version_is_measured_anew(kept: kpstore.Store) -> None:
    before = kept.statistics("points").to_json()
    (first,) = kept.decoded_cache.entries()  # type: ignore[union-attr]
    with kpstore.open(kept.location, mode="a").transaction("other") as tx:
        values = np.full((6, 5, 3), 9, dtype=np.float32)
        tx.write("points", "a", FeatureRows(values, {"detected": np.ones((6, 2), dtype=bool)}))
    kpstore.open(kept.location).statistics("points")
    (other,) = [e for e in kept.decoded_cache.entries() if e.path != first.path]  # type: ignore[union-attr]
    first.path.write_bytes(other.path.read_bytes())
    assert kept.statistics("points").to_json() == before


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = kpstore.open(store_of(small(), tmp_path / "s.kps").location, cache=tmp_path / "file")
    check(store.statistics("points"), small(), ["a", "b", "c"])


def test_the_training_split_holds_no_test_rows(store: kpstore.Store) -> None:
    drawn = small()
    drawn["b"][1][:] = 1000
    found = store_of(drawn).statistics("points", split="train")
    assert found.high.max() < 1
    assert (found.videos, found.frames, found.splits) == (2, 12, ("train",))
    assert np.nanmax(found.quantiles) < 1


def test_pending_videos_count_for_nothing() -> None:
    found = store_of(small(), pending="a").statistics("points", split="train")
    assert (found.videos, found.frames) == (2, 6)
    assert (found.count + found.missing).sum() == 6 * 15


def test_features_without_parts_labels_or_frames(store: kpstore.Store) -> None:
    fill(store)
    with store.transaction("more") as tx:
        tx.add_feature(FeatureSpec("vector", (40,), ("number",), axis="video", dtype="float64"))
        tx.write_video_feature("vector", "a", np.arange(40.0))
        tx.add_feature(FeatureSpec("one", dtype="int64"))
        tx.write("one", "b", np.arange(9))
    vector, one, points = (store.at().statistics(name) for name in ("vector", "one", "points"))
    assert (vector.parts, vector.columns, vector.frames, vector.count.item()) == (
        ("all",),
        ("all",),
        1,
        40,
    )
    assert (vector.mean.item(), one.mean.item(), one.high.item()) == (19.5, 4.0, 8.0)
    # Its mask says nothing about which points are a part, so values that are NaN are what is
    # missing.
    assert (points.parts, points.columns) == (("all",), ("x", "y", "z"))


def test_what_is_not_finite_is_missing(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("fill") as tx:
        tx.add_videos([record("a", 4)])
        tx.add_feature(FeatureSpec("f", (1,), ("n",), dtype="float64"))
        tx.write("f", "a", np.array([[1.0], [0.0], [np.nan], [1e300]]))
        tx.session.write("f", 1, np.array([[np.inf]]))  # as earlier versions of kpstore took it
    found = memory_store.at().statistics("f")
    assert (found.count.item(), found.missing.item(), found.high.item()) == (2, 2, 1e300)


def test_an_empty_store_and_wrong_names(store: kpstore.Store) -> None:
    with store.transaction("feature") as tx:
        tx.add_feature(SPEC)
    empty = store.at().statistics("points")
    assert (empty.videos, int(empty.count.sum())) == (0, 0)
    filled = store_of(small())
    for wrong, message in (
        ({"split": "val"}, "split 'val' not found"),
        ({"videos": ["x"]}, "video 'x' not found"),
    ):
        with pytest.raises(NotFoundError, match=message):
            filled.statistics("points", **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="feature 'keypoints' not found"):
        filled.statistics()
    with pytest.raises(InvalidError, match="workers=0: use a whole number, 1 or more"):
        filled.statistics("points", workers=0)
    with pytest.raises(InvalidError, match="names 'a' twice"):
        filled.statistics("points", videos=["a", "a"])
    found = filled.statistics("points")
    with pytest.raises(
        NotFoundError, match=r"part 'face' of 'points' not found; there are \['head', 'hand'\]"
    ):
        found.range("face")
    with pytest.raises(NotFoundError, match="part None of 'points' not found"):
        found.standard()


def test_results_are_json_and_travel() -> None:
    found = store_of(small()).statistics("points", split="train")
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["statistics"]["hand"]["y"]["count"] == 36
    assert list(told["statistics"]["hand"]["y"]["quantiles"]) == [
        "1",
        "5",
        "25",
        "50",
        "75",
        "95",
        "99",
    ]
    assert "points in train: 12 frames" in repr(pickle.loads(pickle.dumps(found)))
    nothing = replace(found, count=np.zeros_like(found.count))
    with pytest.raises(NotFoundError, match="no 'head' of 'points' was detected in 'train'"):
        nothing.range("head")
