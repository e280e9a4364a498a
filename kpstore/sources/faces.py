"""Persons: a video of each, and one frontal picture of each face."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from kpstore.errors import InvalidError, NotFoundError
from kpstore.options import Option
from kpstore.schema.face_features import FACE_PATH
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Frame, Listing
from kpstore.sources.images import IMAGE_SUFFIXES, is_image, read_image
from kpstore.sources.selection import MaxVideos, Splits
from kpstore.sources.videos import VideosSource
from kpstore.user_files import spellings


@dataclass(frozen=True)
class FacesSource:
    """Videos of persons in one folder, a frontal picture of each in another.

    ``VIDEOS/anna/*.jpg`` (or ``VIDEOS/anna.mp4``) belongs to ``FACES/anna.jpg``; a person's id is
    that name, as :class:`~kpstore.sources.videos.VideosSource` gives it. Where videos lie in
    folders of splits, pictures may lie in such or not. A person without a picture, and a picture
    without a person, is a problem.

    Parameters
    ----------
    video_dir, face_dir : the folders.
    base_dir : what stored paths are relative to, a folder that holds both; by default the deepest
        one that does.
    splits, max_videos_per_split : only these splits, only the first videos of each.
    """

    summary: ClassVar[str] = (
        "Extract faces of persons: landmarks, angles relative to a frontal picture, DINOv2."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "kpstore ingest faces --video-dir persons --face-dir fronts faces.kps",
        "kpstore ingest faces --video-dir persons --face-dir fronts faces.kps "
        "--dinov2-model dinov2_vits14 --weights VITS14",
        "kpstore ingest faces --video-dir persons --face-dir fronts faces.kps "
        "--formula json --gpus 2",
    )
    recipe: ClassVar[str] = "faces"

    video_dir: Annotated[Path, Option("A folder of pictures, or a video, of each person.", "DIR")]
    face_dir: Annotated[Path, Option("Folder with a frontal picture PERSON.jpg of each.", "DIR")]
    base_dir: Annotated[
        Path | None,
        Option(
            "Folder that stored paths are relative to; by default that of the store, if it holds "
            "all pictures.",
            "DIR",
        ),
    ] = None
    splits: Splits = None
    max_videos_per_split: MaxVideos = None

    def __post_init__(self) -> None:
        for name in ("video_dir", "face_dir", "base_dir"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(os.path.abspath(getattr(self, name))))
        for folder in (self.video_dir, self.face_dir):
            if not folder.is_relative_to(self._base):
                raise InvalidError(
                    f"{folder} does not lie in the base directory {self._base}; give one that "
                    "holds it"
                )

    @property
    def _base(self) -> Path:
        return self.base_dir or Path(os.path.commonpath([self.video_dir, self.face_dir]))

    def for_store(self, location: str) -> FacesSource:
        """Return this source, its paths relative to a store's folder if that holds all pictures.

        If ``base_dir`` was given, it stays.
        """
        folder = Path(location).absolute().parent
        held = all(place.is_relative_to(folder) for place in (self.video_dir, self.face_dir))
        return replace(self, base_dir=folder) if held and self.base_dir is None else self

    @property
    def _videos(self) -> VideosSource:
        return VideosSource(self.video_dir, self.splits, self.max_videos_per_split)

    @property
    def name(self) -> str:
        """Name of the folder of videos."""
        return self._videos.name

    @property
    def provenance(self) -> Mapping[str, object]:
        """Which folders, relative to the one that paths are relative to, and which part of them."""
        folders = (self.video_dir, self.face_dir)
        videos, faces = (folder.relative_to(self._base).as_posix() for folder in folders)
        return {**self._videos.provenance, "kind": "faces", "video_dir": videos, "face_dir": faces}

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the persons that have a picture; see :class:`kpstore.sources.base.Source`."""
        if not self.face_dir.is_dir():
            raise NotFoundError(f"no folder of frontal pictures at {self.face_dir}")
        listing = self._videos.scan(on_video)
        pictures, problems = self._pictures()
        videos, used, spelled = [], set(), spellings(pictures)
        for video in listing.videos:
            key = spelled(video.id)
            if key not in pictures:
                key = spelled(video.id.removeprefix(f"{video.split}/"))
            if key in pictures:
                used.add(key)
                videos.append(self._person(video, pictures[key]))
            else:
                problems.append(
                    f"person {video.id!r} has no frontal picture {self.face_dir / video.id}.jpg "
                    "(or .png, …)"
                )
        if self.splits is None and self.max_videos_per_split is None:
            spare = [pictures[key] for key in pictures if key not in used]
            problems += [
                f"{picture}: no video of this person is in {self.video_dir}" for picture in spare
            ]
        return Listing(tuple(videos), (*listing.problems, *problems), listing.notes)

    def _pictures(self) -> tuple[dict[str, Path], list[str]]:
        """Return the frontal pictures by person; of two for one person the first, and a problem."""
        found: dict[str, Path] = {}
        problems = []
        for path in sorted(self.face_dir.rglob("*")):
            if is_image(path.name) and path.is_file():
                key = path.relative_to(self.face_dir).with_suffix("").as_posix()
                if key in found:
                    problems.append(
                        f"{path} and {found[key].name} are both of person {key!r}; remove one"
                    )
                found.setdefault(key, path)
        if not found:
            raise NotFoundError(
                f"no frontal pictures in {self.face_dir}; looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found, problems

    def _person(self, video: VideoRecord, picture: Path) -> VideoRecord:
        folder = self.video_dir.relative_to(self._base).as_posix()
        prefix = "" if folder == "." else f"{folder}/"
        paths = tuple(prefix + path for path in video.frame_paths)
        face = picture.relative_to(self._base).as_posix()
        return replace(video, frame_paths=paths, annotations={**video.annotations, FACE_PATH: face})

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Frame]:
        """Yield the frames of a person's video; see :class:`kpstore.sources.base.Source`."""
        return VideosSource(self._base).read_frames(video, skip=skip)

    def read_reference(self, video: VideoRecord) -> Frame:
        """Return a person's frontal picture, (height, width, 3) uint8 RGB, or an error."""
        return read_image(self._base / video.annotations[FACE_PATH])
