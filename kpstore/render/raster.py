"""Skeletons of many frames as small black and white pictures, drawn fast enough for training.

All lines and dots of a batch become pixel numbers together, which a few assignments ink:
about twice as fast as a loop over the 280 calls of OpenCV per skeleton (docs/decisions/012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.layout import N_POINTS, PART_SLICES, Edge, skeleton_edges

StyleName = Literal["kpstore", "phoenix"]
PAPER, INK = 255, 0

_BLOCK = 16
"""Frames drawn together: their pixel numbers fit into the processor's cache."""
_FAR = 4
"""A line with an end further away than this many pictures is left out."""


@dataclass(frozen=True)
class SkeletonStyle:
    """What to draw, in pixels.

    Parameters
    ----------
    edges : pairs of points to join.
    widths : width of each edge's line, from 1; drawn like OpenCV's upright lines, 1, 3, 5, 5, 7, 7,
        … pixels wide.
    cut : for each edge, whether to draw the part inside the picture; otherwise the edge is drawn
        only if both its ends are inside.
    radii : radius of each point's dot; 0 is one pixel.
    """

    edges: tuple[Edge, ...]
    widths: tuple[int, ...]
    cut: tuple[bool, ...]
    radii: tuple[int, ...]


@lru_cache
def kpstore_style(size: int = 256, edges: tuple[Edge, ...] | None = None) -> SkeletonStyle:
    """Return lines and dots that grow with the picture, finer in the face, cut at its border.

    Parameters
    ----------
    edges : pairs of points to join; the skeleton of the default face list by default.
    """
    joined = skeleton_edges() if edges is None else edges
    fine, bold = max(1, round(size / 256)), max(1, round(size / 128))
    is_face = [point < PART_SLICES["face"].stop for point in range(N_POINTS)]
    widths = tuple(fine if is_face[a] else bold for a, _ in joined)
    return SkeletonStyle(
        joined, widths, (True,) * len(joined), tuple(fine if face else bold for face in is_face)
    )


@lru_cache
def phoenix_style() -> SkeletonStyle:
    """Return the style of an older script that draws skeletons, for 256 pixels.

    Dots equal those of the script. The edge of a line may differ from OpenCV's by one pixel, which
    affects about one pixel in a thousand in recordings of signers. Unlike the script, this leaves
    out missing points, and lines to points more than four pictures away.
    """
    edges: list[Edge] = []
    widths: list[int] = []
    for part, part_edges in (
        ("pose", _PHOENIX_POSE),
        ("left_hand", _PHOENIX_HAND),
        ("right_hand", _PHOENIX_HAND),
    ):
        first = PART_SLICES[part].start
        edges += [(a + first, b + first) for a, b in part_edges]
        widths += [2 if part == "pose" or a == 0 else 3 for a, _ in part_edges]
    cut = (False,) * len(edges) + (True,) * len(_PHOENIX_FACE)
    radii = np.full(N_POINTS, 3)
    radii[PART_SLICES["face"]] = 2
    for part in ("left_hand", "right_hand"):
        radii[PART_SLICES[part]][[4, 8, 12, 16, 20]] = 4
    return SkeletonStyle(
        (*edges, *_PHOENIX_FACE), (*widths, *[1] * len(_PHOENIX_FACE)), cut, tuple(radii.tolist())
    )


def _chains(*lines: Sequence[int]) -> tuple[Edge, ...]:
    return tuple(edge for line in lines for edge in pairwise(line))


def _ring(start: int, stop: int) -> tuple[int, ...]:
    return (*range(start, stop), start)


_PHOENIX_POSE = _chains(
    (11, 12, 24, 23, 11),
    (11, 13, 15),
    (12, 14, 16),
    (23, 25, 27),
    (24, 26, 28),
    (7, 3, 2, 1, 0, 4, 5, 6, 8),
)
_PHOENIX_HAND = _chains(
    *((0, *range(tip - 3, tip + 1)) for tip in (4, 8, 12, 16, 20)), (5, 9, 13, 17)
)
_PHOENIX_FACE = _chains(
    _ring(0, 17),
    range(17, 22),
    range(22, 27),
    range(27, 36),
    (27, 31, 35),
    *(_ring(*ends) for ends in ((36, 42), (42, 48), (48, 60), (60, 68))),
)


def draw_skeletons(
    keypoints: NDArray[np.floating],
    size: int = 256,
    *,
    style: StyleName | SkeletonStyle = "kpstore",
) -> NDArray[np.uint8]:
    """Return pictures of skeletons, black (0) on white (255), without anti-aliasing.

    The picture is stretched to a square: x times ``size`` is a column, y times ``size`` a row. So a
    point's place follows from its coordinates, and a loss can weight the area around it.

    Parameters
    ----------
    keypoints : (frames, 143, 3), x and y as fractions of width and height; points with NaN or
        infinity, and their lines, are left out. z is not used.
    size : width and height in pixels, from 16.
    style : ``"kpstore"``, see :func:`kpstore_style`; ``"phoenix"``, see :func:`phoenix_style`; or
        your own.

    Returns
    -------
    NDArray[np.uint8]
        (frames, size, size) uint8, row by row from the top.
    """
    if keypoints.ndim != 3 or keypoints.shape[1:] != (N_POINTS, 3):
        raise InvalidError(
            f"skeletons need keypoints of shape (frames, {N_POINTS}, 3), found {keypoints.shape}"
        )
    if size < 16:
        raise InvalidError(
            f"a picture of {size} pixels is too small for a skeleton; use 16 or more"
        )
    pen = _pen(as_style(style, size), size)
    pictures = np.empty((len(keypoints), size, size), dtype=np.uint8)
    for start in range(0, len(keypoints), _BLOCK):
        pictures[start : start + _BLOCK] = pen.draw(keypoints[start : start + _BLOCK])
    return pictures


def as_style(style: StyleName | SkeletonStyle, size: int) -> SkeletonStyle:
    """Return a style by name, or itself."""
    if isinstance(style, SkeletonStyle):
        return style
    if style not in ("kpstore", "phoenix"):
        raise InvalidError(f"style={style!r}: use 'kpstore', 'phoenix' or a SkeletonStyle")
    return phoenix_style() if style == "phoenix" else kpstore_style(size)


def disc(radius: int) -> NDArray[np.int32]:
    """Return the pixels of a filled circle about (0, 0), (pixels, 2) int32 of x and y."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    filled = x * x + y * y <= radius * radius
    return np.stack([x[filled], y[filled]], axis=1).astype(np.int32)


class _Pen:
    """Draws on paper with a margin as wide as ink reaches, so that borders need no special case."""

    def __init__(self, style: SkeletonStyle, size: int) -> None:
        self._size, self._margin = size, max((*style.radii, *style.widths))
        self._pitch = size + 2 * self._margin
        self._ends = np.array(style.edges, dtype=np.int64).reshape(-1, 2).T
        self._widths, self._cut = np.array(style.widths), np.array(style.cut, dtype=bool)
        self._radii = np.array(style.radii)
        self._dots = {radius: self._stamp(radius) for radius in set(style.radii)}
        # OpenCV's own halves: 1, 2, 2, 3, 3, … pixels to each side for widths from 2.
        self._strokes = {
            width: self._stamp((width + 1) // 2 if width > 1 else 0) for width in set(style.widths)
        }

    def _stamp(self, radius: int) -> NDArray[np.int32]:
        """Return the pixel numbers of a disc, relative to its centre's."""
        return disc(radius) @ np.array([1, self._pitch], dtype=np.int32)

    def draw(self, keypoints: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return (frames, size, size) uint8, a slice of a larger array."""
        n_frames, pitch, margin, size = len(keypoints), self._pitch, self._margin, self._size
        paper = np.full(n_frames * pitch * pitch, PAPER, dtype=np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):
            points = keypoints[:, :, :2] * np.float32(size)
            near = (np.abs(points) <= _FAR * size).all(axis=2)  # False for NaN
        # Rounds towards zero, as the script did: less than a pixel left of or above the picture is
        # inside.
        xy = np.where(near[..., None], points, 0).astype(np.int32)
        inside = near & ((xy >= 0) & (xy < size)).all(axis=2)
        first = np.arange(n_frames, dtype=np.int32) * (pitch * pitch) + margin * pitch + margin
        centres = first[:, None] + xy[..., 1] * pitch + xy[..., 0]
        for radius, stamp in self._dots.items():
            paper[centres[inside & (self._radii == radius)][:, None] + stamp] = INK
        a, b = self._ends
        drawn = np.where(self._cut, near[:, a] & near[:, b], inside[:, a] & inside[:, b])
        for width, stamp in self._strokes.items():
            frames, edges = np.nonzero(drawn & (self._widths == width))
            line, x, y = line_pixels(xy[frames, a[edges]], xy[frames, b[edges]])
            seen = (x >= 0) & (x < size) & (y >= 0) & (y < size)
            pixels = (first[frames][line] + y * pitch + x)[seen]
            for offset in stamp.tolist():
                paper[pixels + offset] = INK
        framed = paper.reshape(n_frames, pitch, pitch)
        return framed[:, margin : margin + size, margin : margin + size]


_pen = lru_cache(_Pen)


def line_pixels(
    starts: NDArray[np.int32], ends: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return the pixels of lines: the number of the line, x and y, (pixels,) int32 each.

    A digital differential analyser: for each step along the longer side, the pixel nearest to the
    line.

    Parameters
    ----------
    starts, ends : (lines, 2) int32, x and y of both ends, which belong to the line.
    """
    run = ends - starts
    n_steps = np.abs(run).max(axis=1, initial=0)
    counts = n_steps + 1
    line = np.repeat(np.arange(len(starts), dtype=np.int32), counts)
    step = np.arange(len(line), dtype=np.int32) - np.repeat(
        (np.cumsum(counts) - counts).astype(np.int32), counts
    )
    slope = (run / np.maximum(n_steps, 1)[:, None]).astype(np.float32)
    middle = starts.astype(np.float32) + np.float32(0.5)
    x, y = (
        np.floor(middle[:, axis][line] + step * slope[:, axis][line]).astype(np.int32)
        for axis in (0, 1)
    )
    return line, x, y
