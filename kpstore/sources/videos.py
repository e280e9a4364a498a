"""Any folder of video files, or of folders of pictures."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from kpstore.options import Option
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import LEFT_OUT, Frame, FrameError, Listing
from kpstore.sources.containers import cut_off
from kpstore.sources.images import image_size, is_image, natural_key, read_images, same_number
from kpstore.sources.orientation import Orientation, from_display_matrix, read_display_matrix
from kpstore.sources.rates import rate_of
from kpstore.sources.selection import (
    MaxVideos,
    Splits,
    check_splits,
    complete_source,
    part_of,
    selected,
)
from kpstore.user_files import check_regular

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".ogv", ".gif"}
    | {".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"}
)
_PIXEL_BYTES = 5
"""Memory of a pixel while a frame is decoded and converted to RGB."""
_CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "ogg", "gif"),
    *("mpeg", "mpegts", "mpegvideo", "asf", "flv", "h264", "hevc", "m4v", "mjpeg"),
)
"""What a video may be, whatever its name says. FFmpeg reads many more; some name other files."""
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
            return _read_file(self.root, file, video, skip)
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
    with _opened(root, entry.path) as (container, stream):
        header = float(stream.average_rate or stream.guessed_rate or np.nan)
        width, height = _upright_size(entry.path, container, stream, notes)
    line = _timeline(root, entry.path)
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
    paths = tuple(f"{entry.path}#{number}" for number in range(line.n_frames))
    return VideoRecord(entry.id, entry.split, paths, rate.fps, width, height)


def _upright_size(
    path: str, container: av.container.InputContainer, stream: VideoStream, notes: list[str]
) -> tuple[int, int]:
    """Return width and height of a video's frames as they are read."""
    first = next(
        (frame for frame in _decoded(container, stream) if not isinstance(frame, FrameError)), None
    )
    if first is None:
        return stream.width, stream.height
    orientation, exact = _orientation(first)
    if not exact:
        notes.append(
            f"{path}: is to be shown turned by part of a quarter; it is read in the nearest whole "
            "one"
        )
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        notes.append(
            f"{path}: its pixels are not square ({aspect.numerator}:{aspect.denominator}); it is "
            "read as stored, without stretching"
        )
    return orientation.size(first.width, first.height)


_ONLY_THIS_FILE = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}


@contextmanager
def _opened(root: Path, path: str) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    """Open a video file and its first video stream; :class:`InvalidError` if that fails."""
    try:
        import av
    except ImportError:
        raise MissingExtraError(f"reading {path}", extra="video") from None
    if (root / path).exists():
        check_regular(root / path)
    try:
        container = av.open(str(root / path), options=_ONLY_THIS_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EINVAL:  # what is not on the list of formats
            reason = "its format is none that videos are read from; re-encode it as mp4"
        raise InvalidError(f"{path}: cannot be opened as a video ({reason})") from None
    with container:
        if not container.streams.video:
            raise InvalidError(f"{path}: holds no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise InvalidError(
                f"{path}: FFmpeg cannot decode its video stream; re-encode it as mp4"
            )
        what = f"a frame of {stream.width} x {stream.height} pixels"
        budget = MemoryBudget(path, (root / path).stat().st_size, fixed=True)
        budget.check(stream.width * stream.height * _PIXEL_BYTES, what)
        # Frames further on may be larger than the header says, and FFmpeg makes room for them.
        stream.codec_context.options = {"max_pixels": str(budget.left // _PIXEL_BYTES)}
        # With more threads, a damaged frame takes others with it, as many as there are threads.
        stream.thread_count = 1
        yield container, stream


@dataclass(frozen=True)
class _Timeline:
    """Which frames a file holds.

    Attributes
    ----------
    n_frames : in the file.
    n_announced : how many the file says it holds; 0 if it says nothing.
    number_of : number of the frame that is shown at a time, in units of the file's own. None if the
        file has no times that tell frames apart; they are then counted as they come, which is right
        where all of them can be decoded.
    times_s : (frames,) float64, seconds; None if the file has no times of its own.
    tick_s : seconds, the unit of those times.
    """

    n_frames: int
    n_announced: int
    number_of: Mapping[int, int] | None
    times_s: NDArray[np.float64] | None = None
    tick_s: float = 0.0


def _timeline(root: Path, path: str) -> _Timeline:
    """Return the frames of a file, by the times at which they are shown.

    Decoders give frames late, reordered, and none where one is damaged: counting what comes out
    would put the frames behind a damaged one in the wrong rows.
    """
    from av.error import FFmpegError

    times: list[int | None] = []
    n_discarded = 0
    with _opened(root, path) as (container, stream):
        name, codec, tick = container.format.name, stream.codec_context.name, stream.time_base
        n_announced = stream.frames if "mp4" in name else 0
        try:
            for packet in container.demux(stream):
                n_discarded += bool(packet.size and packet.is_discard)
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
        except FFmpegError:
            pass  # the file ends early; reading it will end here too
    n_announced = max(0, n_announced - n_discarded)
    # AVI has no times of its own, and those that are made up for it are wrong for frames that are
    # stored out of order.
    made_up = name == "avi" and codec in ("h264", "hevc")
    known = sorted(time for time in times if time is not None)
    times_s, tick_s = None, 0.0
    if len(known) == len(times) and not made_up and tick:
        tick_s = float(tick)
        times_s = np.array(known, dtype=np.float64) * tick_s
    if len(set(known)) == len(times) and not made_up:
        number_of = {time: number for number, time in enumerate(known)}
        return _Timeline(len(times), n_announced, number_of, times_s, tick_s)
    n_decoded = 0
    with _opened(root, path) as (container, stream):
        for frame in _decoded(container, stream):
            if isinstance(frame, FrameError):
                raise InvalidError(
                    f"{path}: is damaged, and does not say which frame is which; re-encode it as "
                    "mp4"
                )
            n_decoded += 1
    return _Timeline(n_decoded, n_announced, None, times_s, tick_s)


def _decoded(container: av.container.InputContainer, stream: VideoStream) -> Iterator[Any]:
    """Yield decoded frames, and an error for each piece that cannot be decoded.

    Decoding goes on behind it.
    """
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            return
        try:
            yield from packet.decode()
        except FFmpegError as error:
            yield FrameError(str(error))


def _orientation(frame: Any) -> tuple[Orientation, bool]:
    """Return how a decoded frame stands, and whether that is exact.

    See :func:`from_display_matrix`.

    Phones film sideways, front cameras mirrored, and say so in the stream's display matrix, which
    PyAV gives with every frame. Its ``rotation`` is an angle only, which no mirrored picture has.
    """
    for found in frame.side_data:
        if found.type.name == "DISPLAYMATRIX":
            return from_display_matrix(read_display_matrix(bytes(found)))
    return Orientation(), True


def _read_file(root: Path, path: str, video: VideoRecord, skip: Collection[int]) -> Iterator[Frame]:
    line = _timeline(root, path)
    if line.n_frames > video.n_frames:
        raise InvalidError(
            f"{path}: holds more than the {video.n_frames} frames that it had when it was listed"
        )
    reason = "cannot be decoded"
    at = 0
    with _opened(root, path) as (container, stream):
        for frame in _decoded(container, stream):
            if isinstance(frame, FrameError):
                reason = frame.reason
                continue
            number = at if line.number_of is None else line.number_of.get(frame.pts, -1)
            if number < at:
                continue  # shown before the video begins, or given twice
            for _ in range(at, number):
                yield FrameError(reason)
            yield LEFT_OUT if number in skip else _upright(frame)
            at = number + 1
    for number in range(at, video.n_frames):
        ended = f"the file ends after {line.n_frames} of {video.n_frames} frames"
        yield FrameError(reason if number < line.n_frames else ended)


def _upright(frame: Any) -> NDArray[np.uint8]:
    return _orientation(frame)[0].upright(frame.to_ndarray(format="rgb24"))
