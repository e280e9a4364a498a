from __future__ import annotations

import os
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.fuzz.rules import forget_peak, peak_bytes
from kpstore.errors import InvalidError, NotFoundError
from kpstore.sources.base import FrameError
from kpstore.sources.orientation import Orientation, from_display_matrix
from kpstore.sources.videos import VideosSource


def write_video(
    path: Path, n_frames: int = 12, *, codec: str = "libx264", noise: bool = False
) -> Path:
    size = (64, 48)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(n_frames):
            picture = np.full((size[1], size[0], 3), 20 * number % 256, dtype=np.uint8)
            if noise:
                picture = np.random.default_rng(number).integers(
                    0, 255, picture.shape, dtype=np.uint8
                )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_gif(path: Path, n_frames: int = 5) -> Path:
    frames = [Image.new("RGB", (20, 10), (50 * n, 0, 0)) for n in range(n_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def frames_of(source: VideosSource, number: int = 0, **kwargs: object) -> list[object]:
    return list(source.read_frames(source.scan().videos[number], **kwargs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mpeg4"), (".mov", "libx264")]
)
def test_a_video_file_gives_exactly_its_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    write_video(tmp_path / f"clip{suffix}", 12, codec=codec)
    source = VideosSource(tmp_path)
    video = source.scan().videos[0]
    assert (video.id, video.split, video.n_frames, video.fps) == ("clip", "", 12, 20.0)
    assert (video.width, video.height) == (64, 48)
    assert video.frame_paths[11] == f"clip{suffix}#11"
    frames = list(source.read_frames(video))
    assert len(frames) == 12
    assert all(
        isinstance(f, np.ndarray) and f.shape == (48, 64, 3) and f.dtype == np.uint8 for f in frames
    )
    assert abs(int(frames[3][20, 20, 0]) - 60) < 8


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    write_gif(tmp_path / "wave.gif")
    frames = frames_of(VideosSource(tmp_path))
    assert len(frames) == 5


def test_left_out_frames_are_errors_in_their_place(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 6)
    frames = frames_of(VideosSource(tmp_path), skip={0, 4})
    assert [isinstance(f, FrameError) for f in frames] == [True, False, False, False, True, False]


def test_a_file_that_ends_early_gives_errors_for_what_is_not_there(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", 40, codec="mpeg4", noise=True)
    source = VideosSource(tmp_path)
    video = source.scan().videos[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = list(source.read_frames(video))
    assert len(frames) == 40
    assert isinstance(frames[0], np.ndarray)
    assert "the file ends after" in frames[-1].reason


def test_a_file_that_grew_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 4)
    source = VideosSource(tmp_path)
    video = source.scan().videos[0]
    write_video(tmp_path / "clip.mp4", 9)
    with pytest.raises(InvalidError, match="holds more than the 4 frames"):
        list(source.read_frames(video))


def test_pictures_in_a_folder_are_one_video_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "walk" / f"{number}.jpg")
    (tmp_path / "walk" / "3.jpg").write_bytes(b"broken")
    video = VideosSource(tmp_path).scan().videos[0]
    assert (video.id, video.frame_paths) == (
        "walk",
        ("walk/1.jpg", "walk/2.jpg", "walk/3.jpg", "walk/10.jpg"),
    )
    assert [isinstance(f, FrameError) for f in frames_of(VideosSource(tmp_path))] == [
        False,
        False,
        True,
        False,
    ]


def test_a_folder_of_pictures_itself_is_one_video(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    video = VideosSource(tmp_path).scan().videos[0]
    assert (video.id, video.frame_paths) == (tmp_path.name, ("1.png",))
    assert isinstance(frames_of(VideosSource(tmp_path))[0], np.ndarray)


def test_sub_folders_with_names_of_splits_are_the_splits(tmp_path: Path) -> None:
    for name in ("train/a.mp4", "train/more/b.mp4", "Test/c.mp4", "d.mp4"):
        write_video(tmp_path / name, 2)
    videos = VideosSource(tmp_path).scan().videos
    assert [(v.split, v.id) for v in videos] == [
        ("", "d"), ("Test", "Test/c"), ("train", "train/a"), ("train", "train/more/b"),
    ]  # fmt: skip
    only = VideosSource(tmp_path, splits=("train",), max_videos_per_split=1).scan().videos
    assert [v.id for v in only] == ["train/a"]
    with pytest.raises(NotFoundError, match="split 'dev' not found"):
        VideosSource(tmp_path, splits=("dev",)).scan()


def test_a_file_that_is_no_video_is_a_problem_and_the_others_are_listed(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", 3)
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    listing = VideosSource(tmp_path).scan()
    assert [v.id for v in listing.videos] == ["good"]
    assert "bad.mp4: cannot be opened as a video" in listing.problems[0]
    assert "\n" not in listing.problems[0]


def test_wrong_places_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        VideosSource(tmp_path / "nowhere").scan()
    with pytest.raises(
        InvalidError, match=r"no videos in .*; looked for folders of pictures and for \.3gp, \.avi"
    ):
        VideosSource(tmp_path).scan()
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="is a file"):
        VideosSource(tmp_path / "file").scan()


def test_sources_pickle(tmp_path: Path) -> None:
    source = VideosSource(tmp_path, splits=("dev",))
    assert pickle.loads(pickle.dumps(source)) == source


# -- damaged files ---------------------------------------------------------------------------------


def grey_of(frame: object) -> int:
    assert isinstance(frame, np.ndarray)
    return int(frame[20, 20, 0])


def write_levels(path: Path, n_frames: int = 60) -> list[int]:
    """Write frames of grey levels 0, 4, 8, … with changing squares: each is some kB to damage."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(n_frames):
            picture = np.full((48, 64, 3), 4 * number, dtype=np.uint8)
            picture[:16] = rng.integers(0, 255, (16, 64, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return [grey_of(frame) for frame in frames_of(VideosSource(path.parent))]


@pytest.mark.parametrize("seed", range(6))
def test_damage_never_puts_a_frame_in_anothers_place(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "clip.mp4"
    levels = write_levels(path)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    end = content.index(b"moov")
    for at in rng.integers(1000, end - 40, 3).tolist():
        content[at : at + 30] = rng.integers(0, 256, 30, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(content))
    source = VideosSource(tmp_path)
    (video,) = source.scan().videos
    assert video.n_frames == 60
    frames = list(source.read_frames(video))
    assert len(frames) == 60
    arrived = [number for number, frame in enumerate(frames) if not isinstance(frame, FrameError)]
    assert len(arrived) > 20
    # Damage spoils pictures, but in the grey half few: whatever is sound is where it was.
    right = [number for number in arrived if abs(grey_of(frames[number]) - levels[number]) <= 2]
    others = [
        number
        for number in arrived
        if number not in right
        and any(
            abs(grey_of(frames[number]) - levels[n]) <= 1
            for n in (number - 1, number + 1)
            if n < 60
        )
    ]
    assert len(right) > 3 * len(others)


def test_a_trimmed_copy_has_the_frames_that_it_shows(tmp_path: Path) -> None:
    """An edit list, as stream copies leave it, hides frames at the start of the file."""
    write_levels(tmp_path / "whole.mp4")
    (tmp_path / "cut").mkdir()
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "cut" / "a.mp4"), "w") as cut,
    ):
        stream = whole.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is None:
                continue
            packet.stream = copy
            packet.pts -= 5 * stream.time_base.denominator // 25  # before the beginning: hidden
            packet.dts -= 5 * stream.time_base.denominator // 25
            cut.mux(packet)
    source = VideosSource(tmp_path / "cut")
    (video,) = source.scan().videos
    frames = list(source.read_frames(video))
    assert len(frames) == video.n_frames
    assert not [frame for frame in frames if isinstance(frame, FrameError)]


def test_a_truncated_file_is_a_problem_and_its_frames_are_there(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(60):
            picture = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    listing = VideosSource(tmp_path).scan()
    (video,) = listing.videos
    assert 10 < video.n_frames < 60
    assert f"clip.mp4: ends after {video.n_frames} of 60 frames" in listing.problems[0]
    frames = list(VideosSource(tmp_path).read_frames(video))
    assert len(frames) == video.n_frames
    assert sum(isinstance(frame, np.ndarray) for frame in frames) >= video.n_frames - 3


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg"])
def test_frames_of_avi_files_are_in_order(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(20):
            picture = np.full((48, 64, 3), 12 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    levels = [grey_of(frame) for frame in frames_of(VideosSource(tmp_path))]
    assert len(levels) == 20
    assert levels == sorted(levels)


# -- orientations and rates ------------------------------------------------------------------------


def colours() -> np.ndarray:
    """Return a picture whose eight orientations all differ."""
    picture = np.full((48, 80, 3), 255, np.uint8)
    picture[:24, :40], picture[:24, 40:], picture[24:, :40] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


EIGHT = {
    "a": ((1, 0, 0, 1), lambda a: a),
    "b": ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
    "c": ((-1, 0, 0, -1), lambda a: a[::-1, ::-1]),
    "d": ((1, 0, 0, -1), lambda a: a[::-1]),
    "e": ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    "f": ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
    "g": ((0, -1, -1, 0), lambda a: np.rot90(a, 2).swapaxes(0, 1)),
    "h": ((0, -1, 1, 0), lambda a: np.rot90(a)),
}
"""Display matrices (a, b, c, d) and what a player shows."""


def write_turned(path: Path, matrix: tuple[int, int, int, int], n_frames: int = 2) -> None:
    a, b, c, d = (65536 * number for number in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for _ in range(n_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colours(), format="rgb24")))
        container.mux(stream.encode(None))


def test_videos_are_upright_in_every_orientation(tmp_path: Path) -> None:
    for name, (matrix, _) in EIGHT.items():
        write_turned(tmp_path / f"{name}.mp4", matrix)
    source = VideosSource(tmp_path)
    listing = source.scan()
    assert (len(listing.videos), listing.notes) == (8, ())
    for video in listing.videos:
        shown = EIGHT[video.id][1](colours())
        frame = next(iter(source.read_frames(video)))
        assert isinstance(frame, np.ndarray)
        assert (frame.shape, (video.height, video.width)) == (shown.shape, shown.shape[:2]), (
            video.id
        )
        assert np.abs(frame.astype(int) - shown).mean() < 20, video.id


def test_a_turn_by_less_than_a_quarter_is_told(tmp_path: Path) -> None:
    orientation, exact = from_display_matrix((46340, -46340, 0, 46340, 46340, 0, 0, 0, 1 << 30))
    assert (orientation, exact) == (Orientation(), False)
    assert from_display_matrix((0,) * 9) == (Orientation(), False)


def write_times(path: Path, milliseconds: list[int], *, rate: int, codec: str = "ffv1") -> None:
    """Write a file whose header says ``rate`` and whose frames are shown at given times."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = base
        for time in milliseconds:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_rates_that_the_times_contradict_are_those_of_the_times(tmp_path: Path) -> None:
    write_times(tmp_path / "a.mkv", [33 * n for n in range(12)], rate=1000)
    write_times(tmp_path / "b.mkv", [40 * n + (400 if n > 5 else 0) for n in range(12)], rate=25)
    write_times(tmp_path / "c.mkv", [0], rate=1000)
    write_times(tmp_path / "d.mkv", [40 * n for n in range(5)], rate=25)
    listing = VideosSource(tmp_path).scan()
    fps = {video.id: video.fps for video in listing.videos}
    assert (listing.problems, fps["d"]) == ((), 25.0)
    assert fps["a"] == pytest.approx(1000 / 33)
    assert np.isnan(fps["b"])
    assert np.isnan(fps["c"])
    assert [note.partition(": ")[0] for note in listing.notes] == ["a.mkv", "b.mkv"]
    assert "header says 1000 frames a second, its frames' times 30.303" in listing.notes[0]
    assert "irregular times" in listing.notes[1]


@pytest.mark.parametrize(
    "pixels", ["yuv420p10le", "yuv422p12le", "gray10le", "gray16le", "rgb48le", "yuva420p"]
)
def test_pixels_of_more_than_8_bits_and_transparent_ones_are_scaled(
    tmp_path: Path, pixels: str
) -> None:
    grey = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        rgb = av.VideoFrame.from_ndarray(grey[..., None].repeat(3, axis=2), format="rgb24")
        container.mux(stream.encode(rgb.reformat(format=pixels)))
        container.mux(stream.encode(None))
    (frame,) = frames_of(VideosSource(tmp_path))
    assert isinstance(frame, np.ndarray)
    assert np.abs(frame.astype(int) - grey[..., None]).mean() < 4


# -- folders ---------------------------------------------------------------------------------------


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    write_video(tmp_path / "elsewhere" / "b.mp4", 2)
    write_video(tmp_path / "clips" / "a.mp4", 2)
    (tmp_path / "clips" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "clips")
    assert [video.id for video in VideosSource(tmp_path / "clips").scan().videos] == ["a", "more/b"]


def test_two_files_with_one_id_are_a_problem(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 2)
    write_video(tmp_path / "a.avi", 2, codec="mpeg4")
    listing = VideosSource(tmp_path).scan()
    assert listing.problems == ("a.mp4 and a.avi would both be video 'a'; rename one",)
    assert [video.id for video in listing.videos] == ["a"]


def test_other_systems_notes_are_passed_over(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 2)
    (tmp_path / "._a.mp4").write_bytes(b"note")
    listing = VideosSource(tmp_path).scan()
    assert ([video.id for video in listing.videos], listing.problems) == (["a"], ())


def test_a_number_sign_in_a_pictures_name_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "walk").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "walk" / "img#1.jpg")
    assert isinstance(frames_of(VideosSource(tmp_path))[0], np.ndarray)


def test_names_that_are_no_text_are_a_problem(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 2)
    os.rename(tmp_path / "a.mp4", os.fsencode(tmp_path) + b"/\xff.mp4")
    listing = VideosSource(tmp_path).scan()
    assert listing.videos == ()
    assert "rename it" in listing.problems[0]


@pytest.mark.parametrize("name", ["held.mkv", "dropped.avi"])
def test_frames_that_are_held_or_dropped_are_no_damage(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("mpeg4" if name.endswith("avi") else "libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in (*range(40), 55, 140):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), number, np.uint8), format="rgb24"
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    listing = VideosSource(tmp_path).scan()
    assert listing.problems == ()
    assert listing.videos[0].n_frames == 42


def test_two_pictures_for_one_frame_are_a_problem(tmp_path: Path) -> None:
    for folder, names in {
        "a": ("1.png", "01.png"),
        "b": ("2.png", "2.jpg"),
        "c": ("3.png",),
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (8, 6)).save(tmp_path / folder / name)
    problems = VideosSource(tmp_path).scan().problems
    assert len(problems) == 2
    assert "a/01.png and a/1.png have one frame number" in problems[0]
    assert "b/2.jpg and b/2.png have one frame number" in problems[1]


class Pipe:
    """What a video is written to that cannot be gone back in, as ``ffmpeg … | ssh``."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, block: bytes) -> int:
        self.written += bytes(block)
        return len(block)


@pytest.mark.parametrize(
    ("suffix", "kind", "codec"),
    [(".avi", "avi", "mpeg4"), (".mkv", "matroska", "libx264"), (".webm", "webm", "libvpx-vp9")],
)
def test_a_video_that_was_written_to_a_pipe_is_no_damage(
    tmp_path: Path, suffix: str, kind: str, codec: str
) -> None:
    pipe = Pipe()
    with av.open(pipe, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            picture = np.full((48, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    (tmp_path / f"clip{suffix}").write_bytes(pipe.written)
    listing = VideosSource(tmp_path).scan()
    assert listing.problems == ()
    assert listing.videos[0].n_frames == 30


def test_a_file_that_names_other_files_is_never_followed(tmp_path: Path) -> None:
    write_video(tmp_path / "clips" / "own.mp4")
    write_video(tmp_path / "clips" / ".other.mp4")
    (tmp_path / "clips" / "x.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    (tmp_path / "clips" / ".other.mp4").rename(tmp_path / "clips" / "other.mp4")
    listing = VideosSource(tmp_path / "clips").scan()
    assert [video.id for video in listing.videos] == ["other", "own"]
    assert listing.problems == (
        "x.mp4: cannot be opened as a video (its format is none that videos are read from; "
        "re-encode it as mp4)",
    )


def test_frames_that_grow_beyond_the_header_are_errors_in_bounded_memory(tmp_path: Path) -> None:
    streams, file = [], tmp_path / "a.ts"
    for size, n_frames in ((64, 20), (9000, 1)):
        part = tmp_path / f"{size}.h264"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            # A new frame holds whatever its memory held, and the limit follows the file's size.
            black = np.zeros((size * 3 // 2, size), np.uint8)
            for _ in range(n_frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="yuv420p")))
            container.mux(stream.encode(None))
        streams.append(part.read_bytes())
    (tmp_path / "both.h264").write_bytes(b"".join(streams))
    with av.open(str(tmp_path / "both.h264")) as found, av.open(str(file), "w") as made:
        copied = made.add_stream_from_template(found.streams.video[0])
        packets = [packet for packet in found.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = 3600 * number
            packet.stream = copied
            made.mux(packet)
    for path in tmp_path.glob("*.h264"):
        path.unlink()
    before = forget_peak()
    *small, large = frames_of(VideosSource(tmp_path))
    assert [frame.shape for frame in small] == [(64, 64, 3)] * 20
    assert isinstance(large, FrameError)
    assert peak_bytes() - before < 256 * 2**20
