"""One changed byte in a store: no command reads it as a value, and repair restores the value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kpstore
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from tests.cli.conftest import Kpstore
from tests.fakes import FakeExtractor, FakeSource
from tests.store.damage import damaged_copy

SOURCE = FakeSource({"a": 12, "b": 9, "c": 20})


@pytest.fixture(params=[".kps", ".h5"])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    sound = tmp_path / f"sound{request.param}"
    run_ingest(SOURCE, sound, FakeExtractor(chunk_rows=16), Options(workers=0))
    store = kpstore.open(sound)
    assert store.session.checksums("points") is not None
    return Path(damaged_copy(store, [("points", 1)], tmp_path / f"bad{request.param}"))


def test_no_command_makes_numbers_of_damage(kpstore_: Kpstore, bad: Path, tmp_path: Path) -> None:
    sound = bad.with_name(f"sound{bad.suffix}")
    out = tmp_path / f"out{bad.suffix}"
    for words in (
        ("merge", bad, sound, out, "--mixed", "--on-conflict", "first"),
        ("convert", bad, out),
        ("export", "hdf5", bad, out),
        ("export", "slt", bad, out, "--feature", "points"),
        ("stats", bad),
        ("splits", "check", bad, "--feature", "points"),
        ("diff", bad, sound),
    ):
        told = kpstore_(*words)
        assert (told.code, len(told.lines)) == (1, 1), (words, told)
        assert "points" in told.err, told
        assert "cannot be read" in told.err or "is damaged" in told.err, told
        assert not [path for path in (out, *out.rglob("*")) if path.is_file()], words
        if out.exists():
            out.rmdir()


def test_verify_names_videos_and_files_and_repair_leads_back(kpstore_: Kpstore, bad: Path) -> None:
    sound = bad.with_name(f"sound{bad.suffix}")
    assert kpstore_("verify", sound, "--all").code == 0
    told = json.loads(kpstore_("verify", bad, "--all", "--json").out)
    (problem,) = told["problems"]
    assert (problem["array"], problem["chunk"], problem["rows"]) == ("points", 1, [16, 32])
    assert (problem["videos"], problem["frames"]) == (["b", "c"], [[4, 9], [0, 11]])
    assert problem["files"]
    plain = kpstore_("verify", bad)
    assert plain.code == 1
    assert "chunk 1 (rows 16:32; " in " ".join(plain.out.split())
    planned = kpstore_("repair", bad, "--dry-run")
    assert (planned.code, "points: 2 videos, 29 frames would be pending again" in planned.out) == (
        0,
        True,
    ), planned
    done = kpstore_("repair", bad)
    assert (done.code, done.err) == (0, "")
    assert "2 videos, 29 frames are pending again; 'kpstore ingest'" in done.out
    assert kpstore_("verify", bad).code == 0
    assert "nothing to repair" in kpstore_("repair", bad).out
    assert kpstore_("verify", bad, "--all", "--at", "main").code == 2
    run_ingest(SOURCE, bad, FakeExtractor(chunk_rows=16), Options(workers=0))
    assert kpstore_("diff", bad, sound).out.endswith("no difference\n")
