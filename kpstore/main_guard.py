"""Finds out whether starting a process would run the user's script a second time.

A process that is not forked imports the main module again. What a script does outside of
``if __name__ == "__main__":`` is then done again, up to the line that starts the process.
"""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import process
from pathlib import Path

from kpstore.errors import InvalidError


def require_main_guard(what: str, instead: str) -> None:
    """Raise :class:`InvalidError` if a new process would come to this line of the script again.

    Parameters
    ----------
    what : what starts processes, in the user's words.
    instead : how to do without them.
    """
    line = _running_line()
    if line is None:
        return
    main = sys.modules["__main__"]
    # From where it was started, as multiprocessing finds it
    path = os.path.join(getattr(process, "ORIGINAL_DIR", None) or "", str(main.__file__))
    if getattr(main, "__spec__", None) is None and not os.path.exists(path):  # "<stdin>", say
        raise InvalidError(
            f"{what} starts processes that import {path} again, which is not there; run the script "
            f"from a file, or {instead}"
        )
    if _is_guarded(path, line):
        return
    raise InvalidError(
        f"{what} starts processes that import {path} again, and each would come to its line {line} "
        'again; put what the script does under if __name__ == "__main__": (the functions may stay '
        f"above), or {instead}"
    )


def _running_line() -> int | None:
    """Return the line at which the main module is; None if new processes do not import it."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)  # a debugger removes it
    path, name = getattr(main, "__file__", None), getattr(spec, "name", "")
    # As multiprocessing.spawn: no file in a notebook, no second import of a package's __main__.
    if path is None or Path(path).stem == "ipython" or name.endswith("__main__"):
        return None
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    line = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is vars(main):
            line = frame.f_lineno
        frame = frame.f_back
    return line


def _is_guarded(path: str, line: int) -> bool:
    """Whether an ``if`` around a line asks whether the script is the main module."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, ValueError, SyntaxError):  # a bundle, say
        return True
    return any(_asks(node) for node in _around(tree.body, line))


def _around(body: Sequence[ast.AST], line: int) -> Iterator[ast.If]:
    """Yield each ``if`` that a line lies in."""
    for node in body:
        if isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or 0):
            yield node
        for part in ("body", "orelse", "handlers", "finalbody"):
            yield from _around(getattr(node, part, []), line)


def _asks(node: ast.If) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "__name__" for one in ast.walk(node.test))
