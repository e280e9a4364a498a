"""The page about plug-ins, installed as an outsider's package and used from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kpstore import plugins
from tests.processes import finish, start

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


COMMANDS = """
import contextlib, io, json, sys
from kpstore.cli.main import run

for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture
def kpstore(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., str]]:
    """Run a command there; return its output, or its error output for ``code=2``.

    One process runs all commands of a test, as most of its work is to start.
    """
    process = start(
        [sys.executable, "-c", COMMANDS], env=environment, cwd=tmp_path, stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked, told = process.stdin, process.stdout

    def run(*words: object, code: int = 0) -> str:
        asked.write(json.dumps([str(word) for word in words]) + "\n")
        asked.flush()
        line = told.readline()
        assert line, "it ended"
        ended, out, err = json.loads(line)
        assert ended == code, out + err
        return str(err if code else out)

    with process:
        yield run
        asked.close()


def test_an_extractor_a_format_and_a_backend_of_somebody_else(
    tmp_path: Path, environment: dict[str, str], kpstore: Callable[..., str]
) -> None:
    for name, grey in (("a", 10), ("b", 20)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((4, 6, 3), grey + number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "clips" / name / f"{number}.png")
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
    assert "scale" in kpstore("ingest", "videos", "clips", "lab:clips.kps", *recipe[:2], code=2)
    again = "import kpstore; print(kpstore.open('lab:clips.kps').computed(root='clips').features)"
    made = finish([sys.executable, "-c", again], env=environment, cwd=tmp_path)
    assert "brightness" in made.stdout, made.stderr  # with another scale it would be refused


def test_a_source_of_somebody_else_and_a_recipe_with_options(
    tmp_path: Path, kpstore: Callable[..., str]
) -> None:
    (tmp_path / "arrays").mkdir()
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None]
    np.save(tmp_path / "arrays" / "a.npy", np.broadcast_to(frames, (5, 4, 6, 3)))
    said = kpstore("ingest", "arrays", "--recipe", "brightness", "--help")
    assert {"--every", "--scale", "--workers", "--mode"} <= set(re.findall(r"--[a-z]+", said))
    assert "Extract from arrays NAME.npy" in kpstore("ingest", "--help")
    recipe = ("--extractor=brightness", "--scale", 3, "--workers", 0)
    kpstore("ingest", "arrays", "arrays", "a.kps", "--every", 2, *recipe)
    kpstore("export", "csv", "a.kps", "means.csv")
    lines = (tmp_path / "means.csv").read_text().splitlines()
    assert lines == ["a,0.0,0.0,0.0", "a,6.0,6.0,6.0", "a,12.0,12.0,12.0"]
    odd = kpstore("ingest", "arrays", "arrays", "a.kps", "--every", 0, code=2)
    assert "invalid value for '--every'" in odd
    assert "no arrays in" in kpstore("ingest", "arrays", "a.kps", "b.kps", *recipe, code=2)


def test_a_plugin_that_a_newer_version_gave_up_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, name in ((2, "now"), (1, "gone")):
        about = tmp_path / str(version) / f"lab-{version}.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lab\nVersion: {version}.0\n")
        (about / "entry_points.txt").write_text(f"[kpstore.sources]\n{name} = lab:source\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "2"), str(tmp_path / "1"), *sys.path])
    found = plugins._all_entry_points.__wrapped__()
    assert ("kpstore.sources", "now") in found
    assert ("kpstore.sources", "gone") not in found
