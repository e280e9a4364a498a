"""What docs/clusters.md says is run as far as one machine can."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kpstore
from kpstore.ingest.options import Options
from tests.cli.conftest import LENGTHS, make_dataset
from tests.processes import finish, start

pytest.importorskip("distributed")
pytest.importorskip("mediapipe")

PAGE = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE)
BIN = Path(sys.executable).parent


def of_kind(kind: str) -> list[str]:
    found = [text for info, text in BLOCKS if info == kind]
    assert found
    return found


def commands() -> Iterator[list[str]]:
    """All commands of Dask and kpstore on the page, word by word."""
    for info, text in BLOCKS:
        if info.startswith("sh"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(re.sub(r"\$\(.*?\)|\$\{.*?\}|\$\w+", "x", line), comments=True)
                words = [word for word in words if "=" not in word[:21] and word != "exec"]
                if words and words[0] in ("dask", "kpstore"):
                    yield [word for word in words if word != "&"]
    for (text,) in [of_kind("yaml")]:
        for document in yaml.safe_load_all(text):
            pod = document["spec"].get("template", {}).get("spec", {})
            yield from (container["command"] for container in pod.get("containers", ()))


def test_every_command_has_the_options_that_the_page_gives_it() -> None:
    helped: dict[tuple[str, ...], str] = {}
    found = list(commands())
    assert len(found) == 10
    for words in found:
        command = tuple(words[: 2 if words[0] == "dask" else 3])
        if command not in helped:
            program = ["-m", "dask"] if command[0] == "dask" else ["-m", "kpstore.cli.start"]
            done = finish([sys.executable, *program, *command[1:], "--help"])
            assert done.returncode == 0, done.stderr
            helped[command] = done.stdout
        for word in words:
            assert not word.startswith("--") or word in helped[command], words


def test_the_jobs_for_slurm_run_an_ingest(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "shared").parent
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    scripts = {}
    for info, text in BLOCKS:
        if info.startswith("sh slurm"):
            scripts[info.split()[-1]] = text.replace("/shared/phoenix", str(folder)).replace(
                "kpstore ingest", f"{sys.executable} -m kpstore.cli.start ingest"
            )
    with start(["bash", "-c", scripts["workers.sh"]], env=env) as worker:
        try:
            done = finish(["bash", "-c", scripts["driver.sh"]], env=env)
        finally:
            worker.kill()
    assert "Dask shows the workers at" in done.stderr
    store = kpstore.open(folder / "phoenix.kps")
    assert len(store.index) == sum(len(videos) for videos in LENGTHS.values())
    assert (store.states("keypoints") == kpstore.State.DONE).all()


def test_the_script_calls_what_there_is() -> None:
    (text,) = of_kind("python jobqueue")
    tree = ast.parse(text)
    names: dict[str, Any] = {"kpstore": kpstore}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kpstore"):
            exec(compile(ast.Module([node], []), "page", "exec"), names)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    checked = 0
    for call in calls:
        called = names.get(ast.unparse(call.func)) or (
            kpstore.run_ingest if ast.unparse(call.func) == "kpstore.run_ingest" else None
        )
        if called is not None:
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(called).bind(*call.args, **keywords)
            checked += 1
    assert checked == 4
    assert names["Options"] is Options
