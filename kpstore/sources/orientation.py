"""The eight orientations: how a stored picture is turned or mirrored to be upright."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """What makes a picture upright: rows and columns change places first, then it is mirrored.

    Parameters
    ----------
    transposed : rows become columns, along the diagonal from the top left corner.
    mirrored : left and right change places.
    flipped : top and bottom change places.
    """

    transposed: bool = False
    mirrored: bool = False
    flipped: bool = False

    def upright(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture, (height, width, 3) uint8, as it should be seen; contiguous."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        if self.mirrored:
            image = image[:, ::-1]
        if self.flipped:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the upright picture."""
        return (height, width) if self.transposed else (width, height)


def from_display_matrix(matrix: Sequence[int]) -> tuple[Orientation, bool]:
    """Return the orientation that a display matrix asks for, and whether it is exact.

    A picture that is to be turned by less than a quarter, or sheared, gets the nearest of the
    eight.

    Parameters
    ----------
    matrix : nine numbers ``(a, b, u, c, d, v, x, y, w)``, as MP4 and FFmpeg keep them: the point
        (p, q) of the stored picture is shown at (a p + c q, b p + d q). A negative determinant
        mirrors.
    """
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    right, down, rest = (c, b, (a, d)) if transposed else (a, d, (b, c))
    exact = not any(rest) and bool(right and down)
    return Orientation(transposed, mirrored=right < 0, flipped=down < 0), exact


def read_display_matrix(packed: bytes) -> tuple[int, ...]:
    """Return a display matrix from FFmpeg's packed form, nine native 32-bit integers."""
    return struct.unpack("=9i", packed[:36])
