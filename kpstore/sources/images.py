"""Single pictures: read whole or not at all, sorted by the numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kpstore.sources.base import FrameError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

_ON_ITS_SIDE = (5, 6, 7, 8)
"""Orientations (EXIF 2.3, tag 0x0112) by which width and height change places."""


def is_image(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key by which ``frame9`` comes before ``frame10``."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)


def read_image(path: Path) -> NDArray[np.uint8] | FrameError:
    """Return a picture as (height, width, 3) uint8 RGB, or why it cannot be read.

    A truncated file is an error, never a half-grey picture: that is why this is Pillow and not OpenCV.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_upright(image).convert("RGB"))
    except FileNotFoundError:
        return FrameError("no such file")
    except UnidentifiedImageError:
        return FrameError(f"not a picture that Pillow can read ({path.stat().st_size} bytes)")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return FrameError(str(error))


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture as its camera says it stands: phones store what they took as their sensor saw it."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from a picture's header; (0, 0) if it cannot be read."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
            return (image.size[1], image.size[0]) if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return (0, 0)
