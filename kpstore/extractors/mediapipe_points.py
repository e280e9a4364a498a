"""What MediaPipe does with the numbers that models give: detections and landmarks.

Functions of many rows at once, named after the calculators they come from (MediaPipe 0.10.14).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kpstore.extractors.elementwise import cosine, sigmoid, sine

HEAT_KERNEL = 9
"""Width of the window in a heat map. The graph of MediaPipe says 7, but its Python package drops
options of calculators that it does not know, so the default of the calculator is used: 9."""
HEAT_LEAST = 0.5
"""Of the highest value in the window, for a point to be moved; also a default."""
_MOST_LOGIT = 100.0
_SAME_BOX = 0.3
"""Overlap from which two boxes show the same thing."""
_SAME_REGION = 0.5
"""The same for regions of hands."""
_PER_LAYER = 2


def anchors(side: int, strides: Sequence[int]) -> Tensor:
    """Return the centres of a detector's anchors, (anchors, 2) float32, as fractions of a crop.

    From SsdAnchorsCalculator with ``fixed_anchor_size``: width and height are 1, with two anchors
    for each layer and cell; layers of one stride share their cells.
    """
    found = []
    for stride, layers in itertools.groupby(strides):
        count = math.ceil(side / stride)
        middle = (torch.arange(count, dtype=torch.float32) + 0.5) / count
        rows, columns = torch.meshgrid(middle, middle, indexing="ij")
        centres = torch.stack([columns, rows], 2).reshape(-1, 2)
        found.append(centres.repeat_interleave(_PER_LAYER * len(list(layers)), 0))
    return torch.cat(found)


def best_detections(
    boxes: Tensor, logits: Tensor, centres: Tensor, side: int, least: float, most: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the best detections of each row.

    From TensorsToDetectionsCalculator and NonMaxSuppressionCalculator (``WEIGHTED``): a detection
    is the mean, weighted by score, of all boxes that overlap the best one; the next is made of the
    others.

    Parameters
    ----------
    boxes : (rows, anchors, 4 + 2 keypoints), centre, width, height and keypoints in pixels.
    logits : (rows, anchors, 1).
    centres : of :func:`anchors`.
    least : score from which on a box counts.
    most : number of detections.

    Returns
    -------
    tuple of Tensor
        (rows, most, 2 + keypoints, 2), the least and the greatest corner of the box, then the
        keypoints, as fractions of the crop; and scores (rows, most), 0 where nothing was detected.
    """
    scores = sigmoid(logits[..., 0].clamp(-_MOST_LOGIT, _MOST_LOGIT))
    pairs = boxes.reshape(*boxes.shape[:2], -1, 2) / side
    middle, extent = pairs[:, :, 0] + centres, pairs[:, :, 1]
    low, high = middle - extent / 2, middle + extent / 2
    extent = high - low
    counts = (scores >= least) & (extent >= 0).all(2)
    scores = torch.where(counts, scores, 0.0)
    keypoints = pairs[:, :, 2:] + centres[:, None]
    places = torch.cat([low[:, :, None], high[:, :, None], keypoints], 2)
    found, bests = [], []
    for _ in range(most):
        best, at = scores.max(1, keepdim=True)
        at = at[:, :, None].expand(-1, -1, 2)
        same = _overlap(low, high, low.gather(1, at), high.gather(1, at), _SAME_BOX)
        weights = torch.where(same, scores, 0.0)
        total = weights.sum(1).clamp(min=1e-30)
        found.append((places * weights[:, :, None, None]).sum(1) / total[:, None, None])
        bests.append(best[:, 0])
        scores = torch.where(same, 0.0, scores)
    return torch.stack(found, 1), torch.stack(bests, 1)


def _overlap(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor, at: float) -> Tensor:
    """Return which boxes (…, 2) share more than a fraction of what they cover together."""
    shared = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    both = shared.clamp(min=0).prod(-1)
    either = (high - low).prod(-1) + (other_high - other_low).prod(-1) - both
    return both > at * either


def repeated(rects: Tensor) -> Tensor:
    """Return which first rects show what the second ones show, (rows,) bool.

    From AssociationNormRectCalculator, which then keeps the second alone. Their rotation does not
    count.

    Parameters
    ----------
    rects : (rows, 2, 5).
    """
    low, high = (rects[..., :2] + sign * rects[..., 2:4] / 2 for sign in (-1, 1))
    return _overlap(low[:, 0], high[:, 0], low[:, 1], high[:, 1], _SAME_REGION)


def refined(points: Tensor, heat: Tensor) -> Tensor:
    """Return points moved to the middle of the heat around them.

    From RefineLandmarksFromHeatmapCalculator.

    Parameters
    ----------
    points : (rows, points, 2 or more), x and y as fractions of the crop.
    heat : (rows, points, height, width), logits.
    """
    height, width = heat.shape[2:]
    # Towards zero, as C++ converts: what is just left of the map counts as in its first column.
    column = (points[..., 0] * width).to(torch.int32).long()
    row = (points[..., 1] * height).to(torch.int32).long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    reach = HEAT_KERNEL // 2
    steps = torch.arange(-reach, reach + 1, device=heat.device)
    columns, rows = column[..., None] + steps, row[..., None] + steps
    on_map = ((columns >= 0) & (columns < width))[..., None, :]
    on_map = on_map & ((rows >= 0) & (rows < height))[..., None]
    places = rows.clamp(0, height - 1)[..., None] * width
    places = places + columns.clamp(0, width - 1)[..., None, :]
    values = heat.flatten(2).gather(2, places.flatten(2)).view(places.shape)
    weights = sigmoid(values) * on_map
    total = weights.sum((2, 3))
    x = (weights * columns[..., None, :]).sum((2, 3)) / width / total
    y = (weights * rows[..., None]).sum((2, 3)) / height / total
    moved = inside & (weights.amax((2, 3)) >= HEAT_LEAST) & (total > 0)
    xy = torch.where(moved[..., None], torch.stack([x, y], 2), points[..., :2])
    return torch.cat([xy, points[..., 2:]], 2)


def without_padding(points: Tensor, padding: Tensor) -> Tensor:
    """Return points as fractions of a region, from fractions of its padded crop.

    From LandmarkLetterboxRemovalCalculator, and DetectionLetterboxRemovalCalculator for x and y.

    Parameters
    ----------
    points : (rows, points, 2 or more); a third number is a depth, others are kept.
    padding : (rows, 2) of :func:`kpstore.extractors.mediapipe_crops.pixel_regions`.
    """
    used = 1 - 2 * padding
    xy = (points[..., :2] - padding[:, None]) / used[:, None]
    return torch.cat([xy, points[..., 2:3] / used[:, None, :1], points[..., 3:]], 2)


def projected(points: Tensor, rects: Tensor) -> Tensor:
    """Return points as fractions of the frame, from fractions of a rect.

    From LandmarkProjectionCalculator with ``NORM_RECT``; right for rects that are square in pixels,
    as all of MediaPipe's regions are.

    Parameters
    ----------
    points : (rows, points, 3 or more); a third number is a depth, others are kept.
    """
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    cos, sin = cosine(rects[:, 4])[:, None], sine(rects[:, 4])[:, None]
    centre_x, centre_y, width, height = (rects[:, number, None] for number in range(4))
    projected_points = [
        (cos * x - sin * y) * width + centre_x,
        (sin * x + cos * y) * height + centre_y,
        points[..., 2] * width,
    ]
    return torch.cat([torch.stack(projected_points, 2), points[..., 3:]], 2)


def projected_keypoints(
    keypoints: Tensor, regions: Tensor, rotation: Tensor, sizes: Tensor
) -> Tensor:
    """Return keypoints of detections as fractions of the frame, from fractions of the crop.

    From DetectionProjectionCalculator and ``GetRotatedSubRectToRectTransformMatrix``.

    Parameters
    ----------
    keypoints : (rows, points, 2).
    regions : (rows, 4) pixels of :func:`kpstore.extractors.mediapipe_crops.pixel_regions`.
    """
    x, y, width, height = regions.unbind(1)
    cos, sin = cosine(rotation), sine(rotation)
    across, down = 1 / sizes[:, 0], 1 / sizes[:, 1]
    matrix = [
        width * cos * across,
        -height * sin * across,
        (-0.5 * width * cos + 0.5 * height * sin + x) * across,
        width * sin * down,
        height * cos * down,
        (-0.5 * height * cos - 0.5 * width * sin + y) * down,
    ]
    a, b, c, d, e, f = (number[:, None] for number in matrix)
    u, v = keypoints.unbind(2)
    return torch.stack([u * a + v * b + c, u * d + v * e + f], 2)
