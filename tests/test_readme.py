"""The README's Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

import kpstore
from kpstore.cli.main import run
from kpstore.store.xarray_backend import KpstoreBackendEntrypoint
from tests.fakes import record

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
VIDEO = "01April_2010_Thursday_heute-6694"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's phoenix.kps: 1,100 frames of keypoints in three splits."""
    monkeypatch.chdir(tmp_path)
    store = kpstore.create("phoenix.kps")
    videos = [record(VIDEO, 1030, "train"), record("d", 40, "dev"), record("t", 30, "test")]
    with store.transaction("all of it") as tx:
        tx.add_videos(videos)
        tx.add_feature("keypoints")
        for video in videos:
            found = {"detected": np.ones((video.n_frames, 4), dtype=bool)}
            values = np.zeros((video.n_frames, 143, 3), dtype=np.float32)
            tx.write("keypoints", video.id, kpstore.FeatureRows(values, found))
    store.at().tag("v1.0")
    return tmp_path


def test_python_blocks_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (
        "kpstore" not in xarray.backends.list_engines()
    ):  # a checkout that is newer than what is installed
        engines = xarray.backends.plugins.BACKEND_ENTRYPOINTS
        monkeypatch.setitem(engines, "kpstore", (None, KpstoreBackendEntrypoint))
    names: dict[str, Any] = {"video_id": VIDEO, "values": np.zeros((1030, 768), dtype=np.float32)}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["video"]["keypoints"].shape == (1030, 143, 3)
    assert len(names["frames"]) == 1030
    assert kpstore.open("phoenix.kps").video(VIDEO)["dinov2_vitb14"].shape == (1030, 768)


def test_commands_exist(capfd: pytest.CaptureFixture[str]) -> None:
    blocks = [block for block in README.split("```")[1::2] if not block.startswith("python")]
    lines = [line for block in blocks for line in block.split("\n") if line.startswith("kpstore ")]
    assert len(lines) >= 8
    for line in lines:
        words = line.partition("  ")[0].split()[1:]
        command = words[: 2 if words[0] in ("ingest", "export", "splits", "train") else 1]
        assert run([*command, "--help"]) == 0, line
        text = capfd.readouterr().out
        for option in re.findall(r"--[a-z-]+", line):
            assert option in text, (line, option)
