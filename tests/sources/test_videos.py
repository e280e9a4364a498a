from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kpstore.errors import InvalidError, NotFoundError
from kpstore.sources.base import FrameError
from kpstore.sources.videos import VideosSource


def write_video(path: Path, n_frames: int = 12, *, codec: str = "libx264", noise: bool = False) -> Path:
    size = (64, 48)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(n_frames):
            picture = np.full((size[1], size[0], 3), 20 * number % 256, dtype=np.uint8)
            if noise:
                picture = np.random.default_rng(number).integers(0, 255, picture.shape, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_gif(path: Path, n_frames: int = 5) -> Path:
    frames = [Image.new("RGB", (20, 10), (50 * n, 0, 0)) for n in range(n_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def frames_of(source: VideosSource, number: int = 0, **kwargs: object) -> list[object]:
    return list(source.read_frames(source.scan().videos[number], **kwargs))  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mpeg4"), (".mov", "libx264")])
def test_a_video_file_gives_exactly_its_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    write_video(tmp_path / f"clip{suffix}", 12, codec=codec)
    source = VideosSource(tmp_path)
    video = source.scan().videos[0]
    assert (video.id, video.split, video.n_frames, video.fps) == ("clip", "", 12, 20.0)
    assert (video.width, video.height) == (64, 48)
    assert video.frame_paths[11] == f"clip{suffix}#11"
    frames = list(source.read_frames(video))
    assert len(frames) == 12
    assert all(isinstance(f, np.ndarray) and f.shape == (48, 64, 3) and f.dtype == np.uint8 for f in frames)
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
    assert (video.id, video.frame_paths) == ("walk", ("walk/1.jpg", "walk/2.jpg", "walk/3.jpg", "walk/10.jpg"))
    assert [isinstance(f, FrameError) for f in frames_of(VideosSource(tmp_path))] == [False, False, True, False]


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


def test_files_that_differ_only_in_suffix_keep_it(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 2)
    write_video(tmp_path / "a.avi", 2, codec="mpeg4")
    assert [v.id for v in VideosSource(tmp_path).scan().videos] == ["a.avi", "a.mp4"]


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
    with pytest.raises(InvalidError, match=r"no videos in .*; looked for folders of pictures and for \.avi"):
        VideosSource(tmp_path).scan()
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="is a file"):
        VideosSource(tmp_path / "file").scan()


def test_sources_pickle(tmp_path: Path) -> None:
    source = VideosSource(tmp_path, splits=("dev",))
    assert pickle.loads(pickle.dumps(source)) == source
