"""The runs of ``benchmarks.faults``, a few of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import cluster, corruption, interrupted


def test_random_clusters_lose_nothing_and_a_second_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal.jsonl"
    counts = cluster.run(1, 3, tmp_path / "clusters", journal)
    assert (
        sum(one["attempts"] for one in counts.values())
        == sum(one["survived"] for one in counts.values())
        == 1
    )
    monkeypatch.setattr(cluster, "_attempt", None)  # nothing is made again
    assert cluster.run(1, 3, tmp_path / "clusters", journal) == counts


def test_commands_stopped_at_random_steps_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (corruption, interrupted):
        monkeypatch.setattr(module, "LENGTHS", {"a": 10, "b": 7, "none": 0, "c": 20})
    counts = interrupted.run("icechunk", 2, 0, tmp_path, ("tag", "export"))
    assert counts == {
        "attempts": 2,
        "survived": 2,
        "lost_or_wrong": 0,
        "unclear_message": 0,
    }
    monkeypatch.setattr(interrupted, "attempt", None)  # nothing is made again
    assert interrupted.run("icechunk", 2, 0, tmp_path) == counts
