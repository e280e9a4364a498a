"""The frames of videos that a store lists: found again, read as whoever listed them would."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError
from kpstore.sources.lips import LipsSource
from kpstore.sources.listed import ListedSource
from kpstore.sources.videos import VideosSource
from tests.sources.test_videos import write_video


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures, a video file, mouth crops."""
    home = tmp_path / "home"
    (home / "clips" / "a").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 6), (10 * number, 0, 0)).save(home / "clips" / "a" / f"f{number}.png")
    write_video(home / "clips" / "b.mp4", n_frames=4)
    crops = np.random.default_rng(0).integers(0, 256, (2, 96, 96), dtype=np.uint8)
    (home / "mouths").mkdir()
    np.savez(home / "mouths" / "c.npz", data=crops)
    return home


def videos(root: Path) -> tuple[VideoRecord, ...]:
    """All of them, with paths relative to the root."""
    clips = VideosSource(root / "clips").scan().videos
    moved = [
        VideoRecord(
            v.id,
            v.split,
            tuple(f"clips/{path}" for path in v.frame_paths),
            v.fps,
            v.width,
            v.height,
        )
        for v in clips
    ]
    mouth = VideoRecord("c", "", tuple(f"mouths/c.npz#{number}" for number in range(2)))
    return (*moved, mouth)


def test_frames_are_those_that_other_sources_read(root: Path) -> None:
    listed = ListedSource(root, videos(root))
    listing = listed.scan()
    assert [video.id for video in listing.videos] == ["a", "b", "c"]
    assert listing.problems == ()
    a, b, c = listing.videos
    assert [frame[0, 0, 0] for frame in listed.read_frames(a)] == [0, 10, 20]
    (own,) = LipsSource(root / "mouths").scan().videos
    crops = zip(listed.read_frames(c), LipsSource(root / "mouths").read_frames(own), strict=True)
    assert all(np.array_equal(one, other) for one, other in crops)
    frames = list(listed.read_frames(b, skip={2}))
    assert [isinstance(frame, FrameError) for frame in frames] == [False, False, True, False]
    assert frames[0].shape == (b.height, b.width, 3)


def test_absolute_paths_are_used_as_they_are(root: Path, tmp_path: Path) -> None:
    video = VideoRecord(
        "a", "", tuple(str(root / "clips" / "a" / f"f{number}.png") for number in range(3))
    )
    mouth = VideoRecord("c", "", tuple(f"{root}/mouths/c.npz#{number}" for number in range(2)))
    listed = ListedSource(tmp_path / "elsewhere", (video, mouth))
    assert len(listed.scan().videos) == 2
    assert [frame[0, 0, 0] for frame in listed.read_frames(video)] == [0, 10, 20]
    assert next(listed.read_frames(mouth)).shape == (96, 96)


def test_a_sign_in_a_name_is_no_number(root: Path) -> None:
    (root / "clips" / "a" / "f0.png").rename(root / "clips" / "a" / "take#one.png")
    listed = ListedSource(root, (VideoRecord("a", "", ("clips/a/take#one.png",)),))
    assert listed.scan().problems == ()
    assert next(listed.read_frames(listed.videos[0])).shape == (6, 8, 3)


def test_a_wrong_root_is_one_error_and_a_video_that_is_gone_a_problem(root: Path) -> None:
    with pytest.raises(
        NotFoundError,
        match=r"none of the 3 videos is in .*clips: no .*clips/clips/a/f0\.png; .*--root",
    ):
        ListedSource(root / "clips", videos(root)).scan()
    with pytest.raises(NotFoundError, match=r"no .*clips/mouths/c\.npz; "):
        ListedSource(root / "clips", videos(root)[2:]).scan()
    (root / "clips" / "b.mp4").unlink()
    (root / "mouths" / "c.npz").unlink()
    listing = ListedSource(
        root, videos=(*videos(root)[:1], VideoRecord("b", "", ("clips/b.mp4#0",)), videos(root)[-1])
    )
    found = listing.scan()
    assert [video.id for video in found.videos] == ["a"]
    assert found.problems == (
        f"{root}/clips/b.mp4: no such file",
        f"{root}/mouths/c.npz: no such file",
    )


def test_a_video_without_frames_needs_no_file(root: Path) -> None:
    listed = ListedSource(root, (VideoRecord("none", "", ()),))
    assert [video.id for video in listed.scan().videos] == ["none"]
    assert list(listed.read_frames(listed.videos[0])) == []


def test_crops_that_changed_are_refused_and_damaged_ones_are_errors(root: Path) -> None:
    mouth = videos(root)[-1]
    np.savez(root / "mouths" / "c.npz", data=np.zeros((3, 96, 96), np.uint8))
    with pytest.raises(InvalidError, match=r"c\.npz: holds 3 frames, and had 2"):
        list(ListedSource(root, (mouth,)).read_frames(mouth))
    (root / "mouths" / "c.npz").write_bytes(b"PK\x03\x04")
    assert {type(frame) for frame in ListedSource(root, (mouth,)).read_frames(mouth)} == {
        FrameError
    }


def test_the_frontal_picture_comes_with_the_person(root: Path) -> None:
    Image.new("RGB", (5, 4), (99, 0, 0)).save(root / "anna.png")
    person = VideoRecord("a", "", ("clips/a/f0.png",), annotations={"face_image_path": "anna.png"})
    listed = ListedSource(root, (person,))
    assert listed.read_reference(person)[0, 0, 0] == 99
    assert listed.read_reference(videos(root)[0]) is None
    gone = VideoRecord("a", "", ("clips/a/f0.png",), annotations={"face_image_path": "gone.png"})
    assert listed.read_reference(gone) == FrameError("no such file")


def test_workers_get_it_without_its_list(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(root)
    listed = ListedSource(Path(), videos(root), "mine")
    sent = pickle.dumps(listed)
    assert b"f1.png" not in sent
    monkeypatch.chdir(tmp_path)
    other = pickle.loads(sent)
    assert (other.name, other.root, other.provenance) == ("mine", root, {"kind": "listed"})
    assert [frame[0, 0, 0] for frame in other.read_frames(videos(root)[0])] == [0, 10, 20]
