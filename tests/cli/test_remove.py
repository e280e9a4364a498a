"""``kpstore remove`` as people use it: what it says, what it undoes, and that it stays so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kpstore
from tests.cli.conftest import Kpstore
from tests.fakes import record


def test_a_video_goes_with_one_command_and_comes_back_with_the_one_it_names(
    kpstore_: Kpstore, ingested: Path
) -> None:
    shown = kpstore_("remove", ingested, "--video", "t2")
    assert shown.code == 0
    first, second = shown.out.splitlines()
    assert first.startswith("removed video 't2' (20 frames); version ")
    assert "--everywhere removes it" in second
    assert "2 videos, 12 frames" in kpstore_("info", ingested).out
    undo = second.partition("to undo: kpstore ")[2].split()
    assert kpstore_(*undo).code == 0
    assert "3 videos, 32 frames" in kpstore_("info", ingested).out


def test_an_ingest_leaves_it_out_and_says_how_to_let_it_in(
    kpstore_: Kpstore, ingested: Path, dataset: Path
) -> None:
    ingest = ("ingest", "phoenix", dataset, ingested, "--recipe", "fake", "--workers", 0)
    assert kpstore_("remove", ingested, "--video", "t2").code == 0
    again = kpstore_(*ingest)
    assert again.code == 0
    (line,) = [line for line in again.out.splitlines() if "stays out" in line]
    assert f"video 't2' was removed from {ingested} on" in line
    assert "--take-back" in line
    assert json.loads(kpstore_("info", ingested, "--json").out)["videos"] == 2
    told = kpstore_(*ingest, "--dry-run")
    assert "stays out" in told.out
    compared = kpstore_("verify", ingested, "--source", dataset)
    assert compared.code == 0
    assert "removed from the store, and not compared: 1" in compared.out
    taken = kpstore_("remove", ingested, "--video", "t2", "--take-back")
    assert (taken.code, "may be added again" in taken.out) == (0, True)
    assert kpstore_(*ingest).code == 0
    assert json.loads(kpstore_("info", ingested, "--json").out)["frames"] == 32


def test_info_and_log_have_it_on_record(kpstore_: Kpstore, ingested: Path) -> None:
    assert kpstore_("remove", ingested, "--video", "t2", "--video", "d1").code == 0
    assert "removed: 2 videos, 27 frames, the last on " in kpstore_("info", ingested).out
    assert "remove 2 videos ('t2', 'd1'): 27 frames" in kpstore_("log", ingested).out
    recorded = json.loads(kpstore_("info", ingested, "--json").out)["removed"]
    assert {name: one["rows"] for name, one in recorded["videos"].items()} == {"t2": 20, "d1": 7}
    logged = json.loads(kpstore_("log", ingested, "--json").out)[0]["metadata"]["removed"]
    assert set(logged["videos"]) == {"t2", "d1"}


def test_everywhere_is_a_dry_run_until_it_is_told_yes(kpstore_: Kpstore, ingested: Path) -> None:
    kpstore_("tag", ingested, "v1")
    n_versions = len(json.loads(kpstore_("log", ingested, "--json").out))
    words = ("remove", ingested, "--video", "t2", "--everywhere")
    told = kpstore_(*words)
    assert told.code == 0
    assert "would remove for good: video 't2' (20 frames)" in told.out
    assert "branch main and tag v1" in told.out
    assert "--yes removes it, and nothing brings it back" in told.out
    assert len(json.loads(kpstore_("log", ingested, "--json").out)) == n_versions
    done = json.loads(kpstore_(*words, "--yes", "--json").out)
    assert (done["applied"], done["videos"]) == (True, {"t2": 20})
    assert (done["branches"], done["tags"]) == (["main"], ["v1"])
    for version in ("main", "v1"):
        assert "t2" not in kpstore_("info", ingested, "--at", version, "--detailed").out.split()
    assert kpstore_("verify", "--all", ingested).code == 0
    again = kpstore_(*words, "--yes")
    assert (again.code, "0 versions removed" in again.out) == (0, True)


def test_a_feature_goes_and_may_come_again(
    kpstore_: Kpstore, ingested: Path, dataset: Path
) -> None:
    assert "'points' (32 rows)" in kpstore_("remove", ingested, "--feature", "points").out
    assert json.loads(kpstore_("info", ingested, "--json").out)["features"] == {}
    assert "removed: 1 feature, 32 rows" in kpstore_("info", ingested).out
    ingest = ("ingest", "phoenix", dataset, ingested, "--recipe", "fake", "--workers", 0)
    assert kpstore_(*ingest).code == 0
    assert "points" in kpstore.open(ingested).features


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "neither were given: --video ID or --feature NAME"),
        (["--video", "t1", "--feature", "points"], "both were given"),
        (["--video", "t22"], "did you mean 't2'?"),
        (["--video", "t1", "--video", ""], "video '' not found"),
        (["--video", "x\x1b[2J\n"], "not found"),
        (["--feature", "pionts"], "did you mean 'points'?"),
        (["--video", "t3", "--everywhere", "--yes"], "not found in any version"),
        (["--video", "t1", "--take-back"], "not on record as removed"),
        (["--take-back"], "neither were given"),
        (["--feature", "points", "--take-back"], "--take-back is for videos"),
        (["--video", "t1", "--everywhere", "--take-back"], "--take-back is for videos"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_removed(
    kpstore_: Kpstore, ingested: Path, words: list[str], told: str
) -> None:
    before = kpstore_("log", ingested).out
    result = kpstore_("remove", ingested, *words)
    assert (result.code, result.out, len(result.lines)) == (2, "", 1)
    assert told in result.err
    assert kpstore_("log", ingested).out == before


def test_imports_and_merges_leave_it_out(kpstore_: Kpstore, ingested: Path, tmp_path: Path) -> None:
    """With a note each, and a merged store has it on record as well."""
    with kpstore.create(tmp_path / "other.kps") as other, other.transaction("more") as tx:
        tx.add_videos([record("t2", 20), record("new", 3)])
    assert kpstore_("export", "slt", ingested, tmp_path / "slt", "--feature", "points").code == 0
    assert kpstore_("remove", ingested, "--video", "t2").code == 0
    imported = kpstore_("import", "slt", tmp_path / "slt", ingested, "--feature", "again")
    assert imported.code == 0
    assert f"video 't2' was removed from {ingested} on" in imported.out
    assert "t2" not in kpstore.open(ingested).index
    merged = kpstore_("merge", ingested, tmp_path / "other.kps", tmp_path / "both.kps")
    assert merged.code == 0
    assert f"video 't2' was removed from {tmp_path / 'both.kps'} on" in merged.out
    both = kpstore.open(tmp_path / "both.kps")
    assert sorted(both.index.ids) == ["d1", "new", "t1"]
    assert list(both.removed.videos) == ["t2"]
    kept = kpstore_("merge", tmp_path / "both.kps", tmp_path / "other.kps", tmp_path / "more.kps")
    assert "stays out" in kept.out
