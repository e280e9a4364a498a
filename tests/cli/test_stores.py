from __future__ import annotations

import json
import shutil
from pathlib import Path

import kpstore
from tests.cli.conftest import Kpstore


def test_merge_convert_diff_and_verify(kpstore_: Kpstore, dataset: Path, tmp_path: Path) -> None:
    fast = ("--recipe", "fake", "--workers", "0")
    for split in ("train", "dev"):
        assert (
            kpstore_(
                "ingest", "phoenix", dataset, tmp_path / f"{split}.kps", *fast, "--splits", split
            ).code
            == 0
        )
    assert kpstore_("ingest", "phoenix", dataset, tmp_path / "all.kps", *fast).code == 0
    made = kpstore_("merge", tmp_path / "dev.kps", tmp_path / "train.kps", tmp_path / "both.h5")
    assert (made.code, made.err) == (0, "")
    assert made.out.endswith("points; 3 videos, 32 frames\n")
    assert " in 1 file\n" in kpstore_("info", tmp_path / "both.h5").out
    same = kpstore_("diff", tmp_path / "all.kps", tmp_path / "both.h5")
    assert (same.code, same.out.splitlines()[-1]) == (0, "no difference")
    other = kpstore_("diff", tmp_path / "all.kps", tmp_path / "dev.kps", "--json")
    told = json.loads(other.out)
    assert (other.code, told["videos_only_a"], told["frames_only_a"]) == (1, ["t1", "t2"], 25)
    assert kpstore_("diff", tmp_path / "all.kps", tmp_path / "dev.kps", "--limit", 1).code == 1
    copied = kpstore_("convert", tmp_path / "both.h5", tmp_path / "back.kps", "--history")
    assert (copied.code, copied.err) == (0, "")
    assert len(kpstore.open(tmp_path / "back.kps").history()) == 2
    checked = kpstore_("verify", tmp_path / "back.kps", "--source", dataset)
    assert checked.code == 0, checked.out
    assert "sound" in checked.out
    assert checked.out.endswith("the store holds all of it\n")
    partly = kpstore_("verify", tmp_path / "dev.kps", "--source", dataset, "--json")
    assert (partly.code, json.loads(partly.out)["source"]["splits"]["train"]["missing"]) == (
        1,
        ["t1", "t2"],
    )
    assert kpstore_("verify", tmp_path / "dev.kps", "--source", dataset).code == 1


def test_wrong_use_is_one_line(kpstore_: Kpstore, ingested: Path, tmp_path: Path) -> None:
    for words, line in (
        (["merge", ingested, tmp_path / "o.kps"], "merge needs two sources"),
        (["merge", ingested, tmp_path / "no.kps", tmp_path / "o.kps"], "does not exist"),
        (["merge", ingested, ingested, ingested], "already exists"),
        (["convert", ingested, ingested], "already exists"),
        (["verify", tmp_path / "no.kps"], "does not exist"),
        (["verify", ingested, "--source", tmp_path / "no"], "does not exist"),
        (["diff", ingested, "main", "--atol", "1"], "--feature and --atol compare two stores"),
    ):
        wrong = kpstore_(*words)
        assert (wrong.code, len(wrong.lines)) == (2, 1), wrong
        assert line in wrong.err
    assert not (tmp_path / "o.kps").exists()


def test_damage_is_found_and_ends_with_1(kpstore_: Kpstore, ingested: Path) -> None:
    assert kpstore_("verify", ingested).code == 0
    largest = max((ingested / "chunks").iterdir(), key=lambda path: path.stat().st_size)
    shutil.copy(largest, ingested.parent / "kept")
    largest.write_bytes(largest.read_bytes()[:-9])
    broken = kpstore_("verify", ingested)
    assert broken.code == 1
    assert "cannot be read" in broken.out
