"""CSV files that grow line by line, and are cut back to a checkpoint when a run resumes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Journal:
    """An open CSV file with a column ``step``; :func:`open_journal` makes one."""

    file: TextIO
    columns: Sequence[str]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line and flush it; floats keep all bits, missing columns stay empty."""
        csv.DictWriter(self.file, self.columns, lineterminator="\n").writerow(row)
        self.file.flush()

    def sync(self) -> None:
        """Put the lines on disk before a checkpoint that relies on them."""
        os.fsync(self.file.fileno())


@contextmanager
def open_journal(path: Path, columns: Sequence[str], *, up_to_step: int) -> Iterator[Journal]:
    """Open a file to append to; of its lines, the whole ones up to a step are kept."""
    kept = _lines_up_to(path, columns, up_to_step) if up_to_step else []
    aside = path.with_name(f".{path.name}.aside")
    with aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *kept])
    aside.replace(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        yield Journal(file, columns)


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
