"""Skeletons as pictures: the right pixels, nothing of what is missing, whatever the coordinates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.errors import InvalidError
from kpstore.render.raster import (
    SkeletonStyle,
    disc,
    draw_skeletons,
    kpstore_style,
    line_pixels,
    phoenix_style,
)
from kpstore.schema.layout import N_POINTS, PART_SLICES

pixels = st.integers(-300, 600)


@given(st.lists(st.tuples(pixels, pixels, pixels, pixels), min_size=1, max_size=8))
def test_lines_go_from_end_to_end_in_steps_of_one_pixel(
    lines: list[tuple[int, int, int, int]],
) -> None:
    ends = np.array(lines, dtype=np.int32)
    line, x, y = line_pixels(ends[:, :2], ends[:, 2:])
    for i, (x0, y0, x1, y1) in enumerate(lines):
        along = np.stack([x[line == i], y[line == i]], axis=1)
        assert len(along) == max(abs(x1 - x0), abs(y1 - y0)) + 1
        assert (np.abs(np.diff(along, axis=0)).max(axis=1, initial=0) <= 1).all()
        # No pixel is more than half a pixel from the exact line.
        t = np.linspace(0, 1, len(along))[:, None]
        exact = np.array([x0, y0]) + t * (np.array([x1, y1]) - np.array([x0, y0]))
        assert np.abs(along - exact).max() <= 0.51


@pytest.mark.parametrize("radius", range(6))
def test_dots_are_those_of_opencv(radius: int) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = np.zeros((21, 21), dtype=np.uint8)
    cv2.circle(picture, (10, 10), radius, 1, -1)
    drawn = np.zeros_like(picture)
    drawn[tuple((disc(radius) + 10).T[::-1])] = 1
    if radius != 5:  # where OpenCV's own approximation leaves out four pixels
        np.testing.assert_array_equal(drawn, picture)
    assert np.abs(drawn.astype(int) - picture).sum() <= 8


def frames(n: int = 3, seed: int = 0) -> np.ndarray:
    """Keypoints of whole people well inside the picture, (n, 143, 3)."""
    rng = np.random.default_rng(seed)
    keypoints = np.zeros((n, N_POINTS, 3), dtype=np.float32)
    for part, x, y, spread in (
        ("face", 0.5, 0.25, 0.04),
        ("left_hand", 0.7, 0.6, 0.03),
        ("right_hand", 0.3, 0.6, 0.03),
        ("pose", 0.5, 0.5, 0.1),
    ):
        where = PART_SLICES[part]
        keypoints[:, where, :2] = np.array([x, y]) + rng.normal(
            0, spread, (n, where.stop - where.start, 2)
        )
    return keypoints


@pytest.mark.parametrize("width", range(1, 8))
def test_lines_are_as_wide_as_opencvs(width: int) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = np.full((64, 64), 255, dtype=np.uint8)
    cv2.line(picture, (16, 32), (48, 32), 0, width)
    style = SkeletonStyle(((110, 111),), (width,), (True,), (0,) * N_POINTS)
    drawn = draw_skeletons(only({110: (0.25, 0.5), 111: (0.75, 0.5)}), 64, style=style)[0]
    np.testing.assert_array_equal(drawn[:, 32], picture[:, 32])


def test_the_phoenix_style_joins_what_the_script_joined() -> None:
    # Written out from the description of the script, not from the code.
    pose = (
        "11-12 11-23 12-24 23-24 11-13 13-15 12-14 14-16 23-25 25-27 24-26 26-28 "
        "0-1 1-2 2-3 3-7 0-4 4-5 5-6 6-8"
    )
    hand = (
        "0-1 1-2 2-3 3-4 0-5 5-6 6-7 7-8 0-9 9-10 10-11 11-12 0-13 13-14 14-15 15-16 0-17 17-18 "
        "18-19 19-20 5-9 9-13 13-17"
    )
    closed = [(0, 16), (36, 41), (42, 47), (48, 59), (60, 67)]
    open_lines = [(17, 21), (22, 26), (27, 35)]

    def joined(text: str, first: int) -> set[frozenset[int]]:
        return {frozenset(first + int(point) for point in edge.split("-")) for edge in text.split()}

    face = {frozenset(ends) for ends in [*closed, (27, 31), (31, 35)]}
    face |= {
        frozenset((i, i + 1)) for first, last in closed + open_lines for i in range(first, last)
    }
    style = phoenix_style()
    drawn = {frozenset(edge): width for edge, width in zip(style.edges, style.widths, strict=True)}
    assert set(drawn) == face | joined(hand, 68) | joined(hand, 89) | joined(pose, 110)
    wrists = {68, 89}
    for edge, width in drawn.items():
        assert width == (1 if max(edge) < 68 else 2 if min(edge) >= 110 or edge & wrists else 3)
    tips = {first + tip for first in wrists for tip in (4, 8, 12, 16, 20)}
    assert style.radii == tuple(
        2 if point < 68 else 4 if point in tips else 3 for point in range(N_POINTS)
    )


def by_opencv(keypoints: np.ndarray, style: SkeletonStyle, size: int) -> np.ndarray:
    cv2 = pytest.importorskip("cv2")
    picture = np.full((size, size), 255, dtype=np.uint8)
    at = np.floor(keypoints[:, :2] * size).astype(int)
    for (a, b), width in zip(style.edges, style.widths, strict=True):
        cv2.line(picture, tuple(at[a].tolist()), tuple(at[b].tolist()), 0, width)
    for point, radius in zip(at, style.radii, strict=True):
        cv2.circle(picture, tuple(point.tolist()), radius, 0, -1)
    return picture


@pytest.mark.parametrize("style", ["kpstore", "phoenix"])
def test_pictures_are_opencvs_but_for_single_pixels_at_edges(style: str) -> None:
    cv2 = pytest.importorskip("cv2")
    keypoints = frames()
    drawn = draw_skeletons(keypoints, style=style)  # type: ignore[arg-type]
    for picture, points in zip(drawn, keypoints, strict=True):
        expected = by_opencv(
            points, kpstore_style() if style == "kpstore" else phoenix_style(), 256
        )
        ours, theirs = picture == 0, expected == 0
        near_theirs = cv2.dilate(theirs.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        near_ours = cv2.dilate(ours.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (ours & ~near_theirs).any()
        assert not (theirs & ~near_ours).any()
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9
    assert set(np.unique(drawn)) == {0, 255}


@pytest.mark.parametrize("style", ["kpstore", "phoenix"])
def test_what_is_missing_is_not_drawn(style: str) -> None:
    keypoints = frames()
    keypoints[:, PART_SLICES["left_hand"]] = np.nan
    drawn = draw_skeletons(keypoints, style=style)  # type: ignore[arg-type]
    without = frames()
    without[:, PART_SLICES["left_hand"], :2] = 50.0
    np.testing.assert_array_equal(drawn, draw_skeletons(without, style=style))  # type: ignore[arg-type]
    nothing = np.full((2, N_POINTS, 3), np.nan, dtype=np.float32)
    assert (draw_skeletons(nothing, style=style) == 255).all()  # type: ignore[arg-type]


@given(
    st.integers(0, 10_000),
    st.sampled_from([16, 64, 100, 256]),
    st.sampled_from(["kpstore", "phoenix"]),
)
def test_any_coordinates_give_a_picture_and_each_frame_its_own(
    seed: int, size: int, style: str
) -> None:
    rng = np.random.default_rng(seed)
    keypoints = rng.normal(0.5, rng.choice([0.1, 1.0, 30.0]), (5, N_POINTS, 3)).astype(np.float32)
    keypoints[rng.random((5, N_POINTS)) < 0.2] = rng.choice([np.nan, np.inf, -np.inf, 1e30, 3e38])
    together = draw_skeletons(keypoints, size, style=style)  # type: ignore[arg-type]
    assert together.shape == (5, size, size)
    alone = [draw_skeletons(frame[None], size, style=style)[0] for frame in keypoints]  # type: ignore[arg-type]
    np.testing.assert_array_equal(together, alone)


def only(points: dict[int, tuple[float, float]]) -> np.ndarray:
    keypoints = np.full((1, N_POINTS, 3), np.nan, dtype=np.float32)
    for point, (x, y) in points.items():
        keypoints[0, point] = x, y, 0
    return keypoints


def test_lines_that_leave_the_picture_are_cut_or_left_out() -> None:
    knee, ankle = 110 + 25, 110 + 27
    leg = only({knee: (0.5, 0.5), ankle: (0.5, 1.5)})
    assert (draw_skeletons(leg)[0, 200:, 128] == 0).all()
    assert (draw_skeletons(leg, style="phoenix")[0, 200:] == 255).all()
    outline = only({0: (0.5, 0.5), 1: (0.5, 1.5)})
    assert (draw_skeletons(outline, style="phoenix")[0, 200:, 128] == 0).all()
    far = only({knee: (0.5, 0.5), ankle: (0.5, 9.0)})
    assert (draw_skeletons(far)[0, 200:] == 255).all()


def test_a_point_just_left_of_the_picture_is_in_its_first_column() -> None:
    # int() rounds towards zero, and the script asked whether a point is inside only after that.
    drawn = draw_skeletons(
        only({110: (-0.9 / 256, 0.5), 111: (-1.1 / 256, 0.25)}), style="phoenix"
    )[0]
    np.testing.assert_array_equal(np.flatnonzero((drawn == 0).any(axis=1)), np.arange(125, 132))
    assert (drawn[128, :4] == 0).all()


def test_ink_at_the_border_stays_in_its_own_picture() -> None:
    corners = np.concatenate([only({110: (0.0, 0.0)}), only({}), only({110: (0.999, 0.999)})])
    drawn = draw_skeletons(corners, 64)
    assert drawn[0, 0, 0] == drawn[2, 63, 63] == 0
    assert (drawn[1] == 255).all()
    assert (drawn[0] == 0).sum() < 10


def test_threads_draw_side_by_side() -> None:
    batches = [frames(8, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw_skeletons, batches))
    for batch, pictures in zip(batches, drawn, strict=True):
        np.testing.assert_array_equal(pictures, draw_skeletons(batch))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InvalidError, match=r"shape \(frames, 143, 3\), found \(143, 3\)"):
        draw_skeletons(np.zeros((143, 3)))
    with pytest.raises(InvalidError, match="8 pixels is too small"):
        draw_skeletons(frames(), 8)
    with pytest.raises(InvalidError, match="style='cubist': use 'kpstore', 'phoenix'"):
        draw_skeletons(frames(), style="cubist")  # type: ignore[arg-type]
