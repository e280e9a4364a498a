"""Frames of persons and the face to learn from them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError, MismatchError, NotFoundError
from kpstore.schema.feature import FeatureSpec
from tests.fakes import record

PERSONS = {"ada": 4, "ben": 3, "cem": 2}


def angles_of(person: str) -> np.ndarray:
    return (
        np.random.default_rng(len(person) + ord(person[0]))
        .uniform(-40, 40, (PERSONS[person], 5))
        .astype(np.float32)
    )


def features_of(person: str) -> np.ndarray:
    return (
        np.random.default_rng(ord(person[0]))
        .standard_normal((PERSONS[person], 8))
        .astype(np.float32)
    )


def fill_faces(
    store: kpstore.Store, target: str = "face_dinov2_vits14", target_model: str = "vits14"
) -> kpstore.Store:
    """Ada's frame 1 failed, Ben's frame 2 has no angles, Cem no frontal face; others are done."""
    with store.transaction("fill") as tx:
        tx.add_videos(
            [
                record(person, n, "train" if person != "ben" else "val")
                for person, n in PERSONS.items()
            ]
        )
        tx.add_feature(FeatureSpec("dinov2_vits14", (8,), ("feature",)), {"model": "vits14"})
        tx.add_feature(FeatureSpec("spherical_angles", (5,), ("landmark",), units="degree"), {})
        tx.add_feature(FeatureSpec("avg_angle", units="degree"), {})
        tx.add_feature(
            FeatureSpec(target, (8,), ("feature",), axis="video"), {"model": target_model}
        )
        for person in PERSONS:
            angles, failed = angles_of(person), {1: "no"} if person == "ada" else {}
            if person == "ben":
                angles[2] = np.nan
            tx.write("dinov2_vits14", person, features_of(person), failed_frames=failed)
            tx.write("spherical_angles", person, angles)
            tx.write("avg_angle", person, angles.mean(axis=1))
            if person != "cem":
                tx.write_video_feature(target, person, features_of(person)[0] + 1)
    return store.at()


def test_a_sample_is_a_frame_and_its_persons_face(store: kpstore.Store) -> None:
    filled = fill_faces(store)
    view = filled.faces(expect_model="dinov2_vits14")
    assert view.rows.tolist() == [0, 2, 3, 4, 5]
    for sample in view:
        person = str(filled.index.ids[sample["video"]])
        frame = int(sample["row"] - filled.video(person).rows.start)
        np.testing.assert_array_equal(sample["input_features"], features_of(person)[frame])
        np.testing.assert_array_equal(sample["position_encoding"], angles_of(person)[frame])
        np.testing.assert_array_equal(sample["target_features"], features_of(person)[0] + 1)
    assert view.batch([3, 0, 3])["target_features"].shape == (3, 8)
    assert view.lengths.tolist() == [1] * 5


def test_frames_are_filtered_by_how_far_they_are_turned(store: kpstore.Store) -> None:
    filled = fill_faces(store)
    turned = np.abs(filled["avg_angle"][:])
    usable = np.isin(np.arange(9), [0, 2, 3, 4, 5])
    for low, high in ((None, 8.0), (8.0, None), (3.0, 12.0)):
        expected = usable & (turned >= (low or 0)) & (turned <= (high or 90))
        assert (
            filled.faces(min_angle=low, max_angle=high).rows.tolist()
            == np.flatnonzero(expected).tolist()
        )
    assert len(filled.faces(max_angle=float(turned[3]), min_angle=float(turned[3]))) == 1


def test_incomplete_frames_and_persons_are_left_out_kept_or_refused(
    memory_store: kpstore.Store,
) -> None:
    filled = fill_faces(memory_store)
    kept = filled.faces(missing="nan")
    assert len(kept) == 9
    assert np.isnan(kept.batch([1])["input_features"]).all()
    assert np.isnan(kept.batch([8])["target_features"]).all()
    with pytest.raises(
        NotFoundError,
        match="4 of 9 frames failed or are not extracted yet, the first in video 'ada'",
    ):
        filled.faces(missing="error")
    assert filled.faces(split="val").rows.tolist() == [4, 5]
    assert len(filled.faces(videos=["cem"])) == 0


def test_another_model_than_expected_is_named(memory_store: kpstore.Store) -> None:
    filled = fill_faces(memory_store)
    with pytest.raises(
        MismatchError, match=r"'dinov2_vitb14' expected, but .* holds 'dinov2_vits14'"
    ):
        filled.faces(expect_model="dinov2_vitb14")
    with memory_store.transaction("second model") as tx:
        tx.add_feature(FeatureSpec("dinov2_vitb14", (16,), ("other",)), {})
    both = memory_store.at()
    with pytest.raises(InvalidError, match="choose one with expect_model="):
        both.faces()
    assert both.faces(expect_model="dinov2_vits14").input == "dinov2_vits14"
    with pytest.raises(NotFoundError, match="no 'face_dinov2_vitb14' or 'face_features'"):
        both.faces(expect_model="dinov2_vitb14")


def test_input_and_target_must_be_of_one_model(memory_store: kpstore.Store) -> None:
    filled = fill_faces(memory_store, "face_features", "vitb14")
    with pytest.raises(
        MismatchError,
        match="'dinov2_vits14' was made by 'vits14', target 'face_features' by 'vitb14'",
    ):
        filled.faces()
    with pytest.raises(MismatchError, match=r"rows of \(8,\), target 'spherical_angles' of \(5,\)"):
        filled.faces(target="spherical_angles")
    assert filled.faces(target="dinov2_vits14")[0]["target_features"].shape == (8,)


def test_a_target_of_frames_is_read_by_frame(memory_store: kpstore.Store) -> None:
    view = fill_faces(memory_store).faces(target="dinov2_vits14")
    batch = view.batch([4, 1])
    np.testing.assert_array_equal(batch["target_features"], batch["input_features"])
    assert len(memory_store.at().faces(target="dinov2_vits14", videos=["cem"])) == 2


def test_a_store_without_faces_says_so(memory_store: kpstore.Store) -> None:
    with pytest.raises(NotFoundError, match=r"no feature 'dinov2_\*' of frames"):
        memory_store.faces()
    with pytest.raises(InvalidError, match="missing='drop'"):
        fill_faces(memory_store).faces(missing="drop")  # type: ignore[arg-type]


def test_it_pickles_and_has_subsets(store: kpstore.Store) -> None:
    view = fill_faces(store).faces()
    again = pickle.loads(pickle.dumps(view)).subset(view.rows > 2)
    np.testing.assert_array_equal(
        again.batch([1])["input_features"], view.batch([3])["input_features"]
    )
    assert again.first_rows.tolist() == [3, 4, 5]
    assert "dinov2_vits14 to face_dinov2_vits14" in repr(again)
