"""Copies that broke off: what containers tell of it, and no alarm over files that are whole."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kpstore.sources.containers import cut_off
from kpstore.sources.videos import VideosSource

# Suffix, container, codec, options.
WRITTEN = [
    (".mkv", "matroska", "libx264", {}),
    (".webm", "webm", "libvpx", {}),
    (".avi", "avi", "mpeg4", {}),
    (".mp4", "mp4", "libx264", {}),
    (".m4v", "mp4", "libx264", {"movflags": "faststart"}),
    (".mov", "mov", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
    (".flv", "flv", "flv1", {}),
    (".wmv", "asf", "wmv2", {}),
    (".ogv", "ogg", "libvpx", {}),
    (".mpg", "mpeg", "mpeg1video", {}),
    (".mpeg", "vob", "mpeg2video", {}),
    (".ts", "mpegts", "libx264", {}),
    (".m2ts", "mpegts", "libx264", {"mpegts_m2ts_mode": "1"}),
]
BY = {suffix: (container, codec, options) for suffix, container, codec, options in WRITTEN}
LIVE = sorted(BY.keys() - {".mp4", ".m4v", ".avi"})
"""What can be written to a pipe."""


class Pipe(io.RawIOBase):
    """A file that cannot be gone back in, as a network is."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self.content += content
        return len(content)


def encoded(suffix: str, file: str | Pipe, n_frames: int = 30) -> None:
    name, codec, options = BY[suffix]
    with av.open(file, "w", format=name, options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(n_frames):
            picture = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def cut(path: Path, n_bytes: int) -> str:
    """What is told of the first bytes of a file."""
    part = path.with_name("part")
    part.write_bytes(path.read_bytes()[:n_bytes])
    return cut_off(part)


@pytest.mark.parametrize("suffix", BY)
def test_of_a_whole_file_nothing_is_told(tmp_path: Path, suffix: str) -> None:
    encoded(suffix, str(tmp_path / f"clip{suffix}"))
    listing = VideosSource(tmp_path).scan()
    assert listing.problems == ()
    assert listing.videos[0].n_frames == 30


@pytest.mark.parametrize("suffix", LIVE)
def test_of_a_recording_from_a_pipe_nothing_is_told(tmp_path: Path, suffix: str) -> None:
    pipe = Pipe()
    encoded(suffix, pipe)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(pipe.content)
    assert cut_off(path) == ""


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".wmv"])
def test_a_file_that_ends_before_its_container_says_is_a_problem(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"clip{suffix}"
    encoded(suffix, str(path))
    size = path.stat().st_size
    for n_bytes in (size - 1, size * 6 // 10):
        assert cut(path, n_bytes).startswith(f"after {n_bytes:,} of ")
    path.write_bytes(path.read_bytes()[: size * 6 // 10])
    listing = VideosSource(tmp_path).scan()
    assert 10 < listing.videos[0].n_frames < 30
    assert f"clip{suffix}: ends after" in listing.problems[0]


@pytest.mark.parametrize(
    ("suffix", "part"),
    [(".mpg", "packet"), (".mpeg", "packet"), (".ts", "packet"), (".m2ts", "packet"),
     (".ogv", "page"), (".flv", "tag")],
)  # fmt: skip
def test_a_stream_that_ends_in_the_middle_of_a_part_is_a_problem(
    tmp_path: Path, suffix: str, part: str
) -> None:
    pipe = Pipe()
    encoded(suffix, pipe)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(pipe.content[:-30])
    assert cut_off(path) == f"ends in the middle of a {part}".removeprefix("ends ")
    (problem,) = VideosSource(tmp_path).scan().problems
    assert problem == f"clip{suffix}: ends in the middle of a {part}; copy it again"


def test_a_stream_that_ends_between_packets_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip.ts"
    encoded(".ts", str(path))
    assert cut(path, 188 * 20) == ""
    assert cut(path, 188 * 20 + 1) == cut(path, 188 * 21 - 1) == "in the middle of a packet"


def test_an_ogg_file_without_its_last_page_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "clip.ogv"
    encoded(".ogv", str(path))
    last = path.read_bytes().rfind(b"OggS")
    assert cut(path, last) == "before the last page of its stream"


def test_a_gif_without_its_end_is_a_problem(tmp_path: Path) -> None:
    pictures = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (10, 20, 3), dtype=np.uint8))
        for n in range(5)
    ]
    path = tmp_path / "wave.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    assert VideosSource(tmp_path).scan().problems == ()
    size = path.stat().st_size
    assert {cut(path, n_bytes) for n_bytes in range(13, size)} == {"before its trailer"}
    (tmp_path / "part").unlink()
    path.write_bytes(path.read_bytes()[: size * 2 // 3])
    assert VideosSource(tmp_path).scan().problems == (
        "wave.gif: ends before its trailer; copy it again",
    )


@pytest.mark.parametrize("suffix", BY)
def test_bytes_behind_the_end_are_no_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "clip"
    encoded(suffix, str(path))
    path.write_bytes(path.read_bytes() + b"\0\0\0\0\0\0\0more")
    assert cut_off(path) == ""


@pytest.mark.parametrize("suffix", BY)
def test_any_bytes_are_looked_at_without_an_error(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / "clip"
    encoded(suffix, str(whole), 3)
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    for n_bytes in (0, 1, 4, 9, 12, 27, 50, 100, 1000):
        cut(whole, n_bytes)
    for _ in range(50):
        damaged = bytearray(content[: int(rng.integers(1, len(content)))])
        for at in rng.integers(0, min(len(damaged), 300), 5):
            damaged[at] = rng.integers(256)
        whole.write_bytes(damaged)
        cut_off(whole)


def test_boxes_without_an_end_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(struct.pack(">I4s", 8, b"free") * 200_000)
    assert cut_off(path) == ""


@pytest.mark.parametrize(
    "more", [b"made by a tool\n", b"<?xml version='1.0'?>", b"8db42d694ccc418790"]
)
def test_text_behind_an_mp4_is_no_damage(tmp_path: Path, more: bytes) -> None:
    file = tmp_path / "a.mp4"
    encoded(".mp4", str(file))
    file.write_bytes(file.read_bytes() + more)
    assert cut_off(file) == ""
