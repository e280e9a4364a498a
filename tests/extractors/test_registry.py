"""What a store has on record of a feature is enough to make the same extractor again."""

from __future__ import annotations

from typing import Any

import pytest

import kpstore
from kpstore import plugins
from kpstore.errors import InvalidError, MismatchError
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.extractors.lip_resnet18 import LipResnet18Extractor
from kpstore.extractors.parts import PartsExtractor
from kpstore.extractors.registry import make_extractor, provenance_of, recorded
from kpstore.schema.feature import FeatureSpec
from tests.fakes import FakeExtractor

FRAMES = FeatureSpec("points", (2,), ("x",), "float16")
WIDE = FeatureSpec("points", (2,), ("x",))


@pytest.mark.parametrize(
    "extractor",
    [
        HolisticExtractor(mode="video", min_tracking_confidence=0.7),
        HolisticExtractor(independent_frames=True, face_list="ibug"),
        PartsExtractor(handedness="legacy", min_detection_confidence=0.25),
    ],
)
def test_an_extractor_made_again_leaves_the_same_on_record(extractor: Any) -> None:
    specs = {spec.name: spec for spec in extractor.specs}
    for provenance in (extractor.provenance, provenance_of(extractor)):  # before made_by, and now
        recipe, options = recorded(specs, provenance)
        assert make_extractor(recipe, **options).provenance == extractor.provenance


class Mine(FakeExtractor):
    """Another package's."""


def test_recipe_and_options_of_somebody_else_are_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins._registered, ("kpstore.extractors", "mine"), Mine)
    extractor = Mine(scale=3.0, stop_file="/home/me/file")
    made = provenance_of(extractor)["points"]
    assert made["made_by"]["recipe"] == "mine"
    assert made["made_by"]["options"]["scale"] == 3.0
    assert made["made_by"]["options"]["stop_file"] == "file"  # nobody's folders
    assert "batch_size" not in made["made_by"]["options"]
    assert {key: made[key] for key in made if key != "made_by"} == extractor.recipe
    recipe, options = recorded({"points": extractor.spec}, {"points": made})
    assert make_extractor(recipe, **options).scale == 3.0  # type: ignore[union-attr]


def test_a_record_with_made_by_is_that_of_the_same_feature_without(
    memory_store: kpstore.Store,
) -> None:
    before, spec = {"extractor": "fake", "parameters": {"scale": 1.0}}, FRAMES
    now = {**before, "made_by": {"recipe": "mine", "options": {"scale": 1.0}}}
    with memory_store.transaction("old") as tx:
        tx.add_feature(spec, before)
    with memory_store.at().transaction("new") as tx:
        tx.add_feature(spec, now)
    assert memory_store.at().provenance("points") == before
    with pytest.raises(MismatchError, match="parameters"), memory_store.at().transaction("x") as tx:
        tx.add_feature(spec, {**now, "parameters": {"scale": 2.0}})


def test_faces_are_one_recipe_with_dinov2_in_it() -> None:
    found = {
        "extractor": "insightface",
        "model": "buffalo_s",
        "parameters": {
            "det_size": [320, 320],
            "det_thresh": 0.4,
            "formula": "json",
            "face": "first",
        },
    }
    vectors = {
        "extractor": "dinov2",
        "model": "dinov2_vits14",
        "parameters": {"precision": "bf16", "resize": [224, 224]},
    }
    recipe, options = recorded(
        {"box": FRAMES, "dinov2_vits14": FRAMES}, {"box": found, "dinov2_vits14": vectors}
    )
    assert recipe == "faces"
    assert options == {
        "model_pack": "buffalo_s",
        "det_size": 320,
        "det_thresh": 0.4,
        "formula": "json",
        "face": "first",
        "model": "dinov2_vits14",
        "precision": "bf16",
        "dtype": "float16",
    }


def test_imported_features_say_no_recipe() -> None:
    imported = {"points": {"extractor": "imported", "format": "npz"}}
    with pytest.raises(
        InvalidError, match="points was not extracted by one recipe, so say which one"
    ):
        recorded({"points": FRAMES}, imported)
    assert recorded({"points": FRAMES}, imported, "parts") == ("parts", {})


def test_mouth_crops_are_cut_as_they_were() -> None:
    made = {
        "extractor": "lip_resnet18",
        "model": "lip_resnet18",
        "parameters": {
            "crop": [80, 80],
            "quirk": "height_slice",
            "precision": "bf16",
            "mean": 0.421,
        },
    }
    recipe, options = recorded({"lip_resnet18": FRAMES}, {"lip_resnet18": made})
    extractor = LipResnet18Extractor(
        crop=80, quirk="height_slice", precision="bf16", dtype="float16"
    )
    assert make_extractor(recipe, **options) == extractor


def test_features_of_other_recipes_have_no_say_in_a_recipe_s_options() -> None:
    vectors = {"extractor": "dinov2", "model": "dinov2_vits14", "parameters": {"precision": "bf16"}}
    lips = {
        "extractor": "lip_resnet18",
        "model": "lip_resnet18",
        "parameters": {"crop": [88, 88], "precision": "fp32"},
    }
    points = {"extractor": "holistic", "parameters": {"mode": "video"}}
    provenance = {"dinov2_vits14": vectors, "keypoints": points, "lip_resnet18": lips}
    specs = {"dinov2_vits14": FRAMES, "keypoints": WIDE, "lip_resnet18": WIDE}
    wanted = {"model": "dinov2_vits14", "precision": "bf16", "dtype": "float16"}
    assert recorded(specs, provenance, "dinov2") == ("dinov2", wanted)
    assert recorded({"keypoints": WIDE}, {"keypoints": points}, "dinov2") == ("dinov2", {})
