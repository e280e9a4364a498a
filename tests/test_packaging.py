"""What is installed and what an sdist holds."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_all_folders_of_the_code_are_packages_and_no_others() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = settings["options"]["packages"].split()
    folders = [*(ROOT / "kpstore").rglob("__init__.py"), ROOT / "cli" / "__init__.py"]
    names = [".".join(file.parent.relative_to(ROOT).parts) for file in folders]
    assert sorted(listed) == sorted("kpstore.cli" if name == "cli" else name for name in names)


def test_the_manifest_names_what_exists() -> None:
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        kind, *names = line.split()
        if kind in ("include", "graft"):
            assert [name for name in names if not (ROOT / name).exists()] == [], line
    assert (ROOT / "kpstore" / "py.typed").is_file()
