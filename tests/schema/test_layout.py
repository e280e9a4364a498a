"""The 143-point layout."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from kpstore.errors import InvalidError
from kpstore.schema import layout
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.layout import FACE_LISTS, FaceList, keypoints_spec, skeleton_edges

AVERAGED = [*range(60), [1, 2], [3], *range(62, 68)]


def test_parts_cover_all_points_in_order():
    rows = [row for part in layout.PART_SLICES.values() for row in range(part.start, part.stop)]
    assert rows == list(range(143))
    assert layout.PARTS == ("face", "left_hand", "right_hand", "pose")


def test_face_regions_cover_the_face_with_ibugs_sizes():
    sizes = [region.stop - region.start for region in layout.FACE_REGIONS.values()]
    assert sizes == [17, 5, 5, 9, 6, 6, 12, 8]


def test_every_point_has_its_own_name():
    assert len(set(layout.POINT_NAMES)) == len(layout.POINT_NAMES) == 143
    assert layout.POINT_NAMES[67:69] == ("face_67", "left_hand_wrist")
    assert layout.POINT_NAMES[97] == "right_hand_index_finger_tip"
    assert layout.POINT_NAMES[110 + 15] == "pose_left_wrist"


@pytest.mark.parametrize("name", sorted(FACE_LISTS))
def test_edges_stay_within_a_part_and_reach_every_point(name):
    edges = skeleton_edges(FACE_LISTS[name])
    part_of = np.repeat(np.arange(4), [68, 21, 21, 33])
    assert all(part_of[a] == part_of[b] and a != b for a, b in edges)
    assert {point for edge in edges for point in edge} == set(range(143))
    assert len({frozenset(edge) for edge in edges}) == len(edges)


@pytest.mark.parametrize("name", sorted(FACE_LISTS))
def test_a_named_list_has_68_different_mesh_points(name):
    face_list = FACE_LISTS[name]
    assert face_list.name == name
    assert len(set(face_list.points)) == 68


def test_phoenix_outline_starts_at_the_forehead_and_ends_at_the_chins_side():
    points = FACE_LISTS["phoenix"].points
    assert (points[0], points[16], points[17], points[36], points[67]) == (10, 400, 107, 33, 402)


def test_sha256_is_of_the_points_alone():
    one, two = FaceList("one", tuple(range(68)), "a"), FaceList("two", tuple(range(68)), "b")
    assert (
        one.sha256
        == two.sha256
        == hashlib.sha256(json.dumps([*range(68)], separators=(",", ":")).encode()).hexdigest()
    )


def test_lists_and_tuples_of_points_are_the_same_list():
    from_json = FaceList("x", AVERAGED)  # type: ignore[arg-type]
    in_code = FaceList("x", tuple(tuple(p) if isinstance(p, list) else p for p in AVERAGED))
    assert from_json == in_code
    assert from_json.indices[59:62] == ((59,), (1, 2), (3,))
    assert "68 points" in repr(from_json)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (tuple(range(67)), "it has 67 entries"),
        ((*range(67), 478), "entry 67 is 478"),
        ((-1, *range(66), "7"), r"entry 0 is -1; entry 67 is '7'"),
        ((True, *range(67)), "entry 0 is True"),
        ((None,) * 68, r"entry 4 is None and 63 more like it; give 68"),
        (((), *range(67)), r"entry 0 is \(\)"),
        ((1.0, *range(67)), "entry 0 is 1.0"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_every_fault(points, message):
    with pytest.raises(InvalidError, match=message):
        FaceList("mine", points)


def test_spec_is_json_and_comes_back_equal():
    spec = keypoints_spec(FaceList("x", AVERAGED))  # type: ignore[arg-type]
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.attrs["parts"]["right_hand"] == [89, 110]
    assert again.attrs["face_list"]["points"][60] == [1, 2]


def test_spec_has_masks_that_read_missing_when_empty():
    spec = keypoints_spec()
    rows = spec.empty_rows(2).check(spec)
    assert np.isnan(rows.values).all()
    assert rows.values.shape == (2, 143, 3)
    assert not rows.companions["detected"].any()
    assert np.isnan(rows.companions["visibility"]).all()
