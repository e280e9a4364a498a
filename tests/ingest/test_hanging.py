"""Models and workers that hang: they are replaced, the frame fails, and everything else is done."""

from __future__ import annotations

import fcntl
import pickle
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.errors import ExtractorError, InvalidError
from kpstore.ingest import executors, isolated, watch
from kpstore.ingest.isolated import MAX_HANGS, extract_isolated, look_isolated
from kpstore.ingest.job import Job, by_value
from kpstore.ingest.options import Options
from kpstore.ingest.run import plan_ingest, run_ingest
from kpstore.schema.feature import State
from kpstore.schema.index import VideoRecord
from tests.conftest import memory_location
from tests.fakes import (
    FakeExtractor,
    FakeSource,
    ForksAndDies,
    ForksAndWaits,
    record,
    stop_this,
    wait_for_ever,
    wait_with_the_lock,
)
from tests.ingest.models import HangsAtExit, NeverOpens, WholeVideos

LENGTHS = {"v0": 12, "v1": 9, "v2": 14, "v3": 5}
AT = {"v1": [4]}
LIMIT_S = 1.0


@pytest.mark.parametrize("hang", [wait_with_the_lock, stop_this])
def test_a_frame_that_hangs_fails_and_the_rest_is_as_if_it_were_unreadable(
    monkeypatch: pytest.MonkeyPatch, hang: Callable[[], None]
) -> None:
    # A worker that sends nothing at all is replaced after this long, not after five minutes.
    monkeypatch.setattr(executors, "SILENT_S", 1.0)
    monkeypatch.setattr(executors, "_REPLACED_S", 0.0)
    source, model = FakeSource(LENGTHS, poisonous=AT), FakeExtractor(chunk_rows=8, poison=hang)
    options = Options(workers=1, task_frames=20, frame_timeout_s=LIMIT_S)
    place, plain = memory_location(), memory_location()
    report = run_ingest(source, place, model, options)
    (failure,) = report.failures
    assert (failure.video_id, failure.frame, failure.reason) == (
        "v1",
        4,
        "reading and extracting this frame took longer than 1 s (--frame-timeout)",
    )
    sound = FakeSource(LENGTHS, broken=AT)
    run_ingest(sound, plain, FakeExtractor(chunk_rows=8), Options(workers=0))
    found, wanted = kpstore.open(place), kpstore.open(plain)
    np.testing.assert_array_equal(found["points"][:], wanted["points"][:])
    assert found["points_status"][:].tolist() == wanted["points_status"][:].tolist()
    assert not plan_ingest(source, place, model, options).tasks


def test_a_video_of_which_many_frames_hang_is_given_up() -> None:
    source = FakeSource({"a": 9}, poisonous={"a": range(2, 9)})
    job = Job("many", source, FakeExtractor(poison=wait_for_ever), frame_timeout_s=0.2)
    found = extract_isolated(job, record("a", 9))
    assert found.failures.video == (
        f"{MAX_HANGS} of its frames hung: reading and extracting this frame took longer than 0.2 s "
        "(--frame-timeout)"
    )
    assert (found.failures.frame_states(9) == State.FAILED).all()


@pytest.mark.parametrize(
    ("poison", "limit_s", "reason"),
    [
        (ForksAndWaits, 0.5, "took longer than 0.5 s"),
        (ForksAndDies, 0.0, "the worker process died on this frame (SIGKILL)"),
    ],
)
def test_what_a_model_has_started_ends_with_it(
    tmp_path: Path, poison: type[ForksAndWaits], limit_s: float, reason: str
) -> None:
    model = FakeExtractor(poison=poison(str(tmp_path / "lock")))
    job = Job("forks", FakeSource({"a": 3}, poisonous={"a": [1]}), model, frame_timeout_s=limit_s)
    found = extract_isolated(job, record("a", 3))
    assert list(found.failures.frames) == [1]
    assert reason in found.failures.frames[1]
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for its end


@pytest.mark.skipif(sys.platform != "linux", reason="the system's signal for it is Linux's")
def test_a_model_that_hangs_ends_with_the_worker_that_asked(tmp_path: Path) -> None:
    model = FakeExtractor(poison=ForksAndWaits(str(tmp_path / "lock")))
    job = Job("orphan", FakeSource({"a": 3}, poisonous={"a": [1]}), model)
    child = isolated._started()
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write(by_value(partial(isolated._extract, job, record("a", 3), {})))
        child.stdin.flush()
        while pickle.load(child.stdout) != 1:  # the frame that hangs
            pass
        child.stdin.close()  # as the system does for a worker that is killed
        assert child.wait() == -signal.SIGKILL
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for the end of what the model started


def test_a_model_that_hangs_at_exit_has_done_its_work() -> None:
    job = Job("exit", FakeSource({"a": 3}), HangsAtExit(), frame_timeout_s=0.5)
    found = extract_isolated(job, record("a", 3))
    assert not found.failures


def test_a_model_of_whole_videos_that_hangs_fails_the_video() -> None:
    job = Job("whole", FakeSource({"a": 9}), WholeVideos(), frame_timeout_s=0.2)
    found = extract_isolated(job, record("a", 9))
    assert found.failures.video == (
        "reading and extracting this video took longer than 0.2 s (--frame-timeout)"
    )


def test_a_video_that_hangs_does_not_stop_the_driver_that_looks_at_it() -> None:
    class Hangs(FakeSource):
        def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Any]:
            if video.id in self.poisonous:
                wait_with_the_lock()
            return super().read_frames(video, skip=skip)

    source = Hangs(LENGTHS, poisonous=AT)
    job = Job("looks", source, FakeExtractor(), frame_timeout_s=0.5)
    looks = look_isolated(job, source.scan().videos, whole=True)
    assert [bool(one.pixels) for one in looks] == [True, False, True, True]
    assert looks[1].unread == set(range(LENGTHS["v1"]))
    assert looks[1].reason == "reading this video took longer than 0.5 s (--frame-timeout)"

    source = Hangs({f"v{i}": 3 for i in range(9)}, poisonous={f"v{i}": () for i in range(9)})
    job = Job("all", source, FakeExtractor(), frame_timeout_s=0.2)
    looks = look_isolated(job, source.scan().videos, whole=False)
    assert [bool(one.reason) for one in looks] == [True] * MAX_HANGS + [False] * (9 - MAX_HANGS)


def test_a_model_that_never_starts_is_no_fault_of_the_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "OPEN_S", 0.2)
    job = Job("never", FakeSource({"a": 3}), NeverOpens(), frame_timeout_s=0.2)
    with pytest.raises(ExtractorError, match=r"'points' did not start within 0\.2 s"):
        extract_isolated(job, record("a", 3))


def test_whole_videos_may_take_longer_than_a_frame() -> None:
    job = Job("whole", FakeSource({}), WholeVideos(), frame_timeout_s=600.0)
    assert [watch.step_limit(job, n) for n in (9, 999, 20_500)] == [600.0, 600.0, 12_600.0]
    job = Job("frames", FakeSource({}), FakeExtractor(), frame_timeout_s=600.0)
    assert watch.step_limit(job, 20_500) == 600.0


def test_without_a_limit_nothing_is_stopped() -> None:
    reports: list[int] = []
    with watch.watched(0.0, reports.append) as report:
        report(3)
    assert reports == [3]
    assert watch.opening_limit(0.0) == 0.0


@pytest.mark.parametrize("limit_s", [-1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(limit_s: float) -> None:
    with pytest.raises(InvalidError, match="frame_timeout_s is"):
        Options(frame_timeout_s=limit_s)


def test_a_limit_without_a_process_that_could_be_ended_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"--frame-timeout 30 .*needs a worker process.*leave"):
        Options(workers=0, frame_timeout_s=30.0)
    assert Options(workers=0).frame_limit_s == Options(workers=0, frame_timeout_s=0.0).frame_limit_s
    assert Options(workers=0).frame_limit_s == 0.0
    assert Options(workers=1).frame_limit_s == 600.0
    assert Options(workers=0, scheduler="tcp://h:1", frame_timeout_s=30.0).frame_limit_s == 30.0
