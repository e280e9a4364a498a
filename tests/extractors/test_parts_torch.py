"""FaceMesh, Hands and Pose in torch, beside MediaPipe's own on the same frames."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kpstore.errors import MismatchError, UnsupportedError
from kpstore.extractors.mediapipe import models_folder
from kpstore.extractors.parts import PartsExtractor
from kpstore.schema.feature import FeatureRows
from kpstore.schema.layout import PART_SLICES, PARTS
from tests.extractors.mediapipe_oracles import SIZE, moving_clip

pytest.importorskip("mediapipe")
pytest.importorskip("tflite")

CLIP: list[np.ndarray] = moving_clip(3)  # type: ignore[no-untyped-call]
BLACK = np.zeros((90, 70, 3), dtype=np.uint8)


def rows(images: list[np.ndarray], **options: Any) -> FeatureRows:
    extractor = PartsExtractor(**options)
    extractor.open()
    try:
        return extractor.rows(images)
    finally:
        extractor.close()


def same(one: FeatureRows, other: FeatureRows) -> None:
    np.testing.assert_array_equal(one.values, other.values)
    for name, values in one.companions.items():
        np.testing.assert_array_equal(values, other.companions[name], name)


@pytest.mark.parametrize("handedness", ["subject", "legacy"])
def test_points_are_those_of_mediapipe(handedness: str) -> None:
    """The clip shows both hands; at most a sample of a crop in a thousand differs."""
    reference, mine = (
        rows([*CLIP, BLACK], engine=engine, handedness=handedness)
        for engine in ("mediapipe", "torch")
    )
    detected = reference.companions["detected"]
    np.testing.assert_array_equal(mine.companions["detected"], detected)
    assert detected[:-1].all()
    assert not detected[-1].any()
    for part in PARTS:
        points, wanted = (one.values[:-1, PART_SLICES[part]] for one in (mine, reference))
        apart = np.abs(points - wanted)[..., :2] * SIZE
        assert np.median(apart) < 0.05
        assert apart.max() < 1, part
    np.testing.assert_allclose(
        mine.companions["visibility"], reference.companions["visibility"], atol=0.01
    )


def test_a_face_or_hand_that_is_not_sure_enough_is_missing_in_both() -> None:
    for confidence in (0.93, 0.99):
        reference, mine = (
            rows(CLIP[:1], engine=engine, min_detection_confidence=confidence)
            for engine in ("mediapipe", "torch")
        )
        np.testing.assert_array_equal(mine.companions["detected"], reference.companions["detected"])


def test_results_do_not_depend_on_what_else_is_in_a_batch() -> None:
    images = [*CLIP[:2], BLACK]
    together = rows(images, engine="torch")
    same(rows(images[1:2], engine="torch"), together[1:2])
    padded, backwards = (
        rows(some, engine="torch", rows_per_call=2) for some in (images, images[::-1])
    )
    same(padded, backwards[::-1])


def test_a_feature_goes_on_with_the_engine_that_began_it() -> None:
    for begun in ("mediapipe", "torch"):
        made = {"keypoints": PartsExtractor(engine=begun).recipe}  # type: ignore[arg-type]
        extractor = PartsExtractor()
        assert extractor.settle(made, "cuda") == ()
        assert extractor.recipe == made["keypoints"]
    with pytest.raises(MismatchError, match="begun with the engine torch"):
        PartsExtractor(engine="mediapipe").settle(made, "cpu")
    extractor = PartsExtractor()
    extractor.settle({}, "cuda")
    assert extractor.recipe["parameters"]["engine"] == "torch"
    assert extractor.batch_size == 64


def test_a_pose_model_that_the_wheel_does_not_hold_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="pose_landmark_heavy"):
        PartsExtractor(engine="torch", model_complexity=2).open()
    folder = tmp_path / "modules"
    shutil.copytree(models_folder(), folder)
    pose = folder / "pose_landmark"
    shutil.copy(pose / "pose_landmark_full.tflite", pose / "pose_landmark_heavy.tflite")
    found = rows(CLIP[:1], engine="torch", model_complexity=2, models=folder)
    same(found, rows(CLIP[:1], engine="torch"))
