"""What MediaPipe does with the numbers that Holistic's models give: detections and landmarks.

Functions of many rows at once, named after the calculators they come from (MediaPipe 0.10.14).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kpstore.extractors.holistic_regions import cosine, sine
from kpstore.extractors.tflite_operations import sigmoid

HEAT_KERNEL = 9
"""Width of the window in a heat map. The graph of MediaPipe says 7, but its Python package drops
options of calculators that it does not know, so the default of the calculator is used: 9."""
HEAT_LEAST = 0.5
"""Of the highest value in the window, for a point to be moved; also a default."""
_MOST_LOGIT = 100.0
_SAME_BOX = 0.3
"""Overlap from which two boxes show the same thing."""
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


def best_detection(
    boxes: Tensor, logits: Tensor, centres: Tensor, side: int, least: float
) -> tuple[Tensor, Tensor]:
    """Return the keypoints and the score of the best detection of each row.

    From TensorsToDetectionsCalculator and NonMaxSuppressionCalculator (``WEIGHTED``), of which
    Holistic uses the first result alone: the mean, weighted by score, of all boxes that overlap the
    best one.

    Parameters
    ----------
    boxes : (rows, anchors, 4 + 2 keypoints), centre, width, height and keypoints in pixels.
    logits : (rows, anchors, 1).
    centres : of :func:`anchors`.
    least : score from which on a box counts.

    Returns
    -------
    tuple of Tensor
        (rows, keypoints, 2) as fractions of the crop, and (rows,); 0 where nothing was detected.
    """
    scores = sigmoid(logits[..., 0].clamp(-_MOST_LOGIT, _MOST_LOGIT))
    pairs = boxes.reshape(*boxes.shape[:2], -1, 2) / side
    middle, extent = pairs[:, :, 0] + centres, pairs[:, :, 1]
    low, high = middle - extent / 2, middle + extent / 2
    extent = high - low
    counts = (scores >= least) & (extent >= 0).all(2)
    scores = torch.where(counts, scores, 0.0)
    best, at = scores.max(1, keepdim=True)
    at = at[:, :, None].expand(-1, -1, 2)
    best_low, best_high = low.gather(1, at), high.gather(1, at)
    overlap = torch.minimum(high, best_high) - torch.maximum(low, best_low)
    both = overlap.clamp(min=0).prod(2)
    either = extent.prod(2) + (best_high - best_low).prod(2) - both
    weights = torch.where(both > _SAME_BOX * either, scores, 0.0)
    total = weights.sum(1).clamp(min=1e-30)
    keypoints = pairs[:, :, 2:] + centres[:, None]
    mean = (keypoints * weights[:, :, None, None]).sum(1) / total[:, None, None]
    return mean, best[:, 0]


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
    padding : (rows, 2) of :func:`kpstore.extractors.holistic_crops.pixel_regions`.
    """
    used = 1 - 2 * padding
    xy = (points[..., :2] - padding[:, None]) / used[:, None]
    return torch.cat([xy, points[..., 2:3] / used[:, None, :1], points[..., 3:]], 2)


def projected(points: Tensor, rects: Tensor) -> Tensor:
    """Return points as fractions of the frame, from fractions of a rect.

    From LandmarkProjectionCalculator with ``NORM_RECT``; right for rects that are square in pixels,
    as all of Holistic's are.

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
    regions : (rows, 4) pixels of :func:`kpstore.extractors.holistic_crops.pixel_regions`.
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
