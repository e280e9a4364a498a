"""Cuts an ingest into tasks: runs of whole videos, and the chunks that each worker may write."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.index import VideoIndex, VideoRecord


@dataclass(frozen=True)
class PlannedVideo:
    """One video of a task: its position in the index, and its rows on the frame axis."""

    position: int
    start: int
    stop: int
    record: VideoRecord


@dataclass(frozen=True)
class Task:
    """Consecutive videos for one worker.

    Parameters
    ----------
    number : position in the plan.
    videos : at least one, each following the one before.
    n_rows : rows of the whole frame axis.
    after_death : whether a worker may have died at one of the videos in an earlier run.
    """

    number: int
    videos: tuple[PlannedVideo, ...]
    n_rows: int
    after_death: bool = False

    @property
    def video_ids(self) -> list[str]:
        """Ids of the videos."""
        return [video.record.id for video in self.videos]

    @property
    def start(self) -> int:
        """First row."""
        return self.videos[0].start

    @property
    def stop(self) -> int:
        """Row after the last one."""
        return self.videos[-1].stop

    @property
    def n_frames(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def whole(self, chunk_rows: int) -> tuple[int, int]:
        """Return the rows ``(first, last)`` of the chunks that lie wholly inside this task.

        Its worker writes these itself; all other rows go back to the driver. ``first == last`` if
        there are none.
        """
        return whole_chunks(self.start, self.stop, chunk_rows, self.n_rows)


OnDeath = Callable[[Task], None]
"""Called with a task at which a worker may have died."""


def plan_tasks(
    index: VideoIndex,
    records: Sequence[VideoRecord],
    pending: NDArray[np.int64],
    *,
    chunk_rows: Collection[int],
    task_frames: int,
    died_at: Collection[str] = (),
) -> list[Task]:
    """Cut the pending videos into tasks.

    Parameters
    ----------
    index : all videos of the store.
    records : what to extract from, one per entry of ``pending``.
    pending : (n,) ascending positions in ``index``.
    chunk_rows : rows per chunk, of each array.
    task_frames : a task ends with the video that brings it to this many frames.
    died_at : ids of videos at which a worker may have died in an earlier run.
    """
    runs: list[list[PlannedVideo]] = []
    for position, record in zip(pending.tolist(), records, strict=True):
        rows = index.rows(position)
        run = runs[-1] if runs else []
        is_next = bool(run) and run[-1].position + 1 == position
        if not is_next or run[-1].stop - run[0].start >= task_frames:
            run = []
            runs.append(run)
        run.append(PlannedVideo(position, rows.start, rows.stop, record))
    tasks = [
        Task(
            number,
            tuple(run),
            index.total_frames,
            after_death=any(video.record.id in died_at for video in run),
        )
        for number, run in enumerate(runs)
    ]
    for n_rows in set(chunk_rows):
        check_disjoint(tasks, n_rows)
    return tasks


def long_first(tasks: Sequence[Task]) -> list[Task]:
    """Return tasks in their order, but for those of long videos, which come first.

    Begun last, one would go on alone when all else is done.
    """
    usual = statistics.median(task.stop - task.start for task in tasks) if tasks else 0
    return sorted(tasks, key=lambda task: min(0, 2 * usual - (task.stop - task.start)))


def whole_chunks(start: int, stop: int, chunk_rows: int, n_rows: int) -> tuple[int, int]:
    """Return the rows of the chunks that lie wholly in ``start:stop``.

    The array's last chunk may be a short one.
    """
    first = -(-start // chunk_rows) * chunk_rows
    last = stop if stop == n_rows else stop // chunk_rows * chunk_rows
    return (first, last) if last > first else (first, first)


def check_disjoint(tasks: Iterable[Task], chunk_rows: int) -> None:
    """Fail if two tasks share rows of a video, or may both write one chunk.

    Two writers of one chunk silently lose rows on every backend, so this is checked before anything
    runs.
    """
    rows_end, owner = 0, dict[int, int]()
    for task in sorted(tasks, key=lambda task: (task.start, task.stop)):
        if task.start < rows_end:
            raise AssertionError(
                f"task {task.number} starts at row {task.start}, before another ends at {rows_end}"
            )
        rows_end = max(rows_end, task.stop)
        first, last = task.whole(chunk_rows)
        if not (first == last or task.start <= first < last <= task.stop):
            raise AssertionError(
                f"task {task.number} would write rows {first}:{last} outside its own "
                f"{task.start}:{task.stop}"
            )
        for chunk in range(first // chunk_rows, -(-last // chunk_rows)):
            if owner.setdefault(chunk, task.number) != task.number:
                raise AssertionError(
                    f"chunk {chunk} is given to tasks {owner[chunk]} and {task.number}"
                )
