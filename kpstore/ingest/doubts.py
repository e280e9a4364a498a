"""Decides whether a failure is the fault of the video, or of the worker that reported it.

What a worker could not read, the driver tries to read, in another process. Frames at which the
model raised, another worker tries, as well as videos most of whose frames the model could not do.
Only what fails there as well counts as the fault of the video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kpstore.ingest.isolated import extract_isolated
from kpstore.ingest.job import Doubts, Job
from kpstore.ingest.plan import PlannedVideo
from kpstore.ingest.sight import Look
from kpstore.ingest.worker import TaskResult, extract_videos
from kpstore.schema.feature import State

Doubted = Sequence[tuple[PlannedVideo, Doubts]]

MIN_REPORTED = 5
"""Fewer frames of a task that the model itself reports as failed are not in doubt."""


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


def second_opinion(job: Job, doubted: Doubted, *, isolated: bool) -> Opinion:
    """Extract videos once more, up to the first in which something works that failed elsewhere.

    The rows are discarded.

    Parameters
    ----------
    isolated : extract in child processes.
    """
    failed: dict[int, frozenset[int]] = {}
    unread: dict[int, frozenset[int]] = {}
    extract = extract_isolated if isolated else None
    for video, doubts in doubted:
        for _, result in extract_videos(job, [video], extract=extract):
            frames = np.flatnonzero(result.status == State.FAILED)
            failed[video.position] = frozenset(frames.tolist())
            unread[video.position] = result.doubts.unread
        if _could(doubts, failed[video.position]):
            break
    return Opinion(failed, unread)


def unread_videos(result: TaskResult) -> list[PlannedVideo]:
    """Return the videos of a task of which something could not be read."""
    return [video for video, doubts in _doubts(result) if doubts.unread]


def _doubts(result: TaskResult) -> Doubted:
    videos = result.task.videos
    return [(video, result.doubts.get(video.position, Doubts())) for video in videos]


def doubted_videos(result: TaskResult) -> Doubted:
    """Return videos in which the model raised or could not do half of the frames, and where."""
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
    """Return frames in doubt that another worker could do.

    Whether a picture shows a face may be a close call that another processor decides otherwise: the
    frames that the model reported count if another worker could do at least half of them.
    """
    reported = doubts.reported - failed
    if 2 * len(reported) < len(doubts.reported):
        reported = frozenset()
    return (doubts.raised - failed) | reported


def blindness(result: TaskResult, looks: Mapping[int, Look]) -> str:
    """Return a line on what the driver can read and a worker could not, or ``""``.

    Parameters
    ----------
    looks : the driver's own, by position of each video.
    """
    for video in unread_videos(result):
        could = result.doubts[video.position].unread - looks[video.position].unread
        if could:
            return (
                f"{_frames(could)} of video {video.record.id!r} could not be read there, but by "
                "the driver"
            )
    return ""


def weakness(doubted: Doubted, opinion: Opinion) -> str:
    """Return a line on what another worker could do and the first could not, or ``""``."""
    for video, doubts in doubted:
        could = _could(doubts, opinion.failed.get(video.position, doubts.raised | doubts.reported))
        if could:
            return (
                f"{_frames(could)} of video {video.record.id!r} failed there, but on no other "
                "worker"
            )
    return ""


def is_blind(doubted: Doubted, opinion: Opinion) -> bool:
    """Whether the worker that gave an opinion could not read what the first one could."""
    return any(
        opinion.unread.get(video.position, frozenset()) & (doubts.raised | doubts.reported)
        for video, doubts in doubted
    )


def _frames(frames: frozenset[int]) -> str:
    return f"frame {min(frames)}" if len(frames) == 1 else f"{len(frames)} frames"
