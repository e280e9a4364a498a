"""CSV files that grow line by line while a run goes on, and are cut back to a checkpoint when it resumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Journal:
    """A CSV file with a column ``step``; every line is flushed.

    Parameters
    ----------
    path : of the file. What is there is kept up to a step, see :func:`open_journal`.
    columns : of the table.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line; floats so that they come back bit for bit, nothing for columns that ``row`` lacks."""
        self._writer.writerow(row)
        self._file.flush()

    def sync(self) -> None:
        """Have the lines on disk before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_journal(path: Path, columns: Sequence[str], *, up_to_step: int) -> Journal:
    """Open a file to append to, with only those of its lines that are whole and not beyond a step."""
    kept = _lines_up_to(path, columns, up_to_step) if up_to_step else []
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *kept])
    aside.replace(path)
    return Journal(path, columns)


def _lines_up_to(path: Path, columns: Sequence[str], step: int) -> list[list[str]]:
    if not path.is_file():
        return []
    at = list(columns).index("step")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    # A kill can leave half a line at the end; it lies beyond the checkpoint in any case.
    return [
        row
        for row in rows
        if len(row) == len(columns) and row[at].isdecimal() and int(row[at]) <= step
    ]
