"""Recordings that were cut, joined or damaged: each frame in its place, and none made up."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kpstore.sources.base import FrameError
from kpstore.sources.videos import VideosSource

MILLISECONDS = Fraction(1, 1000)


def write(
    path: Path,
    pictures: list[np.ndarray],
    start: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> None:
    """Write a picture every 40 ms from ``start`` on; every tenth can be decoded without others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if codec == "libx264":  # other clocks are those of the rate
            stream.codec_context.time_base = MILLISECONDS
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if codec == "libx264":
                frame.pts, frame.time_base = start + 40 * number, MILLISECONDS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def copy_from(path: Path, first: int, to: Path) -> None:
    """Copy the packets of a file without the first ones."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path)) as whole, av.open(str(to), "w") as cut:
        copy = cut.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(whole.streams.video[0])):
            if packet.dts is not None and number >= first:
                packet.stream = copy
                cut.mux(packet)


def grey(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, dtype=np.uint8)


def noise(n_frames: int) -> list[np.ndarray]:
    """Return a texture that moves a little from frame to frame."""
    texture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return [np.roll(texture, number, axis=1) // 4 * 4 for number in range(n_frames)]


@pytest.mark.parametrize("start", [0, 7, -100])
def test_frames_of_joined_files_come_in_order_and_at_their_rate(tmp_path: Path, start: int) -> None:
    """The second part's times begin among the first part's, or before them."""
    levels = list(range(0, 240, 8))
    write(tmp_path / "1.ts", [grey(level) for level in levels[:15]], 5000)
    write(tmp_path / "2.ts", [grey(level) for level in levels[15:]], 5000 + start)
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "a.ts").write_bytes(
        (tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes()
    )
    source = VideosSource(tmp_path / "joined")
    listing = source.scan()
    frames = list(source.read_frames(listing.videos[0]))
    assert not [frame for frame in frames if isinstance(frame, FrameError)]
    np.testing.assert_allclose([np.mean(frame) for frame in frames], levels, atol=4)  # type: ignore[arg-type]
    assert listing.videos[0].fps == 25
    assert "times start again, as in files that were joined" in listing.notes[0]


def test_frames_before_the_first_whole_one_are_errors_and_nothing_made_up(tmp_path: Path) -> None:
    """The decoder of MPEG-4 makes up what the first frames of a cut recording build upon."""
    write(tmp_path / "whole.avi", noise(25), codec="mpeg4")
    copy_from(tmp_path / "whole.avi", 6, tmp_path / "cut" / "a.avi")
    (whole,) = VideosSource(tmp_path).scan(None).videos[-1:]
    true = list(VideosSource(tmp_path).read_frames(whole))
    source = VideosSource(tmp_path / "cut")
    (video,) = source.scan().videos
    frames = list(source.read_frames(video))
    failed = [number for number, frame in enumerate(frames) if isinstance(frame, FrameError)]
    assert failed == [0, 1, 2, 3]
    for number in range(4, len(frames)):
        np.testing.assert_array_equal(frames[number], true[number + 6])  # type: ignore[arg-type]


def test_of_h264_without_key_frames_all_that_can_be_decoded_are_read(tmp_path: Path) -> None:
    """Cameras refresh a picture part by part, so that all packets are equally large."""
    refreshing = {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}
    write(tmp_path / "whole.ts", noise(40), options=refreshing)
    copy_from(tmp_path / "whole.ts", 6, tmp_path / "cut" / "a.ts")
    (whole,) = VideosSource(tmp_path).scan(None).videos[-1:]
    true = list(VideosSource(tmp_path).read_frames(whole))
    source = VideosSource(tmp_path / "cut")
    frames = list(source.read_frames(source.scan().videos[0]))
    failed = [number for number, frame in enumerate(frames) if isinstance(frame, FrameError)]
    assert failed == list(range(len(failed)))
    assert 5 <= len(failed) < 15
    for frame, wanted in zip(frames[len(failed) :], true[len(failed) - len(frames) :], strict=True):
        np.testing.assert_array_equal(frame, wanted)  # type: ignore[arg-type]


def test_frames_may_take_all_the_memory_that_a_large_file_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.mkv", noise(5))
    monkeypatch.setenv("KPSTORE_MAX_MEMORY", "100GiB")  # as a file of 10 GiB would allow
    source = VideosSource(tmp_path)
    frames = list(source.read_frames(source.scan().videos[0]))
    assert len(frames) == 5
    assert not [frame for frame in frames if isinstance(frame, FrameError)]


def test_a_frame_that_its_decoder_calls_damaged_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    write(path, noise(20), codec="mpeg2video")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(60)
    path.write_bytes(content)
    with av.open(str(path)) as container:
        damaged = [frame.is_corrupt for frame in container.decode(video=0)]
    assert any(damaged)
    source = VideosSource(tmp_path)
    frames = list(source.read_frames(source.scan().videos[0]))
    reasons = [frame.reason for frame in frames if isinstance(frame, FrameError)]
    assert sum("its decoder had to make up a part" in reason for reason in reasons) == sum(damaged)


def test_of_several_video_streams_it_is_said_which_one_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, width in zip(streams, (64, 96), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
        for stream in streams:
            picture = np.zeros((48, stream.width, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    assert VideosSource(tmp_path).scan().notes == (
        "a.mp4: holds 2 video streams; the first, 64 x 48, is read",
    )
