"""Decides whether a failure is the fault of the video, or of the worker that reported it.

The driver tries to read what a worker could not read, in another process. Another worker tries the
frames at which the model raised an exception, and the videos of which the model could not process
at least half of the frames. Only what fails there too counts as the fault of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kpstore.ingest.job import Doubts, Job, OnFrames, VideoRows
from kpstore.ingest.plan import PlannedVideo
from kpstore.ingest.sight import Look
from kpstore.ingest.worker import TaskResult, extract_videos
from kpstore.schema.feature import State
from kpstore.schema.index import VideoRecord

Doubted = Sequence[tuple[PlannedVideo, Doubts]]

MIN_REPORTED = 5
"""Least number of frames of a task, reported as failed by the model itself, that are in doubt."""


@dataclass(frozen=True)
class Opinion:
    """Another worker's results for videos in which the model failed.

    Parameters
    ----------
    failed : by position of each video that it tried, all frames that failed there.
    unread : by position, those of them that it could not even read.
    """

    failed: Mapping[int, frozenset[int]]
    unread: Mapping[int, frozenset[int]]


def second_opinion(
    job: Job,
    doubted: Doubted,
    *,
    extract: Callable[[Job, VideoRecord], VideoRows] | None = None,
    report: OnFrames | None = None,
) -> Opinion:
    """Extract videos again, up to the first in which a frame works that failed elsewhere.

    The rows are discarded.

    Parameters
    ----------
    extract, report
        As in :func:`~kpstore.ingest.worker.run_task`.
    """
    failed: dict[int, frozenset[int]] = {}
    unread: dict[int, frozenset[int]] = {}
    for video, doubts in doubted:
        for _, result in extract_videos(job, [video], extract=extract, report=report):
            states = result.failures.frame_states(video.record.n_frames)
            frames = np.flatnonzero(states == State.FAILED)
            failed[video.position] = frozenset(frames.tolist())
            unread[video.position] = result.doubts.unread
        if _could(doubts, failed[video.position]):
            break
    return Opinion(failed, unread)


def unread_videos(result: TaskResult) -> list[PlannedVideo]:
    """Return the videos of a task in which some frames could not be read."""
    return [video for video, doubts in _doubts(result) if doubts.unread]


def _doubts(result: TaskResult) -> Doubted:
    videos = result.task.videos
    return [(video, result.doubts.get(video.position, Doubts())) for video in videos]


def doubted_videos(result: TaskResult) -> Doubted:
    """Return the videos in which the model raised or could not process half of the frames."""
    found = _doubts(result)
    most = [one for one in found if 2 * len(one[1].reported) >= one[0].record.n_frames]
    if sum(len(doubts.reported) for _, doubts in most) < MIN_REPORTED:
        most = []
    in_doubt = {video.position for video, _ in most}
    found = [
        (video, doubts if video.position in in_doubt else replace(doubts, reported=frozenset()))
        for video, doubts in found
    ]
    return [(video, doubts) for video, doubts in found if doubts.raised or doubts.reported]


def _could(doubts: Doubts, failed: frozenset[int]) -> frozenset[int]:
    """Return the frames in doubt that another worker could process.

    Whether a picture shows a face may be a close call, on which processors differ: frames that the
    model itself reported count only if another worker could process at least half of them.
    """
    reported = doubts.reported - failed
    if 2 * len(reported) < len(doubts.reported):
        reported = frozenset()
    return (doubts.raised - failed) | reported


def blindness(result: TaskResult, looks: Mapping[int, Look]) -> str:
    """Return a line about what the driver can read but a worker could not, or ``""``.

    Parameters
    ----------
    looks : the driver's own, by position of each video.
    """
    for video in unread_videos(result):
        could = result.doubts[video.position].unread - looks[video.position].unread
        if could:
            return (
                f"{_frames(could)} of video {video.record.id!r} could not be read there, only by "
                "the driver"
            )
    return ""


def weakness(doubted: Doubted, opinion: Opinion) -> str:
    """Return a line about what another worker could process but the first could not, or ``""``."""
    for video, doubts in doubted:
        could = _could(doubts, opinion.failed.get(video.position, doubts.raised | doubts.reported))
        if could:
            return (
                f"{_frames(could)} of video {video.record.id!r} failed there, but not on another "
                "worker"
            )
    return ""


def is_blind(doubted: Doubted, opinion: Opinion) -> bool:
    """Whether the worker that gave an opinion could not read what the first worker could."""
    return any(
        opinion.unread.get(video.position, frozenset()) & (doubts.raised | doubts.reported)
        for video, doubts in doubted
    )


def _frames(frames: frozenset[int]) -> str:
    return f"frame {min(frames)}" if len(frames) == 1 else f"{len(frames)} frames"
