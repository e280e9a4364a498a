"""Runs a task: extracts its videos, writes whole chunks, and returns all other rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kpstore.backends.base import Fork
from kpstore.errors import CorruptError, ExtractorError
from kpstore.extractors.base import goes_in_lockstep, takes_videos
from kpstore.ingest.blocks import ChunkWriter, RowBlock
from kpstore.ingest.frames import extract_frames
from kpstore.ingest.job import (
    Doubts,
    Job,
    OnFrames,
    VideoRows,
    failed_video,
    opened_extractor,
    processor,
)
from kpstore.ingest.lockstep import extract_in_lockstep
from kpstore.ingest.plan import PlannedVideo, Task
from kpstore.ingest.whole_videos import extract_whole
from kpstore.schema.failures import Failures
from kpstore.schema.index import VideoRecord


@dataclass(frozen=True)
class TaskResult:
    """What a worker returns for a task.

    Parameters
    ----------
    fork : the whole chunks that it wrote; None if it wrote none.
    blocks : by feature, the rows that it did not write itself.
    failures : by position of each video.
    doubts : by position of each video in which something failed that another worker might be able
        to do.
    notes : one line for each oddity of its videos.
    processor : the kind of processor that computed; ``""`` if unknown.
    """

    task: Task
    fork: Fork | None
    blocks: Mapping[str, tuple[RowBlock, ...]]
    failures: Mapping[int, Failures]
    doubts: Mapping[int, Doubts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    processor: str = ""


def run_task(
    job: Job,
    task: Task,
    fork: Fork | None,
    *,
    extract: Callable[[Job, VideoRecord], VideoRows] | None = None,
    report: OnFrames | None = None,
) -> TaskResult:
    """Extract all videos of a task.

    Parameters
    ----------
    fork : writer for the whole chunks; None returns all rows.
    extract : extracts one video; in this process by default.
    report : called with the number of frames that were done since the last call.
    """
    results = extract_videos(job, task.videos, extract=extract, report=report)
    result = collect(job, task, fork, results)
    # What another process extracted is not known to come from this one's processor.
    return replace(result, processor=processor(job)) if extract is None else result


def collect(
    job: Job,
    task: Task,
    fork: Fork | None,
    results: Iterator[tuple[PlannedVideo, VideoRows]],
) -> TaskResult:
    """Write the whole chunks of a task's videos, which come in their order; return the rest."""
    chunks = {
        spec.name: ChunkWriter(
            spec, task.whole(spec.chunk_rows), fork if spec.axis == "frame" else None
        )
        for spec in job.extractor.specs
    }
    failures: dict[int, Failures] = {}
    doubts: dict[int, Doubts] = {}
    notes: list[str] = []
    for video, result in results:
        if result.doubts:
            doubts[video.position] = result.doubts
        failures[video.position] = result.failures
        notes += result.notes
        frame_states = result.failures.frame_states(video.record.n_frames)
        for spec in job.extractor.specs:
            start, states = video.start, frame_states
            if spec.axis == "video":
                start, states = video.position, np.full(1, result.failures.state, dtype=np.uint8)
            chunks[spec.name].add(RowBlock(start, result.rows[spec.name], states))
    blocks = {name: writer.finish() for name, writer in chunks.items()}
    used = fork if any(writer.has_written for writer in chunks.values()) else None
    return TaskResult(task, used, blocks, failures, doubts, tuple(notes))


def check_result(job: Job, result: TaskResult) -> None:
    """Raise :class:`CorruptError` unless a result has all rows of its task, in blocks or chunks.

    Whether the chunks are written, :meth:`~kpstore.backends.base.Fork.check` says.
    """
    task = result.task
    if sorted(result.failures) != [video.position for video in task.videos]:
        raise CorruptError(
            f"the result of task {task.number} is not about the videos that it was given"
        )
    for spec in job.extractor.specs:
        spans = [(block.start, block.stop) for block in result.blocks[spec.name]]
        if spec.axis == "video":
            here, end = task.videos[0].position, task.videos[-1].position + 1
        else:
            here, end = task.start, task.stop
            if result.fork is not None:
                spans.append(task.whole(spec.chunk_rows))
        for start, stop in sorted(span for span in spans if span[0] < span[1]):
            if start != here:
                break
            here = stop
        if here != end:
            raise CorruptError(
                f"rows {here}:{end} of {spec.name!r} are not in the result of task {task.number}"
            )
        for block in result.blocks[spec.name]:
            block.rows.check(spec)
            if len(block.states) != len(block.rows):
                raise CorruptError(
                    f"{len(block.states)} states came back for {len(block.rows)} rows of "
                    f"{spec.name!r}"
                )


def extract_videos(
    job: Job,
    videos: Sequence[PlannedVideo],
    *,
    extract: Callable[[Job, VideoRecord], VideoRows] | None = None,
    report: OnFrames | None = None,
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    """Yield the rows of some videos, in their order; see :func:`run_task`."""
    # Opened here, where an error ends the run: it is not the first video's fault.
    if extract is None:
        extractor = opened_extractor(job)
        if takes_videos(extractor):
            yield from extract_whole(job, videos, report)
            return
        if goes_in_lockstep(extractor):
            yield from extract_in_lockstep(job, videos, report)
            return
    for video in videos:
        try:
            if extract is None:
                result = extract_frames(job, video.record, report=report)
            else:
                result = extract(job, video.record)
        except ExtractorError:
            raise
        except Exception as error:  # whatever its reader or the model raises, the video is at fault
            result = failed_video(job, video.record, error)
        if report is not None and extract is not None:
            report(video.record.n_frames)
        yield video, result
