"""Drawing keypoints on photographs."""

from __future__ import annotations

import numpy as np
import pytest

from kpstore.errors import InvalidError
from kpstore.render.skeleton import PART_COLORS, contact_sheet, draw_keypoints
from kpstore.schema.layout import PART_SLICES


def grey(height: int = 120, width: int = 100) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def scattered(*parts: str) -> np.ndarray:
    points = np.full((143, 3), np.nan, dtype=np.float32)
    for part in parts:
        rows = PART_SLICES[part]
        points[rows] = np.random.default_rng(rows.start).uniform(
            0.2, 0.8, (rows.stop - rows.start, 3)
        )
    return points


def test_nothing_found_leaves_the_photograph_as_it_is():
    photo = np.random.default_rng(1).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_keypoints(photo, scattered()), photo)


@pytest.mark.parametrize("part", sorted(PART_SLICES))
def test_a_part_is_drawn_in_its_colour_and_the_input_is_kept(part):
    photo = grey()
    drawn = draw_keypoints(photo, scattered(part))
    assert drawn.shape == photo.shape
    assert drawn.dtype == np.uint8
    assert (photo == 128).all()
    assert (drawn == PART_COLORS[part]).all(axis=2).any()
    assert not any(
        (drawn == color).all(axis=2).any() for name, color in PART_COLORS.items() if name != part
    )


def test_a_point_is_drawn_where_it_is():
    points = scattered()
    points[0] = (0.25, 0.75, 0)
    rows, columns = np.nonzero(
        (draw_keypoints(grey(200, 400), points, point_radius=4) != 128).any(axis=2)
    )
    assert (rows.mean(), columns.mean()) == pytest.approx((149.5, 99.5), abs=1)


def test_points_outside_the_picture_are_clipped():
    points = scattered("pose")
    points[PART_SLICES["pose"], 0] = 84.0  # seen in users' files
    points[0] = (np.inf, 1e30, 0)
    np.testing.assert_array_equal(draw_keypoints(grey(), points), grey())


def test_own_edges_replace_the_skeleton():
    points = scattered("face")
    no_lines = draw_keypoints(grey(), points, edges=[])
    assert (no_lines != grey()).sum() < (draw_keypoints(grey(), points) != grey()).sum()


def test_legend_names_what_is_there():
    plain, named = (
        draw_keypoints(grey(), scattered("pose"), legend=legend) for legend in (False, True)
    )
    corner = (slice(0, 8), slice(0, 8))
    assert (plain[corner] == 128).all()
    assert (named[corner] < 128).any()
    draw_keypoints(grey(5, 5), scattered(), legend=True)


@pytest.mark.parametrize(
    ("image", "keypoints", "message"),
    [
        (grey()[:, :, 0], scattered(), r"found \(120, 100\) uint8"),
        (grey() / 255, scattered(), "float64"),
        (grey(), np.zeros((2, 143, 3)), "pass one frame"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(image, keypoints, message):
    with pytest.raises(InvalidError, match=message):
        draw_keypoints(image, keypoints)


def test_sheet_holds_every_picture_in_its_cell():
    pictures = [np.full((20, 30, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(
        pictures, 2, ["one", "two", "a caption that is much too long for its cell"]
    )
    assert sheet.shape == (2 * (20 + 18 + 4) + 4, 2 * 34 + 4, 3)
    assert (sheet[4:24, 4:34] == 10).all()
    assert (sheet[4:24, 38:68] == 20).all()
    assert (sheet[46:66, 4:34] == 30).all()
    assert contact_sheet(pictures[:1], 5).shape == (28, 38, 3)


@pytest.mark.parametrize(
    ("pictures", "columns", "captions", "message"),
    [
        ([], 1, None, "0 images"),
        ([grey()], 0, None, "0 columns"),
        ([grey()], 1, ["a", "b"], "found 2 for 1"),
    ],
)
def test_a_sheet_that_makes_no_sense_is_refused(pictures, columns, captions, message):
    with pytest.raises(InvalidError, match=message):
        contact_sheet(pictures, columns, captions)
