"""Whole videos, several at once: read ahead, put together by size, and by length if the extractor asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extracted, VideoExtractor
from kpstore.ingest.ahead import Ahead
from kpstore.ingest.frames import check_rows, put_rows
from kpstore.ingest.job import (
    Doubts,
    Job,
    OnFrames,
    UnreadableVideoError,
    VideoRows,
    failed_video,
    opened_extractor,
)
from kpstore.ingest.plan import PlannedVideo
from kpstore.schema.failures import Failures
from kpstore.schema.feature import State
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError

_AHEAD_VIDEOS = 4
_WINDOW_CALLS = 4
"""Videos of so many full calls are looked at together to find some of one length."""
_WINDOW_BYTES = 256 * 2**20

Read = NDArray[np.uint8] | Exception


def extract_whole(
    job: Job, videos: Sequence[PlannedVideo], report: OnFrames | None
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    """Extract videos in this process, in their order."""
    extractor = cast("VideoExtractor", opened_extractor(job))
    with Ahead(
        ((video, read_video(job, video.record)) for video in videos), _AHEAD_VIDEOS
    ) as ahead:
        for window in _windows(ahead, extractor):
            found = _extract_window(job, window, report or (lambda n: None))
            for number, (video, _) in enumerate(window):
                yield video, found[number]


def read_video(job: Job, record: VideoRecord) -> Read:
    """Return all frames of a video as one array, or what is wrong with it: a gap in it is not left out."""
    try:
        frames = list(job.source.read_frames(record))
        for number, frame in enumerate(frames):
            if isinstance(frame, FrameError):
                return UnreadableVideoError(InvalidError(f"frame {number}: {frame.reason}"))
        if len(frames) != record.n_frames:
            return UnreadableVideoError(
                ValueError(
                    f"the source gave {len(frames)} frames, it had announced {record.n_frames}"
                )
            )
        return (
            np.stack(cast("list[NDArray[np.uint8]]", frames))
            if frames
            else np.empty((0, 0, 0), dtype=np.uint8)
        )
    except (
        Exception
    ) as error:  # whatever a reader raises, this video is at fault and the run goes on
        return UnreadableVideoError(error)


def _windows(
    videos: Iterator[tuple[PlannedVideo, Read]], extractor: VideoExtractor
) -> Iterator[list[tuple[PlannedVideo, Read]]]:
    window: list[tuple[PlannedVideo, Read]] = []
    frames = size = 0
    for video, read in videos:
        window.append((video, read))
        frames += video.record.n_frames
        size += read.nbytes if isinstance(read, np.ndarray) else 0
        if frames >= _WINDOW_CALLS * extractor.batch_frames or size >= _WINDOW_BYTES:
            yield window
            window, frames, size = [], 0, 0
    if window:
        yield window


def _extract_window(
    job: Job, window: Sequence[tuple[PlannedVideo, Read]], report: OnFrames
) -> dict[int, VideoRows]:
    """Return the rows of each video of a window, by its place in it."""
    extractor = cast("VideoExtractor", opened_extractor(job))
    any_length = getattr(extractor, "any_length", False)
    found: dict[int, VideoRows] = {}
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, (video, read) in enumerate(window):
        if isinstance(read, Exception):
            found[number] = failed_video(job, video.record, read)
        elif len(read) == 0:
            found[number] = _rows_of(job, video.record, None)
        else:
            alike.setdefault(read.shape[1:] if any_length else read.shape, []).append(number)
    report(sum(window[number][0].record.n_frames for number in found))
    for shape, numbers in alike.items():
        many = len(numbers) if any_length else max(1, extractor.batch_frames // shape[0])
        for start in range(0, len(numbers), many):
            now = numbers[start : start + many]
            chosen = [(window[n][0].record, cast("NDArray[np.uint8]", window[n][1])) for n in now]
            found |= dict(zip(now, _extract_alike(job, extractor, chosen), strict=True))
            report(sum(window[n][0].record.n_frames for n in now))
    return found


def _extract_alike(
    job: Job, extractor: VideoExtractor, videos: Sequence[tuple[VideoRecord, NDArray[np.uint8]]]
) -> list[VideoRows]:
    try:
        made = extractor.extract_videos([frames for _, frames in videos])
        if len(made) != len(videos):
            raise InvalidError(
                f"the extractor gave results for {len(made)} of {len(videos)} videos"
            )
        return [_rows_of(job, record, one) for (record, _), one in zip(videos, made, strict=True)]
    except ExtractorError:  # the model is at fault, and would be for every video after these
        raise
    except Exception as error:  # whatever a model raises, a video is at fault and the others go on
        if len(videos) == 1:
            return [failed_video(job, videos[0][0], error)]
    return [rows for video in videos for rows in _extract_alike(job, extractor, [video])]


def _rows_of(job: Job, record: VideoRecord, made: Extracted | None) -> VideoRows:
    specs: Any = job.extractor.specs
    rows = {spec.name: spec.empty_rows(record.n_frames) for spec in specs}
    failed = (
        {} if made is None else {number: one_line(reason) for number, reason in made.failed.items()}
    )
    if made is not None:
        kept = [number for number in range(record.n_frames) if number not in failed]
        put_rows(rows, kept, check_rows(specs, made.rows, record.n_frames, failed), kept)
    status = np.full(record.n_frames, State.DONE, dtype=np.uint8)
    status[list(failed)] = State.FAILED
    return VideoRows(rows, status, Failures(frames=failed), Doubts(reported=frozenset(failed)))


def extract_alone(job: Job, record: VideoRecord) -> VideoRows:
    """Extract one video in this process, with no other beside it."""
    extractor = cast("VideoExtractor", opened_extractor(job))
    read = read_video(job, record)
    if isinstance(read, Exception):
        return failed_video(job, record, read)
    return (
        _extract_alike(job, extractor, [(record, read)])[0]
        if len(read)
        else _rows_of(job, record, None)
    )
