"""MediaPipe's own operations in its refined face model, which looks at lips and eyes again.

From ``mediapipe/util/tflite/operations`` (version 2 of each). Points are in pixels of a map; a
matrix (4, 4) takes places in a small map to places in a larger one, of which it is cut out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kpstore.extractors.elementwise import cosine, position_free, sine


def _rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates (rows, …) turned by angles (rows, 1), in float32."""
    cos, sin = cosine(angle), sine(angle)
    return cos * x - sin * y, sin * x + cos * y


class LandmarksToMatrix(nn.Module):
    """Landmarks2TransformMatrix: where some points lie, as a matrix for :class:`CutOut`.

    Parameters
    ----------
    options : as in the file; ``subset_idxs`` are the points, and those of ``left_rotation_idx`` and
        ``right_rotation_idx`` are to be level.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.ends = options["left_rotation_idx"], options["right_rotation_idx"]
        self.target = options["target_rotation_radians"]
        self.register_buffer("subset", torch.tensor(options["subset_idxs"]), persistent=False)
        sides = options["output_width"], options["output_height"]
        self.sides = cast("tuple[int, int]", sides)
        self.scales = options["scale_x"], options["scale_y"]

    def forward(self, points: Tensor) -> Tensor:
        """Return matrices (rows, 4, 4) float32 from points (rows, points, 3)."""
        points = points.float()
        left, right = (points[:, end] for end in self.ends)
        up, along = (right - left)[:, 1:2].double(), (right - left)[:, :1].double()
        angle = self.target - position_free(torch.atan2, up, along).float()
        some = points[:, cast("Tensor", self.subset)]
        turned = _rotated(some[..., 0], some[..., 1], angle)
        low, high = ([each(one, 1, True) for one in turned] for each in (torch.amin, torch.amax))
        extents = [most - least for least, most in zip(low, high, strict=True)]
        x, y = _rotated((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, -angle)
        scale_x, scale_y = (
            scale * extent / side
            for scale, extent, side in zip(self.scales, extents, self.sides, strict=True)
        )
        none = torch.zeros_like(x)
        a, d = _rotated(scale_x, none, -angle)
        b, e = _rotated(none, scale_y, -angle)
        half_x, half_y = (-side / 2 for side in self.sides)
        rows = [a, b, none, a * half_x + b * half_y + x, d, e, none, d * half_x + e * half_y + y]
        rest = torch.eye(4, device=points.device)[2:].reshape(1, 8).expand(len(points), 8)
        return torch.cat([*rows, rest], 1).reshape(-1, 4, 4)


class CutOut(nn.Module):
    """TransformTensorBilinear: a turned part of maps, zero where it is off the map."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, maps: Tensor, matrices: Tensor) -> Tensor:
        """Return (rows, channels, height, width) from larger maps."""
        exact = matrices[:, :2].double()
        # Places are of the middles of pixels, matrices of their corners.
        shift = exact[..., 3] + (exact[..., 0] * 0.5 + exact[..., 1] * 0.5 - 0.5)
        steps = [torch.arange(n, device=maps.device).float() for n in (self.height, self.width)]
        down, across = torch.meshgrid(*steps, indexing="ij")
        x, y = (
            (matrices[:, row, 0, None] * across.reshape(1, -1))
            + (matrices[:, row, 1, None] * down.reshape(1, -1))
            + shift[:, row, None].float()
            for row in (0, 1)
        )
        rows, channels, height, width = maps.shape
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        left, top = (torch.where(inside, one, 0.0).floor() for one in (x, y))
        flat = maps.flatten(2)

        def corner(right: int, below: int) -> Tensor:
            # Weights of what is just off the map are zero.
            column = (left.long() + right).clamp(max=width - 1)
            place = (top.long() + below).clamp(max=height - 1) * width + column
            return flat.gather(2, place[:, None].expand(-1, channels, -1)).float()

        over, under = ((x - left)[:, None], (y - top)[:, None])
        upper = (1 - over) * corner(0, 0) + over * corner(1, 0)
        lower = (1 - over) * corner(0, 1) + over * corner(1, 1)
        made = torch.where(inside[:, None], under * lower + (1 - under) * upper, 0.0)
        return made.reshape(rows, channels, self.height, self.width).to(maps.dtype)


class PointsBack(nn.Module):
    """TransformLandmarks: points of a part as points of the whole; depths stay."""

    def forward(self, points: Tensor, matrices: Tensor) -> Tensor:
        """Return (rows, points, 2 or 3)."""
        points, matrices = points.float(), matrices.float()
        x, y = points[..., 0], points[..., 1]
        moved = [
            matrices[:, row, 0, None] * x
            + matrices[:, row, 1, None] * y
            + matrices[:, row, 3, None]
            for row in (0, 1)
        ]
        return torch.cat([torch.stack(moved, 2), points[..., 2:]], 2)
