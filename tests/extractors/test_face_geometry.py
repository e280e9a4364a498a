"""Landmarks on the sphere and signed angles, against formulas written out in numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.errors import InvalidError
from kpstore.extractors.face_geometry import (
    DEAD_ZONE,
    FacePoints,
    Formula,
    landmarks_to_3d,
    mean_angle,
    spherical_angles,
)

BOX = np.array([0.0, 0.0, 200.0, 100.0])
FORMULAS: tuple[Formula, ...] = ("corrected", "json")


def face(*scaled: tuple[float, float], box: np.ndarray = BOX) -> FacePoints:
    """A face with landmarks given from its box's middle, in halves of width and height."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return FacePoints(np.array([*scaled, *[(0.0, 0.0)] * (5 - len(scaled))]) * half + middle, box)


def moved(given_face: FacePoints, scale: float = 1.0, shift: float = 0.0) -> FacePoints:
    """The same face in a picture of another size, at another place."""
    return FacePoints(given_face.landmarks * scale + shift, given_face.box * scale + shift)


def scalar_3d(x: float, y: float, box: list[float]) -> tuple[float, float, float]:
    """The formula of users' scripts for one point."""
    w, h = box[2] - box[0], box[3] - box[1]
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    xn = (x - cx) / (w / 2) if w else x - cx
    yn = (y - cy) / (h / 2) if h else y - cy
    theta = math.acos(1 - min(1.0, math.sqrt(xn**2 + yn**2)))
    phi = 0.0 if xn == 0 else math.atan2(yn, xn)
    return math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)


def scalar_angle(
    before: tuple[float, ...], after: tuple[float, ...], y_before: float, y_after: float
) -> float:
    lengths = [math.sqrt(sum(c * c for c in point)) + 1e-8 for point in (before, after)]
    dot = sum(a / lengths[0] * (b / lengths[1]) for a, b in zip(before, after, strict=True))
    angle = math.degrees(math.acos(max(-1.0, min(1.0, dot))))
    if y_after < y_before:
        return angle
    if y_after > y_before:
        return -angle
    return angle if angle > 0.1 else 0.0


# Whole and half pixels, so that points straight above the middle and equal heights do come up.
pixels = st.integers(-40, 600).map(lambda n: n / 2)
sizes = st.integers(1, 400)
points = st.lists(st.tuples(pixels, pixels), min_size=5, max_size=5)


@st.composite
def faces(draw: st.DrawFn) -> FacePoints:
    x, y = draw(pixels), draw(pixels)
    box = [x, y, x + draw(sizes), y + draw(sizes)]
    landmarks = draw(points)
    if draw(st.booleans()):
        landmarks[2] = (
            (box[0] + box[2]) / 2,
            landmarks[2][1],
        )  # straight above or below the middle
    return FacePoints(np.array(landmarks), np.array(box))


@given(faces(), faces())
def test_json_is_the_scalar_formula_of_the_scripts(
    reference: FacePoints, current: FacePoints
) -> None:
    spheres = [
        [scalar_3d(x, y, f.box.tolist()) for x, y in f.landmarks.tolist()]
        for f in (reference, current)
    ]
    np.testing.assert_allclose(landmarks_to_3d(current, "json"), spheres[1], rtol=0, atol=1e-12)
    angles = [
        scalar_angle(before, after, y_before, y_after)
        for before, after, y_before, y_after in zip(
            *spheres,
            reference.landmarks[:, 1].tolist(),
            current.landmarks[:, 1].tolist(),
            strict=True,
        )
    ]
    got = spherical_angles(reference, current, "json")
    # Near 0 and 180 degrees an arc cosine turns the last bit of its argument into a millionth of a
    # degree.
    np.testing.assert_allclose(got, angles, rtol=0, atol=5e-6)
    assert math.isclose(float(mean_angle(got)), sum(angles) / 5, abs_tol=5e-6)


@given(faces())
def test_a_face_is_not_turned_from_itself(one: FacePoints) -> None:
    for formula in FORMULAS:
        assert (spherical_angles(one, one, formula) == 0).all()


@given(faces(), faces())
def test_all_landmarks_are_on_the_front_of_the_unit_sphere(
    one: FacePoints, other: FacePoints
) -> None:
    for formula in FORMULAS:
        sphere = landmarks_to_3d(one, formula)
        np.testing.assert_allclose(np.linalg.norm(sphere, axis=-1), 1, atol=1e-12)
        assert (sphere[:, 2] > -1e-12).all()
        assert (np.abs(spherical_angles(one, other, formula)) <= 180).all()


@given(faces(), faces())
def test_corrected_changes_its_sign_when_the_faces_change_places(
    one: FacePoints, other: FacePoints
) -> None:
    there, back = spherical_angles(one, other), spherical_angles(other, one)
    level = np.abs(one.scaled() - other.scaled())[:, 1] <= DEAD_ZONE
    np.testing.assert_array_equal(back[~level], -there[~level])
    np.testing.assert_array_equal(back[level], there[level])
    assert (there[level] >= 0).all()


# Powers of two and whole shifts change no digit, so that what is compared is the formula.
@given(faces(), faces(), st.sampled_from([0.25, 0.5, 2.0, 8.0]), st.integers(-500, 500))
def test_corrected_knows_no_size_of_a_picture(
    one: FacePoints, other: FacePoints, scale: float, shift: int
) -> None:
    np.testing.assert_array_equal(
        spherical_angles(one, moved(other, scale, shift)), spherical_angles(one, other)
    )


def test_json_takes_another_size_of_the_picture_for_a_nod() -> None:
    frontal, frame = face((0.2, 0.0), (0.4, 0.2)), face((0.3, -0.2), (0.5, 0.0))
    assert (spherical_angles(frontal, frame, "json")[:2] > 0).all()
    assert (spherical_angles(frontal, moved(frame, 3.0), "json")[:2] < 0).all()
    np.testing.assert_allclose(
        spherical_angles(frontal, moved(frame, 3.0)), spherical_angles(frontal, frame)
    )


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(
    ("x", "degrees"), [(0.5, 60.0), (1 - math.cos(math.radians(20)), 20.0), (1.0, 90.0), (7, 90)]
)
def test_a_shift_sideways_has_a_known_angle(x: float, degrees: float, formula: Formula) -> None:
    """acos(1 - r) from the foremost point; all beyond the box's edge counts as on it."""
    got = spherical_angles(face(), face((x, 0.0), (-x, 0.0)), formula)
    np.testing.assert_allclose(got, [degrees, degrees, 0, 0, 0], atol=2e-6)


@pytest.mark.parametrize("turn", [10.0, 45.0, 90.0])
def test_a_turn_in_the_picture_has_a_known_angle(turn: float) -> None:
    """Two points ``theta`` from the foremost, ``turn`` apart: spherical law of cosines."""
    around = math.radians(turn)
    got = spherical_angles(
        face((0.5, 0.0)), face((0.5 * math.cos(around), -0.5 * math.sin(around)))
    )
    theta = math.radians(60)
    wanted = math.degrees(math.acos(math.cos(theta) ** 2 + math.sin(theta) ** 2 * math.cos(around)))
    np.testing.assert_allclose(got[0], wanted, atol=1e-9)


@pytest.mark.parametrize("formula", FORMULAS)
def test_up_is_positive(formula: Formula) -> None:
    frontal = face((0.3, 0.0), (0.3, 0.0))
    got = spherical_angles(frontal, face((0.3, -0.2), (0.3, 0.2)), formula)
    assert got[0] > 0 > got[1]
    assert got[0] == pytest.approx(-got[1])


def test_points_straight_above_and_below_the_middle() -> None:
    upright = face((0.0, -0.5), (0.0, 0.5))
    side = math.sin(math.radians(60))
    np.testing.assert_allclose(
        landmarks_to_3d(upright)[:2], [[0, -side, 0.5], [0, side, 0.5]], atol=1e-12
    )
    np.testing.assert_allclose(
        landmarks_to_3d(upright, "json")[:2], [[side, 0, 0.5]] * 2, atol=1e-12
    )
    below_above = face((0.0, 0.5), (0.0, -0.5))
    np.testing.assert_allclose(spherical_angles(upright, below_above)[:2], [-120, 120])
    np.testing.assert_allclose(
        np.abs(spherical_angles(upright, below_above, "json")[:2]), 0.0115, atol=1e-4
    )


def test_small_angles_are_exact() -> None:
    frontal, nearly = face((0.5, 0.0)), face((0.5 + 1e-9, 0.0))
    wanted = math.degrees(1e-9 / math.sin(math.radians(60)))  # the derivative of acos(1 - r)
    assert spherical_angles(frontal, nearly)[0] == pytest.approx(wanted, rel=1e-5)
    assert spherical_angles(frontal, nearly, "json")[0] == 0


def test_within_the_dead_zone_an_angle_is_positive() -> None:
    frontal = face((0.5, 0.0))
    heights = [DEAD_ZONE * 0.9, -DEAD_ZONE * 0.9, DEAD_ZONE * 1.1]
    signs = [float(np.sign(spherical_angles(frontal, face((0.2, y)))[0])) for y in heights]
    assert signs == [1, 1, -1]


def test_many_faces_at_once_are_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    many = FacePoints(
        rng.uniform(0, 200, (7, 3, 5, 2)),
        np.concatenate([np.zeros((7, 3, 2)), rng.uniform(50, 200, (7, 3, 2))], -1),
    )
    for formula in FORMULAS:
        got = spherical_angles(face((0.3, 0.1)), many, formula)
        assert got.shape == (7, 3, 5)
        assert mean_angle(got).shape == (7, 3)
        alone = FacePoints(many.landmarks[4, 1], many.box[4, 1])
        np.testing.assert_array_equal(got[4, 1], spherical_angles(face((0.3, 0.1)), alone, formula))


@pytest.mark.parametrize(
    ("landmarks", "box", "words"),
    [
        (np.zeros((5, 2)), [10, 20, 10, 40], "its box is 0 x 20 pixels"),
        (np.zeros((5, 2)), [10, 20, 5, 40], "its box is -5 x 20 pixels"),
        (np.full((5, 2), np.nan), [10, 20, 30, 40], "not finite"),
        (np.zeros((5, 2)), [10, 20, np.inf, 40], "not finite"),
    ],
)
def test_faces_without_usable_numbers(landmarks: np.ndarray, box: list[float], words: str) -> None:
    bad = FacePoints(landmarks, np.array(box))
    assert words in bad.problem()
    with pytest.raises(InvalidError, match=f"no usable face: {words}|no usable face.*{words}"):
        landmarks_to_3d(bad)
    with pytest.raises(InvalidError, match="no usable face"):
        spherical_angles(face(), bad)
    assert landmarks_to_3d(bad, "json").shape == (5, 3)


def test_json_divides_by_no_size_that_is_zero() -> None:
    flat = FacePoints(np.array([[10.25, 20.0]] * 5), np.array([10.0, 10.0, 10.0, 30.0]))
    np.testing.assert_allclose(
        landmarks_to_3d(flat, "json")[0], scalar_3d(10.25, 20.0, [10, 10, 10, 30])
    )


def test_unknown_formula() -> None:
    with pytest.raises(InvalidError, match="formula='other' is not one of corrected, json"):
        spherical_angles(face(), face(), "other")  # type: ignore[arg-type]
