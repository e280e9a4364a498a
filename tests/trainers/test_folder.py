"""The numbers of a run go on behind those that were written before."""

from __future__ import annotations

from pathlib import Path

import pytest

from kpstore.trainers.folder import open_journal

COLUMNS = ("step", "loss")


def goes_on(path: Path) -> list[str]:
    with open_journal(path, COLUMNS, up_to_step=3) as journal:
        journal.append({"step": 4, "loss": 0.5})
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("end", [b"", b"4,0.", b"\0\0\0\0", b"\x8d\xff,\n", b"9" * 5000 + b",1\n"])
def test_lines_up_to_the_checkpoint_stay(
    end: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "steps.csv"
    path.write_bytes(b"step,loss\n1,0.5\n2,0.25\n3,0.125\n4,0.1\n" + end)
    assert goes_on(path) == ["step,loss", "1,0.5", "2,0.25", "3,0.125", "4,0.5"]
    assert not caplog.records


def test_damaged_lines_before_the_checkpoint_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "steps.csv"
    path.write_bytes(b"step,loss\n1,0.5\n\x8d,0.25\n3,0.125\n")
    assert goes_on(path) == ["step,loss", "1,0.5", "3,0.125", "4,0.5"]
    assert "steps.csv: 1 damaged lines are left out" in caplog.text
