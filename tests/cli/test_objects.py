"""Stores in object storage, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import kpstore
from tests.cli.conftest import Kpstore
from tests.object_storage import Bucket
from tests.store.data import fill


def test_an_address_serves_where_a_path_does(
    kpstore_: Kpstore, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPSTORE_CACHE", str(tmp_path / "cache"))
    fill(kpstore.create(tmp_path / "disk.kps"))
    place = bucket.address()
    assert kpstore_("convert", tmp_path / "disk.kps", place).code == 0
    assert "4 videos, 34 frames" in kpstore_("info", place).out
    assert "sound" in kpstore_("verify", place, "--all").out
    assert kpstore_("diff", tmp_path / "disk.kps", place).code == 0
    assert kpstore_("tag", place, "v1").code == 0
    assert "v1" in kpstore_("log", place).out
    assert "no ingest has run" in kpstore_("progress", place).out
    assert kpstore_("stats", place, "--json").code == 0
    shown = kpstore_("info", bucket.address("none.kps"))
    assert shown.code == 2
    assert "does not exist" in shown.err
