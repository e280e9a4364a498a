"""Plans cover each pending video once, and never give one chunk to two tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.ingest.plan import PlannedVideo, Task, check_disjoint, plan_tasks, whole_chunks
from kpstore.schema.index import VideoIndex
from tests.fakes import record


def index_of(lengths: list[int]) -> VideoIndex:
    ids = np.array([f"v{i}" for i in range(len(lengths))], dtype=object)
    return VideoIndex(ids, np.full(len(ids), "", dtype=object), np.array(lengths, dtype=np.int64))


def plan(lengths: list[int], pending: list[int], chunk_rows: int, task_frames: int) -> list[Task]:
    records = [record(f"v{p}", lengths[p]) for p in pending]
    wanted = np.array(pending, dtype=np.int64)
    return plan_tasks(
        index_of(lengths), records, wanted, chunk_rows=[chunk_rows, 3], task_frames=task_frames
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    lengths = draw(st.lists(st.integers(0, 40), max_size=30))
    pending = [i for i in range(len(lengths)) if draw(st.booleans())]
    return lengths, pending, draw(st.integers(1, 20)), draw(st.integers(1, 100))


@given(cases())
def test_each_pending_video_is_in_exactly_one_task_in_order(
    case: tuple[list[int], list[int], int, int],
) -> None:
    lengths, pending, _, _ = case
    tasks = plan(*case)
    index = index_of(lengths)
    videos = [video for task in tasks for video in task.videos]
    assert [video.position for video in videos] == pending
    assert [video.record.id for video in videos] == [f"v{p}" for p in pending]
    assert all(slice(video.start, video.stop) == index.rows(video.position) for video in videos)
    assert [task.number for task in tasks] == list(range(len(tasks)))


@given(cases())
def test_no_chunk_of_a_task_holds_a_row_of_anyone_else(
    case: tuple[list[int], list[int], int, int],
) -> None:
    lengths, _, chunk_rows, _ = case
    tasks, n_rows, owner = plan(*case), sum(lengths), dict[int, int]()
    for task in tasks:
        first, last = task.whole(chunk_rows)
        assert first == last or task.start <= first < last <= task.stop
        assert first == last or (
            first % chunk_rows == 0 and (last % chunk_rows == 0 or last == n_rows)
        )
        for chunk in range(first // chunk_rows, -(-last // chunk_rows)):
            assert owner.setdefault(chunk, task.number) == task.number
    for task in tasks:
        first, last = task.whole(chunk_rows)
        outside = [r for r in range(task.start, task.stop) if not first <= r < last]
        assert not {r // chunk_rows for r in outside} & {c for c, n in owner.items()}


@given(cases())
def test_a_task_ends_with_the_video_that_fills_it(
    case: tuple[list[int], list[int], int, int],
) -> None:
    for task in plan(*case):
        assert (
            task.n_frames - (task.videos[-1].stop - task.videos[-1].start) < case[3]
            or len(task.videos) == 1
        )


@pytest.mark.parametrize(
    ("start", "stop", "wanted"),
    [
        (0, 8, (0, 8)),
        (1, 8, (4, 8)),
        (1, 7, (4, 4)),
        (0, 10, (0, 10)),
        (9, 10, (12, 12)),
        (8, 10, (8, 10)),
        (5, 7, (8, 8)),
    ],
)
def test_whole_chunks_and_a_short_last_one(start: int, stop: int, wanted: tuple[int, int]) -> None:
    assert whole_chunks(start, stop, 4, 10) == wanted


@dataclass(frozen=True)
class Miscounted(Task):
    """A task that would write what it should not."""

    rows: tuple[int, int] = (0, 0)

    def whole(self, chunk_rows: int) -> tuple[int, int]:
        return self.rows


def task(number: int, start: int, stop: int, whole: tuple[int, int]) -> Task:
    video = PlannedVideo(number, start, stop, record(f"v{number}", stop - start))
    return Miscounted(number, (video,), 12, rows=whole)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(0, 0, 6, (0, 6)), task(1, 6, 12, (6, 12))], "chunk 1 is given to tasks 0 and 1"),
        (
            [task(0, 0, 8, (0, 8)), task(1, 4, 12, (8, 12))],
            "task 1 starts at row 4, before another ends at 8",
        ),
        ([task(0, 0, 8, (0, 8)), task(1, 0, 8, (0, 8))], "task 1 starts at row 0"),
        (
            [task(0, 0, 6, (0, 8)), task(1, 6, 12, (8, 12))],
            "would write rows 0:8 outside its own 0:6",
        ),
        ([task(0, 5, 12, (4, 12))], "would write rows 4:12 outside its own 5:12"),
        ([task(1, 6, 12, (6, 12)), task(0, 0, 6, (0, 6))], "chunk 1 is given to tasks 0 and 1"),
    ],
)
def test_two_tasks_that_may_write_one_chunk_fail_the_check(tasks: list[Task], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_disjoint(tasks, 4)
