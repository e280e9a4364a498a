"""Videos that are extracted together give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest

import kpstore
from kpstore.errors import ExtractorError
from kpstore.extractors.base import Extracted
from kpstore.ingest.job import Job
from kpstore.ingest.lockstep import extract_in_lockstep
from kpstore.ingest.options import Options
from kpstore.ingest.plan import PlannedVideo
from kpstore.ingest.run import run_ingest
from tests.conftest import memory_location
from tests.fakes import FakeExtractor, FakeSource, record
from tests.ingest.models import Lockstep

LENGTHS = {"v0": 12, "v1": 0, "v2": 31, "v3": 5, "v4": 1, "v5": 17, "v6": 8}
BROKEN = {"v0": [0, 5], "v2": range(10, 14), "v4": [0]}
SOURCE = FakeSource(LENGTHS, broken=BROKEN, unreadable=["v3"])


def ingested(extractor: FakeExtractor, workers: int = 0) -> kpstore.Store:
    place = memory_location()
    run_ingest(SOURCE, place, extractor, Options(workers=workers, task_frames=40))
    return kpstore.open(place)


@pytest.mark.parametrize(("at_once", "workers"), [(2, 0), (3, 0), (50, 0), (3, 2)])
def test_any_number_of_videos_at_once_gives_the_same(at_once: int, workers: int) -> None:
    wanted = ingested(FakeExtractor(fail_above=200))
    found = ingested(Lockstep(fail_above=200, videos_at_once=at_once), workers)
    for name in ("points", "points_detected", "points_status", "points_state"):
        np.testing.assert_array_equal(found[name][:], wanted[name][:])
    assert (wanted["points_status"][:] == 2).sum() > sum(map(len, BROKEN.values())) + 5
    assert [(one.video_id, one.frame, one.reason) for one in found.failures("points")] == [
        (one.video_id, one.frame, one.reason) for one in wanted.failures("points")
    ]


def planned(lengths: dict[str, int]) -> list[PlannedVideo]:
    ends = np.cumsum([0, *lengths.values()]).tolist()
    return [
        PlannedVideo(number, ends[number], ends[number + 1], record(name, length))
        for number, (name, length) in enumerate(lengths.items())
    ]


def test_the_batch_stays_full_until_no_video_is_left() -> None:
    lengths = {f"v{n}": length for n, length in enumerate([3, 9, 3, 3, 9, 3, 3, 3])}
    model = Lockstep(videos_at_once=2)
    job = Job("full", FakeSource(lengths), model)
    videos = planned(lengths)
    assert [video for video, _ in extract_in_lockstep(job, videos, None)] == videos
    assert model.n_together == [2] * 18


def test_every_frame_is_reported() -> None:
    done: list[int] = []
    list(extract_in_lockstep(Job("told", SOURCE, Lockstep()), planned(LENGTHS), done.append))
    assert sum(done) == sum(LENGTHS.values()) - LENGTHS["v3"]


def test_a_model_that_fails_ends_the_run() -> None:
    class Fails(Lockstep):
        def step(self, images: object) -> Extracted:
            raise ExtractorError("out of memory")

    with pytest.raises(ExtractorError, match="out of memory"):
        list(extract_in_lockstep(Job("fails", SOURCE, Fails()), planned(LENGTHS), None))
