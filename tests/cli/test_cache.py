"""``kpstore cache``: build, list, clear."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kpstore
from kpstore.cli.main import run
from tests.store.data import fill


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KPSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_build_list_and_clear(
    disk_store: kpstore.Store, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = fill(disk_store, compression="lz4").location
    assert run(["cache", "build", location]) == 0
    assert capsys.readouterr().out == "points: decoded copy on the local disk, mapped\n"
    assert run(["cache", "list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["snapshot"]) == ("points", kpstore.open(location).snapshot)
    assert Path(entry["path"]).parent.parent == folder
    assert run(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert "points" in shown
    assert "of at most 100" in shown
    assert run(["cache", "clear"]) == 0
    assert "freed" in capsys.readouterr().out
    assert run(["cache", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_clear_takes_one_stores_copies_only(
    disk_store: kpstore.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fill(disk_store, compression="lz4").location
    second = fill(kpstore.create(tmp_path / "second.kps"), compression="lz4").location
    assert run(["cache", "build", first]) == run(["cache", "build", second]) == 0
    assert run(["cache", "clear", second]) == 0
    capsys.readouterr()
    run(["cache", "list", "--json"])
    (left,) = json.loads(capsys.readouterr().out)
    assert left["snapshot"] == kpstore.open(first).snapshot


def test_a_raw_store_needs_no_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(
        kpstore.create(tmp_path / "raw.kps"), chunk_rows=1024
    )  # 1,024 rows of 60 bytes are whole pages
    assert run(["cache", "build", store.location]) == 0
    assert "mapped as they lie" in capsys.readouterr().out
    assert run(["cache", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_no_room_is_said(
    disk_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KPSTORE_CACHE_GB", "0.0000001")
    assert run(["cache", "build", fill(disk_store, compression="lz4").location]) == 1
    assert "points: not cached: no room" in capsys.readouterr().out
    monkeypatch.setenv("KPSTORE_CACHE", "/dev/null/x")
    assert run(["cache", "build", disk_store.location]) == 1
    assert "points: not cached: Not a directory: /dev/null/x" in capsys.readouterr().out


def test_a_store_without_frames_has_nothing_to_cache(
    disk_store: kpstore.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "build", disk_store.location]) == 0
    assert "nothing to cache" in capsys.readouterr().out


def test_wrong_use_is_one_line(
    disk_store: kpstore.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    location = fill(disk_store).location
    for words, message in (
        (["build", location, "--feature", "pose"], "feature 'pose' not found"),
        (["build", location, "--feature", "image_path"], "'image_path' is text"),
        (["build", "nowhere.kps"], "does not exist"),
        (["list", "--cache", "off"], "--cache off: give a folder"),
    ):
        assert run(["cache", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
