"""Where Python cannot lock files, kpstore says where it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_FCNTL = "import sys; sys.modules['fcntl'] = None; "
LINE = (
    "kpstore runs on Linux and macOS, and on Windows in WSL, but not on "
    f"{sys.platform!r}: Python has no module 'fcntl' here, with which kpstore locks stores"
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("first_use", ["kpstore.open('x.kps')", "kpstore.create('x.h5')"])
def test_first_use_names_the_platforms(first_use: str) -> None:
    found = run(f"import kpstore; {first_use}")
    assert found.stderr.splitlines()[-1] == f"kpstore.errors.UnsupportedError: {LINE}"


def test_a_command_names_the_platforms_in_one_line() -> None:
    found = run("from kpstore.cli.main import run; sys.exit(run(['info', 'x.kps']))")
    assert found.returncode != 0
    assert found.stderr.split() == f"error: {LINE}".split()
