"""Single pictures: read whole or not at all, sorted by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from kpstore.budget import MemoryBudget
from kpstore.errors import DAMAGE, NotFoundError
from kpstore.sources.base import LEFT_OUT, Frame, FrameError
from kpstore.sources.orientation import Orientation
from kpstore.user_files import check_regular

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM")
"""What a picture may be, whatever its name says. Pillow reads many more; one runs Ghostscript."""

_ORIENTATIONS = {
    2: Orientation(mirrored=True),
    3: Orientation(mirrored=True, flipped=True),
    4: Orientation(flipped=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, mirrored=True),
    7: Orientation(transposed=True, mirrored=True, flipped=True),
    8: Orientation(transposed=True, flipped=True),
}
"""What makes a picture upright, by its orientation (EXIF 2.3, tag 0x0112)."""

_UNREADABLE = (*DAMAGE, OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is damaged, cut off or of a kind it does not know."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of grey pictures with up to 16 bits."""
_FULL_RANGE = ("PNG", "PPM")
"""Formats whose grey pictures Pillow may give as 32-bit integers, and always from 0 to 65,535."""
_PIXEL_BYTES = 7
"""Memory of a pixel: four bytes in Pillow, three of the result."""
_ALWAYS_PIXELS = 64_000_000
"""Pixels that are read whatever the file's size: cameras make them, and a blurred one packs well.

They take 430 MiB.
"""
_BAND_PIXELS = 2**20
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _SENSE = 254, 256, 257, 258, 262
_BIT_ORDER, _PLANES, _SAMPLE_FORMAT = 266, 284, 339
"""Tags of TIFF 6.0."""
_APART = 2
"""Value of ``_PLANES``: all reds come first, then all greens and all blues."""
_REDUCED, _MASK = 1, 4
"""Bits of ``_SUBFILE``: a page is a smaller copy of another one, or its mask."""
_MOST_COPIES = 64
"""Copies and masks that a picture may have: Pillow takes quadratic time for many pages."""


def is_image(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key by which ``frame9`` comes before ``frame10``."""
    return tuple(
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d+)", name)
        if part
    )


def same_number(folder: str, names: Sequence[str]) -> Iterator[str]:
    """Yield a problem for the first two pictures of a folder that would be the same frame.

    Such as ``7.png`` and ``7.jpg``, or ``7.png`` and ``007.png``.

    Parameters
    ----------
    folder : for the message, with its slash.
    names : sorted by :func:`natural_key`.
    """
    stems: dict[tuple[tuple[int, int | str], ...], str] = {}
    for name in names:
        other = stems.setdefault(natural_key(Path(name).stem), name)
        if other != name:
            yield f"{folder}{other} and {folder}{name} have one frame number; remove one"
            return


def read_image(path: Path) -> Frame:
    """Return a picture as (height, width, 3) uint8 RGB, or why it cannot be read.

    Grey levels of up to 16 bits become 8 by their range. Of colours of 16 bits Pillow keeps the
    higher byte, which is the same to within one level. Numbers whose range no header says (32-bit
    integers, floating point) are an error, and never black or white. Transparency is left out.

    A truncated file is an error, never a half-grey picture: that is why this is Pillow and not
    OpenCV. So is a file of several pictures, of which all but the first would be lost.
    """
    try:
        size = check_regular(path)
        with _opened(path) as image:
            if reason := _several(image) or _misread(image) or _unscaled(image):
                return FrameError(reason)
            n_pixels = image.width * image.height
            if n_pixels > _ALWAYS_PIXELS:
                what = f"a picture of {image.width} x {image.height} pixels"
                MemoryBudget(path.name, size, fixed=True).check(n_pixels * _PIXEL_BYTES, what)
            rgb = _rgb(image)
            stands = _orientation(image)  # behind reading, as Pillow turns a TIFF by itself
            image.close()  # with its pixels, which the end of the block would keep
        return stands.upright(rgb)
    except (NotFoundError, FileNotFoundError):
        return FrameError("no such file")
    except UnidentifiedImageError:
        return FrameError(f"not a picture that Pillow can read ({path.stat().st_size} bytes)")
    except Image.DecompressionBombError as error:
        return FrameError(f"{error} Save a smaller one")
    except _UNREADABLE as error:
        return FrameError(str(error))


def read_images(root: Path, paths: Iterable[str], skip: Collection[int]) -> Iterator[Frame]:
    """Yield the pictures at ``paths`` in ``root``, all but those whose numbers are in ``skip``."""
    for number, path in enumerate(paths):
        yield LEFT_OUT if number in skip else read_image(root / path)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    # By its name, Pillow would map a picture into memory: a TIFF that is to be turned by a quarter
    # with width and height exchanged (its rows are cut at the wrong places then).
    with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
        yield image


def _several(image: Image.Image) -> str:
    """Return why a file is no single picture; ``""`` if it is one.

    Smaller copies and masks of a picture do not count, nor what cameras add to a JPEG (MPO).
    """
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return ""
    if image.format == "TIFF" and not _has_pages(image):
        return ""
    return (
        "more than one picture, and a frame is one of them; save each as a file, or all as a video"
    )


def _has_pages(image: Image.Image) -> bool:
    """Return whether a TIFF has a page behind the first that is no copy or mask of it."""
    for number in range(1, _MOST_COPIES + 2):
        try:
            with suppress(SyntaxError):  # of its colours, behind its tags
                image.seek(number)
        except EOFError:
            image.seek(0)
            return False
        kinds = [kind for kind in _tiff_tag(image, _SUBFILE) if isinstance(kind, int)]
        if not any(kind & (_REDUCED | _MASK) for kind in kinds):
            return True
    return True


def _misread(image: Image.Image) -> str:
    """Return why Pillow reads other colours than a picture has; ``""`` if it reads it well."""
    apart = image.format == "TIFF" and _APART in _tiff_tag(image, _PLANES)
    if not apart or image.info.get("compression") != "raw":
        return ""
    # Pillow forgets then how levels are packed: in how many bits, in which order, up from white.
    reversed_or_inverted = 2 in _tiff_tag(image, _BIT_ORDER) or 0 in _tiff_tag(image, _SENSE)
    if set(_tiff_tag(image, _BITS)) == {8} and not reversed_or_inverted:
        return ""
    return (
        "a picture that keeps its colours apart, and not in plain bytes, which Pillow misreads; "
        "save it with the colours of a pixel together (PlanarConfiguration 1)"
    )


def _unscaled(image: Image.Image) -> str:
    """Return why the values of black and white in a picture are unknown.

    ``""`` if they are known.
    """
    what = {"I": "32-bit integers", "F": "floating-point numbers"}.get(image.mode, "")
    if image.mode == "I" and image.format in _FULL_RANGE:
        what = ""
    if image.format == "TIFF" and 2 in _tiff_tag(image, _SAMPLE_FORMAT):
        what = "integers with a sign"
    if not what:
        return ""
    return (
        f"a picture of {what} (mode {image.mode}), which do not say which of them is black and "
        "which white; save it with 8 or 16 bits"
    )


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return a picture as it is stored, converted a band at a time to save memory."""
    scale = _scale_of(image)
    image.load()
    width, height = image.size
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    step = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, step):
        # To crop and to convert copy, even what stays the same.
        whole = step >= height
        band = scale(image if whole else image.crop((0, top, width, min(top + step, height))))
        rgb[top : top + step] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
    return rgb


def _scale_of(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what scales grey levels of more than 8 bits to 0 to 255, and leaves others alone."""
    if image.mode != "I" and image.mode not in _SIXTEEN_BITS:
        return lambda band: band
    white = 65535
    if image.format == "TIFF":
        white = 2 ** max(1, *_tiff_tag(image, _BITS)) - 1  # 12 bits are unpacked, but not scaled
    inverted = image.format == "TIFF" and 0 in _tiff_tag(
        image, _SENSE
    )  # 0 is white, which Pillow sees to for 8 bits

    def scale(band: Image.Image) -> Image.Image:
        levels = np.asarray(band).astype(np.float64) * (255 / white)
        levels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return Image.fromarray(255 - levels if inverted else levels)

    return scale


def _tiff_tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    found = getattr(image, "tag_v2", {}).get(tag, ())
    return found if isinstance(found, tuple) else (found,)


def _orientation(image: Image.Image) -> Orientation:
    return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), Orientation())


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from a picture's header; (0, 0) if it cannot be read."""
    try:
        check_regular(path)
        with _opened(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # whose size Pillow turns by itself
                (width, *_), (height, *_) = _tiff_tag(image, _WIDTH), _tiff_tag(image, _HEIGHT)
            return _orientation(image).size(width, height)
    except _UNREADABLE:
        return (0, 0)
