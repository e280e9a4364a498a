"""One video file: opening it, and decoding each of its frames into its place."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import InvalidError, MissingExtraError
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import LEFT_OUT, Frame, FrameError
from kpstore.sources.orientation import Orientation, from_display_matrix, read_display_matrix
from kpstore.user_files import check_regular

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

_PIXEL_BYTES = 5
"""Memory of a pixel while a frame is decoded and converted to RGB."""
_MAX_PIXELS = 2**31 - 1
"""FFmpeg opens no decoder with a larger limit."""
_CONTAINERS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "ogg", "gif"),
    *("mpeg", "mpegts", "mpegvideo", "asf", "flv", "h264", "hevc", "m4v", "mjpeg"),
)
"""What a video may be, whatever its name says. FFmpeg reads many more; some name other files."""
_ONLY_THIS_FILE = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}


@contextmanager
def opened(root: Path, path: str) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    """Open a video file and its first video stream; :class:`InvalidError` if that fails."""
    try:
        import av
    except ImportError:
        raise MissingExtraError(f"reading {path}", extra="video") from None
    if (root / path).exists():
        check_regular(root / path)
    try:
        container = av.open(str(root / path), options=_ONLY_THIS_FILE)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EINVAL:  # what is not on the list of formats
            reason = "its format is none that videos are read from; re-encode it as mp4"
        raise InvalidError(f"{path}: cannot be opened as a video ({reason})") from None
    with container:
        streams = videos_of(container)
        if not streams:
            raise InvalidError(f"{path}: holds no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise InvalidError(
                f"{path}: FFmpeg cannot decode its video stream; re-encode it as mp4"
            )
        what = f"a frame of {stream.width} x {stream.height} pixels"
        budget = MemoryBudget(path, (root / path).stat().st_size, fixed=True)
        budget.check(stream.width * stream.height * _PIXEL_BYTES, what)
        # Frames further on may be larger than the header says, and FFmpeg makes room for them.
        most = min(budget.left // _PIXEL_BYTES, _MAX_PIXELS)
        stream.codec_context.options = {"max_pixels": str(most)}
        # With more threads, a damaged frame takes others with it, as many as there are threads.
        stream.thread_count = 1
        yield container, stream


def videos_of(container: av.container.InputContainer) -> list[VideoStream]:
    """Return the video streams of a file, without pictures of its cover."""
    from av.stream import Disposition

    streams = container.streams.video
    return [stream for stream in streams if not stream.disposition & Disposition.attached_pic]


@dataclass(frozen=True)
class Timeline:
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
    first_key : number of the first frame that can be decoded without others. Where frames are
        counted as they come, 0 or, if it is another one, ``n_frames``.
    restarts : whether its clock goes back, as in files that were joined.
    """

    n_frames: int
    n_announced: int
    number_of: Mapping[int, int] | None
    times_s: NDArray[np.float64] | None = None
    tick_s: float = 0.0
    first_key: int = 0
    restarts: bool = False


def timeline(root: Path, path: str) -> Timeline:
    """Return the frames of a file, by the times at which they are shown.

    Decoders give frames late, reordered, and none where one is damaged: counting what comes out
    would put the frames behind a damaged one in the wrong rows.
    """
    from av.error import FFmpegError

    times: list[int | None] = []
    clock: list[int] = []
    is_key: list[bool] = []
    keys: list[int] = []
    n_discarded = 0
    with opened(root, path) as (container, stream):
        name, codec, tick = container.format.name, stream.codec_context.name, stream.time_base
        n_announced = stream.frames if "mp4" in name else 0
        try:
            for packet in container.demux(stream):
                n_discarded += bool(packet.size and packet.is_discard)
                is_key += [packet.is_keyframe] if packet.size else []
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
                    clock += [] if packet.dts is None else [packet.dts]
        except FFmpegError:
            pass  # the file ends early; reading it will end here too
    n_announced = max(0, n_announced - n_discarded)
    starts_late = any(is_key) and not is_key[0]
    restarts = any(later < earlier for earlier, later in itertools.pairwise(clock))
    # AVI has no times of its own, and those that are made up for it are wrong for frames that are
    # stored out of order.
    made_up = restarts or (name == "avi" and codec in ("h264", "hevc"))
    known = sorted(time for time in times if time is not None)
    times_s, tick_s = None, 0.0
    if len(known) == len(times) and not made_up and tick:
        tick_s = float(tick)
        times_s = np.array(known, dtype=np.float64) * tick_s
    if len(set(known)) == len(times) and not made_up:
        number_of = {time: number for number, time in enumerate(known)}
        first_key = number_of.get(keys[0], len(times)) if starts_late and keys else 0
        return Timeline(len(times), n_announced, number_of, times_s, tick_s, first_key)
    n_decoded = 0
    with opened(root, path) as (container, stream):
        for frame in decoded(container, stream):
            if isinstance(frame, FrameError):
                raise InvalidError(
                    f"{path}: is damaged, and does not say which frame is which; re-encode it as "
                    "mp4"
                )
            n_decoded += 1
    first_key = n_decoded if starts_late else 0
    return Timeline(n_decoded, n_announced, None, times_s, tick_s, first_key, restarts)


def decoded(container: av.container.InputContainer, stream: VideoStream) -> Iterator[Any]:
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


def orientation_of(frame: Any) -> tuple[Orientation, bool]:
    """Return how a decoded frame stands, and whether that is exact.

    See :func:`from_display_matrix`.

    Phones film sideways, front cameras mirrored, and say so in the stream's display matrix, which
    PyAV gives with every frame. Its ``rotation`` is an angle only, which no mirrored picture has.
    """
    for found in frame.side_data:
        if found.type.name == "DISPLAYMATRIX":
            return from_display_matrix(read_display_matrix(bytes(found)))
    return Orientation(), True


def read_file(root: Path, path: str, video: VideoRecord, skip: Collection[int]) -> Iterator[Frame]:
    """Yield the frames of a video file; see :class:`kpstore.sources.base.Source`.

    What the decoder had to make up is an error and no picture: frames of which it says so, and
    those that come before the first one that can be decoded without others.
    """
    line = timeline(root, path)
    if line.n_frames > video.n_frames:
        raise InvalidError(
            f"{path}: holds more than the {video.n_frames} frames that it had when it was listed"
        )
    reason = "cannot be decoded"
    at, is_late = 0, True
    with opened(root, path) as (container, stream):
        for frame in decoded(container, stream):
            if isinstance(frame, FrameError):
                reason = frame.reason
                continue
            number = at if line.number_of is None else line.number_of.get(frame.pts, -1)
            # H.264 that refreshes pictures part by part has key packets but no key frames.
            is_late &= number < line.first_key and not frame.key_frame
            if number < at:
                continue  # shown before the video begins, or given twice
            for _ in range(at, number):
                yield FrameError(reason)
            yield LEFT_OUT if number in skip else _picture(frame, is_late)
            at = number + 1
    for number in range(at, video.n_frames):
        ended = f"the file ends after {line.n_frames} of {video.n_frames} frames"
        yield FrameError(reason if number < line.n_frames else ended)


def _picture(frame: Any, is_late: bool) -> NDArray[np.uint8] | FrameError:
    if is_late:
        return FrameError("comes before the first frame that can be decoded without others")
    if frame.is_corrupt:
        return FrameError("is damaged: its decoder had to make up a part of it")
    return orientation_of(frame)[0].upright(frame.to_ndarray(format="rgb24"))
