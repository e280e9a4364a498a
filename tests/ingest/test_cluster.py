"""Workers of another scheduler: only those that prove themselves are used, and all is checked."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from benchmarks.faults.by_hand import ByHand, can_mount, change_view
from benchmarks.faults.cluster import AtFrame
from benchmarks.faults.numbered import (
    FEATURE,
    NumberedExtractor,
    NumberedSource,
    blind_file,
    expected_rows,
)
from kpstore.errors import KpstoreError, WorkersError
from kpstore.ingest import executors
from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.report import read_progress
from kpstore.ingest.run import plan_ingest, run_ingest
from kpstore.schema.feature import State
from tests.conftest import memory_location
from tests.fakes import FakeExtractor, FakeSource, stop_this, wait_with_the_lock

LENGTHS = [11, 3, 0, 14, 9, 12, 6, 13, 8, 10, 12, 12]
SOME = {"broken": {(3, 2)}, "disliked": {(5, 4)}, "unreadable": {6}}
SOUND: dict[str, Any] = {}


class Place:
    """Where videos and stores lie, and a store for each test."""

    def __init__(self, folder: Path, hands: ByHand) -> None:
        self.folder, self.hands = folder, hands
        for name in ("videos", "stores", "copies"):
            (folder / name).mkdir()

    def ingest(
        self, name: str, faults: dict[str, Any], at_half: Any = lambda: None, **options: Any
    ) -> Any:
        """Ingest with the scheduler's workers, and do something when a fifth is done.

        Return the report.
        """
        options = {"scheduler": self.hands.address, "task_frames": 10, **options}
        observer = AtFrame(sum(LENGTHS) // 5, at_half)
        return run_ingest(
            NumberedSource(LENGTHS, self.folder / "videos", **faults),
            self.folder / "stores" / name,
            NumberedExtractor(sleep_s=0.002),
            Options(**options),
            observer=observer,
        )

    def check(self, name: str, faults: dict[str, Any], *, whole: bool = True) -> int:
        """Check every row of videos that are done or failed; return how many those are."""
        store = kpstore.open(self.folder / "stores" / name)
        source = NumberedSource(LENGTHS, self.folder / "videos", **faults)
        settled = np.flatnonzero(store.states(FEATURE) != State.PENDING)
        assert not whole or len(settled) == len(LENGTHS)
        for video in settled.tolist():
            assert (store.states(FEATURE)[video] == State.FAILED) == (video in source.unreadable)
            np.testing.assert_array_equal(
                store[FEATURE][store.index.rows(video)], expected_rows(source, video)
            )
        return len(settled)

    def start_fit(self) -> None:
        """Start a worker of four threads, with which nothing is wrong."""
        if "fit" not in self.hands.workers:
            self.hands.start("fit", threads=4, mount="true" if can_mount() else "")

    def blind(self, worker: str) -> Path:
        return self.folder / "videos" / blind_file(worker)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A scheduler, for all tests here: starting a process is what takes their time."""
    folder = tmp_path_factory.mktemp("cluster")
    with ByHand(folder) as hands:
        yield Place(folder, hands)


@pytest.fixture(autouse=True)
def _sees_again(place: Place) -> Iterator[None]:
    yield
    for file in (place.folder / "videos").iterdir():
        file.unlink()


def start_unfit(place: Place) -> dict[str, str]:
    """Start workers with which something is wrong; return what is to be said of each."""
    hands, stores = place.hands, place.folder / "stores"
    hands.start("blind", wait=False)
    place.blind("blind").touch()
    hands.start("other", path=hands.other_code("kpstore"), wait=False)
    expected = {
        "blind": "it cannot read video 'v001', which the driver can: no such file",
        "other": "other code: extractors/base.py",
    }
    if can_mount():
        kpstore.create(stores / "s.kps")
        shutil.copytree(stores / "s.kps", place.folder / "copies" / "s.kps")
        hands.start("copy", mount=f"mount --bind {place.folder / 'copies'} {stores}", wait=False)
        expected["copy"] = f"it sees another store than the driver at {stores / 's.kps'}"
    for name in expected:
        hands.workers[name].wait_for("Registered to:")
    return expected


def test_only_workers_that_prove_themselves_get_tasks_and_threads_do_not_mix(place: Place) -> None:
    expected = start_unfit(place)
    faults = {
        **SOME,
        "unreadable": {0, 6},
    }  # broken videos, the first among them, make no worker unfit
    with pytest.raises(
        WorkersError, match=rf"none of {len(expected)} workers is fit to work"
    ) as raised:
        place.ingest("s.kps", faults)
    assert all(reason in str(raised.value) for reason in expected.values())
    assert "0 of 12 videos are in" in str(raised.value)
    assert "\n" not in str(raised.value)
    place.start_fit()
    report = place.ingest("s.kps", faults)
    place.check("s.kps", faults)
    for note in report.notes:  # who had not answered by the end had no task
        assert expected[note.split()[1]] in note
    for name in expected:
        place.hands.kill(name)


def test_a_worker_that_goes_blind_is_left_out_and_its_videos_have_not_failed(place: Place) -> None:
    place.start_fit()
    with pytest.raises(
        WorkersError,
        match=r"frames of video 'v\d+' could not be read there, only by the driver",
    ):
        place.ingest("blind.kps", SOME, place.blind("fit").touch)
    assert place.check("blind.kps", SOME, whole=False) < len(LENGTHS)
    place.blind("fit").unlink()
    place.ingest("blind.kps", SOME)
    place.check("blind.kps", SOME)


@pytest.mark.skipif(
    not can_mount(), reason="this machine gives no process its own view of the file system"
)
def test_what_a_worker_wrote_elsewhere_is_not_taken(place: Place) -> None:
    place.start_fit()
    stores, copies = place.folder / "stores", place.folder / "copies"
    worker = place.hands.workers["fit"]

    def move() -> None:
        shutil.copytree(stores / "moved.kps", copies / "moved.kps")
        change_view(worker, f"mount --bind {copies} {stores}")

    with pytest.raises(WorkersError, match=f"of '{FEATURE}.*, which a worker says it wrote"):
        place.ingest("moved.kps", SOUND, move)
    change_view(worker, f"umount {stores}")
    place.check("moved.kps", SOUND, whole=False)
    place.ingest("moved.kps", SOUND)
    place.check("moved.kps", SOUND)


def test_a_scheduler_that_dies_ends_the_run_in_one_line(place: Place) -> None:
    place.start_fit()
    with pytest.raises(
        WorkersError,
        match=r"the Dask scheduler at \S+ is gone.*; \d+ of 12 videos are in \S+; the same",
    ):
        place.ingest("gone.kps", SOUND, place.hands.scheduler.kill)
    assert place.check("gone.kps", SOUND, whole=False) > 0
    place.ingest("gone.kps", SOUND, scheduler=None, workers=0)
    place.check("gone.kps", SOUND)


# -- what hangs, with a scheduler of its own for each test ---------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A scheduler whose workers may be silent for three seconds."""
    monkeypatch.setattr(executors, "SILENT_S", 3.0)
    monkeypatch.setattr(executors, "_REPLACED_S", 0.0)
    with ByHand(tmp_path) as hands:
        yield Place(tmp_path, hands)


def test_a_run_begins_before_its_first_worker_and_knows_the_scheduler_by_its_file(
    own: Place,
) -> None:
    class Observer(SilentObserver):
        def on_note(self, note: str) -> None:
            if "has no workers yet" in note:
                assert f"(start one: dask worker --scheduler-file {own.hands.file})" in note
                own.hands.start("late", wait=False)

    model, options = NumberedExtractor(), Options(scheduler=str(own.hands.file), task_frames=10)
    source = NumberedSource(LENGTHS, own.folder / "videos")
    store = own.folder / "stores" / "late.kps"
    run_ingest(source, store, model, options, observer=Observer())
    own.check("late.kps", SOUND)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"s\.json does not exist"),
        ("", "is not a file that 'dask scheduler --scheduler-file"),
        ('{"address": 5}', "is not a file that 'dask scheduler --scheduler-file"),
        ("[" * 10**5, "is not a file that 'dask scheduler --scheduler-file"),
        ('{"address": "nowhere"}', "no Dask scheduler answers at"),
    ],
)
def test_a_scheduler_file_that_is_none_is_told(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(KpstoreError, match=said):
        run_ingest(
            FakeSource({"v": 3}),
            memory_location(),
            FakeExtractor(),
            Options(scheduler=str(tmp_path / "s.json")),
        )


@pytest.mark.parametrize(
    ("hang", "nanny"), [(wait_with_the_lock, True), (wait_with_the_lock, False), (stop_this, False)]
)
def test_a_frame_that_hangs_on_a_worker_started_by_hand_fails_and_the_run_goes_on(
    own: Place, hang: Callable[[], None], nanny: bool
) -> None:
    names = ["one"] if nanny else ["one", "two"]  # without a nanny none comes back
    for name in names:
        own.hands.start(name, nanny=nanny)
    store = memory_location()
    source = FakeSource({"v0": 12, "v1": 9, "v2": 14, "v3": 5}, poisonous={"v1": [4]})
    model = FakeExtractor(chunk_rows=8, poison=hang)
    options = Options(scheduler=own.hands.address, task_frames=20, frame_timeout_s=1.0)
    report = run_ingest(source, store, model, options)
    (failure,) = report.failures
    assert (failure.video_id, failure.frame) == ("v1", 4)
    assert failure.reason == (
        "reading and extracting this frame took longer than 1 s (--frame-timeout)"
    )
    assert report.videos_done == 4
    assert not plan_ingest(source, store, model, options).tasks


def test_a_frame_on_which_the_only_worker_hung_is_tried_alone_by_the_next_run(
    own: Place,
) -> None:
    store = own.folder / "stores" / "alone.kps"
    source = FakeSource({"v0": 12, "v1": 9, "v2": 14, "v3": 5}, poisonous={"v1": [4]})
    model = FakeExtractor(chunk_rows=8, poison=wait_with_the_lock)
    options = Options(
        scheduler=own.hands.address, task_frames=20, frame_timeout_s=1.0, wait_for_workers_s=0
    )
    own.hands.start("first")
    with pytest.raises(WorkersError, match=r"none came back.* \(videos 'v0', 'v1', where a worker"):
        run_ingest(source, store, model, options)
    own.hands.start("second")
    report = run_ingest(source, store, model, options)
    assert [(one.video_id, one.frame) for one in report.failures] == [("v1", 4)]
    assert report.videos_before + report.videos_done == 4
    last = read_progress(kpstore.open(store).backend)
    assert last is not None
    assert last.died_at == []


def test_a_worker_started_by_hand_that_stops_does_not_stop_the_run_for_ever(
    own: Place,
) -> None:
    stopped = own.hands.start("stopped").child

    def stop() -> None:
        stopped.send_signal(signal.SIGSTOP)

    with pytest.raises(WorkersError, match=r"it sent no sign of life for 3 s \(worker stopped\)"):
        own.ingest("stopped.kps", SOUND, stop, frame_timeout_s=1.0, wait_for_workers_s=0)
    stopped.send_signal(signal.SIGCONT)
    own.hands.start("another")  # the scheduler may have given up the first
    own.ingest("stopped.kps", SOUND, frame_timeout_s=1.0)
    own.check("stopped.kps", SOUND)
