"""Any folder of video files, or of folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from kpstore.errors import InvalidError, NotFoundError
from kpstore.options import Option
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Frame, FrameError, Listing
from kpstore.sources.containers import cut_off
from kpstore.sources.images import image_size, is_image, natural_key, read_images, same_number
from kpstore.sources.rates import rate_of
from kpstore.sources.selection import (
    MaxVideos,
    Splits,
    check_splits,
    complete_source,
    part_of,
    selected,
)
from kpstore.sources.video_files import (
    decoded,
    opened,
    orientation_of,
    read_file,
    timeline,
    videos_of,
)

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ogv", ".gif"}
    | {".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"}
)
SPLIT_NAMES = frozenset({"train", "training", "dev", "val", "valid", "validation", "test"})


@dataclass(frozen=True)
class VideosSource:
    """Video files and folders of pictures below a folder.

    If a folder directly below ``root`` is called train, dev, val, test or the like, such folders
    are the splits, and all other videos have the split ``""``. A video's id is its path without
    suffix; a folder of pictures is a video. Links to folders are followed. Two files with the same
    id are a problem, and so is what cannot be read.

    Parameters
    ----------
    root : the folder.
    splits : only these.
    max_videos_per_split : only the first ones of each split, in the order of their ids.
    """

    summary: ClassVar[str] = (
        "Extract features from video files and folders of pictures.\n\n"
        "Folders named train, dev, test and the like are splits."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "kpstore ingest videos CLIPS clips.kps",
        "kpstore ingest videos CLIPS clips.kps --mode video --workers 8",
    )

    root: Annotated[Path, Option("Folder of videos.", "DIR", argument=True)]
    splits: Splits = None
    max_videos_per_split: MaxVideos = None

    def __post_init__(self) -> None:
        complete_source(self, "root")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.resolve().name

    @property
    def provenance(self) -> Mapping[str, object]:
        """Which folder, and which part of it."""
        return {"kind": "videos", **part_of(self)}

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos; a file that cannot be opened is a problem."""
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise NotFoundError(f"no folder of videos at {self.root}: it {what}")
        found, problems = _find(self.root)
        if not found and not problems:
            raise InvalidError(
                f"no videos in {self.root}; looked for folders of pictures and for "
                f"{', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        videos: list[VideoRecord] = []
        notes: list[str] = []
        check_splits(self.splits, sorted({entry.split for entry in found}), self.root)
        for entry in selected(self, found, lambda entry: entry.split):
            try:
                videos.append(_describe(self.root, entry, problems, notes))
            except InvalidError as error:
                problems.append(str(error))
            if on_video is not None:
                on_video(len(videos))
        return Listing(tuple(videos), tuple(problems), tuple(notes))

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Frame]:
        """Yield the frames of a video; see :class:`kpstore.sources.base.Source`.

        A file that ends early gives errors for the frames that are not there.

        Raises
        ------
        InvalidError
            If a file holds more frames than it had when it was listed.
        """
        file = video.frame_paths[0].rpartition("#")[0] if video.frame_paths else ""
        if PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES:
            return read_file(self.root, file, video, skip)
        return read_images(self.root, video.frame_paths, skip)


@dataclass(frozen=True)
class _Entry:
    """A video file (``files`` empty) or a folder of pictures, relative to the root."""

    path: str
    id: str
    split: str
    files: tuple[str, ...] = field(default=(), repr=False)


def _find(root: Path) -> tuple[list[_Entry], list[str]]:
    """Return all videos below a folder, by split and id, and its problems, one line each."""
    raw: list[tuple[str, tuple[str, ...]]] = []
    problems: list[str] = []
    for prefix, names in _walk(root, problems):
        raw += [(prefix + name, ()) for name in names if is_video(name)]
        pictures = tuple(sorted((name for name in names if is_image(name)), key=natural_key))
        if pictures:
            problems += same_number(prefix, pictures)
            raw.append((prefix.rstrip("/") or ".", pictures))
    has_splits = any(path.split("/")[0].lower() in SPLIT_NAMES for path, _ in raw)
    entries: dict[str, _Entry] = {}
    for path, files in sorted(raw):
        if not path.isprintable() or not _is_text("".join((path, *files))):
            problems.append(f"{path!r}: rename it: names have to be text that can be printed")
            continue
        stem = path if files else str(PurePosixPath(path).with_suffix(""))
        video_id = root.resolve().name if stem == "." else stem
        if video_id in entries:
            problems.append(
                f"{path} and {entries[video_id].path} would both be video {video_id!r}; rename one"
            )
            continue
        top = path.split("/")[0]
        split = top if has_splits and top.lower() in SPLIT_NAMES and (files or "/" in path) else ""
        entries[video_id] = _Entry(path, video_id, split, files)
    ordered = sorted(entries.values(), key=lambda entry: (entry.split, natural_key(entry.id)))
    return ordered, problems


def _walk(root: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below ``root``, as a prefix for what is in it, with its files.

    Links are followed once.
    """
    seen: set[str] = set()

    def refused(error: OSError) -> None:
        problems.append(f"{error.filename}: {error.strerror}")

    for folder, below, names in os.walk(root, followlinks=True, onerror=refused):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        relative = Path(folder).relative_to(root).as_posix()
        yield ("" if relative == "." else f"{relative}/"), names


def is_video(name: str) -> bool:
    """Whether a file's name says that it is a video."""
    # Names that begin with a dot are other systems' notes, such as ._clip.mp4, and not videos.
    return Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _is_text(name: str) -> bool:
    return name == name.encode("utf-8", "ignore").decode("utf-8")


def _describe(root: Path, entry: _Entry, problems: list[str], notes: list[str]) -> VideoRecord:
    if entry.files:
        width, height = image_size(root / entry.path / entry.files[0])
        prefix = "" if entry.path == "." else f"{entry.path}/"
        return VideoRecord(
            entry.id,
            entry.split,
            tuple(prefix + name for name in entry.files),
            width=width,
            height=height,
        )
    with opened(root, entry.path) as (container, stream):
        header = float(stream.average_rate or stream.guessed_rate or np.nan)
        width, height = _upright_size(entry.path, container, stream, notes)
    line = timeline(root, entry.path)
    if not line.n_frames:
        raise InvalidError(f"{entry.path}: holds no frames")
    if line.n_frames < line.n_announced:
        problems.append(
            f"{entry.path}: ends after {line.n_frames} of {line.n_announced} frames; copy it again"
        )
    elif short := cut_off(root / entry.path):
        problems.append(f"{entry.path}: ends {short}; copy it again")
    rate = rate_of(header, line.times_s, line.tick_s)
    if rate.note:
        notes.append(f"{entry.path}: {rate.note}")
    if line.restarts:
        notes.append(
            f"{entry.path}: its frames' times start again, as in files that were joined; they are "
            "counted as they come, and their rate is the header's"
        )
    paths = tuple(f"{entry.path}#{number}" for number in range(line.n_frames))
    return VideoRecord(entry.id, entry.split, paths, rate.fps, width, height)


def _upright_size(
    path: str, container: av.container.InputContainer, stream: VideoStream, notes: list[str]
) -> tuple[int, int]:
    """Return width and height of a video's frames as they are read."""
    first = next(
        (frame for frame in decoded(container, stream) if not isinstance(frame, FrameError)), None
    )
    if first is None:
        return stream.width, stream.height
    orientation, exact = orientation_of(first)
    if not exact:
        notes.append(
            f"{path}: is to be shown turned by part of a quarter; it is read in the nearest whole "
            "one"
        )
    if (n_streams := len(videos_of(container))) > 1:
        notes.append(
            f"{path}: holds {n_streams} video streams; the first, {first.width} x {first.height}, "
            "is read"
        )
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        notes.append(
            f"{path}: its pixels are not square ({aspect.numerator}:{aspect.denominator}); it is "
            "read as stored, without stretching"
        )
    return orientation.size(first.width, first.height)
