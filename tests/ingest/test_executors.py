"""Workers that cannot do their tasks are left out; the others do them."""

from __future__ import annotations

import importlib.util
import sys
import types
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest

import kpstore
from kpstore.errors import NotFoundError, UnsupportedError, WorkersError
from kpstore.ingest import crew, executors, roster
from kpstore.ingest.gpus import gpu_identities
from kpstore.ingest.job import Job
from kpstore.ingest.on_worker import Stranger
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.ingest.scheduler_errors import scheduler_told
from kpstore.schema.feature import State
from tests.conftest import memory_location
from tests.fakes import FakeExtractor, FakeSource
from tests.ingest.models import NoneLeft, NoNumbers, OneGone, OneGpuGone, SeesGpu


@pytest.fixture
def location() -> str:
    """A store in memory, for which workers need not import what writes to a disk."""
    return memory_location()


SOURCE = FakeSource({f"v{n:02}": 4 for n in range(12)})


@pytest.mark.parametrize("after", [0, 2])
def test_a_worker_whose_gpu_is_gone_is_left_out_and_nothing_is_lost(
    tmp_path: Path, location: str, after: int
) -> None:
    extractor = OneGpuGone(folder=str(tmp_path), after=after, sleep_s=0.02)
    report = run_ingest(SOURCE, location, extractor, Options(workers=2, task_frames=4))
    store = kpstore.open(location)
    assert (store.states("points") == State.DONE).all()
    assert store.failures("points") == []
    assert [note.startswith("worker 0 was left out: ") for note in report.notes] == [True]
    plain = memory_location()
    run_ingest(SOURCE, plain, FakeExtractor(), Options(workers=0))
    assert not kpstore.diff(store, kpstore.open(plain))


def test_when_no_worker_is_left_the_run_ends_and_says_why(location: str) -> None:
    with pytest.raises(UnsupportedError, match="no weights here"):
        run_ingest(SOURCE, location, NoneLeft(), Options(workers=2))
    assert (kpstore.open(location).states("points") == State.PENDING).all()


def devices(tmp_path: Path, **options: Any) -> list[str]:
    (tmp_path / "seen").mkdir()
    extractor = SeesGpu(folder=str(tmp_path / "seen"))
    run_ingest(SOURCE, memory_location(), extractor, Options(task_frames=4, **options))
    return sorted({path.read_text().strip() for path in (tmp_path / "seen").iterdir()})


def test_each_worker_gets_a_gpu_of_its_own_by_the_users_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8932f937")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert devices(tmp_path, gpus=2) == ["cuda 3", "cuda GPU-8932f937"]


class StandIn(distributed.LocalCluster):
    """Pins GPUs as dask-cuda does: each worker sees all of them, its own as the first."""

    def __init__(self, CUDA_VISIBLE_DEVICES: list[str], **options: Any) -> None:
        self.names = CUDA_VISIBLE_DEVICES
        super().__init__(**options)

    def pinned(self, number: int) -> str:
        return ",".join(self.names[number:] + self.names[:number])

    async def _start(self) -> None:
        for number, spec in list(self.worker_spec.items()):
            pinned = {**spec["options"], "env": {"CUDA_VISIBLE_DEVICES": self.pinned(number)}}
            self.worker_spec[number] = {**spec, "options": pinned}
        await super()._start()


class Wrong(StandIn):
    """Counts GPUs from 0, whatever the user has chosen."""

    def pinned(self, number: int) -> str:
        return str(number)


def with_dask_cuda(monkeypatch: pytest.MonkeyPatch, cluster: type[StandIn]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cluster))


def test_dask_cuda_pins_the_gpus_that_the_user_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_dask_cuda(monkeypatch, StandIn)
    assert devices(tmp_path, gpus=2) == ["cuda 2,GPU-8932f937", "cuda GPU-8932f937,2"]


def test_a_worker_on_somebody_elses_gpu_gets_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_dask_cuda(monkeypatch, Wrong)
    with pytest.raises(WorkersError, match="its first GPU is '0', not one of 2, GPU-8932f937"):
        devices(tmp_path, gpus=2)


@pytest.mark.parametrize(
    ("visible", "wanted", "on_machine", "expected"),
    [
        (None, 2, 4, ("0", "1")),
        (None, 2, 1, ("0",)),
        (None, 1, None, ()),
        ("2,3", 2, 8, ("2", "3")),
        (" 3 , 2 ", 1, 8, ("3",)),
        ("GPU-8932f937-d72c,1", 2, None, ("GPU-8932f937-d72c", "1")),
        ("MIG-GPU-1/2/0,MIG-7f", 2, 1, ("MIG-GPU-1/2/0", "MIG-7f")),
        ("", 2, 4, ()),
        ("-1", 2, 4, ()),
        ("0,-1,1", 3, 4, ("0",)),
        ("0,9,1", 3, 4, ("0",)),
        ("1,1", 2, 4, ("1",)),
        ("NoDevFiles", 1, 4, ()),
    ],
)
def test_gpus_keep_the_names_that_the_user_gave_them(
    visible: str | None, wanted: int, on_machine: int | None, expected: tuple[str, ...]
) -> None:
    assert gpu_identities(visible, wanted, on_machine) == expected


def test_a_worker_that_dies_while_another_is_left_out_is_waited_for(
    location: str,
) -> None:
    source = FakeSource(dict(SOURCE.lengths), poisonous={"v03": [1]})
    options = Options(workers=2, task_frames=5, wait_for_workers_s=3600)
    # Dask gives up a worker that is not back by then, as a busy machine's is after 15 seconds.
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
        run_ingest(source, location, OneGone(sleep_s=0.01), options)
    store = kpstore.open(location)
    assert (store.states("points") == State.DONE).all()
    assert [(f.video_id, f.frame) for f in store.failures("points")] == [("v03", 1)]


def test_a_worker_that_does_not_answer_is_not_waited_for(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "PROOF_S", 0.0)
    before = FakeSource({name: 4 for name in list(SOURCE.lengths)[:5]})
    run_ingest(before, location, FakeExtractor(), Options(workers=0))
    with pytest.raises(
        WorkersError, match=r"fit to work: it did not answer within 0 s .*; 5 of 12 videos are in"
    ):
        run_ingest(SOURCE, location, FakeExtractor(), Options(workers=1))


def test_what_the_model_reports_of_whole_videos_is_confirmed(location: str) -> None:
    run_ingest(SOURCE, location, NoNumbers(sleep_s=0.01), Options(workers=2, task_frames=8))
    store = kpstore.open(location)
    assert (store.states("points") == State.DONE).all()
    assert store.failures("points") == []


class NoAnswer:
    """Stands for a client whose scheduler knows some workers, none of which ever answers."""

    def __init__(self, n_workers: int) -> None:
        self.workers = {f"tcp://{n}": {"name": n} for n in range(n_workers)}

    def scheduler_info(self, **_: Any) -> dict[str, Any]:
        return {"workers": self.workers}

    def submit(self, *_: Any, **__: Any) -> Any:
        return types.SimpleNamespace(done=lambda: False, cancel=lambda: None)


@pytest.mark.parametrize(
    ("n_workers", "said"),
    [(0, "no worker is left to try the model"), (2, "did not try the model within 1800 s")],
)
def test_a_trial_that_nobody_answers_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, n_workers: int, said: str
) -> None:
    def too_late(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(distributed, "wait", too_late)
    executor = executors.DaskExecutor(2)
    executor._client = NoAnswer(n_workers)
    with pytest.raises(WorkersError, match=said):
        executor.try_out(Job("run", SOURCE, FakeExtractor()))


def answer(future: Any) -> Any:
    """What the driver makes of a future that has ended."""
    client = types.SimpleNamespace(
        status="running",
        scheduler=types.SimpleNamespace(ncores=None),
        sync=lambda *_, **__: {"tcp://0": 1},
    )
    job = Job("run", SOURCE, FakeExtractor())
    found = crew.Crew(
        client,
        "tcp://",
        job,
        (),
        lambda _: None,
        gpus=(),
        pinned=(),
        ours=True,
        notes={},
        on_death=lambda _: None,
        wait_s=0.0,
    )
    return found._answer(roster.Order("key", roster.Worker("tcp://0", "0")), future)


@dataclass
class Ended:
    """A future that has ended with an error."""

    error: Exception
    status: str = "error"

    def result(self, timeout: float) -> Any:
        raise self.error


def test_a_timeout_on_a_worker_is_its_answer_and_no_thread_for_tasks_makes_it_a_stranger() -> None:
    error = TimeoutError("a disk")
    assert answer(Ended(error)) is error
    error_of_dask = ValueError(
        "Invalid executor 'kpstore'; expected one of: ['actor', 'default', 'offload']"
    )
    assert isinstance(answer(Ended(error_of_dask)), Stranger)
    assert isinstance(answer(Ended(ValueError("another"))), ValueError)


def test_a_closed_client_or_a_lost_scheduler_is_one_error_of_ours() -> None:
    lost = [
        distributed.client.ClosedClientError("closed"),
        distributed.comm.CommClosedError("in <TCP>"),
        TimeoutError("no answer"),
    ]
    for error in lost:
        with (
            pytest.raises(WorkersError, match="scheduler at tcp://x:1 is gone"),
            scheduler_told("tcp://x:1"),
        ):
            raise error


def test_a_client_that_could_not_connect_does_not_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collected while another one starts, it would wait for that one, and that one for it."""
    made: list[weakref.ref[Any]] = []
    start = distributed.Client.__init__

    def noted(client: Any, *given: Any, **options: Any) -> None:
        made.append(weakref.ref(client))
        start(client, *given, **options)

    monkeypatch.setattr(distributed.Client, "__init__", noted)
    with pytest.raises(NotFoundError, match="no Dask scheduler answers at 'nowhere'"):
        executors.DaskExecutor(1, scheduler="nowhere").__enter__()
    assert [client() for client in made] == [None]
