"""A benchmark reads what it says, from everything that it compares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kpstore
from kpstore.bench.comparison import BenchReport, bench
from kpstore.bench.measure import BenchSettings, Turn, Workload, measure
from kpstore.bench.peers import PEERS, PeerSubject, installed_peers
from kpstore.bench.plot import plot
from kpstore.bench.subjects import (
    KpstoreSubject,
    MemorySubject,
    TorchSubject,
    filesystem_of,
)
from kpstore.errors import InvalidError, MissingExtraError
from tests.conftest import memory_location
from tests.store.data import fill

QUICK = BenchSettings(runs=1, seconds=0.01)
ROWS = np.random.default_rng(0).normal(size=(3000, 5, 3)).astype(np.float32)


def check_reads(subject: Any, rows: np.ndarray) -> None:
    subject.reopen()
    wanted = np.random.default_rng(1).integers(len(rows), size=50)
    out = np.empty((50, *rows.shape[1:]), dtype=rows.dtype)
    subject.gather(wanted, out)
    np.testing.assert_array_equal(out, rows[wanted])
    middle = len(rows) // 2
    subject.read(middle, middle + 9, out[:9])
    np.testing.assert_array_equal(out[:9], rows[middle : middle + 9])
    clips = np.empty((2, 7, *rows.shape[1:]), dtype=rows.dtype)
    subject.clips(np.array([3, 1]), 7, clips)
    np.testing.assert_array_equal(clips, [rows[3:10], rows[1:8]])
    batches = [
        torch.as_tensor(batch).numpy() for batch in subject.epoch(16, np.random.default_rng(2))
    ]
    seen = np.concatenate(batches)
    assert len(seen) == len(rows)
    np.testing.assert_array_equal(np.sort(seen[:, 0, 0]), np.sort(rows[:, 0, 0]))
    assert not np.array_equal(seen, rows)


@pytest.mark.parametrize("name", PEERS)
def test_peers_hold_the_same_rows(name: str, tmp_path: Path) -> None:
    if name not in installed_peers():
        with pytest.raises(MissingExtraError, match=name):
            bench(kpstore.create(memory_location()), "points", against=[name])
        return
    check_reads(PeerSubject(name, ROWS, tmp_path), ROWS)


def test_memory_and_torch_read_the_array() -> None:
    check_reads(MemorySubject(ROWS), ROWS)
    check_reads(TorchSubject(ROWS), ROWS)


@pytest.mark.parametrize("cache", ["off", "on"])
def test_the_store_is_read_as_users_read_it(
    disk_store: kpstore.Store, tmp_path: Path, cache: str
) -> None:
    filled = fill(disk_store, done=("a", "b", "d"), compression="lz4")
    folder = cache if cache == "off" else str(tmp_path / "cache")
    subject = KpstoreSubject(filled.location, None, "points", 34, cache=folder)
    check_reads(subject, filled["points"][:])
    assert ("decoded copy" in subject.how) == (cache == "on")
    first = KpstoreSubject(filled.location, None, "points", 20, cache=folder)
    assert sum(len(batch) for batch in first.epoch(8, np.random.default_rng(0))) == 20


class Slow(MemorySubject):
    def __init__(self, name: str, speed: float) -> None:
        super().__init__(ROWS)
        self.name, self.speed = name, speed


def test_subjects_take_turns_on_the_same_rows() -> None:
    seen: list[tuple[str, int]] = []

    def note(turn: Turn) -> list[float]:
        seen.append((turn.subject.name, int(turn.rng.integers(10**9))))
        return [turn.subject.speed * (1 + len(seen) // 2)]

    subjects = [Slow("a", 1.0), Slow("b", 10.0)]
    figures = list(measure(subjects, [Workload({"speed": "rows/s"}, note)], BenchSettings(runs=3)))
    assert [name for name, _ in seen] == ["a", "b"] * 3
    drawn = [number for _, number in seen]
    assert drawn[::2] == drawn[1::2]
    assert len(set(drawn)) == 3
    assert [(f.subject, f.median, f.lowest, f.highest) for f in figures] == [
        ("a", 2, 1, 3),
        ("b", 30, 20, 40),
    ]


@dataclass(frozen=True)
class Measured:
    """A report, what was said meanwhile, and the folder for copies."""

    report: BenchReport
    steps: list[str]
    scratch: Path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("bench")
    store = kpstore.create(folder / "s.kps")
    steps: list[str] = []
    report = bench(
        fill(store, done=("a", "b", "d"), compression="lz4"),
        "points",
        against=["h5py", "npz"],
        cache=str(folder / "cache"),
        settings=QUICK,
        scratch=folder,
        on_step=steps.append,
    )
    return Measured(report, steps, folder)


def test_a_report_says_what_was_measured_and_how(measured: Measured, tmp_path: Path) -> None:
    report = measured.report
    assert list(report.how) == [
        "memory",
        "kpstore",
        "kpstore, cache",
        "h5py",
        "npz",
        "DataLoader(TensorDataset)",
    ]
    workloads = {
        "open to the first row",
        "random frames",
        "clips",
        "one video, median",
        "one video, 99 %",
    }
    for subject in list(report.how)[:5]:
        found = {figure.workload for figure in report.figures if figure.subject == subject}
        assert found == workloads | {"shuffled epoch"}
    assert all(figure.median > 0 for figure in report.figures)
    assert report.peak is not None
    assert 0 < report.peak.own < 400
    assert "writing a copy for h5py" in measured.steps
    assert not list(measured.scratch.glob("kpstore-bench*"))
    as_json = json.loads(json.dumps(report.to_json()))
    assert as_json["n_rows"] == 34
    assert {
        figure["ratio_to_memory"] for figure in as_json["figures"] if figure["subject"] == "memory"
    } == {1.0}
    plot(report, tmp_path / "bench.svg")
    assert "random frames" in (tmp_path / "bench.svg").read_text(encoding="utf-8")


def test_a_ratio_above_one_is_faster(measured: Measured) -> None:
    report = measured.report
    for figure in report.figures:
        memory = report.of("memory", figure.workload)
        assert memory is not None
        ratio = report.ratio(figure)
        assert ratio is not None
        faster = (
            figure.median < memory.median if figure.unit == "ms" else figure.median > memory.median
        )
        assert (ratio > 1) == faster


def test_only_numbers_of_frames_can_be_measured(memory_store: kpstore.Store) -> None:
    filled = fill(memory_store)
    with pytest.raises(InvalidError, match="'image_path' cannot be measured"):
        bench(filled, "image_path")
    with pytest.raises(InvalidError, match="format 'floppy' is unknown"):
        bench(filled, "points", against=["floppy"])
    with pytest.raises(InvalidError, match="0 frames asked for"):
        bench(filled, "points", n_rows=0)


def test_the_file_system_has_a_name(tmp_path: Path) -> None:
    assert filesystem_of(str(tmp_path)).isidentifier()
