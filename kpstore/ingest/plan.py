"""Which worker does what: runs of whole videos, and the whole chunks that a worker may write. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.index import VideoIndex, VideoRecord


@dataclass(frozen=True)
class PlannedVideo:
    """One video of a task: its place in the index, and its rows ``start`` to ``stop`` on the frame axis."""

    position: int
    start: int
    stop: int
    record: VideoRecord


@dataclass(frozen=True)
class Task:
    """Consecutive videos for one worker.

    Parameters
    ----------
    number : place in the plan.
    videos : at least one, each following the one before.
    n_rows : rows of the whole frame axis.
    """

    number: int
    videos: tuple[PlannedVideo, ...]
    n_rows: int

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
        """Return the rows ``(first, last)`` of the chunks that lie wholly inside this task, of so many rows each.

        Its worker writes these itself; all other rows go back to the driver. ``first == last`` if
        there are none.
        """
        return whole_chunks(self.start, self.stop, chunk_rows, self.n_rows)


def plan_tasks(
    index: VideoIndex,
    records: Sequence[VideoRecord],
    pending: NDArray[np.int64],
    *,
    chunk_rows: Collection[int],
    task_frames: int,
) -> list[Task]:
    """Cut the pending videos into tasks.

    Parameters
    ----------
    index : all videos of the store.
    records : what to extract from, one per entry of ``pending``.
    pending : (n,) ascending positions in ``index``.
    chunk_rows : rows per chunk, of each array.
    task_frames : a task ends with the video that brings it to this many frames.
    """
    tasks: list[Task] = []
    for run in _consecutive_runs(_planned(index, records, pending), task_frames):
        tasks.append(Task(len(tasks), tuple(run), index.total_frames))
    for rows in set(chunk_rows):
        check_disjoint(tasks, rows)
    return tasks


def _planned(
    index: VideoIndex, records: Sequence[VideoRecord], pending: NDArray[np.int64]
) -> Iterator[PlannedVideo]:
    for position, record in zip(pending.tolist(), records, strict=True):
        rows = index.rows(position)
        yield PlannedVideo(position, rows.start, rows.stop, record)


def _consecutive_runs(
    videos: Iterable[PlannedVideo], task_frames: int
) -> Iterator[list[PlannedVideo]]:
    run: list[PlannedVideo] = []
    for video in videos:
        if run and (
            video.position != run[-1].position + 1 or run[-1].stop - run[0].start >= task_frames
        ):
            yield run
            run = []
        run.append(video)
    if run:
        yield run


def whole_chunks(start: int, stop: int, chunk_rows: int, n_rows: int) -> tuple[int, int]:
    """Return the rows of the chunks that lie wholly in ``start:stop``.

    The array's last chunk may be a short one.
    """
    first = -(-start // chunk_rows) * chunk_rows
    last = stop if stop == n_rows else stop // chunk_rows * chunk_rows
    return (first, last) if last > first else (first, first)


def check_disjoint(tasks: Iterable[Task], chunk_rows: int) -> None:
    """Fail if two tasks share a video's rows, or may both write one chunk.

    Two writers of one chunk lose rows without a word on every backend, so this is checked before
    anything runs.
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
