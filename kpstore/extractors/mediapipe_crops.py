"""Frames of any sizes, and crops of them with the bits of MediaPipe's ImageToTensorCalculator.

That calculator takes crops with OpenCV 3.4's ``warpPerspective``, which works on a grid of 1/32
pixel with whole numbers as weights, and rounds to whole levels before they are scaled. A bilinear
crop in floating point moves points of the pose by half a pixel (median).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.extractors.elementwise import position_free

MOST_PIXELS = 2**31 - 1
"""Of all frames of a batch: places in it are int32."""
_PAIR = 0x00FF00FF
"""Red and blue of a pixel; each has room for 16 bits, of which weighted sums need 13."""
_BLOCK = 64
"""OpenCV computes the places of this many columns from that of the first of them."""
_FARTHEST = 2.0**30


def float32(number: float) -> float:
    """Return a number as a C++ program holds it that stores it in a ``float``."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


@dataclass(frozen=True)
class Frames:
    """RGB pictures of any sizes, one after another in one tensor.

    Parameters
    ----------
    pixels : (pixels,) int32: red + 256 green + 65536 blue. One number for a pixel is read by one
        instruction, and aligned.
    starts : (frames,) int32, the place of each frame's first pixel.
    sizes : (frames, 2) int32, width and height.
    """

    pixels: Tensor
    starts: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return self.starts.shape[0]

    @classmethod
    def of(cls, images: Sequence[NDArray[np.uint8]]) -> Frames:
        """Return images, each (height, width, 3) uint8 RGB, on the CPU; at least one."""
        counts = [image.shape[0] * image.shape[1] for image in images]
        if sum(counts) > MOST_PIXELS:
            raise InvalidError(
                f"{len(images)} frames have {sum(counts)} pixels, a batch has at most "
                f"{MOST_PIXELS}; give fewer at once"
            )
        packed = np.empty(sum(counts), dtype=np.int32)
        starts = np.cumsum([0, *counts[:-1]], dtype=np.int32)
        for image, start, count in zip(images, starts, counts, strict=True):
            _pack(image, packed[start : start + count])
        sizes = np.array([[image.shape[1], image.shape[0]] for image in images], dtype=np.int32)
        return cls(
            torch.from_numpy(packed),
            torch.from_numpy(starts),
            torch.from_numpy(sizes),
        )

    def to(self, device: torch.device) -> Frames:
        """Return the same frames on a device."""
        if self.pixels.device == device:
            return self
        pinned = (one.pin_memory() for one in (self.pixels, self.starts, self.sizes))
        return Frames(*(one.to(device, non_blocking=True) for one in pinned))


def _pack(image: NDArray[np.uint8], out: NDArray[np.int32]) -> None:
    """Write each pixel as one number.

    Pixels are read as numbers of four bytes, three bytes apart, without the fourth, which is of the
    next one; colour by colour takes more than twice as long.
    """
    content = np.ascontiguousarray(image).reshape(-1)
    four: NDArray[np.int32] = np.ndarray(len(out) - 1, "<i4", content.data, 0, (3,))
    np.bitwise_and(four, 0xFFFFFF, out=out[:-1])
    out[-1] = int.from_bytes(content[-3:].tobytes(), "little")


@dataclass(frozen=True)
class CropKind:
    """How a model wants its pictures.

    Parameters
    ----------
    side : pixels of width and height.
    low : the value of black; white is 1.
    zero_border : whether black is around the frame, or its outermost pixels go on for ever.
    keep_aspect : whether a region is made square, or squeezed.
    """

    side: int
    low: float = 0.0
    zero_border: bool = False
    keep_aspect: bool = True


def pixel_regions(rects: Tensor, sizes: Tensor, kind: CropKind) -> tuple[Tensor, Tensor]:
    """Return regions in pixels, and the padding that makes them square.

    From ``PadRoi`` of MediaPipe's image_to_tensor_utils.

    Parameters
    ----------
    rects : (rows, 5) float32; see :mod:`kpstore.extractors.mediapipe_regions`.
    sizes : (rows, 2) float32, width and height of each row's frame.

    Returns
    -------
    tuple of Tensor
        Centre, width and height, (rows, 4) float32; and the fractions of the crop that are padding
        on the left (as much on the right) and on the top (as much at the bottom), (rows, 2).
    """
    regions = rects[:, :4] * torch.cat([sizes, sizes], 1)
    if not kind.keep_aspect:
        return regions, torch.zeros_like(sizes)
    width, height = regions[:, 2], regions[:, 3]
    aspect = height / width
    is_wide = aspect < 1.0
    side = torch.where(is_wide, width, height)
    none = torch.zeros_like(side)
    beside = torch.where(is_wide, none, (1 - 1 / aspect) / 2)
    above = torch.where(is_wide, (1 - aspect) / 2, none)
    return torch.stack([regions[:, 0], regions[:, 1], side, side], 1), torch.stack(
        [beside, above], 1
    )


def crop_matrices(regions: Tensor, rotation: Tensor, side: int) -> Tensor:
    """Return the matrices from pixels of crops to pixels of frames, (rows, 9) float64.

    From ``cv::RotatedRect::points`` (as MediaPipe's image_to_tensor_converter_opencv calls it, with
    an angle in degrees), ``cv::getPerspectiveTransform`` and ``cv::invert``.

    Parameters
    ----------
    regions : (rows, 4) float32, as of :func:`pixel_regions`.
    rotation : (rows,) float32 radians.
    """
    degrees = ((rotation * 180.0).double() / math.pi).float()
    angle = degrees.double() * math.pi / 180
    across = position_free(torch.cos, angle).float() * 0.5
    down = position_free(torch.sin, angle).float() * 0.5
    x, y, width, height = regions.unbind(1)
    first = torch.stack([x - down * height - across * width, y + across * height - down * width], 1)
    second = torch.stack(
        [x + down * height - across * width, y - across * height - down * width], 1
    )
    centre = 2 * regions[:, :2]
    return _inverse(
        _perspective(torch.stack([first, second, centre - first, centre - second], 1), side)
    )


def _perspective(corners: Tensor, side: int) -> tuple[Tensor, ...]:
    """Return the first eight numbers of the matrix that takes corners to those of a square.

    Parameters
    ----------
    corners : (rows, 4, 2) float32: bottom left, top left, top right, bottom right.

    The rounding of this elimination (1e-6 pixel) decides in which cell of the grid 0.01 % of all
    samples fall. A closed form is as good and has other bits; so products are float32 and sums
    are in the order of OpenCV.
    """
    # Made on the device: a tensor that is sent there would be waited for.
    number = torch.arange(4, device=corners.device)
    u = (number >= 2).float() * side
    v = ((number == 0) | (number == 3)).float() * side
    none, one = torch.zeros_like(corners[..., 0]), torch.ones_like(corners[..., 0])
    x, y = corners.unbind(2)
    to_x = [x, y, one, none, none, none, -x * u, -y * u]
    to_y = [none, none, none, x, y, one, -x * v, -y * v]
    system = torch.cat([torch.stack(to_x, 2), torch.stack(to_y, 2)], 1).double()
    sides = torch.cat([u, v]).reshape(1, 8, 1).expand(len(corners), 8, 1).double()
    return _solved(torch.cat([system, sides], 2))


def _solved(system: Tensor) -> tuple[Tensor, ...]:
    """Return the solutions of systems (rows, 8, 9) as ``cv::hal::LU64f`` finds them."""
    numbers = torch.arange(8, device=system.device)
    for step in range(8):
        pivot = system[:, step:, step].abs().argmax(1)[:, None] + step
        moved = torch.where(numbers == pivot, step, numbers)
        order = torch.where(numbers == step, pivot, moved)
        system = system.gather(1, order[:, :, None].expand_as(system))
        below = system[:, step + 1 :, step] * (-1 / system[:, step, step])[:, None]
        rest = system[:, step + 1 :] + below[:, :, None] * system[:, step : step + 1]
        system = torch.cat([system[:, : step + 1], rest], 1)
    found: list[Tensor] = []
    for step in range(7, -1, -1):
        total = system[:, step, 8]
        for later, solution in enumerate(reversed(found), start=step + 1):
            total = total - system[:, step, later] * solution
        found.append(total / system[:, step, step])
    return tuple(reversed(found))


def _inverse(matrix: tuple[Tensor, ...]) -> Tensor:
    """Return the inverses of matrices whose ninth number is 1, (rows, 9), as ``cv::invert``."""
    a, b, c, d, e, f, g, h = matrix
    scale = 1 / (a * (e - f * h) - b * (d - f * g) + c * (d * h - e * g))
    numbers = [
        (e - f * h) * scale,
        (c * h - b) * scale,
        (b * f - c * e) * scale,
        (f * g - d) * scale,
        (a - c * g) * scale,
        (c * d - a * f) * scale,
        (d * h - e * g) * scale,
        (b * g - a * h) * scale,
        (a * e - b * d) * scale,
    ]
    return torch.stack(numbers, 1)


def take_crops(frames: Frames, numbers: Tensor, matrices: Tensor, kind: CropKind) -> Tensor:
    """Return crops (rows, 3, side, side) float32 from ``kind.low`` to 1.

    From ``cv::warpPerspective`` with linear interpolation of OpenCV 3.4. Pixel ``i`` of a crop
    stands for the place ``i / side`` of its region, without a shift by half a pixel.

    Parameters
    ----------
    numbers : (rows,) int64, the frame that each row is taken from.
    matrices : (rows, 9) float64 of :func:`crop_matrices`.
    """
    x, y = _places(matrices, kind.side)
    right, bottom = x & 31, y & 31
    neighbours = _neighbours(frames, numbers, x >> 5, y >> 5, zero_border=kind.zero_border)
    levels = _weighted(neighbours, right, bottom)
    table = torch.arange(256, dtype=torch.float64, device=levels.device)
    # One rounding, like the fused multiply and add of OpenCV.
    table = (table * float32((1 - kind.low) / 255.0) + kind.low).float()
    return table.index_select(0, levels.reshape(-1)).reshape(levels.shape)


def _places(matrices: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return x and y in the frame for each pixel of crops, (rows, side, side) int32 in 1/32 px."""
    pixels = torch.arange(side, device=matrices.device)
    begins = (pixels // _BLOCK * _BLOCK).double()
    within, rows = (pixels % _BLOCK).double(), pixels.double()[:, None]
    m = [number[:, None, None] for number in matrices.unbind(1)]
    x, y, depth = (
        (m[3 * one] * begins + m[3 * one + 1] * rows + m[3 * one + 2]) + m[3 * one] * within
        for one in range(3)
    )
    scale = 32 / depth
    # The bound keeps the places of huge regions within int32; all of them are off the frame.
    x, y = ((one * scale).clamp_(-_FARTHEST, _FARTHEST).round_().int() for one in (x, y))
    return x, y


def _neighbours(
    frames: Frames, numbers: Tensor, left: Tensor, top: Tensor, *, zero_border: bool
) -> list[Tensor]:
    """Return four pixels for each place: top left, top right, bottom left, bottom right."""
    starts, sizes = frames.starts[numbers], frames.sizes[numbers]
    start, width, height = (one[:, None, None] for one in (starts, sizes[:, 0], sizes[:, 1]))
    last_column, last_row = width - 1, height - 1
    columns, rows = (left, left + 1), (top, top + 1)
    inside_x = [torch.minimum(one.clamp(min=0), last_column) for one in columns]
    inside_y = [torch.minimum(one.clamp(min=0), last_row) for one in rows]
    found = []
    for row, near_y in zip(rows, inside_y, strict=True):
        line = near_y * width + start
        for column, near_x in zip(columns, inside_x, strict=True):
            pixels = frames.pixels.index_select(0, (line + near_x).reshape(-1))
            pixels = pixels.reshape(left.shape)
            if zero_border:
                pixels = pixels * ((row == near_y) & (column == near_x))
            found.append(pixels)
    return found


def _weighted(neighbours: list[Tensor], right: Tensor, bottom: Tensor) -> Tensor:
    """Return the levels of crops, (rows, 3, side, side) int32 from 0 to 255.

    Whole numbers are exact in any order, so two colours are weighted by one multiplication.
    """
    left, top = 32 - right, 32 - bottom
    lines = []
    for one, other in (neighbours[:2], neighbours[2:]):
        pair = (one & _PAIR) * left + (other & _PAIR) * right
        green = ((one >> 8) & 0xFF) * left + ((other >> 8) & 0xFF) * right
        lines.append((pair & 0xFFFF, green, pair >> 16))
    colours = [
        (above * top + below * bottom + 512) >> 10 for above, below in zip(*lines, strict=True)
    ]
    return torch.stack(colours, 1)
