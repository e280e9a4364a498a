"""Regions and points: those of MediaPipe's own graph, from what that graph found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kpstore.extractors import mediapipe_regions as regions
from kpstore.extractors.mediapipe_points import (
    HEAT_KERNEL,
    anchors,
    best_detections,
    projected,
    refined,
    repeated,
    without_padding,
)
from tests.extractors.mediapipe_oracles import SIZE, Opened, moving_clip

pytest.importorskip("mediapipe")
pytest.importorskip("insightface")

CLOSE = 1e-6
"""Of the frame: 1/2000 of a pixel."""
SQUARE = torch.tensor([[100.0, 100.0]])


@pytest.fixture(scope="module")
def oracle():
    """What MediaPipe found in eight frames of a clip."""
    opened = Opened()
    try:
        yield [opened.frame(image) for image in moving_clip(8)]
    finally:
        opened.close()


def rows_of(frames, *names):
    """Values of the frames that have all of some names, as tensors, and their sizes."""
    there = [one for one in frames if all(one[name] is not None for name in names)]
    assert there
    values = [torch.from_numpy(np.stack([one[name] for one in there])) for name in names]
    return *values, torch.tensor([SIZE], dtype=torch.float32).expand(len(there), 2)


def assert_close(found, wanted):
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=CLOSE, rtol=0)


def test_face_region_of_pose(oracle):
    pose, wanted, sizes = rows_of(oracle, "pose", "face_roi_from_pose")
    assert_close(regions.face_region_of_pose(pose, sizes), wanted)


@pytest.mark.parametrize(("side", "points"), [("left", (15, 17, 19)), ("right", (16, 18, 20))])
def test_hand_region_of_pose(oracle, side, points):
    pose, wanted, sizes = rows_of(oracle, "pose", f"{side}_hand_roi_from_pose")
    assert_close(regions.hand_region_of_pose(pose[:, points], sizes), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_hand_region_is_the_last_frames_if_it_moved_little(oracle, side):
    kept = check_tracking(
        oracle,
        f"{side}_hand",
        "roi_from_recrop",
        regions.hand_region_of_landmarks,
        regions.HAND_LIMITS,
    )
    assert kept > 0


def test_face_region_is_the_last_frames_if_it_moved_little(oracle):
    kept = check_tracking(
        oracle, "face", "roi_from_detection", regions.face_region_of_landmarks, regions.FACE_LIMITS
    )
    assert kept > 0


def check_tracking(oracle, part, fresh_name, region_of_points, limits):
    """Compare decisions and regions with MediaPipe's; return how often one was kept."""
    kept = 0
    for last, now in itertools.pairwise(oracle):
        fresh, used = now[f"{part}_{fresh_name}"], now[f"{part}_tracking_roi"]
        if fresh is None or last[part] is None:
            continue
        points, fresh, used = (torch.from_numpy(one)[None] for one in (last[part], fresh, used))
        sizes = torch.tensor([SIZE], dtype=torch.float32)
        tracked = region_of_points(points, sizes)
        keep = regions.may_track(points, tracked, fresh, sizes, limits)
        assert_close(torch.where(keep[:, None], tracked, fresh), used)
        kept += int(keep)
    return kept


def test_a_region_that_moved_too_far_is_not_kept():
    fresh = torch.tensor([[0.5, 0.5, 0.4, 0.4, 0.0]])
    points = torch.full((1, 21, 2), 0.5)
    for shift, angle, growth, kept in [
        (0.0, 0.0, 1.0, True),
        (0.079, 0.0, 1.0, True),
        (0.081, 0.0, 1.0, False),
        (0.0, 0.69, 1.0, True),
        (0.0, 0.71, 1.0, False),
        (0.0, 0.0, 1.39, True),
        (0.0, 0.0, 1.41, False),
    ]:
        last = torch.tensor([[0.5 + shift, 0.5, 0.4 * growth, 0.4 * growth, angle]])
        found = regions.may_track(points, last, fresh, SQUARE, regions.HAND_LIMITS)
        assert found.item() is kept, (shift, angle, growth)


def test_a_region_is_not_kept_if_a_point_left_nine_tenths_of_it():
    fresh = torch.tensor([[0.5, 0.5, 0.4, 0.4, 0.0]])
    for x, kept in ((0.679, True), (0.681, False)):
        points = torch.full((1, 21, 2), 0.5)
        points[0, 3, 0] = x
        found = regions.may_track(points, fresh, fresh, SQUARE, regions.HAND_LIMITS)
        assert found.item() is kept


def test_the_angle_of_tracking_goes_around():
    fresh = torch.tensor([[0.5, 0.5, 0.4, 0.4, 3.1]])
    last = torch.tensor([[0.5, 0.5, 0.4, 0.4, -3.1]])
    points = torch.full((1, 21, 2), 0.5)
    assert regions.may_track(points, last, fresh, SQUARE, regions.HAND_LIMITS).item()


def test_the_maximum_of_points_left_of_the_frame_is_zero():
    """MediaPipe begins its search at the smallest positive float32."""
    points = torch.full((1, 468, 2), -0.5)
    points[0, 0] = torch.tensor([-0.7, -0.6])
    rect = regions.around_landmarks(points, SQUARE, (33, 263))
    np.testing.assert_allclose(rect[0, :4].numpy(), [-0.35, -0.3, 0.7, 0.6], rtol=1e-6)
    hand = torch.full((1, 21, 2), -0.5)
    hand[0, 0] = torch.tensor([-0.5, -0.4])  # the wrist below the others: upright
    rect = regions.hand_region_of_landmarks(hand, SQUARE)
    # From -0.25 the palm reaches 0.25 to the left, and as if to -0.25 itself on the right.
    np.testing.assert_allclose(rect[0, 2:4].numpy(), [0.5, 0.5], rtol=1e-5)


def test_keypoints_off_the_frame_are_not_clamped():
    points = torch.full((1, 6, 2), -0.5)
    points[0, 0] = torch.tensor([-0.7, -0.6])
    rect = regions.around_keypoints(points, SQUARE, (0, 1))
    np.testing.assert_allclose(rect[0, :4].numpy(), [-0.6, -0.55, 0.2, 0.1], rtol=1e-5)


def test_angles_lie_between_minus_pi_and_pi():
    angles = torch.tensor([-4.0, -torch.pi, 0.0, 3.0, 4.0, 10.0])
    found = regions.normalized_angle(angles)
    assert ((found >= -torch.pi) & (found < torch.pi)).all()
    np.testing.assert_allclose(torch.cos(found), torch.cos(angles), atol=1e-6)


# -- detections ------------------------------------------------------------------------------------


def detections(scores, boxes, most=1):
    """The best of some boxes (x, y, width, height) with scores, in a crop of 100 pixels."""
    values = torch.tensor([[[*box, box[0], box[1]] for box in boxes]])
    logits = torch.logit(torch.tensor(scores, dtype=torch.float64)).float()[None, :, None]
    return best_detections(values, logits, torch.zeros(len(boxes), 2), 100, 0.5, most)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_detection_is_the_mean_of_boxes_that_overlap_the_best_of_those_left(most):
    points, scores = detections(
        [0.6, 0.9, 0.3, 0.8],
        [(14.0, 10, 40, 40), (10, 10, 40, 40), (10, 10, 40, 40), (80, 80, 10, 10)],
        most,
    )
    np.testing.assert_allclose(scores[0], [0.9, 0.8, 0][:most], rtol=1e-6)
    x = (0.6 * 0.14 + 0.9 * 0.1) / 1.5
    expected = [
        [[x - 0.2, -0.1], [x + 0.2, 0.3], [x, 0.1]],
        [[0.75, 0.75], [0.85, 0.85], [0.8] * 2],
    ]
    np.testing.assert_allclose(points[0, :2], expected[:most], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "expected"), [((0.5, 0.5, 0.2, 0.2), True), ((0.57, 0.5, 0.2, 0.2), False)]
)
def test_regions_that_overlap_show_the_same_hand(other, expected):
    rects = torch.tensor([[(0.5, 0.5, 0.2, 0.2, 0.0), (*other, 1.0)]])
    assert repeated(rects).tolist() == [expected]


def test_a_score_that_just_suffices_counts():
    _, score = best_detections(
        torch.tensor([[[10.0, 10, 4, 4, 10, 10]]]),
        torch.zeros(1, 1, 1),
        torch.zeros(1, 2),
        100,
        0.5,
    )
    assert score.item() == 0.5
    _, score = detections([0.49], [(10.0, 10, 4, 4)])
    assert score.item() == 0


def test_a_box_of_negative_size_is_no_detection():
    _, score = detections([0.9], [(10.0, 10, -4, 4)])
    assert score.item() == 0


def test_anchors_are_those_of_the_detectors():
    pose, face = anchors(224, (8, 16, 32, 32, 32)), anchors(128, (8, 16, 16, 16))
    assert (pose.shape, face.shape) == ((2254, 2), (896, 2))
    np.testing.assert_allclose(pose[:2].numpy(), [[0.5 / 28, 0.5 / 28]] * 2, rtol=1e-6)
    np.testing.assert_allclose(pose[-6:].numpy(), [[6.5 / 7, 6.5 / 7]] * 6, rtol=1e-6)
    np.testing.assert_allclose(face[2].numpy(), [1.5 / 16, 0.5 / 16], rtol=1e-6)


# -- landmarks -------------------------------------------------------------------------------------


def moved(point, heat):
    return refined(torch.tensor([[[*point, 7.0]]]), torch.tensor(heat)[None, None])[0, 0].tolist()


def cold(*hot):
    heat = np.full((64, 64), -100.0, dtype=np.float32)
    for x, y, value in hot:
        heat[y, x] = value
    return heat


def test_heat_within_a_window_of_nine_moves_a_point():
    """The graph of MediaPipe says 7; its Python package makes 9 of it. See ``HEAT_KERNEL``."""
    assert HEAT_KERNEL == 9
    middle = 30.5 / 64
    assert moved((middle, middle), cold((34, 30, 100.0))) == [34 / 64, 30 / 64, 7.0]
    assert moved((middle, middle), cold((35, 30, 100.0))) == [middle, middle, 7.0]
    assert moved((middle, middle), cold((26, 34, 100.0))) == [26 / 64, 34 / 64, 7.0]


def test_weak_heat_moves_nothing():
    assert moved((0.5, 0.5), cold((33, 32, -0.01))) == [0.5, 0.5, 7.0]
    assert moved((0.5, 0.5), cold((33, 32, 0.0))) == [33 / 64, 0.5, 7.0]


def test_the_window_is_cut_at_the_border_and_starts_towards_zero():
    assert moved((0.0, 0.0), cold((0, 1, 100.0))) == [0.0, 1 / 64, 7.0]
    # -0.9 of a cell counts as cell 0, -1 is outside.
    assert moved((-0.9 / 64, 0.0), cold((0, 1, 100.0))) == [0.0, 1 / 64, 7.0]
    assert moved((-1.0 / 64, 0.0), cold((0, 1, 100.0)))[0] == -1 / 64


def test_points_off_the_frame_stay_there():
    rect = torch.tensor([[0.9, 0.5, 0.4, 0.4, 0.0]])
    found = projected(torch.tensor([[[1.5, 0.5, 0.1]]]), rect)
    np.testing.assert_allclose(found[0, 0].numpy(), [1.3, 0.5, 0.04], rtol=1e-6)


def test_padding_is_taken_off_points_and_depths():
    found = without_padding(torch.tensor([[[0.5, 0.25, 0.3, 9.0]]]), torch.tensor([[0.25, 0.0]]))
    np.testing.assert_allclose(found[0, 0].numpy(), [0.5, 0.25, 0.6, 9.0], rtol=1e-6)
