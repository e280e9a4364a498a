from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.ingest.report import Progress, ProgressFile
from tests.cli.conftest import Kpstore
from tests.store.data import format_1


def test_info_shows_what_is_there(kpstore_: Kpstore, ingested: Path) -> None:
    shown = kpstore_("info", ingested)
    assert shown.code == 0
    for words in (
        "3 videos, 32 frames",
        "train",
        "dev",
        "points: 32 × 5 × 3 float32",
        "3 done, 0 failed, 0 pending",
    ):
        assert words in shown.out
    told = json.loads(kpstore_("info", ingested, "--json").out)
    assert (told["videos"], told["frames"], told["features"]["points"]["coverage"]["done"]) == (
        3,
        32,
        32,
    )
    assert told["disk"]["files"] > 0


def test_detailed_info_has_videos_and_provenance(kpstore_: Kpstore, ingested: Path) -> None:
    shown = kpstore_("info", ingested, "--detailed", "--limit", 1).out
    assert '"extractor": "fake"' in shown
    assert "… and 2 more: --limit 0 shows all" in shown
    told = json.loads(kpstore_("info", ingested, "--detailed", "--json", "--limit", 0).out)
    assert [video["video_id"] for video in told["video_table"]] == ["t1", "t2", "d1"]


def test_info_says_what_a_store_of_format_1_lacks(kpstore_: Kpstore, tmp_path: Path) -> None:
    old = format_1(tmp_path, ".kps")
    assert "\nformat 1: no checksums by place" in kpstore_("info", old).out
    assert "'kpstore convert'" in json.loads(kpstore_("info", old, "--json").out)["lacks"]
    assert kpstore_("convert", old, tmp_path / "new.kps").code == 0
    assert "checksums" not in kpstore_("info", tmp_path / "new.kps").out


@pytest.mark.parametrize("command", ["info", "log", "progress", "tag"])
def test_what_is_no_store_is_one_line(kpstore_: Kpstore, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    for path, words in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "folder", "is not a kpstore store"),
    ):
        result = kpstore_(command, path)
        assert (result.code, len(result.lines), result.out) == (2, 1, "")
        assert words in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_unknown_versions_are_one_line(kpstore_: Kpstore, ingested: Path) -> None:
    for arguments in (
        ["info", ingested, "--at", "v9"],
        ["rollback", ingested, "--to", "v9"],
        ["diff", ingested, "v9", "main"],
    ):
        result = kpstore_(*arguments)
        assert (result.code, len(result.lines)) == (2, 1)
        assert "version 'v9'" in result.err
    assert "file 'other.pkl' does not exist" in kpstore_("diff", ingested, "other.pkl").err


def test_progress_after_a_run(kpstore_: Kpstore, ingested: Path) -> None:
    shown = kpstore_("progress", ingested, "--watch")
    assert shown.code == 0
    assert "finished: points, 32 of 32 frames" in shown.out
    told = json.loads(kpstore_("progress", ingested, "--json").out)
    assert (told["run"]["running"], told["features"]["points"]) == (
        False,
        {"done": 3, "failed": 0, "pending": 0},
    )


def test_progress_of_a_run_and_of_one_that_was_killed(kpstore_: Kpstore, ingested: Path) -> None:
    backend = kpstore.open(ingested).backend
    ProgressFile(backend.sidecar).write(
        Progress("run", "points", frames=100, frames_done=10), now=True
    )
    with backend.exclusive("a test"):
        assert "running: points, 10 of 100 frames" in kpstore_("progress", ingested).out
        assert json.loads(kpstore_("progress", ingested, "--json").out)["run"]["running"] is True
    assert "stopped before its end: points, 10 of 100 frames" in kpstore_("progress", ingested).out


def test_progress_of_a_store_without_a_run(kpstore_: Kpstore, tmp_path: Path) -> None:
    kpstore.create(tmp_path / "new.kps")
    assert "no ingest has run" in kpstore_("progress", tmp_path / "new.kps").out
    assert "0 videos, 0 frames" in kpstore_("info", tmp_path / "new.kps").out


def test_log_tag_rollback_and_back(kpstore_: Kpstore, ingested: Path) -> None:
    entries = json.loads(kpstore_("log", ingested, "--json").out)
    assert [entry["message"] for entry in entries][-1].startswith("created")
    assert "no tags yet" in kpstore_("tag", ingested).out
    assert kpstore_("tag", ingested, "start", "--at", entries[-1]["id"]).code == 0
    assert kpstore_("tag", ingested, "start").code == 2
    assert entries[-1]["id"] in kpstore_("tag", ingested).out
    assert list(json.loads(kpstore_("tag", ingested, "--json").out)) == ["start"]
    back = kpstore_("rollback", ingested, "--to", "start")
    assert back.code == 0
    assert len(kpstore.open(ingested).index) == 0
    undo = back.out.splitlines()[-1].partition("kpstore ")[2].split()
    assert kpstore_(*undo).code == 0
    assert len(kpstore.open(ingested).index) == 3
    assert len(kpstore_("log", ingested, "--limit", 1).out.splitlines()) == 2
    assert kpstore_("tag", ingested, "start", "--delete").code == 0
    assert kpstore_("tag", ingested, "start", "--delete").code == 2


@pytest.mark.parametrize("command", ["tag", "branch"])
@pytest.mark.parametrize("arguments", [["--delete"], ["--at", "main"]])
def test_a_tag_or_branch_needs_its_name(
    kpstore_: Kpstore, ingested: Path, command: str, arguments: list[str]
) -> None:
    result = kpstore_(command, ingested, *arguments)
    assert (result.code, len(result.lines)) == (2, 1)


def test_branches_are_listed_made_and_deleted_and_gc_frees_their_space(
    kpstore_: Kpstore, ingested: Path
) -> None:
    first = json.loads(kpstore_("log", ingested, "--json").out)[-1]["id"]
    assert kpstore_("branch", ingested, "try", "--at", first).code == 0
    assert "try" in kpstore_("branch", ingested).out
    assert json.loads(kpstore_("branch", ingested, "--json").out)["try"]["id"] == first
    assert kpstore_("branch", ingested, "try", "--delete", "--at", first).code == 2
    assert kpstore_("branch", ingested, "try", "--delete").code == 0
    assert kpstore_("branch", ingested, "try", "--delete").code == 2
    assert kpstore_("branch", ingested, "main", "--delete").code == 2
    assert "would remove 0 versions" in kpstore_("gc", ingested).out
    shown = kpstore_("gc", ingested, "--older-than", "0")
    assert "--yes removes it for good" in shown.out
    n_versions = len(json.loads(kpstore_("log", ingested, "--json").out))
    found = json.loads(kpstore_("gc", ingested, "--older-than", "0", "--yes", "--json").out)
    assert found["removed"] is True
    assert first in found["versions"]
    assert (len(found["versions"]), found["kept"]) == (n_versions - 1, 1)
    assert len(json.loads(kpstore_("log", ingested, "--json").out)) == 1
    assert kpstore_("verify", "--all", ingested).code == 0


@pytest.mark.parametrize("age", ["", "7", "-1d", "7y", "1.5d", "٧d", "9" * 30 + "d", "40000d"])
def test_gc_refuses_what_is_no_age(kpstore_: Kpstore, ingested: Path, age: str) -> None:
    result = kpstore_("gc", ingested, f"--older-than={age}")
    assert (result.code, len(result.lines)) == (2, 1)


def test_diff_ends_with_1_where_versions_differ(kpstore_: Kpstore, ingested: Path) -> None:
    versions = [entry["id"] for entry in json.loads(kpstore_("log", ingested, "--json").out)]
    same = kpstore_("diff", ingested, versions[0], "main")
    assert (same.code, same.out) == (0, "no difference\n")
    other = kpstore_("diff", ingested, versions[-1], "main")
    assert other.code == 1
    assert "videos added: 3" in other.out
    told = kpstore_("diff", ingested, versions[-1], "main", "--json")
    assert (told.code, json.loads(told.out)["features_added"]) == (1, ["points"])


def test_npz_files_of_any_feature(kpstore_: Kpstore, ingested: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = kpstore_(
        "export", "npz", ingested, out, "--feature", "points", "--splits", "train", "dev"
    )
    assert first.code == 0
    notes = first.out.partition("\nnot carried over:\n")[2].splitlines()
    assert "missing nan keeps them" in notes[0]
    assert notes[1].startswith("  annotations: ")
    with np.load(out / "dev_points.npz") as dev:
        assert dev["points"].shape[1:] == (5, 3)
        assert set(dev["video_ids"].tolist()) == {"d1"}
    again = kpstore_("export", "npz", ingested, out, "--feature", "points")
    assert (again.code, len(again.lines)) == (2, 1)
    forced = kpstore_(
        "export",
        "npz",
        ingested,
        out,
        "--feature",
        "points",
        "--force",
        "--empty",
        "keep",
        "--json",
    )
    assert [file["frames"] for file in json.loads(forced.out)["files"]] == [25, 7]
    for arguments in (
        [],
        ["--feature", "points", "--splits", "val"],
        ["--feature", "points", "--at", "v9"],
    ):
        wrong = kpstore_("export", "npz", ingested, tmp_path / "no", *arguments)
        assert (wrong.code, len(wrong.lines)) == (2, 1)
    assert not (tmp_path / "no").exists()
