"""Imports point one way; siblings in a layer do not know each other (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kpstore

LAYERS = [
    ["_version", "visible"],
    ["errors"],
    ["budget"],
    ["plugins", "options", "machine", "main_guard", "user_files"],
    ["schema"],
    ["backends", "sources", "extractors"],
    ["store"],
    ["inspect", "render"],
    ["ingest", "interop", "views"],
    ["api", "trainers"],
    ["bench", "doctor", "testing"],
    ["cli"],
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
ROOT = Path(kpstore.__file__).parent


def modules() -> dict[str, Path]:
    """Every module of kpstore and cli, but for the lazy table in ``kpstore/__init__.py``."""
    own = {
        f"kpstore.{'.'.join(p.relative_to(ROOT).with_suffix('').parts)}": p
        for p in ROOT.rglob("*.py")
    }
    cli = ROOT.parent / "cli"
    own |= {
        f"kpstore.cli.{'.'.join(p.relative_to(cli).with_suffix('').parts)}": p
        for p in cli.rglob("*.py")
    }
    return {name: path for name, path in sorted(own.items()) if name != "kpstore.__init__"}


def imported(name: str, path: Path) -> Iterator[str]:
    """Modules of kpstore that a module imports, wherever in the file, relative imports resolved."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "kpstore")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            if home == "kpstore":
                yield from (f"kpstore.{alias.name}" for alias in node.names)
            elif home.startswith("kpstore."):
                yield home


def part_of(module: str) -> str:
    return module if module == "kpstore" else module.split(".")[1]


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_from_layers_below(name: str) -> None:
    here = part_of(name)
    assert here in LAYER_OF, f"{here} has no layer; add it to LAYERS"
    allowed = {part for part, layer in LAYER_OF.items() if layer < LAYER_OF[here]} | {here}
    if LAYER_OF[here] == len(LAYERS) - 1:
        # The command line is a user: it may say kpstore.open as everybody does.
        allowed |= {"kpstore", *kpstore.__all__}
    wrong = [module for module in imported(name, modules()[name]) if part_of(module) not in allowed]
    assert not wrong, f"{name} is in the layer of {LAYERS[LAYER_OF[here]]} and imports {wrong}"


def test_the_check_sees_imports_in_functions_and_relative_ones(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    lines = ["from kpstore import plugins", "from ..views import frames", "import kpstore.api"]
    module.write_text("\n    ".join(["def f():", *lines]))
    assert sorted(imported("kpstore.store.m", module)) == [
        "kpstore.api",
        "kpstore.plugins",
        "kpstore.views",
    ]


def test_every_package_is_in_the_architecture_page() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    assert [name for name in packages if f"`{name}`" not in page] == []
    assert [name for layer in LAYERS for name in layer if name not in page] == []
