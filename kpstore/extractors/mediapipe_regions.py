"""Regions of MediaPipe's graphs: where the models look, from points that other models found.

Functions of many rows at once that compute as the C++ of MediaPipe 0.10.14 does, in float32 but for
some steps in float64, in the same order. A **rect** is a row of five float32: centre, width and
height as fractions of the frame, and rotation in radians, clockwise. ``sizes`` (rows, 2) float32
are width and height of each row's frame; ``points`` (rows, points, 2 or more) are fractions of the
frame, which may lie off it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kpstore.extractors.elementwise import cosine, position_free, sine
from kpstore.extractors.mediapipe_crops import float32

FLOAT_MIN = 1.1754943508222875e-38
"""``std::numeric_limits<float>::min()``: MediaPipe begins its searches of a maximum here, not at
minus infinity, so that the maximum of numbers below zero is zero."""
PALM = (slice(0, 4), slice(5, 7), slice(9, 11), slice(13, 15), slice(17, 19))
"""Points of a hand that make its region; slices, since a list of numbers is sent to a GPU."""


@dataclass(frozen=True)
class TrackingLimits:
    """How far a region may have moved since the last frame to be used again.

    Parameters
    ----------
    degrees : of rotation.
    shift, growth : as fractions of the fresh region's width and height.
    margin : by which the fresh region must hold all points, as a fraction of it; negative numbers
        make it smaller.
    """

    degrees: float
    shift: float
    growth: float
    margin: float


HAND_LIMITS = TrackingLimits(degrees=40.0, shift=0.2, growth=0.4, margin=-0.1)
FACE_LIMITS = TrackingLimits(degrees=15.0, shift=0.1, growth=0.3, margin=-0.2)


def normalized_angle(angle: Tensor) -> Tensor:
    """Return angles from -pi to pi, without pi itself (``NormalizeRadians``)."""
    exact = angle.double()
    return (exact - 2 * math.pi * torch.floor((exact + math.pi) / (2 * math.pi))).float()


def rotation_between(begins: Tensor, ends: Tensor, target: float) -> Tensor:
    """Return the rotations (rows,) that turn vectors in pixels, (rows, 2) each, to an angle.

    From ``ComputeRotation`` of DetectionsToRectsCalculator.

    Parameters
    ----------
    target : radians; 0 is to the right, half of pi is up.
    """
    up, right = -(ends[:, 1] - begins[:, 1]), ends[:, 0] - begins[:, 0]
    angle = position_free(torch.atan2, up.double(), right.double()).float()
    return normalized_angle(float32(target) - angle)


def transformed(rects: Tensor, sizes: Tensor, scale: float, shift_y: float = 0.0) -> Tensor:
    """Return rects made square by their longer side, shifted and scaled.

    From RectTransformationCalculator with ``square_long``.

    Parameters
    ----------
    shift_y : along the rotated vertical axis, as a fraction of the height before the change.
    """
    x, y, width, height, angle = rects.unbind(1)
    frame_width, frame_height = sizes.unbind(1)
    shift = float32(shift_y)
    x = x - frame_height * height * shift * sine(angle) / frame_width
    y = y + frame_height * height * shift * cosine(angle) / frame_height
    side = torch.maximum(width * frame_width, height * frame_height)
    sides = [side / one * float32(scale) for one in (frame_width, frame_height)]
    return torch.stack([x, y, *sides, angle], 1)


def aligned(centres: Tensor, ends: Tensor, sizes: Tensor, target_degrees: float) -> Tensor:
    """Return rects around a point, twice as large as the distance to another.

    From AlignmentPointsRectsCalculator, which gives the pose's and the hands' regions.

    Parameters
    ----------
    centres, ends : (rows, 2) fractions of the frame.
    target_degrees : to which the vector from one to the other is turned.
    """
    begin, end = centres * sizes, ends * sizes
    angle = rotation_between(begin, end, math.pi * target_degrees / 180)
    side = _twice_length(end - begin)[:, None]
    return torch.cat([begin / sizes, side / sizes, angle[:, None]], 1)


def _twice_length(vectors: Tensor) -> Tensor:
    x, y = vectors.unbind(1)
    return (torch.sqrt(x * x + y * y).double() * 2.0).float()


def around_landmarks(points: Tensor, sizes: Tensor, eyes: tuple[int, int]) -> Tensor:
    """Return the rects that hold all points, turned so that the line between two is level.

    From LandmarksToDetectionCalculator and DetectionsToRectsCalculator.
    """
    low, high = points[..., :2].amin(1), points[..., :2].amax(1).clamp(min=FLOAT_MIN)
    extent = high - low
    return torch.cat([low + extent / 2, extent, _level(points, sizes, eyes)], 1)


def around_keypoints(points: Tensor, sizes: Tensor, eyes: tuple[int, int]) -> Tensor:
    """Return the rects that hold all keypoints of a detection, turned by two of them.

    From DetectionsToRectsCalculator with ``USE_KEYPOINTS``.
    """
    low, high = points[..., :2].amin(1), points[..., :2].amax(1)
    return torch.cat([(low + high) / 2, high - low, _level(points, sizes, eyes)], 1)


def around_box(
    detections: Tensor, sizes: Tensor, ends: tuple[int, int], target: float = 0.0
) -> Tensor:
    """Return the rects of boxes, turned so that the line between two keypoints has an angle.

    From DetectionsToRectsCalculator with ``USE_BOUNDING_BOX``, its default.

    Parameters
    ----------
    detections : (rows, 2 + keypoints, 2), the box's least and greatest corner, then keypoints.
    target : radians.
    """
    low, extent = detections[:, 0], detections[:, 1] - detections[:, 0]
    return torch.cat([low + extent / 2, extent, _level(detections[:, 2:], sizes, ends, target)], 1)


def _level(points: Tensor, sizes: Tensor, eyes: tuple[int, int], target: float = 0.0) -> Tensor:
    begin, end = (points[:, eye, :2] * sizes for eye in eyes)
    return rotation_between(begin, end, target)[:, None]


def pose_region(keypoints: Tensor, sizes: Tensor) -> Tensor:
    """Return the rects in which the pose model looks, from keypoints (rows, 4, 2) of a detection.

    From PoseDetectionToRoi: the first keypoint is the hips' centre, the second is above the head.
    """
    return transformed(aligned(keypoints[:, 0], keypoints[:, 1], sizes, 90), sizes, 1.25)


def face_region_of_pose(pose: Tensor, sizes: Tensor) -> Tensor:
    """Return the rects in which the face detector looks (FaceLandmarksFromPoseToRecropRoi)."""
    return transformed(around_landmarks(pose[:, :11], sizes, (5, 2)), sizes, 3.0)


def face_region_of_detection(keypoints: Tensor, sizes: Tensor) -> Tensor:
    """Return the rects of faces, from six keypoints (FaceDetectionFrontDetectionToRoi)."""
    return transformed(around_keypoints(keypoints, sizes, (0, 1)), sizes, 2.0, -0.1)


def face_region_of_landmarks(face: Tensor, sizes: Tensor) -> Tensor:
    """Return the rects of faces, from the last frame's 468 points (FaceLandmarksToRoi)."""
    return transformed(around_landmarks(face, sizes, (33, 263)), sizes, 1.5)


def mesh_region_of_detection(detections: Tensor, sizes: Tensor) -> Tensor:
    """Return the rects of faces for FaceMesh, from boxes (FaceDetectionFrontDetectionToRoi).

    That graph has the name of Holistic's, which :func:`face_region_of_detection` is from.
    """
    return transformed(around_box(detections, sizes, (0, 1)), sizes, 1.5)


def hand_region_of_palm(detections: Tensor, sizes: Tensor) -> Tensor:
    """Return the rects of hands, from boxes of palms (PalmDetectionDetectionToRoi)."""
    return transformed(around_box(detections, sizes, (0, 2), math.pi * 0.5), sizes, 2.6, -0.5)


def hand_region_of_pose(points: Tensor, sizes: Tensor) -> Tensor:
    """Return rects of hands from wrist, little and index finger of the pose, (rows, 3, 2 or more).

    From HandDetectionsFromPoseToRectsCalculator and HandLandmarksFromPoseToRecropRoi.
    """
    wrist, little, index = (points[:, number, :2] * sizes for number in range(3))
    centre = (2 * index + little) / 3
    angle = rotation_between(wrist, centre, math.pi * 0.5)
    side = _twice_length(centre - wrist)[:, None]
    rects = torch.cat([centre / sizes, side / sizes, angle[:, None]], 1)
    return transformed(rects, sizes, 2.7, -0.1)


def hand_region_of_recrop(points: Tensor, sizes: Tensor) -> Tensor:
    """Return rects of hands from the recrop model's two points, (rows, 2, 2 or more).

    From AlignmentPointsRectsCalculator and RectTransformationCalculator.
    """
    rects = aligned(points[:, 0, :2], points[:, 1, :2], sizes, -90)
    return transformed(rects, sizes, 1.0, -0.1)


def hand_region_of_landmarks(hands: Tensor, sizes: Tensor) -> Tensor:
    """Return rects of hands from the last frame's 21 points (HandLandmarksToRectCalculator)."""
    hands = hands[..., :2]
    palm = torch.cat([hands[:, some] for some in PALM], 1)
    # The middle of the knuckles of index and ring finger, then of that and the middle finger's.
    knuckles = ((hands[:, 5] + hands[:, 13]) / 2 + hands[:, 9]) / 2
    angle = rotation_between(hands[:, 0] * sizes, knuckles * sizes, math.pi * 0.5)
    back = normalized_angle(-angle)
    centre = (palm.amax(1).clamp(min=FLOAT_MIN) + palm.amin(1)) / 2
    offsets = (palm - centre[:, None]) * sizes[:, None]
    turned = _turned(offsets, back)
    high, low = turned.amax(1).clamp(min=FLOAT_MIN), turned.amin(1)
    middle = _turned(((high + low) / 2)[:, None], angle)[:, 0] + sizes * centre
    rects = torch.cat([middle / sizes, (high - low) / sizes, angle[:, None]], 1)
    return transformed(rects, sizes, 2.0, -0.1)


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """Return points (rows, points, 2) in pixels, turned by an angle (rows,)."""
    cos, sin = cosine(angle)[:, None], sine(angle)[:, None]
    x, y = points.unbind(2)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], 2)


def may_track(
    points: Tensor, last: Tensor, fresh: Tensor, sizes: Tensor, limits: TrackingLimits
) -> Tensor:
    """Return (rows,) bool: whether the last frame's region is as good as the fresh one.

    From RoiTrackingCalculator. All comparisons are along the axes of the fresh region.

    Parameters
    ----------
    points : of the last frame, from which its region was made.
    last, fresh : rects.
    """
    back = -fresh[:, 4]
    turned = _turned(points[..., :2] * sizes[:, None], back)
    centres = _turned(torch.stack([last[:, :2], fresh[:, :2]], 1) * sizes[:, None], back)
    old, new = last[:, 2:4] * sizes, fresh[:, 2:4] * sizes
    angle = last[:, 4] / math.pi * 180 - fresh[:, 4] / math.pi * 180
    angle = torch.where(angle > 180, angle - 360, angle)
    angle = torch.where(angle < -180, angle + 360, angle)
    shift = (centres[:, 0] - centres[:, 1]).abs()
    half = new * (1 + float32(limits.margin)) * 0.5
    low, high = (centres[:, 1] - half)[:, None], (centres[:, 1] + half)[:, None]
    return (
        (angle.abs() <= limits.degrees)
        & (shift <= new * float32(limits.shift)).all(1)
        & ((old - new).abs() <= new * float32(limits.growth)).all(1)
        & ((low < turned) & (turned < high)).all(2).all(1)
    )
