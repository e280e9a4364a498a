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


@pytest.mark.parametrize("end", [b"", b"4,0.", b"\0\0\0\0", b"\x8d\xff,", b"9" * 5000])
def test_lines_up_to_the_checkpoint_stay(
    end: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "steps.csv"
    path.write_bytes(b"step,loss\n1,0.5\n2,0.25\n3,0.125\n4,0.1\n" + end)
    assert goes_on(path) == ["step,loss", "1,0.5", "2,0.25", "3,0.125", "4,0.5"]
    assert not caplog.records


def test_a_split_may_have_a_comma_in_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, columns = tmp_path / "metrics.csv", ("step", "a,b_loss")
    for step in (0, 1):
        with open_journal(path, columns, up_to_step=step) as journal:
            journal.append({"step": step + 1, "a,b_loss": 0.5})
    assert path.read_text(encoding="utf-8") == 'step,"a,b_loss"\n1,0.5\n2,0.5\n'
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"step,loss\n1,0.5\n\x8d,0.25\n3,0.125\n", ["1,0.5", "3,0.125"]),
        (b"step,loss\n1,0.5\n2,0.25\n,0.125\n4,1e-05\n", ["1,0.5", "2,0.25"]),
        (b"step,loss\n1,0.5\n2,0\0z25\n3,nan\n", ["1,0.5", "3,nan"]),
        (b"step,loss\n1,0.5\n%b,0.25\n3,\n" % (b"9" * 5000), ["1,0.5", "3,"]),
        (b"step,loss1,0.5\n2,0.25\n", ["2,0.25"]),
    ],
    ids=["no text", "no step", "no number", "too long", "no header"],
)
def test_damaged_lines_are_told(
    content: bytes, kept: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "steps.csv"
    path.write_bytes(content)
    assert goes_on(path) == ["step,loss", *kept, "4,0.5"]
    assert "steps.csv: damaged lines, 1 of them, are left out" in caplog.text
