"""Videos that are already listed, as in a store; only their frames are searched for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kpstore.errors import NotFoundError
from kpstore.schema.face_features import FACE_PATH
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Frame, Listing
from kpstore.sources.images import read_image
from kpstore.sources.lips import read_utterance
from kpstore.sources.videos import VideosSource


@dataclass(frozen=True)
class ListedSource:
    """A list of videos: pictures, frames of files (``clip.mp4#7``) or crops (``x.npz#7``).

    Parameters
    ----------
    root : what their paths are relative to; absolute ones are used as they are.
    videos : what to list; empty on workers, which get each video with its task.
    name : of the data set.
    """

    root: Path
    videos: tuple[VideoRecord, ...] = field(default=(), repr=False)
    name: str = "videos"

    def __post_init__(self) -> None:
        # Workers may run in another folder.
        object.__setattr__(self, "root", Path(self.root).absolute())

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "videos": (), "name": self.name}

    @property
    def provenance(self) -> Mapping[str, object]:
        """The kind of source."""
        return {"kind": "listed"}

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos; one whose first frame does not exist is a problem.

        Raises
        ------
        NotFoundError
            If no video exists in ``root``: its paths are relative to another folder.
        """
        there = [video for video in self.videos if self._is_there(video)]
        if self.videos and not there:
            first = next(
                self._file(video.frame_paths[0]) for video in self.videos if video.frame_paths
            )
            raise NotFoundError(
                f"none of the {len(self.videos)} videos is in {self.root}: no {first}; say with "
                "--root what its paths are relative to"
            )
        known = {video.id for video in there}
        if on_video is not None:
            on_video(len(there))
        missing = (video for video in self.videos if video.id not in known)
        return Listing(
            tuple(there), tuple(f"{self._file(v.frame_paths[0])}: no such file" for v in missing)
        )

    def _is_there(self, video: VideoRecord) -> bool:
        return not video.frame_paths or self._file(video.frame_paths[0]).is_file()

    def _file(self, path: str) -> Path:
        name, sign, number = path.rpartition("#")
        return self.root / (name if sign and number.isdecimal() else path)

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Frame]:
        """Yield the frames of a video; see :class:`kpstore.sources.base.Source`."""
        first = self._file(video.frame_paths[0]) if video.frame_paths else Path()
        if first.suffix.lower() == ".npz":
            yield from read_utterance(first, video.n_frames, skip)
        else:
            yield from VideosSource(self.root).read_frames(video, skip=skip)

    def read_reference(self, video: VideoRecord) -> Frame | None:
        """Return a person's frontal picture, if the video has one.

        See :class:`kpstore.sources.faces.FacesSource`.
        """
        path = video.annotations.get(FACE_PATH, "")
        return read_image(self.root / path) if path else None
