"""Whether a failure is the video's own fault, or that of the worker that met it.

What a worker could not read, the driver tries to read, in a process of its own. What made the model
raise, another worker tries, and so it does a video most of whose frames the model could not do.
Only what fails there as well is taken for the video's own fault.
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
"""Fewer frames of a task, of which the model says that it could not do them, are in no doubt."""


@dataclass(frozen=True)
class Opinion:
    """What another worker made of videos in which the model failed.

    Parameters
    ----------
    failed : by position of each video that it tried, all frames that failed there.
    unread : by position, those of them that it could not even read.
    """

    failed: Mapping[int, frozenset[int]]
    unread: Mapping[int, frozenset[int]]


def second_opinion(job: Job, doubted: Doubted, *, isolated: bool) -> Opinion:
    """Try videos once more, up to the first in which something can be done here that failed there.

    Nothing is kept.
    """
    failed: dict[int, frozenset[int]] = {}
    unread: dict[int, frozenset[int]] = {}
    for video, doubts in doubted:
        for _, result in extract_videos(
            job, [video], extract=extract_isolated if isolated else None
        ):
            failed[video.position] = frozenset(
                np.flatnonzero(result.status == State.FAILED).tolist()
            )
            unread[video.position] = result.doubts.unread
        if _could(doubts, failed[video.position]):
            break
    return Opinion(failed, unread)


def unread_videos(result: TaskResult) -> list[PlannedVideo]:
    """Return the videos of a task of which something could not be read."""
    return [
        video for video in result.task.videos if result.doubts.get(video.position, Doubts()).unread
    ]


def doubted_videos(result: TaskResult) -> Doubted:
    """Return the videos of a task in which the model raised, or could not do at least half of the frames, and where."""
    found = [(video, result.doubts.get(video.position, Doubts())) for video in result.task.videos]
    most = {
        video.position
        for video, doubts in found
        if 2 * len(doubts.reported) >= video.record.n_frames
    }
    if (
        sum(len(doubts.reported) for video, doubts in found if video.position in most)
        < MIN_REPORTED
    ):
        most = set()
    found = [
        (v, doubts if v.position in most else replace(doubts, reported=frozenset()))
        for v, doubts in found
    ]
    return [(video, doubts) for video, doubts in found if doubts.raised or doubts.reported]


def _could(doubts: Doubts, failed: frozenset[int]) -> frozenset[int]:
    """Return frames in doubt that another worker could do.

    Whether there is a face in a picture may be close, and another processor decide otherwise: what
    the model reported counts if another worker could do at least half of it.
    """
    reported = doubts.reported - failed
    return (doubts.raised - failed) | (
        reported if 2 * len(reported) >= len(doubts.reported) else frozenset()
    )


def blindness(result: TaskResult, looks: Mapping[int, Look]) -> str:
    """Return what the driver can read that a worker could not, for people; ``""`` if there is none.

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
    """Return what another worker could do that one could not, for people.

    ``""`` if there is none.
    """
    for video, doubts in doubted:
        could = _could(doubts, opinion.failed.get(video.position, doubts.raised | doubts.reported))
        if could:
            return (
                f"{_frames(could)} of video {video.record.id!r} failed there, but on no other "
                "worker"
            )
    return ""


def is_blind(doubted: Doubted, opinion: Opinion) -> bool:
    """Whether whoever was asked for an opinion could not read what the one who asked could."""
    return any(
        opinion.unread.get(video.position, frozenset()) & (doubts.raised | doubts.reported)
        for video, doubts in doubted
    )


def _frames(frames: frozenset[int]) -> str:
    return f"frame {min(frames)}" if len(frames) == 1 else f"{len(frames)} frames"
