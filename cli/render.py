"""How all commands print: lines, tables, JSON, and numbers for people.

Everything that is printed passes through this module, which makes the text of strangers visible:
no id, path or message may move a terminal's cursor or add lines of its own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

import typer

from kpstore.store.shown import count as count
from kpstore.store.shown import size as size
from kpstore.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from kpstore.store.video import Failure

_WIDE = 200
"""Width of output that is not a terminal: nothing should be cut there."""

SHOWN_FAILURES = 20
_LONGEST_ERROR, _END_OF_ERROR = 2000, 600
_REWRITE = "\r\x1b[K"


def say(text: str = "", *, err: bool = False) -> None:
    """Print one line, on standard error if ``err``, where very long lines are shortened."""
    line = visible(text)
    if err and len(line) > _LONGEST_ERROR:
        # The end, which says what to do, stays.
        line = f"{line[: _LONGEST_ERROR - _END_OF_ERROR]} … {line[-_END_OF_ERROR:]}"
    typer.echo(line, err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print text of several lines, all of them ours."""
    for line in text.rstrip("\n").split("\n"):
        say(line, err=err)


def say_over(text: str = "") -> None:
    """Print a line, without ending it, over the one where the terminal's cursor is."""
    typer.echo(_REWRITE + visible(text), nl=False)


def say_above(bar: Progress, text: str) -> None:
    """Print a line above a bar."""
    bar.console.print(visible(text))


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is, without reading markup into file names."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=None if terminal else _WIDE
    )


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print JSON in ASCII on standard output; NaN and infinity become null."""
    typer.echo(json.dumps(_plain(value), indent=indent))


class Shown(Protocol):
    """What a command found."""

    def to_json(self) -> Mapping[str, object]:
        """Return it as JSON values."""


S = TypeVar("S", bound=Shown)


def show(found: S, as_json: bool, print_found: Callable[[S], None]) -> None:
    """Print what a command found, as JSON or for people."""
    if as_json:
        print_json(found.to_json())
    else:
        print_found(found)


def print_some(lines: Sequence[str], limit: int = SHOWN_FAILURES, more: str = "--json") -> None:
    """Print the first lines and the number of others; ``more`` names options that show them."""
    for line in lines[:limit]:
        say(f"  {line}")
    if len(lines) > limit:
        say(f"  … and {len(lines) - limit:,} more ({more})")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; a ``>`` before a column's name aligns it right, and ints print as 1,234."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.removeprefix(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )
    for row in rows:
        texts = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
        table.add_row(*(Text(visible(text)) for text in texts))
    console().print(table)


def heading(text: str) -> None:
    """Print an empty line, and a line above a block."""
    say()
    title(text)


def title(text: str) -> None:
    """Print a line that stands out."""
    console().print(visible(text), style="bold")


def number(value: int) -> str:
    """Return 1234567 as ``1,234,567``."""
    return f"{value:,}"


def listed(names: Sequence[str]) -> str:
    """Return a, b and c as ``a, b and c``."""
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last


def duration(seconds: float | None) -> str:
    """Return 90 seconds as ``1 min 30 s``; ``?`` for None."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def local_time(time: datetime) -> str:
    """Return a time in the local time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def share(value: float | None) -> str:
    """Return 0.5 as ``50.0 %``."""
    return "-" if value is None else f"{100 * value:.1f} %"


def split_name(name: str) -> str:
    """Return the name of a split for people; videos need not have one."""
    return name or "(none)"


def failure_lines(
    failures: Sequence[Failure], more: str, *, limit: int = SHOWN_FAILURES
) -> list[str]:
    """Return a line per failure; ``more`` says where the others are."""
    lines = [
        f"  {failure.image_path or failure.video_id}: {failure.reason}"
        if failure.frame is not None
        else f"  video {failure.video_id}: {failure.reason}"
        for failure in failures[:limit]
    ]
    if len(failures) > limit:
        lines.append(f"  … and {len(failures) - limit} more: {more}")
    return lines
