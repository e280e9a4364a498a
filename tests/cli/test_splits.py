from __future__ import annotations

import json
from pathlib import Path

import pytest

import kpstore
from tests.cli.conftest import Kpstore


def test_stats_by_split(kpstore_: Kpstore, ingested: Path) -> None:
    shown = kpstore_("stats", ingested, "--workers", 1)
    assert shown.code == 0
    assert [
        line.split()[0] for line in shown.out.splitlines() if line.startswith(("train", "dev"))
    ] == (["train"] * 3 + ["dev"] * 3)
    told = json.loads(
        kpstore_("stats", ingested, "--json", "--split", "dev", "--feature", "points").out
    )
    assert list(told["points"]) == ["dev"]
    group = told["points"]["dev"]["statistics"]["all"]["x"]
    assert group["count"] + group["missing"] == 7 * 5
    for wrong in (["--split", "val"], ["--feature", "no"], ["--workers", "0"], ["--at", "v9"]):
        result = kpstore_("stats", ingested, *wrong)
        assert (result.code, len(result.lines), result.out) == (2, 1, "")


def test_check_ends_with_1_where_splits_share_something(kpstore_: Kpstore, ingested: Path) -> None:
    found = kpstore_("splits", "check", ingested)
    assert found.code == 1
    assert "speaker S1: 2 in train, 1 in dev" in found.out
    told = kpstore_("splits", "check", ingested, "--json")
    assert (told.code, json.loads(told.out)["counts"]["signer"]) == (1, 1)
    clean = kpstore_("splits", "check", ingested, "--ignore-signers")
    assert (clean.code, clean.err) == (0, "")
    assert "the same person" in found.out
    assert "the same person" not in clean.out  # which was not looked for
    for wrong in (["--signer", "who"], ["--feature", "no"], ["--near", "-1"]):
        result = kpstore_("splits", "check", ingested, *wrong)
        assert (result.code, len(result.lines)) == (2, 1)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    path.write_text("video_id,split\nt1,test\nt2,train\nd1,test\n", encoding="utf-8")
    return path


def test_set_changes_splits_and_an_ingest_goes_on(
    kpstore_: Kpstore, ingested: Path, dataset: Path, table: Path
) -> None:
    before = kpstore.open(ingested)
    assert "2 videos would change" in kpstore_("splits", "set", ingested, table, "--dry-run").out
    assert kpstore.open(ingested).snapshot == before.snapshot
    assert "2 videos changed; version" in kpstore_("splits", "set", ingested, table).out
    assert "splits set from new.csv: 2 of 3 videos changed" in kpstore_("log", ingested).out
    again = kpstore_(
        "ingest",
        "phoenix",
        dataset,
        ingested,
        "--recipe",
        "fake",
        "--workers",
        0,
        "--overwrite",
        "--json",
    )
    assert again.code == 0, again.err
    assert "were set by hand: 2 videos, the first 't1', keep theirs" in again.out
    after = kpstore.open(ingested)
    assert after.splits == ["test", "train"]
    assert not kpstore.diff(before, after).features_changed
    kpstore_("rollback", ingested, "--to", before.snapshot)
    assert not kpstore.open(ingested).own_splits


def test_files_that_do_not_fit_are_refused(kpstore_: Kpstore, ingested: Path, table: Path) -> None:
    table.write_text("video_id,split\nt1,test\nzz,test\n", encoding="utf-8")
    refused = kpstore_("splits", "set", ingested, table)
    assert (refused.code, refused.out) == (2, "")
    assert len(refused.lines) == 4  # one for the file, one for each video
    for path in (table.parent / "none.csv", table.parent):
        result = kpstore_("splits", "set", ingested, path)
        assert (result.code, len(result.lines)) == (2, 1)
