"""Fuzzed pictures, videos, and mouth crops, as sources read them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kpstore.schema.lips import CROP_SIDE
from kpstore.sources.base import FrameError, Source
from kpstore.sources.images import image_size, read_image
from kpstore.sources.lips import LipsSource
from kpstore.sources.videos import VideosSource


def _read_all(source: Source) -> None:
    """List a source and read its frames: each is a picture, or an error with a message."""
    for video in source.scan().videos:
        frames = list(source.read_frames(video))
        assert len(frames) == video.n_frames
        assert all(frame.reason for frame in frames if isinstance(frame, FrameError))


def _levels(*shape: int) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) * 40 % 251).astype(np.uint8).reshape(shape)


# -- pictures --------------------------------------------------------------------------------------


def picture(path: Path) -> None:
    """Read a picture."""
    image_size(path)
    found = read_image(path)
    assert found.reason if isinstance(found, FrameError) else found.ndim == 3


def pictures() -> Iterator[bytes]:
    """Yield small pictures in all formats and depths."""
    colours = Image.fromarray(_levels(6, 8, 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        yield _as_file(colours, kind, **({"exif": turned} if kind in ("JPEG", "PNG") else {}))
    deep = Image.fromarray(_levels(6, 8).astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        yield _as_file(deep, kind)
    yield _as_file(colours.quantize(4), "PNG")
    yield _as_file(colours, "TIFF", compression="tiff_lzw")


def _as_file(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# -- videos ----------------------------------------------------------------------------------------


def video(data: bytes, folder: Path) -> None:
    """List and read a folder with one video."""
    (folder / "clip.mp4").write_bytes(data)
    _read_all(VideosSource(folder))


def videos() -> Iterator[bytes]:
    """Yield small videos in several containers, whose contents say which they are."""
    import av

    for ending, codec in (("mp4", "mpeg4"), ("avi", "mjpeg"), ("webm", "libvpx"), ("gif", "gif")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"clip.{ending}"
            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=25)
                stream.width, stream.height = 32, 16
                stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
                stream.time_base = Fraction(1, 25)
                for number in range(3):
                    frame = av.VideoFrame.from_ndarray(_levels(16, 32, 3) + number, format="rgb24")
                    frame.pts = number
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            yield path.read_bytes()


# -- mouth crops -----------------------------------------------------------------------------------


def crops(data: bytes, folder: Path) -> None:
    """List and read a folder with one utterance."""
    (folder / "a.npz").write_bytes(data)
    _read_all(LipsSource(folder))


def crops_seeds() -> Iterator[bytes]:
    """Yield mouth crops, plain and packed."""
    for packed in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        packed(file, data=_levels(1, CROP_SIDE, CROP_SIDE))
        yield file.getvalue()
