"""The ingest: the same bytes however it runs, everything accounted for, nothing half visible."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import distributed
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import kpstore
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.errors import (
    BusyError,
    CorruptError,
    ExtractorError,
    InvalidError,
    MismatchError,
    NotFoundError,
)
from kpstore.ingest import run as run_module
from kpstore.ingest.executors import DaskExecutor
from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.report import PROGRESS_FILE, Progress, feature_progress, read_progress
from kpstore.ingest.run import plan_ingest, run_ingest
from kpstore.schema.feature import FeatureRows, State
from kpstore.sources.base import Listing
from tests.conftest import memory_location
from tests.fakes import FakeExtractor, FakeSource, fake_spec, record
from tests.ingest.models import Unstartable
from tests.processes import start, until

LENGTHS = {f"v{n:02d}": (n * 11) % 23 for n in range(24)}
BROKEN = {"v03": [0, 5], "v11": [5]}
ARRAYS = ("points", "points_detected", "points_status", "points_state", "points_failure")
FEW = {"a": 5, "b": 0, "c": 9}
SERIAL = Options(workers=0, task_frames=30)


def source(**changes: Any) -> FakeSource:
    return FakeSource(LENGTHS, broken=BROKEN, unreadable=("v05",), **changes)


def extractor(**changes: Any) -> FakeExtractor:
    return FakeExtractor(**{"chunk_rows": 8, **changes})


def ingest(path: Path | str, options: Options = SERIAL, **changes: Any) -> kpstore.Store:
    frames, model = changes.pop("source", source()), changes.pop("extractor", extractor())
    report = run_ingest(frames, path, model, options, **changes)
    store = kpstore.open(path, mode="a")
    assert report.snapshot == store.snapshot
    return store


def assert_same(one: kpstore.Store, other: kpstore.Store) -> None:
    for name in ARRAYS:
        left, right = one[name][:], other[name][:]
        assert left.dtype == right.dtype
        assert (
            left.tolist() == right.tolist()
            if left.dtype == object
            else left.tobytes() == right.tobytes()
        )


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> kpstore.Store:
    return ingest(tmp_path_factory.mktemp("serial") / "s.kps")


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> kpstore.Store:
    """The same with another setting."""
    folder = tmp_path_factory.mktemp("doubled")
    return ingest(folder / "s.kps", extractor=extractor(scale=2.0))


@pytest.fixture
def ingested(serial: kpstore.Store, tmp_path: Path) -> kpstore.Store:
    """A copy of the serial store at ``s.kps``, for tests that go on with it."""
    shutil.copytree(serial.location, tmp_path / "s.kps")
    return kpstore.open(tmp_path / "s.kps", mode="a")


def dask(path: Path, workers: int, source: FakeSource, **changes: Any) -> kpstore.Store:
    return ingest(path, Options(workers=workers, task_frames=30, **changes), source=source)


# -- the same bytes --------------------------------------------------------------------------------


def test_serial_equals_a_plain_loop(serial: kpstore.Store) -> None:
    model, frames = extractor(), source()
    model.open()
    for video in frames.scan().videos:
        if video.id in frames.unreadable:
            continue
        model.start_video()
        for number, image in enumerate(frames.read_frames(video)):
            if number in BROKEN.get(video.id, ()):
                continue
            rows, at = model.rows([image]), serial.video(video.id).rows.start + number
            np.testing.assert_array_equal(serial["points"][at], rows.values[0])
            np.testing.assert_array_equal(
                serial["points_detected"][at], rows.companions["detected"][0]
            )
            assert serial["points_status"][at] == State.DONE


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dask_workers_give_the_same_bytes(
    serial: kpstore.Store, tmp_path: Path, workers: int
) -> None:
    assert_same(serial, dask(tmp_path / "d.kps", workers, source(), checkpoint_frames=50))


def test_forks_are_really_used_and_memory_without_forks_gives_the_same(
    serial: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks, take = list[bool](), run_module._Run._take

    def watched(self: Any, result: Any) -> None:
        forks.append(result.fork is not None)
        take(self, result)

    monkeypatch.setattr(run_module._Run, "_take", watched)
    assert_same(serial, ingest(tmp_path / "s.kps"))
    assert sum(forks) >= len(forks) // 2 > 1
    forks.clear()
    assert_same(serial, ingest(memory_location()))
    assert not any(forks)


@pytest.mark.parametrize(
    ("chunk_rows", "task_frames"), [(1, 50), (3, 1), (3, 10_000), (64, 50), (1000, 1)]
)
def test_chunks_and_tasks_of_any_size_give_the_same_numbers(
    serial: kpstore.Store, tmp_path: Path, chunk_rows: int, task_frames: int
) -> None:
    options = Options(workers=0, task_frames=task_frames, checkpoint_frames=40)
    assert_same(
        serial, ingest(tmp_path / "s.kps", options, extractor=extractor(chunk_rows=chunk_rows))
    )


# -- failures --------------------------------------------------------------------------------------


def test_broken_frames_and_videos_are_recorded_and_the_rest_is_there(serial: kpstore.Store) -> None:
    failures = [(f.video_id, f.frame, f.reason) for f in serial.failures("points")]
    assert failures == [
        ("v03", 0, "truncated"),
        ("v03", 5, "truncated"),
        ("v05", None, "OSError: v05: the disk said no"),
        ("v11", 5, "truncated"),
    ]
    table = serial.videos["points_state"]
    assert table["v05"] == "failed"
    assert (table.drop("v05") == "done").all()
    status = serial["points_status"][:]
    assert (status == State.FAILED).sum() == 3 + LENGTHS["v05"]
    assert not (status == State.PENDING).any()
    assert np.isnan(serial["points"][:][status == State.FAILED]).all()


def test_an_image_the_model_does_not_like_fails_alone(tmp_path: Path) -> None:
    store = ingest(
        tmp_path / "s.kps", source=FakeSource({"a": 30}), extractor=extractor(fail_above=200)
    )
    failed = {f.frame for f in store.failures("points")}
    images = list(FakeSource({"a": 30}).read_frames(record("a", 30)))
    assert failed == {n for n, image in enumerate(images) if image[0, 0, 0] >= 200}
    assert 0 < len(failed) < 30
    assert {f.reason for f in store.failures("points")} == {
        "ValueError: a frame that the model does not like"
    }


@dataclass
class Stateless(FakeExtractor):
    """Frames do not depend on each other, as batches need it."""

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        assert len(images) <= self.batch_size
        self._last = 0.0
        blocks = []
        for image in images:
            self._last = 0.0
            blocks.append(super().rows([image]))
        return FeatureRows.concatenate(blocks) if blocks else fake_spec().empty_rows(0)


@pytest.mark.parametrize("fail_above", [256, 200])
def test_batches_give_the_same_numbers_and_only_the_bad_image_fails(
    tmp_path: Path, fail_above: int
) -> None:
    stores = [
        ingest(
            tmp_path / f"{n}.kps",
            source=FakeSource({**FEW, "d": 30}, broken={"a": [0, 3]}),
            extractor=Stateless(chunk_rows=8, batch_size=n, fail_above=fail_above),
        )
        for n in (1, 4)
    ]
    assert_same(*stores)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_frame_that_kills_its_worker_fails_alone(serial: kpstore.Store, tmp_path: Path) -> None:
    store = dask(tmp_path / "s.kps", 2, source(poisonous={"v13": [4]}))
    extra = {(f.video_id, f.frame, f.reason) for f in store.failures("points")} - {
        (f.video_id, f.frame, f.reason) for f in serial.failures("points")
    }
    assert extra == {("v13", 4, "the worker process died on this frame (SIGKILL)")}
    assert not (store["points_status"][:] == State.PENDING).any()
    changed = kpstore.diff(serial, store).features_changed["points"].videos
    assert changed == ("v13",)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workers_of_another_scheduler_in_another_folder_do_the_same(
    serial: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        monkeypatch.chdir(tmp_path)
        store = ingest("s.kps", Options(scheduler=cluster.scheduler_address, task_frames=30))
    assert_same(store, serial)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_local_cluster_listens_on_this_machine_only() -> None:
    with DaskExecutor(1):
        listening = [
            c.laddr.ip
            for c in psutil.Process().net_connections("tcp")
            if c.status == psutil.CONN_LISTEN
        ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


# -- again -----------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_makes_no_commit(
    ingested: kpstore.Store, tmp_path: Path
) -> None:
    report = run_ingest(source(), tmp_path / "s.kps", extractor(), SERIAL)
    assert kpstore.open(tmp_path / "s.kps").snapshot == ingested.snapshot == report.snapshot
    assert (report.videos_done, report.videos_before, report.frames) == (0, len(LENGTHS), 0)
    assert not report.interrupted


def test_more_videos_are_appended_and_only_they_are_extracted(
    serial: kpstore.Store, tmp_path: Path
) -> None:
    some = dict(list(LENGTHS.items())[:10])
    ingest(tmp_path / "s.kps", source=replace(source(), lengths=some))
    report = run_ingest(source(), tmp_path / "s.kps", extractor(), SERIAL)
    assert (report.videos_before, report.videos_done + report.videos_failed) == (
        10,
        len(LENGTHS) - 10,
    )
    assert_same(serial, kpstore.open(tmp_path / "s.kps"))


def test_overwrite_extracts_everything_again_with_other_settings(
    ingested: kpstore.Store, doubled: kpstore.Store, tmp_path: Path
) -> None:
    second = ingest(
        tmp_path / "s.kps", replace(SERIAL, overwrite=True), extractor=extractor(scale=2.0)
    )
    assert second.provenance("points")["parameters"] == {"scale": 2.0}
    assert_same(second, doubled)
    assert kpstore.diff(ingested, second).features_changed["points"].provenance_changed


@pytest.mark.usefixtures("ingested")
def test_an_interrupted_overwrite_keeps_its_settings(
    doubled: kpstore.Store, tmp_path: Path
) -> None:
    """Half a feature made with one setting must never be completed with another."""
    again, other = replace(SERIAL, overwrite=True), extractor(scale=2.0)
    run_ingest(source(), tmp_path / "s.kps", other, again, observer=Interrupter(9))
    half = kpstore.open(tmp_path / "s.kps")
    assert half.provenance("points")["parameters"] == {"scale": 2.0}
    assert 9 <= (half.states("points") != State.PENDING).sum() < len(LENGTHS)
    few = FakeSource({video: LENGTHS[video] for video in list(LENGTHS)[-3:]})
    for options in (SERIAL, again):
        with pytest.raises(MismatchError, match=r'"scale": 2.0.*"scale": 1.0'):
            ingest(tmp_path / "s.kps", options, source=few)
    assert_same(ingest(tmp_path / "s.kps", extractor=other), doubled)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_feature_of_which_nothing_was_done_begins_again_with_other_settings(
    tmp_path: Path, overwrite: bool
) -> None:
    with pytest.raises(ExtractorError, match=r"no weights\.onnx"):
        ingest(tmp_path / "s.kps", extractor=Unstartable(chunk_rows=8, scale=2.0))
    store = ingest(tmp_path / "s.kps", replace(SERIAL, overwrite=overwrite))
    assert store.provenance("points")["parameters"] == {"scale": 1.0}
    assert (store.states("points") != State.PENDING).all()


@pytest.mark.usefixtures("ingested")
def test_retry_extracts_only_what_failed(tmp_path: Path) -> None:
    mended = FakeSource(LENGTHS)
    report = run_ingest(mended, tmp_path / "s.kps", extractor(), replace(SERIAL, retry_failed=True))
    assert (report.videos_done, report.failures) == (3, [])
    assert_same(kpstore.open(tmp_path / "s.kps"), ingest(tmp_path / "other.kps", source=mended))


# -- refused, and nothing written ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"extractor": extractor(scale=2.0)}, MismatchError, r'"scale": 1.0.*"scale": 2.0'),
        (
            {"source": source(problems=("a.png: gone", "b: extra"))},
            InvalidError,
            "2 problems.*\n  a.png.*\n  b: extra",
        ),
        (
            {"source": replace(source(), lengths={**LENGTHS, "v01": 12})},
            InvalidError,
            "'v01' has 11 frames in .* and 12",
        ),
        (
            {"source": replace(source(), lengths=dict(list(LENGTHS.items())[1:]))},
            InvalidError,
            "'v01' has split 'dev' in .* and split 'train' in the data set",
        ),
        ({"source": FakeSource({})}, InvalidError, "no videos to ingest"),
    ],
    ids=["settings", "problems", "length", "split", "empty"],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    ingested: kpstore.Store,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        ingest(tmp_path / "s.kps", **changes)
    assert kpstore.open(tmp_path / "s.kps").snapshot == ingested.snapshot


def test_a_run_that_is_refused_makes_no_store(tmp_path: Path) -> None:
    for bad in (source(problems=("a",)), FakeSource({})):
        with pytest.raises(InvalidError, match=r"problems|no videos"):
            run_ingest(bad, tmp_path / "s.kps", extractor(), SERIAL)
    assert list(tmp_path.iterdir()) == []


def test_problems_can_be_ignored_and_are_in_the_report(tmp_path: Path) -> None:
    report = run_ingest(
        FakeSource(FEW, problems=("a.png: gone",)),
        tmp_path / "s.kps",
        extractor(),
        replace(SERIAL, ignore_problems=True),
    )
    assert report.notes == ("a.png: gone",)


def test_changed_annotations_are_said_and_the_store_keeps_its_own(tmp_path: Path) -> None:
    class Revised(FakeSource):
        def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
            videos = super().scan().videos
            return Listing((replace(videos[0], annotations={"gloss": "REVISED"}), *videos[1:]))

    ingest(tmp_path / "s.kps", source=FakeSource(FEW))
    report = run_ingest(Revised(FEW), tmp_path / "s.kps", extractor(), SERIAL)
    assert report.notes == ("video 'a' has another gloss now; the store keeps its own",)
    assert kpstore.open(tmp_path / "s.kps")["gloss"][0] == "GLOSS-a"


def test_two_that_make_the_store_at_once_do_not_hurt_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = IcechunkBackend.create

    def overtaken(self: IcechunkBackend, attrs: Any, message: str) -> str:
        monkeypatch.setattr(IcechunkBackend, "create", make)
        kpstore.create(tmp_path / "s.kps", name="the other")
        return make(self, attrs, message)

    monkeypatch.setattr(IcechunkBackend, "create", overtaken)
    assert ingest(tmp_path / "s.kps", source=FakeSource(FEW)).name == "the other"
    assert [path.name for path in tmp_path.iterdir()] == ["s.kps"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_model_that_does_not_start_ends_the_run_and_is_no_videos_fault(
    tmp_path: Path, workers: int
) -> None:
    with pytest.raises(
        ExtractorError, match=r"'points' does not start: FileNotFoundError: no weights.onnx"
    ):
        run_ingest(
            FakeSource(FEW), tmp_path / "s.kps", Unstartable(chunk_rows=8), Options(workers=workers)
        )
    store = kpstore.open(tmp_path / "s.kps")
    assert (store.states("points") == State.PENDING).all()
    assert store.failures("points") == []
    ingest(tmp_path / "s.kps", source=FakeSource(FEW))


def test_an_error_that_ends_the_run_loses_nothing_that_was_whole(tmp_path: Path) -> None:
    class Observer(SilentObserver):
        def on_progress(self, progress: Progress) -> None:
            if progress.videos_done > 9:
                raise RuntimeError("the terminal is gone")

    with pytest.raises(RuntimeError, match="the terminal is gone"):
        run_ingest(source(), tmp_path / "s.kps", extractor(), SERIAL, observer=Observer())
    states = kpstore.open(tmp_path / "s.kps").states("points")
    assert 9 < (states != State.PENDING).sum() < len(LENGTHS)
    progress = read_progress(IcechunkBackend(str(tmp_path / "s.kps")))
    assert progress is not None
    assert not progress.running
    ingest(tmp_path / "s.kps")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_scheduler_without_workers_is_said(tmp_path: Path) -> None:
    said = r"no workers, and none came within 0 s \(--wait-for-workers\); start one: dask worker"
    with distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        options = Options(scheduler=cluster.scheduler_address, wait_for_workers_s=0)
        with pytest.raises(NotFoundError, match=said):
            ingest(tmp_path / "s.kps", options)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_adaptive_cluster_starts_its_first_worker_for_the_run(
    serial: kpstore.Store, tmp_path: Path
) -> None:
    class Observer(SilentObserver):
        notes: ClassVar[list[str]] = []

        def on_note(self, note: str) -> None:
            self.notes.append(note)

    options = {"n_workers": 0, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**options) as cluster:
        cluster.adapt(minimum=0, maximum=1, interval="50ms", wait_count=100)
        report = run_ingest(
            source(),
            tmp_path / "s.kps",
            extractor(),
            Options(scheduler=cluster.scheduler_address),
            observer=Observer(),
        )
    assert report.workers == 1
    assert not kpstore.diff(serial, kpstore.open(tmp_path / "s.kps"))
    assert any("has no workers yet; waiting 300 s for one" in note for note in Observer.notes)


def test_a_store_that_another_process_writes_is_busy(
    ingested: kpstore.Store, tmp_path: Path
) -> None:
    with (
        ingested.backend.exclusive("another ingest"),
        pytest.raises(BusyError, match="another ingest, process"),
    ):
        ingest(tmp_path / "s.kps")


def test_a_lost_fork_is_found_by_the_count_and_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = run_module.Transaction.merge
    monkeypatch.setattr(run_module.Transaction, "merge", lambda tx, forks: merge(tx, forks[1:]))
    frames = FakeSource({**FEW, "d": 30})
    with pytest.raises(CorruptError, match="missing after the merge; nothing was committed"):
        ingest(tmp_path / "s.kps", source=frames)
    store = kpstore.open(tmp_path / "s.kps")
    assert (store.states("points") == State.PENDING).all()
    assert (store["points_status"][:] == State.PENDING).all()
    monkeypatch.undo()
    ingest(tmp_path / "s.kps", source=frames)


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    plan = plan_ingest(source(), tmp_path / "s.kps", extractor(), SERIAL)
    assert (plan.n_frames, len(plan.new_videos), len(plan.pending)) == (
        sum(LENGTHS.values()),
        24,
        24,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"workers": -1}, {"checkpoint_s": 0}, {"workers_per_gpu": 0}, {"gpus": 1000}]
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=r"must be|GPUs asked for"):
        Options(**changes)


# -- interrupted -----------------------------------------------------------------------------------


class Interrupter(SilentObserver):
    """Presses Ctrl-C after some tasks."""

    def __init__(self, videos: int) -> None:
        self.videos = videos

    def on_progress(self, progress: Progress) -> None:
        if progress.videos_done >= self.videos:
            self.videos = 10**9
            raise KeyboardInterrupt


@pytest.mark.parametrize("videos", [1, 18])
def test_ctrl_c_commits_what_is_whole_and_the_next_run_completes_it(
    serial: kpstore.Store, tmp_path: Path, videos: int
) -> None:
    report = run_ingest(
        source(), tmp_path / "s.kps", extractor(), SERIAL, observer=Interrupter(videos)
    )
    store = kpstore.open(tmp_path / "s.kps")
    done = np.flatnonzero(store.states("points") != State.PENDING)
    assert report.interrupted
    assert report.videos_done + report.videos_failed == len(done) >= videos
    assert len(done) < len(LENGTHS)
    rows = store.index.rows_of(done)
    np.testing.assert_array_equal(store["points"][rows], serial["points"][rows])
    assert (np.delete(store["points_status"][:], rows) == State.PENDING).all()
    assert_same(serial, ingest(tmp_path / "s.kps"))


def test_sigterm_commits_and_ends(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    command = [sys.executable, "-m", "tests.ingest.term_driver", tmp_path / "s.kps", stopped]
    driver = start(command, cwd=Path(__file__).parents[2])
    until(stopped.exists, driver)
    running = read_progress(IcechunkBackend(str(tmp_path / "s.kps")))
    assert running is not None
    assert running.running
    assert running.checkpoints >= 2
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate()
    assert (driver.returncode, err) == (0, "")
    said, videos = out.split()
    assert said == "interrupted"
    store = kpstore.open(tmp_path / "s.kps")
    assert (store.states("points") == State.DONE).sum() == int(videos) > 0


# -- what it tells ---------------------------------------------------------------------------------


def test_the_report_is_in_the_last_commit(tmp_path: Path) -> None:
    report = run_ingest(source(), tmp_path / "s.kps", extractor(), SERIAL)
    store = kpstore.open(tmp_path / "s.kps")
    about = store.history()[0].metadata
    assert about["report"]["videos_done"] == report.videos_done == len(LENGTHS) - 1
    assert about["report"]["videos_failed"] == report.videos_failed == 1
    assert about["report"]["frames"] == report.frames == sum(LENGTHS.values())
    assert about["report"]["frames_failed"] == report.frames_failed == 3 + LENGTHS["v05"]
    assert [f["reason"] for f in about["report"]["failures"]] == [f.reason for f in report.failures]
    assert about["source"] == {"name": "fake", "kind": "fake"}
    assert "report" not in store.history()[1].metadata


def test_the_report_of_a_run_with_checkpoints_names_all_its_failures(tmp_path: Path) -> None:
    options = replace(SERIAL, checkpoint_frames=30)
    report = run_ingest(source(), tmp_path / "s.kps", extractor(), options)
    about = kpstore.open(tmp_path / "s.kps").history()[0].metadata["report"]
    assert [f["reason"] for f in about["failures"]] == [f.reason for f in report.failures]


def test_progress_is_readable_and_not_running_after_the_end(tmp_path: Path) -> None:
    store = ingest(tmp_path / "s.kps", replace(SERIAL, checkpoint_frames=50))
    progress = read_progress(store.backend)
    assert progress is not None
    assert not progress.running
    assert (progress.frames_done, progress.frames_committed) == (sum(LENGTHS.values()),) * 2
    assert (progress.videos, progress.videos_done, progress.frames_failed) == (
        24,
        24,
        3 + LENGTHS["v05"],
    )
    assert progress.checkpoints > 3
    assert [(p.done, p.failed, p.pending) for p in feature_progress(store)] == [(23, 1, 0)]
    assert read_progress(IcechunkBackend(str(tmp_path / "none"))) is None


def test_progress_that_cannot_be_read_does_not_stop_the_next_run(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    assert store.backend.sidecar is not None
    store.backend.sidecar.write(PROGRESS_FILE, "[")
    ingest(tmp_path / "s.kps", source=FakeSource(FEW))
    progress = read_progress(store.backend)
    assert progress is not None
    assert progress.died_at == []


def test_two_features_live_side_by_side(ingested: kpstore.Store, tmp_path: Path) -> None:
    @dataclass
    class Other(FakeExtractor):
        @property
        def spec(self) -> Any:
            return replace(super().spec, name="others")

    second = ingest(tmp_path / "s.kps", extractor=Other(chunk_rows=8))
    assert_same(ingested, second)
    np.testing.assert_array_equal(second["others"][:], second["points"][:])


def test_a_feature_that_somebody_described_is_not_made_anew(tmp_path: Path) -> None:
    """Nothing was done, but it is no run that ended before it began."""
    spec = replace(extractor().spec, axis="video")
    with kpstore.create(tmp_path / "s.kps").transaction("by hand") as tx:
        tx.add_feature(spec, {"extractor": "my script"})
    with pytest.raises(MismatchError, match="is stored with axis"):
        ingest(tmp_path / "s.kps")
    assert kpstore.open(tmp_path / "s.kps").feature("points").axis == "video"
