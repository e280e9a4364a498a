"""Videos that are extracted together give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kpstore
from kpstore.errors import ExtractorError
from kpstore.extractors.base import Extracted, check_image
from kpstore.ingest.ahead import read_ahead
from kpstore.ingest.job import Job
from kpstore.ingest.lockstep import extract_in_lockstep
from kpstore.ingest.options import Options
from kpstore.ingest.plan import PlannedVideo
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
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


class Odd(FakeSource):
    """Gives one frame of a video more than it announced, or one that is no picture."""

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Any]:
        frames = list(super().read_frames(video, skip=skip))
        odd: dict[str, Callable[[], Any]] = {
            "v0": lambda: [*frames, frames[0]],
            "v2": lambda: [frames[0], None, *frames[2:]],
            "v3": lambda: [np.zeros(3, np.uint8), "text", [1], *frames[3:]],
            "v5": lambda: [frames[0].astype(np.float32), frames[1][..., 0], *frames[2:]],
            "v6": lambda: frames[:-1],
        }
        yield from odd.get(video.id, lambda: frames)()


def test_a_reader_that_panics_does_not_leave_its_user_waiting() -> None:
    def panics() -> Iterator[int]:
        yield 1
        raise SystemExit("a decoder's panic")

    with read_ahead(panics(), 2) as ahead:
        assert next(ahead) == 1
        with pytest.raises(SystemExit, match="a decoder's panic"):
            next(ahead)


class Picky(Lockstep):
    """Raises for a whole batch if it does not like one of the frames, and keeps its state."""

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        if any(image is not None and image[0, 0, 0] >= 200 for image in images):
            raise ValueError("a frame that the model does not like")
        return super().step(images)


class Checks(FakeExtractor):
    """Looks at its frames first, as kpstore's own extractors do."""

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        return super().rows([check_image(image) for image in images])


@pytest.mark.parametrize("source", [Odd(LENGTHS), FakeSource(LENGTHS)])
def test_what_is_odd_about_a_video_is_its_own_fault(source: FakeSource) -> None:
    stores = []
    for model in (Checks(fail_above=200), Picky(videos_at_once=3)):
        place = memory_location()
        run_ingest(source, place, model, Options(workers=0))
        stores.append(kpstore.open(place))
    wanted, found = stores
    for name in ("points", "points_detected", "points_status", "points_state"):
        np.testing.assert_array_equal(found[name][:], wanted[name][:])
    assert [(one.video_id, one.frame, one.reason) for one in found.failures("points")] == [
        (one.video_id, one.frame, one.reason) for one in wanted.failures("points")
    ]
    assert {one.video_id for one in found.failures("points")} != set(LENGTHS)


class Infinite(Lockstep):
    """Gives a number that is not finite for some frames, and rubbish for rows without one."""

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        found = super().step(images)
        for number, image in enumerate(images):
            if image is None or image[0, 0, 0] >= 200:
                found.rows["points"].values[number] = np.inf
        return found


def test_rows_that_are_not_as_specified_fail_alone_and_are_made_once() -> None:
    stores = []
    for model in (FakeExtractor(), Infinite(videos_at_once=3)):
        place = memory_location()
        run_ingest(FakeSource(LENGTHS), place, model, Options(workers=0))
        stores.append(kpstore.open(place))
    wanted, found = stores
    done = found["points_status"][:] == 1
    assert 0.5 < done.mean() < 1
    np.testing.assert_array_equal(found["points"][:][done], wanted["points"][:][done])
