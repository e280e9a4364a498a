"""Which failures another worker has to confirm, and when they are the first worker's fault."""

from __future__ import annotations

import pytest

from kpstore.ingest.doubts import Opinion, doubted_videos, weakness
from kpstore.ingest.job import Doubts
from kpstore.ingest.plan import PlannedVideo, Task
from kpstore.ingest.worker import TaskResult
from tests.fakes import record


def result(lengths: list[int], doubts: dict[int, Doubts]) -> TaskResult:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    videos = [
        PlannedVideo(n, start, start + lengths[n], record(f"v{n}", lengths[n]))
        for n, start in enumerate(starts)
    ]
    return TaskResult(Task(0, tuple(videos), sum(lengths)), None, {}, {}, doubts)


def reported(*frames: int) -> Doubts:
    return Doubts(reported=frozenset(frames))


@pytest.mark.parametrize(
    ("lengths", "doubts", "expected"),
    [
        ([10], {0: reported(*range(5))}, [0]),
        ([10], {0: reported(*range(4))}, []),
        ([11], {0: reported(*range(5))}, []),
        ([4], {0: reported(*range(4))}, []),
        ([4, 4], {0: reported(*range(4)), 1: reported(1, 2)}, [0, 1]),
        ([4, 10], {0: reported(*range(4)), 1: reported(1, 2)}, []),
        ([10], {0: Doubts(raised=frozenset({3}), reported=frozenset({4}))}, [0]),
        ([10], {}, []),
    ],
)
def test_many_frames_that_the_model_could_not_do_are_in_doubt(
    lengths: list[int], doubts: dict[int, Doubts], expected: list[int]
) -> None:
    assert [video.position for video, _ in doubted_videos(result(lengths, doubts))] == expected


@pytest.mark.parametrize(
    ("elsewhere", "is_weak"), [(range(10), False), (range(6), False), (range(5), True)]
)
def test_a_close_call_on_another_processor_is_no_weakness(elsewhere: range, is_weak: bool) -> None:
    doubted = doubted_videos(result([10], {0: reported(*range(10))}))
    assert bool(weakness(doubted, Opinion({0: frozenset(elsewhere)}, {}))) == is_weak
