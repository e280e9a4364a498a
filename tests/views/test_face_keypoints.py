"""Face points: only real faces, mapped to [0, 1] and back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.layout import keypoints_spec
from kpstore.views.face_keypoints import FaceKeypointView
from tests.fakes import record

FACELESS = {1, 4, 7}


def keypoints(n_frames: int = 12) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.uniform(-1, 2, (n_frames, 143, 3)).astype(np.float32)
    values[:, 68:] *= 50  # other parts must not count
    values[sorted(FACELESS), :68] = np.nan
    return values


def fill_keypoints(store: kpstore.Store) -> kpstore.Store:
    """Videos a (12 frames, three without a face) and b (3 frames, pending)."""
    values = keypoints()
    detected = np.ones((12, 4), dtype=bool)
    detected[:, 0] = np.isfinite(values[:, 0, 0])
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", 12), record("b", 3, "dev")])
        tx.add_feature(keypoints_spec(), {})
        tx.write("keypoints", "a", FeatureRows(values, {"detected": detected}))
    return store.at()


def faces() -> np.ndarray:
    return keypoints()[[row for row in range(12) if row not in FACELESS], :68]


def test_only_frames_with_a_face_are_kept(store: kpstore.Store) -> None:
    filled = fill_keypoints(store)
    view = filled.face_keypoints(normalize=None)
    assert view.rows.tolist() == [0, 2, 3, 5, 6, 8, 9, 10, 11]
    sample = view[1]
    assert set(sample) == {"keypoints", "row"}
    assert sample["keypoints"].dtype == np.float32
    np.testing.assert_array_equal(np.stack([s["keypoints"] for s in view]), faces())
    np.testing.assert_array_equal(view.denormalize(sample["keypoints"]), faces()[1])


def test_coordinates_are_mapped_by_the_range_of_the_selected_faces(store: kpstore.Store) -> None:
    view = fill_keypoints(store).face_keypoints()
    batch = view.batch(range(9))
    for axis in range(3):
        assert batch["keypoints"][..., axis].min() == 0
        assert batch["keypoints"][..., axis].max() == 1
    np.testing.assert_array_equal(view.range[0], faces().min(axis=(0, 1)))
    np.testing.assert_array_equal(view.range[1], faces().max(axis=(0, 1)))
    np.testing.assert_allclose(view.denormalize(batch["keypoints"]), faces(), atol=1e-6)


def test_a_range_of_other_frames_can_be_given(memory_store: kpstore.Store) -> None:
    filled = fill_keypoints(memory_store)
    train = filled.face_keypoints()
    other = filled.face_keypoints(normalize=train.range, videos=["a"]).subset([3])
    np.testing.assert_array_equal(other[0]["keypoints"], train[3]["keypoints"])
    halves = filled.face_keypoints(normalize=([0, 0, 0], [2, 2, 2]))
    np.testing.assert_array_equal(halves[0]["keypoints"], faces()[0] / 2)


def test_each_frame_can_have_its_own_box(store: kpstore.Store) -> None:
    view = fill_keypoints(store).face_keypoints(normalize="frame")
    batch = view.batch([0, 5])
    assert (batch["keypoints"].min(axis=1) == 0).all()
    assert (batch["keypoints"].max(axis=1) == 1).all()
    sample = view[5]
    for given in (batch, {name: array[None] for name, array in sample.items()}):
        restored = view.denormalize(given["keypoints"], low=given["low"], high=given["high"])
        np.testing.assert_allclose(restored[-1], faces()[5], atol=1e-6)
    with pytest.raises(InvalidError, match="needs low= and high= of the samples"):
        view.denormalize(sample["keypoints"])


@pytest.mark.parametrize("normalize", ["minmax", "frame", None])
def test_nan_stays_nan(memory_store: kpstore.Store, normalize: str | None) -> None:
    view = fill_keypoints(memory_store).face_keypoints(normalize=normalize, missing="nan")  # type: ignore[arg-type]
    points = view.batch(range(15))["keypoints"]
    missing = np.isnan(points).all(axis=(1, 2))
    assert np.flatnonzero(missing).tolist() == [*sorted(FACELESS), 12, 13, 14]
    assert np.isfinite(points[~missing]).all()


def test_frames_without_a_face_can_be_refused(memory_store: kpstore.Store) -> None:
    filled = fill_keypoints(memory_store)
    with pytest.raises(
        NotFoundError,
        match="3 of 15 frames failed or are not extracted yet, the first in video 'b'",
    ):
        filled.face_keypoints(missing="error")
    with pytest.raises(NotFoundError, match="3 of 12 frames have no face, the first in video 'a'"):
        filled.face_keypoints(missing="error", videos=["a"])


def test_a_coordinate_that_never_varies_is_only_shifted(memory_store: kpstore.Store) -> None:
    spec = FeatureSpec("flat", (68, 3), ("point", "space"), chunk_rows=2)
    values = np.ones((5, 68, 3), dtype=np.float32) * (1, 2, 3)
    values[:, 0, 0] = 5
    values[3] = np.nan
    with memory_store.transaction("fill") as tx:
        tx.add_videos([record("a", 5)])
        tx.add_feature(spec, {})
        tx.write("flat", "a", values.astype(np.float32))
    view = memory_store.at().face_keypoints(feature="flat")
    assert view.rows.tolist() == [0, 1, 2, 4]
    np.testing.assert_array_equal(view[0]["keypoints"][:2], [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(view.denormalize(view[0]["keypoints"]), values[0])


def test_the_range_is_measured_once_and_travels(
    store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = fill_keypoints(store).face_keypoints()
    pickled = pickle.dumps(view)
    monkeypatch.setattr(FaceKeypointView, "_measure", lambda self: pytest.fail("measured again"))
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.subset([2])[0]["keypoints"], view[2]["keypoints"])


def test_a_view_without_faces_says_so_when_one_is_needed(memory_store: kpstore.Store) -> None:
    view = fill_keypoints(memory_store).face_keypoints(split="dev")
    assert len(pickle.loads(pickle.dumps(view))) == 0
    assert view.batch([])["keypoints"].shape == (0, 68, 3)
    with pytest.raises(InvalidError, match="none of the 0 frames has a face to measure"):
        _ = view.range


def test_what_does_not_fit_is_refused(memory_store: kpstore.Store) -> None:
    filled = fill_keypoints(memory_store)
    with pytest.raises(
        InvalidError, match=r"'keypoints_detected' has rows of \(4,\); face points need"
    ):
        filled.face_keypoints(feature="keypoints_detected")
    with pytest.raises(InvalidError, match="normalize='box': use 'minmax', 'frame'"):
        filled.face_keypoints(normalize="box")  # type: ignore[arg-type]
    endless = ([-np.inf] * 3, [np.inf] * 3)
    for given in (([0, 0], [1, 1]), ([0, 0, 3], [1, 1, 1]), 3, ([0, 0, 0],), endless):
        with pytest.raises(InvalidError, match=r"a range is \(low, high\)"):
            filled.face_keypoints(normalize=given)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="has no range over all frames"):
        _ = filled.face_keypoints(normalize="frame").range
    assert "FaceKeypointView" in repr(filled.face_keypoints())


def test_stored_statistics_of_the_training_split_normalise_other_frames(
    store: kpstore.Store,
) -> None:
    filled = fill_keypoints(store)
    own, train = filled.face_keypoints(), filled.face_keypoints(normalize="train_minmax")
    given = filled.face_keypoints(normalize=filled.statistics(split="train"), missing="nan")
    np.testing.assert_array_equal(train[4]["keypoints"], own[4]["keypoints"])
    np.testing.assert_array_equal(given[0]["keypoints"], own[0]["keypoints"])
    assert filled.face_keypoints(normalize="train_minmax", split="dev", missing="nan").range[
        0
    ].tolist() == (own.range[0].tolist())


def test_faces_can_be_standardised_and_back(
    memory_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = fill_keypoints(memory_store).face_keypoints(normalize="train_standard")
    batch = view.batch(range(9))["keypoints"]
    np.testing.assert_allclose(batch.mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(batch.std(axis=(0, 1)), 1, atol=1e-5)
    np.testing.assert_allclose(view.denormalize(batch), faces(), atol=1e-5)
    pickled = pickle.dumps(view)
    monkeypatch.setattr(FaceKeypointView, "_measure", lambda self: pytest.fail("measured again"))
    np.testing.assert_array_equal(pickle.loads(pickled)[2]["keypoints"], view[2]["keypoints"])


def test_statistics_without_faces_or_a_training_split_are_refused(
    memory_store: kpstore.Store,
) -> None:
    filled = fill_keypoints(memory_store)
    with pytest.raises(NotFoundError, match="no 'face' of 'keypoints' was detected in 'dev'"):
        filled.face_keypoints(normalize=filled.statistics(split="dev"))
    with memory_store.transaction("one column") as tx:
        tx.add_feature(FeatureSpec("one", (4,), ("number",)))
    with pytest.raises(InvalidError, match="has 1 columns; face points need x, y and z"):
        filled.face_keypoints(normalize=memory_store.at().statistics("one"))
