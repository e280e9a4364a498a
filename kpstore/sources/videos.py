"""Any folder of video files, or of folders of pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Listing
from kpstore.sources.images import image_size, is_image, natural_key, read_image

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".gif", ".mpg", ".mpeg"})
SPLIT_NAMES = frozenset({"train", "training", "dev", "val", "valid", "validation", "test"})


@dataclass(frozen=True)
class VideosSource:
    """Video files and folders of pictures below a folder.

    If a folder directly below ``root`` is called train, dev, val, test or the like, these folders are the splits, and
    what lies elsewhere has the split ``""``. A video's id is its path without suffix; a folder of pictures is a video.

    Parameters
    ----------
    root : the folder.
    splits : only these.
    max_videos_per_split : only the first ones of each split, in the order of their ids.
    """

    root: Path
    splits: tuple[str, ...] | None = None
    max_videos_per_split: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).absolute())  # workers may work in another folder
        if self.splits is not None:
            object.__setattr__(self, "splits", tuple(self.splits))
        if self.max_videos_per_split is not None and self.max_videos_per_split < 1:
            raise InvalidError(f"max_videos_per_split is {self.max_videos_per_split}; it must be at least 1")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.resolve().name

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Which folder, and which part of it."""
        splits = None if self.splits is None else list(self.splits)
        return {"kind": "videos", "splits": splits, "max_videos_per_split": self.max_videos_per_split}

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos; a file that cannot be opened is a problem."""
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise NotFoundError(f"no folder of videos at {self.root}: it {what}")
        found = _find(self.root)
        if not found:
            raise InvalidError(
                f"no videos in {self.root}; looked for folders of pictures and for {', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        videos: list[VideoRecord] = []
        problems: list[str] = []
        for entry in self._chosen(found):
            try:
                videos.append(_describe(self.root, entry))
            except InvalidError as error:
                problems.append(str(error))
            if on_video is not None:
                on_video(len(videos))
        return Listing(tuple(videos), tuple(problems))

    def _chosen(self, found: list[_Entry]) -> list[_Entry]:
        there = {entry.split for entry in found}
        unknown = [split for split in self.splits or () if split not in there]
        if unknown:
            raise NotFoundError(f"split {unknown[0]!r} not found in {self.root}; there are {sorted(there)}")
        count: Counter[str] = Counter()
        chosen = []
        for entry in found:
            if self.splits is not None and entry.split not in self.splits:
                continue
            count[entry.split] += 1
            if self.max_videos_per_split is None or count[entry.split] <= self.max_videos_per_split:
                chosen.append(entry)
        return chosen

    def read_frames(
        self, video: VideoRecord, *, skip: Collection[int] = ()
    ) -> Iterator[NDArray[np.uint8] | FrameError]:
        """Yield the frames of a video; see :class:`kpstore.sources.base.Source`.

        A file that ends early gives errors for the frames that are not there.

        Raises
        ------
        InvalidError
            If a file holds more frames than it had when it was listed.
        """
        first = video.frame_paths[0] if video.frame_paths else ""
        if "#" in PurePosixPath(first).name:
            yield from _read_file(self.root, first.rpartition("#")[0], video, skip)
            return
        for number, path in enumerate(video.frame_paths):
            yield FrameError("left out") if number in skip else read_image(self.root / path)


@dataclass(frozen=True)
class _Entry:
    """A video file (``files`` empty) or a folder of pictures, relative to the root."""

    path: str
    id: str
    split: str
    files: tuple[str, ...] = field(default=(), repr=False)


def _find(root: Path) -> list[_Entry]:
    """Return all videos below a folder, split by split, by id; links to folders are not followed."""
    raw: list[tuple[str, tuple[str, ...]]] = []
    for folder, _, names in os.walk(root):
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        raw += [(prefix + name, ()) for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
        pictures = tuple(sorted((name for name in names if is_image(name)), key=natural_key))
        if pictures:
            raw.append((relative, pictures))
    stems = Counter(_stem(path, files) for path, files in raw)
    has_splits = any(path.split("/")[0].lower() in SPLIT_NAMES for path, _ in raw)
    entries = []
    for path, files in raw:
        # Two files that differ only in suffix keep it, so that ids stay unique.
        video_id = path if stems[_stem(path, files)] > 1 else _stem(path, files)
        top = path.split("/")[0]
        split = top if has_splits and top.lower() in SPLIT_NAMES and (files or "/" in path) else ""
        entries.append(_Entry(path, root.resolve().name if video_id == "." else video_id, split, files))
    return sorted(entries, key=lambda entry: (entry.split, natural_key(entry.id)))


def _stem(path: str, files: tuple[str, ...]) -> str:
    return path if files else str(PurePosixPath(path).with_suffix(""))


def _describe(root: Path, entry: _Entry) -> VideoRecord:
    if entry.files:
        width, height = image_size(root / entry.path / entry.files[0])
        prefix = "" if entry.path == "." else f"{entry.path}/"
        return VideoRecord(
            entry.id, entry.split, tuple(prefix + name for name in entry.files), width=width, height=height
        )
    with _opened(root, entry.path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or np.nan)
        width, height = stream.width, stream.height
        if _quarter_turns(next(_decoded(container, stream), None)) % 2:
            width, height = height, width
        container.seek(0)
        n_frames = _count_frames(container, stream)
    if n_frames == 0:
        raise InvalidError(f"{entry.path}: holds no frames")
    paths = tuple(f"{entry.path}#{number}" for number in range(n_frames))
    return VideoRecord(entry.id, entry.split, paths, fps, width, height)


class _opened:
    """A container and its first video stream; whatever is wrong with the file is one line."""

    def __init__(self, root: Path, path: str) -> None:
        self._root, self._path = root, path

    def __enter__(self) -> tuple[av.container.InputContainer, VideoStream]:
        try:
            import av
        except ImportError:
            raise MissingExtraError(f"reading {self._path}", extra="video") from None
        try:
            self._container = av.open(str(self._root / self._path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidError(f"{self._path}: cannot be opened as a video ({reason})") from None
        if not self._container.streams.video:
            self._container.close()
            raise InvalidError(f"{self._path}: holds no video stream")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        return self._container, stream

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _count_frames(container: av.container.InputContainer, stream: VideoStream) -> int:
    """Return the number of frames, from the packets; if the file itself says otherwise, by decoding."""
    from av.error import FFmpegError

    try:
        packets = sum(1 for packet in container.demux(stream) if packet.size)
    except FFmpegError:
        packets = -1
    if packets > 0 and stream.frames in (0, packets):
        return packets
    container.seek(0)
    return sum(1 for frame in _decoded(container, stream) if not isinstance(frame, FrameError))


def _decoded(container: av.container.InputContainer, stream: VideoStream) -> Iterator[Any]:
    """Yield decoded frames; what cannot be decoded is an error in its place, and decoding goes on behind it."""
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except FFmpegError:
            return
        try:
            yield from packet.decode()
        except FFmpegError as error:
            yield FrameError(str(error))


def _quarter_turns(frame: Any) -> int:
    """Return by how many quarters, counter-clockwise, a picture must be turned to stand upright.

    Phones film sideways and say so in the stream's display matrix, which PyAV gives with every frame.
    """
    return round(float(getattr(frame, "rotation", 0) or 0) / 90.0) % 4


def _read_file(
    root: Path, path: str, video: VideoRecord, skip: Collection[int]
) -> Iterator[NDArray[np.uint8] | FrameError]:
    number = 0
    with _opened(root, path) as (container, stream):
        for frame in _decoded(container, stream):
            if number == video.n_frames:
                raise InvalidError(
                    f"{path}: holds more than the {video.n_frames} frames that it announces; re-encode it"
                )
            if number in skip:
                yield FrameError("left out")
            else:
                yield frame if isinstance(frame, FrameError) else _upright(frame)
            number += 1
    for _ in range(number, video.n_frames):
        yield FrameError(f"the file ends after {number} of {video.n_frames} frames")


def _upright(frame: Any) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    turns = _quarter_turns(frame)
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
