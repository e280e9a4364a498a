"""The page about plug-ins, installed as an outsider's package and used from the command line."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import finish

PAGE = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the page's module and entry points are installed."""
    site = tmp_path / "site"
    about = site / "my_kpstore-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "my_kpstore.py").write_text(
        "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    )
    (said,) = re.findall(r"```ini\n\[options.entry_points\]\n(.*?)```", PAGE, re.DOTALL)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-kpstore\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        re.sub(r"^(kpstore\.\w+) =$", r"[\1]", said, flags=re.MULTILINE)
    )
    return {**os.environ, "PYTHONPATH": str(site), "LAB_STORES": str(tmp_path)}


def test_an_extractor_a_format_and_a_backend_of_somebody_else(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    for name, grey in (("a", 10), ("b", 20)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((4, 6, 3), grey + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "clips" / name / f"{number}.png")

    def kpstore(*words: object) -> str:
        run = finish(
            [sys.executable, "-m", "kpstore.cli.main", *words], env=environment, cwd=tmp_path
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    recipe = ("--recipe", "brightness", "--set", "scale=2", "--workers", 1)
    kpstore("ingest", "videos", "clips", "lab:clips.kps", *recipe)
    assert (tmp_path / "clips.kps" / "refs").is_dir()
    assert "brightness" in kpstore("info", "lab:clips.kps")
    kpstore("export", "csv", "lab:clips.kps", "means.csv", "--feature", "brightness")
    lines = (tmp_path / "means.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        [name, f"{2.0 * (grey + number)}"]
        for name, grey in (("a", 10), ("b", 20))
        for number in range(3)
    ]
    assert "csv" in kpstore("export", "--help")
    assert "Train a small model of faces." in kpstore("train", "--help")
    assert "--width" in kpstore("train", "small", "--help")
    kpstore("convert", "lab:clips.kps", "lab:copy.kps")
    assert {path.name for path in tmp_path.glob("*.kps")} == {"clips.kps", "copy.kps"}
    assert "brightness" in kpstore("info", "lab:copy.kps")
    other = finish(
        [
            sys.executable,
            "-m",
            "kpstore.cli.main",
            "ingest",
            "videos",
            "clips",
            "lab:clips.kps",
            *recipe[:2],
        ],
        env=environment,
        cwd=tmp_path,
    )
    assert other.returncode == 2, other.stdout + other.stderr
    assert "scale" in other.stderr
