"""Persons with frontal pictures: how they are paired, paths, and problems."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from kpstore.errors import InvalidError, NotFoundError
from kpstore.sources.base import FrameError
from kpstore.sources.faces import FacesSource
from kpstore.sources.images import image_size, read_image
from tests.sources.test_videos import write_video


def paint(path: Path, value: int = 100, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def people(root: Path, *names: str) -> Path:
    """Two pictures of each person, and a frontal one."""
    for number, name in enumerate(names, start=1):
        for frame in (10, 9):
            paint(root / "persons" / name / f"f{frame}.png", 20 * number + frame)
        paint(root / "fronts" / f"{name}.png", 200 + number)
    return root


def source(root: Path, **options: Any) -> FacesSource:
    return FacesSource(root / "persons", root / "fronts", **options)


def test_a_person_is_a_video_with_a_frontal_picture(tmp_path: Path) -> None:
    found = source(people(tmp_path, "anna", "Bert Müller"))
    listing = found.scan()
    assert listing.problems == ()
    bert, anna = listing.videos
    assert (anna.id, bert.id, anna.split) == ("anna", "Bert Müller", "")
    assert anna.frame_paths == ("persons/anna/f9.png", "persons/anna/f10.png")
    assert anna.annotations["face_image_path"] == "fronts/anna.png"
    assert [frame[0, 0, 0] for frame in found.read_frames(anna)] == [29, 30]
    reference = found.read_reference(anna)
    assert isinstance(reference, np.ndarray)
    assert (reference.shape, reference[0, 0, 0]) == ((6, 8, 3), 201)
    assert found.provenance == {
        "kind": "faces",
        "video_dir": "persons",
        "face_dir": "fronts",
        "splits": None,
        "max_videos_per_split": None,
    }


def test_names_in_two_folders_may_differ_in_their_form_of_unicode(tmp_path: Path) -> None:
    people(tmp_path, "Müller")
    fronts = tmp_path / "fronts"
    (fronts / "Müller.png").rename(fronts / "Mu\u0308ller.png")
    listing = source(tmp_path).scan()
    assert listing.problems == ()
    assert listing.videos[0].annotations["face_image_path"] == "fronts/Mu\u0308ller.png"


def test_paths_are_relative_to_the_base_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = people(tmp_path / "home", "anna")
    monkeypatch.chdir(tmp_path)
    anna = FacesSource(Path("home/persons"), Path("home/fronts"), tmp_path).scan().videos[0]
    assert anna.frame_paths[0] == "home/persons/anna/f9.png"
    assert anna.annotations["face_image_path"] == "home/fronts/anna.png"
    with pytest.raises(
        InvalidError,
        match=r"fronts does not lie in the base directory .*persons; give one that holds",
    ):
        source(home, base_dir=home / "persons")


def test_what_is_missing_spare_or_double_is_a_problem(tmp_path: Path) -> None:
    root = people(tmp_path, "anna", "bert", "carl")
    (root / "fronts" / "bert.png").unlink()
    paint(root / "fronts" / "dora.jpg")
    paint(root / "fronts" / "carl.jpg")
    listing = source(root).scan()
    assert [video.id for video in listing.videos] == ["anna", "carl"]
    told = "\n".join(listing.problems)
    assert len(listing.problems) == 3
    assert (
        f"person 'bert' has no frontal picture {root / 'fronts' / 'bert'}.jpg (or .png, …)" in told
    )
    assert f"{root / 'fronts' / 'dora.jpg'}: no video of this person" in told
    assert (
        f"{root / 'fronts' / 'carl.png'} and carl.jpg are both of person 'carl'; remove one" in told
    )
    assert listing.videos[1].annotations["face_image_path"] == "fronts/carl.jpg"


@pytest.mark.parametrize("in_splits", [True, False])
def test_pictures_lie_in_folders_of_splits_or_not(tmp_path: Path, in_splits: bool) -> None:
    root = people(tmp_path, "train/anna", "train/bert", "test/carl")
    if not in_splits:
        for path in list((root / "fronts").rglob("*.png")):
            path.rename(root / "fronts" / path.name)
    listing = source(root).scan()
    assert listing.problems == ()
    assert {video.id: video.split for video in listing.videos} == {
        "test/carl": "test",
        "train/anna": "train",
        "train/bert": "train",
    }
    some = source(root, splits=("train",), max_videos_per_split=1).scan()
    assert ([video.id for video in some.videos], some.problems) == (["train/anna"], ())
    with pytest.raises(NotFoundError, match="split 'dev' not found"):
        source(root, splits=("dev",)).scan()


def test_a_person_may_be_a_video_file(tmp_path: Path) -> None:
    root = people(tmp_path, "anna")
    write_video(root / "persons" / "bert.mp4", n_frames=3)
    paint(root / "fronts" / "bert.png")
    found = source(root)
    bert = next(video for video in found.scan().videos if video.id == "bert")
    assert bert.frame_paths[-1] == "persons/bert.mp4#2"
    assert sum(isinstance(frame, np.ndarray) for frame in found.read_frames(bert)) == 3
    errors = [frame for frame in found.read_frames(bert, skip={1}) if isinstance(frame, FrameError)]
    assert [error.reason for error in errors] == ["left out"]


def test_a_picture_that_cannot_be_read_is_named_when_it_is_needed(tmp_path: Path) -> None:
    root = people(tmp_path, "anna")
    (root / "fronts" / "anna.png").write_bytes(b"no picture")
    found = source(root)
    (anna,) = found.scan().videos
    assert "not a picture" in found.read_reference(anna).reason
    (root / "fronts" / "anna.png").unlink()
    assert found.read_reference(anna) == FrameError("no such file")


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    root = people(tmp_path, "anna")
    with pytest.raises(NotFoundError, match=r"no folder of frontal pictures at .*nowhere"):
        FacesSource(root / "persons", root / "nowhere").scan()
    with pytest.raises(NotFoundError, match=r"no folder of videos at .*nowhere: it does not exist"):
        FacesSource(root / "nowhere", root / "fronts").scan()
    (root / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no frontal pictures in .*empty; looked for .*\.jpg"):
        FacesSource(root / "persons", root / "empty").scan()


def test_workers_elsewhere_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people(tmp_path, "anna")
    monkeypatch.chdir(tmp_path)
    found = FacesSource(Path("persons"), Path("fronts"))
    (anna,) = found.scan().videos
    other = pickle.loads(pickle.dumps(found))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert other == found
    np.testing.assert_array_equal(other.read_reference(anna), found.read_reference(anna))
    assert all(isinstance(frame, np.ndarray) for frame in other.read_frames(anna))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_as_their_camera_says(tmp_path: Path, orientation: int) -> None:
    """A picture that is stored turned reads as the upright one (EXIF 2.3, row and column 0)."""
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # a bright corner at the upper left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == (40, 24)


def test_an_orientation_that_means_nothing_changes_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    Image.new("RGB", (5, 3)).save(tmp_path / "odd.png", exif=exif)
    assert read_image(tmp_path / "odd.png").shape == (3, 5, 3)
    assert image_size(tmp_path / "odd.png") == (5, 3)
