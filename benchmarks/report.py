"""Put tables of results into docs/benchmarks.md: ``python -m benchmarks.report``.

The page has places for them, between lines of their own, whose content is replaced::

    <!-- measured RESULT -->     when a result was measured, by which command and on what
    <!-- end -->

    <!-- table NAME of RESULT -->
    <!-- end -->

``RESULT`` is a file of benchmarks/results without its ending, ``NAME`` one of its tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT, Table

PAGE = ROOT / "docs" / "benchmarks.md"
_BEGIN = re.compile(r"<!-- (?:measured|table (?P<table>.+) of) (?P<result>\S+) -->")
_END = "<!-- end -->"
_WIDTH = 100


class ReportError(ValueError):
    """A page that cannot be made, in one line."""


def filled(page: str, results: Path) -> str:
    """Return a page with the tables of results.

    Raises
    ------
    ReportError
        For a place that is not closed, and for a result or a table that does not exist; the message
        names the line.
    """
    made: list[str] = []
    opened: tuple[int, str] | None = None
    for number, line in enumerate(page.split("\n"), start=1):
        place = _BEGIN.fullmatch(line)
        if place and opened:
            raise ReportError(f"line {opened[0]}: {opened[1]} has no {_END} before line {number}")
        if line == _END and not opened:
            raise ReportError(f"line {number}: {_END} without a beginning")
        if place:
            opened = number, line
            try:
                made += [line, _content(place["table"], place["result"], results)]
            except ReportError as error:
                raise ReportError(f"line {number}: {error}") from None
        elif line == _END:
            opened = None
        if not opened:
            made.append(line)
    if opened:
        raise ReportError(f"line {opened[0]}: {opened[1]} has no {_END}")
    return "\n".join(made)


def _content(table: str | None, name: str, results: Path) -> str:
    result = _read(results / f"{name}.json")
    if table is None:
        return _measured(result)
    tables = result["tables"]
    if table not in tables:
        raise ReportError(f"{name}.json has no table {table!r}; it has {', '.join(tables)}")
    return _markdown(tables[table])


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.json")))
        raise ReportError(f"no result {path.stem!r}; there are: {known or 'none'}") from None
    except ValueError as error:
        raise ReportError(f"{path.name} is not a result: {error}") from None
    if (
        not isinstance(result, dict)
        or not {"command", "date", "load_before", "machine", "tables"} <= result.keys()
        or not all(result["tables"].values())
    ):
        raise ReportError(f"{path.name} is not a result; write it by --out of a benchmark")
    return result


def _measured(result: dict[str, Any]) -> str:
    machine = result["machine"]
    text = (
        f"Measured {result['date']} by `{result['command']}` on {machine['processor']}, "
        f"{machine['cores']} cores, load {result['load_before']:.1f}."
    )
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _markdown(table: Table) -> str:
    heads, *rows = ([str(cell).replace("|", "\\|") for cell in row] for row in table)
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])


def main() -> None:
    """Fill the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        made = filled(PAGE.read_text(encoding="utf-8"), RESULTS)
    except ReportError as error:
        sys.exit(f"{PAGE.relative_to(ROOT)}, {error}")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
