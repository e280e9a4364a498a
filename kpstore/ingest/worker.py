"""What a worker does: run the extractor over whole videos, write its own chunks, hand back the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kpstore.backends.base import Fork
from kpstore.errors import ExtractorError
from kpstore.extractors.base import takes_videos
from kpstore.ingest.blocks import Block, ChunkWriter
from kpstore.ingest.frames import extract_frames
from kpstore.ingest.job import Job, Report, VideoRows, failed_video, opened_extractor, processor
from kpstore.ingest.plan import PlannedVideo, Task
from kpstore.ingest.whole_videos import extract_whole
from kpstore.schema.feature import State
from kpstore.schema.index import VideoRecord
from kpstore.store.transaction import is_whole_video


@dataclass(frozen=True)
class TaskResult:
    """What a worker sends back.

    Parameters
    ----------
    fork : the whole chunks that it wrote; None if there were none.
    blocks : by feature, the rows that it did not write itself.
    failures : by position of each video: its entry in the ledger, ``""`` if nothing failed.
    failed_frames : how many frames failed.
    seconds : time spent.
    processor : the kind that computed; empty where that is not known.
    """

    task: Task
    fork: Fork | None
    blocks: Mapping[str, tuple[Block, ...]]
    failures: Mapping[int, str]
    failed_frames: int
    seconds: float
    processor: str = ""


def run_task(
    job: Job,
    task: Task,
    fork: Fork | None,
    *,
    extract: Callable[[Job, VideoRecord], VideoRows] | None = None,
    report: Report | None = None,
) -> TaskResult:
    """Extract all videos of a task.

    Parameters
    ----------
    fork : writer for the whole chunks; None sends all rows back.
    extract : how to do one video; in this process by default.
    report : called with the number of frames each time some more are done.
    """
    began = time.perf_counter()
    if extract is not None:
        return collect(job, task, fork, _one_by_one(job, task, extract, report), began)
    result = collect(job, task, fork, _extracted(job, task, report), began)
    return replace(result, processor=processor(job))


def collect(
    job: Job, task: Task, fork: Fork | None, results: Iterator[tuple[PlannedVideo, VideoRows]], began: float
) -> TaskResult:
    """Write what came out of a task's videos, in their order, as far as that may be done here."""
    chunks = {
        spec.name: ChunkWriter(spec, task.whole(spec.chunk_rows), fork if spec.axis == "frame" else None)
        for spec in job.extractor.specs
    }
    failures: dict[int, str] = {}
    failed_frames = 0
    for video, result in results:
        failures[video.position] = result.failure
        failed_frames += int((result.status == State.FAILED).sum())
        whole = State.FAILED if is_whole_video(result.failure) else State.DONE
        for spec in job.extractor.specs:
            start, status = video.start, result.status
            if spec.axis == "video":
                start, status = video.position, np.full(1, whole, dtype=np.uint8)
            chunks[spec.name].add(Block(start, result.rows[spec.name], status))
    blocks = {name: writer.finish() for name, writer in chunks.items()}
    used = fork if any(writer.has_written for writer in chunks.values()) else None
    return TaskResult(task, used, blocks, failures, failed_frames, time.perf_counter() - began)


def _extracted(job: Job, task: Task, report: Report | None) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    extractor = opened_extractor(job)  # here, where an error ends the run: it is not the first video's fault
    if takes_videos(extractor):
        yield from extract_whole(job, task.videos, report)
        return
    yield from _one_by_one(job, task, lambda job, record: extract_frames(job, record, report=report), None)


def _one_by_one(
    job: Job, task: Task, extract: Callable[[Job, VideoRecord], VideoRows], report: Report | None
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    for video in task.videos:
        try:
            result = extract(job, video.record)
        except ExtractorError:
            raise
        except Exception as error:  # a broken video must not end the run, whatever its reader or the model raises
            result = failed_video(job, video.record, error)
        if report is not None:
            report(video.record.n_frames)
        yield video, result
