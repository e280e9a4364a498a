"""Extracts whole videos, several at once: read ahead, and grouped by size and length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extracted, VideoExtractor
from kpstore.ingest.ahead import read_ahead
from kpstore.ingest.frames import check_count, check_rows, put_rows
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
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError

_AHEAD_VIDEOS = 4
# Number of full calls whose videos are sorted together, to find some of one length
_WINDOW_CALLS = 4
_WINDOW_BYTES = 256 * 2**20

Read = NDArray[np.uint8] | Exception


def extract_whole(
    job: Job, videos: Sequence[PlannedVideo], report: OnFrames | None
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    """Extract videos in this process, in their order."""
    extractor = cast("VideoExtractor", opened_extractor(job))
    reads = ((video, _read_video(job, video.record)) for video in videos)
    with read_ahead(reads, _AHEAD_VIDEOS) as ahead:
        for window in _windows(ahead, extractor):
            found = _extract_window(job, window, report or (lambda n_frames: None))
            for number, (video, _) in enumerate(window):
                yield video, found[number]


def _read_video(job: Job, record: VideoRecord) -> Read:
    """Return all frames of a video as one array, or the error if one of them cannot be read."""
    try:
        frames: list[NDArray[np.uint8]] = []
        for frame in job.source.read_frames(record):
            if isinstance(frame, FrameError):
                raise InvalidError(f"frame {len(frames)}: {frame.reason}")
            frames.append(frame)
        check_count(record, len(frames))
        return np.stack(frames) if frames else np.empty((0, 0, 0), dtype=np.uint8)
    except UnreadableVideoError as error:
        return error
    except Exception as error:  # whatever a reader raises, this video is at fault
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
    except ExtractorError:  # the model is at fault, and would fail for every later video
        raise
    except Exception as error:  # whatever a model raises, a video is at fault
        if len(videos) == 1:
            return [failed_video(job, videos[0][0], error)]
    return [rows for video in videos for rows in _extract_alike(job, extractor, [video])]


def _rows_of(job: Job, record: VideoRecord, made: Extracted | None) -> VideoRows:
    specs = job.extractor.specs
    rows = {spec.name: spec.empty_rows(record.n_frames) for spec in specs}
    failed: dict[int, str] = {}
    if made is not None:
        failed = {number: one_line(reason) for number, reason in made.failed.items()}
        kept = [number for number in range(record.n_frames) if number not in failed]
        put_rows(rows, kept, check_rows(specs, made.rows, record.n_frames, failed), kept)
    return VideoRows(rows, Failures(frames=failed), Doubts(reported=frozenset(failed)))


def extract_alone(job: Job, record: VideoRecord) -> VideoRows:
    """Extract one video in this process, with no other beside it."""
    alone = PlannedVideo(0, 0, record.n_frames, record)
    return _extract_window(job, [(alone, _read_video(job, record))], lambda n_frames: None)[0]
