"""What a worker does: run the extractor over whole videos, write its own chunks, hand back the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kpstore.backends.base import Fork
from kpstore.errors import CorruptError, ExtractorError
from kpstore.extractors.base import takes_videos
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
from kpstore.ingest.plan import PlannedVideo, Task
from kpstore.ingest.whole_videos import extract_whole
from kpstore.schema.failures import Failures
from kpstore.schema.feature import State
from kpstore.schema.index import VideoRecord


@dataclass(frozen=True)
class TaskResult:
    """What a worker sends back.

    Parameters
    ----------
    fork : the whole chunks that it wrote; None if there were none.
    blocks : by feature, the rows that it did not write itself.
    failures : by position of each video.
    failed_frames : how many frames failed.
    seconds : time spent.
    doubts : by position of each video in which something failed that another worker might be able
        to do.
    notes : what is odd about its videos, a line each.
    processor : the kind that computed; empty where that is not known.
    """

    task: Task
    fork: Fork | None
    blocks: Mapping[str, tuple[RowBlock, ...]]
    failures: Mapping[int, Failures]
    failed_frames: int
    seconds: float
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
    fork : writer for the whole chunks; None sends all rows back.
    extract : how to do one video; in this process by default.
    report : called with the number of frames each time some more are done.
    """
    began = time.perf_counter()
    results = extract_videos(job, task.videos, extract=extract, report=report)
    result = collect(job, task, fork, results, began)
    # What another process extracted is not known to come from this one's processor.
    return replace(result, processor=processor(job)) if extract is None else result


def collect(
    job: Job,
    task: Task,
    fork: Fork | None,
    results: Iterator[tuple[PlannedVideo, VideoRows]],
    began: float,
) -> TaskResult:
    """Write what came out of a task's videos, in their order, as far as that may be done here."""
    chunks = {
        spec.name: ChunkWriter(
            spec, task.whole(spec.chunk_rows), fork if spec.axis == "frame" else None
        )
        for spec in job.extractor.specs
    }
    failures: dict[int, Failures] = {}
    doubts: dict[int, Doubts] = {}
    notes: list[str] = []
    failed_frames = 0
    for video, result in results:
        if result.doubts:
            doubts[video.position] = result.doubts
        failures[video.position] = result.failures
        notes += result.notes
        failed_frames += int((result.status == State.FAILED).sum())
        for spec in job.extractor.specs:
            start, status = video.start, result.status
            if spec.axis == "video":
                start, status = video.position, np.full(1, result.failures.state, dtype=np.uint8)
            chunks[spec.name].add(RowBlock(start, result.rows[spec.name], status))
    blocks = {name: writer.finish() for name, writer in chunks.items()}
    used = fork if any(writer.has_written for writer in chunks.values()) else None
    seconds = time.perf_counter() - began
    return TaskResult(task, used, blocks, failures, failed_frames, seconds, doubts, tuple(notes))


def check_result(job: Job, result: TaskResult) -> None:
    """Raise :class:`CorruptError` unless the rows of a result, and those of its whole chunks, are all rows of its task.

    Which chunks a fork has written, and what is in them, it says itself
    (:meth:`~kpstore.backends.base.Fork.check`).
    """
    task = result.task
    if sorted(result.failures) != [video.position for video in task.videos]:
        raise CorruptError(
            f"the result of task {task.number} is not of the videos that it was given"
        )
    for spec in job.extractor.specs:
        rows, end = (task.start, task.stop), task.videos[0].position + len(task.videos)
        if spec.axis == "video":
            rows = (task.videos[0].position, end)
        spans = [(block.start, block.stop) for block in result.blocks[spec.name]]
        if result.fork is not None and spec.axis == "frame":
            spans.append(task.whole(spec.chunk_rows))
        here = rows[0]
        for start, stop in sorted(span for span in spans if span[0] < span[1]):
            if start != here:
                break
            here = stop
        if here != rows[1]:
            raise CorruptError(
                f"rows {here}:{rows[1]} of {spec.name!r} are not in the result of task "
                f"{task.number}"
            )
        for block in result.blocks[spec.name]:
            block.rows.check(spec)
            if len(block.status) != len(block.rows):
                raise CorruptError(
                    f"{len(block.status)} states came back for {len(block.rows)} rows of "
                    f"{spec.name!r}"
                )


def extract_videos(
    job: Job,
    videos: Sequence[PlannedVideo],
    *,
    extract: Callable[[Job, VideoRecord], VideoRows] | None = None,
    report: OnFrames | None = None,
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    """Yield what comes out of some videos, in their order; see :func:`run_task`."""
    if extract is not None:
        yield from _one_by_one(job, videos, extract, report)
        return
    extractor = opened_extractor(
        job
    )  # here, where an error ends the run: it is not the first video's fault
    if takes_videos(extractor):
        yield from extract_whole(job, videos, report)
        return
    yield from _one_by_one(
        job, videos, lambda job, record: extract_frames(job, record, report=report), None
    )


def _one_by_one(
    job: Job,
    videos: Sequence[PlannedVideo],
    extract: Callable[[Job, VideoRecord], VideoRows],
    report: OnFrames | None,
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    for video in videos:
        try:
            result = extract(job, video.record)
        except ExtractorError:
            raise
        except (
            Exception
        ) as error:  # a broken video must not end the run, whatever its reader or the model raises
            result = failed_video(job, video.record, error)
        if report is not None:
            report(video.record.n_frames)
        yield video, result
