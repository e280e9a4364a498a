"""Scripts that start processes: one without a main guard is told what to add."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import kpstore
from tests.processes import finish

HEAD = """
import sys
import kpstore
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from tests.fakes import FakeExtractor, FakeSource
with open("ran", "a") as file:
    file.write("once\\n")
"""
INGEST = 'run_ingest(FakeSource({"a": 4}), "s.kps", FakeExtractor(), Options(workers=1))'
READ = """
view = kpstore.open("s.kps").frames("points")
print(len(list(kpstore.loader(view, 2, workers=1, collate=len))))
"""
TORCH = """
from torch.utils.data import DataLoader
view = kpstore.open("s.kps").frames("points")
print(len(list(DataLoader(view, num_workers=1, multiprocessing_context="spawn"))))
"""


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


def run(folder: Path, *words: str, **how: Any) -> tuple[int, str]:
    env = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = finish([sys.executable, *words], cwd=folder, env=env, **how)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of four frames."""
    from kpstore.ingest.options import Options
    from kpstore.ingest.run import run_ingest
    from tests.fakes import FakeExtractor, FakeSource

    run_ingest(FakeSource({"a": 4}), tmp_path / "s.kps", FakeExtractor(), Options(workers=0))
    return tmp_path


@pytest.mark.parametrize("unguarded", [INGEST, READ, TORCH], ids=["ingest", "loader", "torch"])
def test_a_script_without_a_guard_is_told_what_to_add(folder: Path, unguarded: str) -> None:
    before = kpstore.open(folder / "s.kps").snapshot
    (folder / "a.py").write_text(HEAD + unguarded)
    code, said = run(folder, "a.py")
    *_, last = said.splitlines()
    assert code == 1
    assert 'under if __name__ == "__main__":' in last
    assert "a.py" in last
    assert said.count("Traceback") == 1
    assert (folder / "ran").read_text() == "once\n"
    assert kpstore.open(folder / "s.kps").snapshot == before


def test_a_script_that_no_process_can_import_again_is_told_so(folder: Path) -> None:
    script = folder / "a.py"
    script.write_text(f'{HEAD}if __name__ == "__main__":\n{indented(READ)}')
    with script.open() as file:
        code, said = run(folder, stdin=file)
    *_, last = said.splitlines()
    assert code == 1
    assert "<stdin> again, which is not there; run the script from a file, or use threads" in last
    script.write_text(f'{HEAD}import os\nos.remove("a.py")\n{INGEST}')
    code, said = run(folder, "a.py")
    assert code == 1
    assert "a.py again, which is not there; run the script from a file" in said


def test_nothing_is_written_for_a_script_without_a_guard(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(HEAD + INGEST)
    run(tmp_path, "a.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "ran"]


def test_a_script_with_a_guard_runs(folder: Path) -> None:
    """That workers of PyTorch run in one as well, ``views/test_frames.py`` shows."""
    (folder / "a.py").write_text(f'{HEAD}if __name__ == "__main__":\n{indented(READ)}')
    assert run(folder, "a.py") == (0, "2\n")


CHECK = 'require_main_guard("this", "do without")'


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        (CHECK, True),
        (f"def main():\n    {CHECK}\nmain()", True),
        (f"try:\n    {CHECK}\nfinally:\n    pass", True),
        (f'if __name__ == "__main__":\n    pass\nelse:\n    pass\n{CHECK}', True),
        (f'if __name__ != "__main__":\n    pass\nelse:\n    {CHECK}', False),
        (f'def main():\n    {CHECK}\nif __name__ == "__main__":\n    main()', False),
        (f'if 1:\n    if "__main__" == __name__ and 1:\n        {CHECK}', False),
    ],
)
def test_a_guard_is_an_if_around_the_line_that_asks_for_the_name(
    tmp_path: Path, script: str, refused: bool
) -> None:
    (tmp_path / "a.py").write_text(f"from kpstore.main_guard import require_main_guard\n{script}")
    code, said = run(tmp_path, "a.py")
    assert (
        (code == 1 and "InvalidError: this starts" in said) if refused else (code, said) == (0, "")
    )


def test_what_no_process_would_import_again_needs_no_guard(tmp_path: Path) -> None:
    script = f"from kpstore.main_guard import require_main_guard\n{CHECK}"
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__main__.py").write_text(script)
    assert run(tmp_path, "-c", script) == run(tmp_path, "-m", "pack") == (0, "")
