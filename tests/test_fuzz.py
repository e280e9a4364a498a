"""When a run of ``make fuzz`` ends, and that sound files pass every target."""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("torch")

from benchmarks.fuzz.__main__ import Run
from benchmarks.fuzz.shapes import reshaped
from benchmarks.fuzz.targets import TARGETS


def heard(*lines: str) -> Run:
    run = Run()
    for line in lines:
        run.hear(line)
    return run


def test_a_run_counts_inputs_and_cpu_time() -> None:
    run = heard("INFO: Seed: 1", "#2\tread in 3.5 CPU seconds", "#4\tNEW    cov: 7", "#8\tpulse")
    assert (run.inputs, run.cpu_s, run.newest_s) == (2, 3.5, 3.5)


@pytest.mark.parametrize(
    ("cpu_s", "newest_s", "ended"), [(61, 60, "time"), (59, 28, "nothing new"), (59, 30, "")]
)
def test_a_run_ends_by_cpu_time_or_when_nothing_is_new(
    cpu_s: float, newest_s: float, ended: str
) -> None:
    run = Run(inputs=10, cpu_s=cpu_s, newest_s=newest_s)
    assert run.is_enough(10, 1, 0.5) is bool(ended)
    assert run.ended == ended


def test_a_run_reads_its_least_number_of_inputs_however_long_it_takes() -> None:
    assert not Run(inputs=9, cpu_s=10_000).is_enough(10, 1, 0.5)


@pytest.mark.parametrize(
    "data", [b'{"a": {"b": [1, 2]}}', b'\x03{"a": {"b": [1, 2]}', b'{"a": 1}\n{"b": 2}']
)
def test_json_changes_its_shape_and_keeps_what_is_around_it(data: bytes) -> None:
    changed = {reshaped(data, Random(seed)) for seed in range(100)}
    assert len(changed) > 20
    assert all(one is not None and one.count(b"\n") == data.count(b"\n") for one in changed)
    assert all(one is not None and one.startswith(data[: data.find(b"{")]) for one in changed)


def test_what_is_no_json_keeps_its_shape() -> None:
    assert reshaped(b"\x89PNG", Random(0)) is None


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_pass(name: str) -> None:
    for seed in TARGETS[name].seeds():
        assert TARGETS[name].check(seed).error is None
