from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kpstore.sources.base import FrameError
from kpstore.sources.images import image_size, is_image, natural_key, read_image


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["frame10.png", "frame9.png", "frame010.png", "a.png"]
    assert sorted(names, key=natural_key)[:2] == ["a.png", "frame9.png"]


def test_a_picture_is_read_as_rgb_whatever_its_mode(tmp_path: Path) -> None:
    Image.new("P", (4, 3), 0).save(tmp_path / "palette.png")
    image = read_image(tmp_path / "palette.png")
    assert isinstance(image, np.ndarray)
    assert image.shape == (3, 4, 3)
    assert image.dtype == np.uint8


def test_a_truncated_picture_is_an_error_and_never_half_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "whole.png"
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for kept in (0, 7, 40, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:kept])
        result = read_image(path)
        assert isinstance(result, FrameError), kept
        assert "whole.png" not in result.reason
        assert "\n" not in result.reason


def test_a_missing_file_and_a_text_file_say_so(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    assert "no such file" in read_image(tmp_path / "gone.png").reason
    assert "not a picture" in read_image(tmp_path / "text.png").reason
    assert image_size(tmp_path / "text.png") == (0, 0)


def test_hidden_files_are_no_pictures() -> None:
    assert is_image("a.PNG")
    assert not is_image("._a.png")


GREY = np.linspace(0, 255, 48 * 64).reshape(48, 64)


def tiff(
    levels: bytes, bits: int, *, sense: int = 1, sample_format: int = 1, planes: int = 1
) -> bytes:
    """Make an uncompressed grey TIFF of 64 x 48 by hand: Pillow writes few of its kinds."""
    tags = {
        256: 64,
        257: 48,
        258: bits,
        259: 1,
        262: sense,
        273: 0,
        277: 1,
        278: 48,
        279: len(levels),
    }
    tags[339], tags[284] = sample_format, planes
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + levels


def twelve_bits() -> bytes:
    levels = np.rint(GREY.ravel() * 4095 / 255).astype(int)
    return b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
        for a, b in zip(levels[::2], levels[1::2], strict=True)
    )


U16 = (GREY * 257).astype("<u2")
DEEP = {
    "a.png": lambda path: Image.fromarray(U16).save(path),
    "a.tif": lambda path: Image.fromarray(U16).save(path),
    "big-endian.tif": lambda path: Image.fromarray(U16.astype(">u2")).save(path),
    "twelve.tif": lambda path: path.write_bytes(tiff(twelve_bits(), 12)),
    "white-is-zero.tif": lambda path: path.write_bytes(tiff((65535 - U16).tobytes(), 16, sense=0)),
    "pgm": lambda path: path.write_bytes(b"P5\n64 48\n65535\n" + U16.astype(">u2").tobytes()),
    "1023.pgm": lambda path: path.write_bytes(
        b"P5\n64 48\n1023\n" + (GREY * 1023 / 255).astype(">u2").tobytes()
    ),
}


@pytest.mark.parametrize("kind", DEEP)
def test_grey_levels_of_more_than_8_bits_are_scaled_by_their_range(
    tmp_path: Path, kind: str
) -> None:
    DEEP[kind](tmp_path / kind)
    image = read_image(tmp_path / kind)
    assert isinstance(image, np.ndarray), image
    assert image.shape == (48, 64, 3)
    assert np.abs(image - GREY[..., None]).max() <= 1


UNKNOWN = {
    "floats 0 to 1": lambda path: Image.fromarray((GREY / 255).astype("f4")).save(path),
    "floats 0 to 255": lambda path: Image.fromarray(GREY.astype("f8")).save(path),
    "floats with NaN": lambda path: Image.fromarray(np.full((48, 64), np.nan, "f4")).save(path),
    "32-bit integers": lambda path: Image.fromarray((GREY * 257).astype("i4")).save(path),
    "unsigned 32-bit integers": lambda path: path.write_bytes(
        tiff((GREY * 2**24).astype("<u4").tobytes(), 32)
    ),
    "signed 16-bit integers": lambda path: path.write_bytes(
        tiff(U16.tobytes(), 16, sample_format=2)
    ),
    "signed 8-bit integers": lambda path: path.write_bytes(
        tiff(GREY.astype("u1").tobytes(), 8, sample_format=2)
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_numbers_of_unknown_range_are_an_error_and_never_black_or_white(
    tmp_path: Path, kind: str
) -> None:
    UNKNOWN[kind](tmp_path / "a.tif")
    found = read_image(tmp_path / "a.tif")
    assert isinstance(found, FrameError)
    assert "save it with 8 or 16 bits" in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_that_pillow_misreads_is_an_error(tmp_path: Path, bits: int) -> None:
    """Of colours that are kept apart, Pillow takes those of 16 bits for 8, and black for white."""
    levels = {1: bytes(6 * 64), 8: bytes(48 * 64), 16: U16.tobytes()}[bits]
    (tmp_path / "a.tif").write_bytes(tiff(levels, bits, sense=0, planes=2))
    found = read_image(tmp_path / "a.tif")
    assert isinstance(found, FrameError)
    assert "keeps its colours apart, and not in plain bytes" in found.reason


def test_tags_of_other_types_are_an_error_of_the_frame(tmp_path: Path) -> None:
    """Pillow raises a TypeError for a picture that is said to begin at a fraction."""
    content = bytearray(tiff(U16.tobytes(), 16))
    place = content.index(struct.pack("<HH", 273, 4))
    struct.pack_into("<HHII", content, place, 273, 5, 1, 16)
    (tmp_path / "a.tif").write_bytes(content)
    assert isinstance(read_image(tmp_path / "a.tif"), FrameError)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.webp", "a.gif"])
def test_a_file_of_several_pictures_is_no_frame(tmp_path: Path, name: str) -> None:
    pictures = [Image.new("RGB", (8, 6), (50 * n, 0, 0)) for n in range(3)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
    found = read_image(tmp_path / name)
    assert isinstance(found, FrameError)
    assert "more than one picture" in found.reason


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_small_copies_beside_a_picture_are_passed_over(tmp_path: Path, name: str) -> None:
    small = Image.new("RGB", (4, 3))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    form = {"a.tif": "TIFF", "a.jpg": "MPO"}[name]
    picture = Image.new("RGB", (8, 6), (200, 0, 0))
    picture.save(tmp_path / name, form, save_all=True, append_images=[small])
    image = read_image(tmp_path / name)
    assert isinstance(image, np.ndarray), image
    assert image.shape == (6, 8, 3)
    assert image[..., 0].min() > 190


@pytest.mark.parametrize("n_copies", [64, 65])
def test_of_many_copies_not_all_are_looked_at(tmp_path: Path, n_copies: int) -> None:
    copies = [Image.new("L", (1, 1)) for _ in range(n_copies)]
    for copy in copies:
        copy.encoderinfo = {"tiffinfo": {254: 1}}
    Image.new("L", (8, 6)).save(tmp_path / "a.tif", save_all=True, append_images=copies)
    assert isinstance(read_image(tmp_path / "a.tif"), FrameError) == (n_copies > 64)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_pictures_of_8_bits_are_read_as_pillow_shows_them(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(GREY.astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif"), np.asarray(picture.convert("RGB"))
    )


def colours() -> np.ndarray:
    """Return a picture whose eight orientations all differ."""
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:24, :40], picture[:24, 40:], picture[24:, :40] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


@pytest.mark.parametrize(
    "kind", ["png", "jpg", "webp", "tif", "grey.tif", "alpha.tif", "deep.tif", "deep.png"]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_in_every_orientation(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    path, stored = tmp_path / f"a.{kind}", colours()
    if kind.startswith(("deep", "grey")):
        stored = stored[..., :1].repeat(3, axis=2)
    picture = Image.fromarray(
        stored[..., 0].astype(np.uint16) * 257 if kind.startswith("deep") else stored
    )
    if kind == "grey.tif":
        picture = picture.getchannel(0)
    if kind == "alpha.tif":
        picture = picture.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stands = {"tiffinfo": {0x0112: orientation}} if kind.endswith("tif") else {"exif": exif}
    picture.save(path, **stands)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    image = read_image(path)
    assert isinstance(image, np.ndarray)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 12
    assert image_size(path) == (upright.shape[1], upright.shape[0])


def test_only_formats_of_pictures_are_opened_whatever_a_name_says(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "x.png", "PCX")
    found = read_image(tmp_path / "x.png")
    assert isinstance(found, FrameError)
    assert "not a picture that Pillow can read" in found.reason
    assert image_size(tmp_path / "x.png") == (0, 0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_of_a_huge_picture_is_an_error(tmp_path: Path) -> None:
    Image.new("1", (9600, 9600)).save(tmp_path / "x.png")
    found = read_image(tmp_path / "x.png")
    assert isinstance(found, FrameError)
    assert "would take 615 MiB of memory" in found.reason
