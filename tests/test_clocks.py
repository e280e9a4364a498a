"""No test depends on how fast the machine is, or on what else it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CLOCKS = {"perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns"}
WAITS = {"run", "communicate", "wait", "join", "get", "acquire", "result", "check_output", "call"}
"""Calls that take a limit: a process, a thread, a queue, an event, a future."""

TESTS = Path(__file__).parent


def clocks(tree: ast.AST) -> Iterator[str]:
    """Name what reads the clock, or waits for something only so long."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
            yield f"line {node.lineno}: time.{node.attr}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        limited = any(keyword.arg == "timeout" for keyword in node.keywords)
        if ast.unparse(node.func) == "pytest.mark.timeout" or (node.func.attr in WAITS and limited):
            yield f"line {node.lineno}: {ast.unparse(node.func)} with a limit"
        numbers = [
            arg
            for arg in node.args
            if isinstance(arg, ast.Constant) and isinstance(arg.value, int | float)
        ]
        if node.func.attr in ("wait", "join") and numbers:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_test_is_timed() -> None:
    found = {
        path: list(clocks(ast.parse(path.read_text(encoding="utf-8"))))
        for path in TESTS.rglob("*.py")
    }
    timed = [
        f"{path.relative_to(TESTS)}: {what}" for path, places in found.items() for what in places
    ]
    assert not timed, (
        "wait for an event (tests/processes.py); limit CPU time where there must be a limit"
    )


@pytest.mark.parametrize(
    "code",
    [
        "began = time.perf_counter()",
        "subprocess.run(command, timeout=60)",
        "child.communicate(timeout=limit)",
        "thread.join(5)",
        "event.wait(0.5)",
        "answers.get(timeout=20)",
        "@pytest.mark.timeout(100)\ndef test(): ...",
    ],
)
def test_what_is_timed_is_seen(code: str) -> None:
    assert list(clocks(ast.parse(code)))
    assert not list(
        clocks(ast.parse("', '.join(words); process.wait(); thread.join(); time.sleep(0.1)"))
    )
