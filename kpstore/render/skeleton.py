"""Keypoints drawn on photographs, and sheets of several pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kpstore.errors import InvalidError
from kpstore.schema.layout import N_POINTS, PART_SLICES, Edge, skeleton_edges

Color = tuple[int, int, int]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
PART_COLORS: Mapping[str, Color] = MappingProxyType(
    {
        "face": (240, 228, 66),
        "left_hand": (86, 180, 233),
        "right_hand": (230, 120, 0),
        "pose": (0, 200, 140),
    }
)
_DRAWN_FIRST = ("pose", "face", "left_hand", "right_hand")
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)
_MARGIN = 4
_CAPTION = 18
_ENLARGED = 3
"""Skeletons are drawn this many times larger and then shrunk, so that lines are not jagged."""


def draw_keypoints(
    image: NDArray[np.uint8],
    keypoints: NDArray[np.floating],
    *,
    edges: Sequence[Edge] | None = None,
    point_radius: float | None = None,
    legend: bool = False,
) -> NDArray[np.uint8]:
    """Return the image with the skeleton of one frame drawn on it.

    Parameters
    ----------
    image : (height, width, 3) uint8 RGB; it is not changed.
    keypoints : (143, 3), x and y as fractions of width and height; points with NaN are left out,
        and points outside the image do not show.
    edges : pairs of points to join; by default, the skeleton of the default face list. The
        attributes of a stored feature hold its own as ``edges``.
    point_radius : in pixels; by default, it follows from the size of the image.
    legend : whether to name the detected parts, in their colours, in the top left corner.

    Returns
    -------
    NDArray[np.uint8]
        (height, width, 3) uint8 RGB.
    """
    _check_image(image)
    if keypoints.shape != (N_POINTS, 3):
        raise InvalidError(
            f"keypoints of one frame have shape ({N_POINTS}, 3), found {keypoints.shape}; pass one "
            "frame"
        )
    height, width = image.shape[:2]
    size = max(1.0, min(height, width) / 250)
    large = (width * _ENLARGED, height * _ENLARGED)
    canvas = Image.fromarray(image).resize(large, Image.Resampling.NEAREST)
    xy = np.asarray(keypoints[:, :2], dtype=np.float64) * large
    pen = _Pen(ImageDraw.Draw(canvas), xy, canvas.size)
    joined = skeleton_edges() if edges is None else edges
    for part in _DRAWN_FIRST:
        rows = PART_SLICES[part]
        # The face has many points close to each other, which need thinner lines.
        thin = 0.6 if part == "face" else 1.0
        pen.lines(
            [(a, b) for a, b in joined if rows.start <= a < rows.stop],
            PART_COLORS[part],
            max(1, round(1.2 * size * thin * _ENLARGED)),
        )
        pen.dots(
            range(rows.start, rows.stop),
            PART_COLORS[part],
            (point_radius or 1.6 * size * thin) * _ENLARGED,
        )
    drawn = canvas.resize((width, height), Image.Resampling.BOX)
    if legend:
        found = [p for p in PART_COLORS if np.isfinite(keypoints[PART_SLICES[p], :2]).any()]
        _draw_legend(drawn, found)
    return np.asarray(drawn)


class _Pen:
    """Draws points that are finite and near the picture; Pillow is slow or wrong with others."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, xy: NDArray[np.float64], size: tuple[int, int]
    ) -> None:
        self._draw, self._xy = draw, xy
        near = np.abs(xy) < 8 * max(size)  # False for NaN
        self._drawable = near[:, 0] & near[:, 1]

    def lines(self, edges: Sequence[Edge], color: Color, width: int) -> None:
        for a, b in edges:
            if self._drawable[a] and self._drawable[b]:
                self._draw.line((*self._xy[a], *self._xy[b]), fill=color, width=width)

    def dots(self, points: range, color: Color, radius: float) -> None:
        rim = max(1, round(radius / 3))
        for point in points:
            if self._drawable[point]:
                x, y = self._xy[point]
                self._draw.ellipse(
                    (x - radius, y - radius, x + radius, y + radius), color, _INK, rim
                )


def _draw_legend(picture: Image.Image, parts: Sequence[str]) -> None:
    draw = ImageDraw.Draw(picture)
    font_size = max(9, min(picture.size) // 24)
    font = ImageFont.load_default(size=font_size)
    names = [part.replace("_", " ") for part in parts] or ["nothing found"]
    line = round(font_size * 1.3)
    widest = max(draw.textlength(name, font=font) for name in names)
    draw.rectangle((0, 0, widest + 2 * _MARGIN, line * len(names) + _MARGIN), fill=_INK)
    for number, name in enumerate(names):
        color = PART_COLORS[parts[number]] if parts else _PAPER
        draw.text((_MARGIN, _MARGIN / 2 + line * number), name, fill=color, font=font)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], columns: int, captions: Sequence[str] | None = None
) -> NDArray[np.uint8]:
    """Return several images as one, row by row, in cells as wide as the widest.

    Parameters
    ----------
    images : at least one, each (height, width, 3) uint8 RGB; sizes may differ.
    columns : number of images in a row.
    captions : a line under each image, cut to the width of its cell.

    Returns
    -------
    NDArray[np.uint8]
        (height, width, 3) uint8 RGB, on white.
    """
    if not images or columns < 1:
        raise InvalidError(
            f"a sheet needs images and columns, found {len(images)} images in {columns} columns"
        )
    if captions is not None and len(captions) != len(images):
        raise InvalidError(
            f"a sheet needs a caption for each image, found {len(captions)} for {len(images)}"
        )
    for image in images:
        _check_image(image)
    columns = min(columns, len(images))
    cell_width = max(image.shape[1] for image in images)
    row_heights = [
        max(image.shape[0] for image in images[i : i + columns])
        for i in range(0, len(images), columns)
    ]
    tops = np.cumsum(
        [_MARGIN, *(height + _MARGIN + (_CAPTION if captions else 0) for height in row_heights)]
    )
    sheet = Image.new("RGB", (columns * (cell_width + _MARGIN) + _MARGIN, int(tops[-1])), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        left, top = _MARGIN + column * (cell_width + _MARGIN), int(tops[row])
        sheet.paste(Image.fromarray(image), (left, top))
        if captions:
            caption = _cut(draw, captions[number], font, cell_width)
            draw.text((left, top + image.shape[0] + 1), caption, fill=_INK, font=font)
    return np.asarray(sheet)


def _cut(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    text = " ".join(text.split())
    while text and draw.textlength(text, font=font) > width:
        text = text[:-2] + "…" if len(text) > 1 and text != "…" else ""
    return text


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InvalidError(
            f"an image needs to be (height, width, 3) uint8 RGB, found {image.shape} {image.dtype}"
        )
