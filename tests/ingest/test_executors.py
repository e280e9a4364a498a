"""Workers that cannot do their tasks are left out; the others do them."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import pytest

import kpstore
from kpstore.errors import ExtractorError, UnsupportedError
from kpstore.ingest import executors, run
from kpstore.ingest.executors import DaskExecutor
from kpstore.ingest.run import Options, run_ingest
from kpstore.schema.feature import State
from tests.fakes import FakeExtractor, FakeSource

SOURCE = FakeSource({f"v{n:02}": 4 for n in range(12)})


@dataclass
class OneGpuGone(FakeExtractor):
    """Works on the second worker alone; on the first its device is lost, at once or after a few videos."""

    folder: str = ""
    after: int = 0

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        self._lost = str(distributed.get_worker().name) == "0"
        self._videos = 0
        if self._lost and not self.after:
            raise UnsupportedError("device 'cuda:0' was asked for, but there is none")

    def start_video(self, reference: Any = None) -> dict[str, Any]:
        self._videos += 1
        if self._lost and self._videos > self.after:
            (Path(self.folder) / "lost").touch()
            raise ExtractorError("the model fails on cuda:0: device lost")
        return super().start_video()


@pytest.mark.parametrize("after", [0, 2])
def test_a_worker_whose_gpu_is_gone_is_left_out_and_nothing_is_lost(tmp_path: Path, after: int) -> None:
    extractor = OneGpuGone(folder=str(tmp_path), after=after, sleep_s=0.02)
    report = run_ingest(SOURCE, tmp_path / "s.kps", extractor, Options(workers=2, task_frames=4))
    store = kpstore.open(tmp_path / "s.kps")
    assert (store.states("points") == State.DONE).all()
    assert store.failures("points") == []
    assert [note.startswith("worker 0 was left out: ") for note in report.notes] == [True]
    run_ingest(SOURCE, tmp_path / "plain.kps", FakeExtractor(), Options(workers=0))
    assert not kpstore.diff(store, kpstore.open(tmp_path / "plain.kps"))


class NoneLeft(FakeExtractor):
    """Works nowhere."""

    def open(self, device: str = "cpu") -> None:
        raise UnsupportedError("no weights here")


def test_when_no_worker_is_left_the_run_ends_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no weights here"):
        run_ingest(SOURCE, tmp_path / "s.kps", NoneLeft(), Options(workers=2))
    assert (kpstore.open(tmp_path / "s.kps").states("points") == State.PENDING).all()


@dataclass
class SeesGpu(FakeExtractor):
    """Writes down which device it was given, and which GPUs it can see."""

    folder: str = ""

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        (Path(self.folder) / f"{os.getpid()}").write_text(f"{device} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}")


def devices(tmp_path: Path, **options: Any) -> list[str]:
    (tmp_path / "seen").mkdir()
    extractor = SeesGpu(folder=str(tmp_path / "seen"), sleep_s=0.02)
    run_ingest(SOURCE, tmp_path / "s.kps", extractor, Options(task_frames=4, **options))
    return sorted({path.read_text().strip() for path in (tmp_path / "seen").iterdir()})


def test_each_worker_gets_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "count_gpus", lambda: 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert devices(tmp_path, gpus=2) == ["cuda:0", "cuda:1"]


def test_dask_cuda_pins_gpus_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cluster(CUDA_VISIBLE_DEVICES: list[int], **options: Any) -> Any:
        asked.append(CUDA_VISIBLE_DEVICES)
        return distributed.LocalCluster(**options)

    monkeypatch.setattr(run, "count_gpus", lambda: 2)
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cluster))
    assert devices(tmp_path, gpus=2) == ["cuda"]  # each sees its own as the first one
    assert asked == [[0, 1]]
    assert not DaskExecutor(4, gpus=2).pins_gpus  # several workers on each: dask-cuda has no such thing


@dataclass
class OneGone(FakeExtractor):
    """Does not start on the first worker."""

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        try:
            name = str(distributed.get_worker().name)
        except ValueError:  # in an isolated process, which has no worker
            return
        if name == "0":
            raise ExtractorError("device lost")


def test_a_worker_that_dies_while_another_is_left_out_is_waited_for(tmp_path: Path) -> None:
    source = FakeSource(dict(SOURCE.lengths), poisonous={"v03": [1], "v08": [2]})
    run_ingest(source, tmp_path / "s.kps", OneGone(sleep_s=0.01), Options(workers=2, task_frames=5))
    store = kpstore.open(tmp_path / "s.kps")
    assert (store.states("points") == State.DONE).all()
    assert [(f.video_id, f.frame) for f in store.failures("points")] == [("v03", 1), ("v08", 2)]
