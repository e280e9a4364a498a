"""``kpstore bench`` on a small store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kpstore
from kpstore.bench import comparison
from kpstore.cli.main import run
from tests.store.data import fill

QUICK = ["--runs", "1", "--seconds", "0.01", "--cache", "off"]


def test_bench_shows_each_way_of_reading(
    disk_store: kpstore.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = fill(disk_store).location
    picture = tmp_path / "bench.png"
    assert run(["bench", location, *QUICK, "--against", "npy,h5py", "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    for text in (
        "random frames, frames/s",
        "one video, 99 %, ms",
        "h5py, chunks of 64 rows",
        "memory of an epoch",
    ):
        assert text in shown.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bench_prints_json(
    disk_store: kpstore.Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The test above measures it, in a process that loads torch.
    monkeypatch.setattr(comparison, "peak_of_epoch", lambda *_: None)
    assert run(["bench", fill(disk_store).location, *QUICK, "--frames", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["feature"], report["n_rows"], report["total_rows"]) == ("points", 20, 34)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "floppy"], "format 'floppy' is unknown; kpstore compares with npy, npz,"),
        (["--feature", "pose"], "feature 'pose' not found"),
        (["--plot", "bench.doc"], "use a name that ends in .png, .svg or .pdf"),
        (["--scratch", "nowhere"], "--scratch nowhere is not a folder"),
    ],
)
def test_wrong_use_is_one_line(
    disk_store: kpstore.Store, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(["bench", fill(disk_store).location, *QUICK, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_store_without_features_has_nothing_to_read(
    disk_store: kpstore.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", disk_store.location, *QUICK]) == 2
    assert "no feature of frames" in capsys.readouterr().err
