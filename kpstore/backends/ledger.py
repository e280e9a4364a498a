"""What the files that describe versions held when they were written, and what each name named: one line a change.

Chunks have checksums by place, inside the version that they belong to. Nothing inside a version can
vouch for the version's own description, or for the names that lead to it; so that is written down
beside them, in a text file to which lines are added under the store's commit lock. Each line is the
XXH3-64 of its JSON, in hex, a space, and that JSON:

- ``{"version": ID, "parent": ID, "files": {"snapshots/ID": XXH3-64 of the file, …}}``: a version,
  the one that it builds upon, and the files that it brought;
- ``{"branch": NAME, "is": [ID, …]}`` and ``{"tag": NAME, "is": [ID, …]}``: the name leads to one of
  these versions or, if it is a branch, to one that builds upon it; no version: the name was taken
  away.

A line may say both. A commit writes its line after the commit itself. If a kill falls between, the
branch is ahead of the ledger, which is no damage, and the next commit adds what is missing. A
branch that is behind it has lost versions.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

_log = logging.getLogger(__name__)

_SUM_CHARS = 16
_NAMED = re.compile(rb'^[0-9a-f]{16} \{("(?:branch|tag)": "(?:[^"\\]|\\.)*"), "is": ', re.MULTILINE)
"""A line that says where a name leads, which it says first."""


@dataclass
class LedgerRecords:
    """All that a ledger says.

    Parameters
    ----------
    files : XXH3-64 in hex by path relative to the store.
    parents : the version that each version builds upon.
    branches, tags : versions that a name may lead to; none for a name that was taken away.
    damaged : numbers of lines, from 1, that are not what was written.
    """

    files: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a line."""
        self.files.update(record.get("files", {}))
        if "version" in record:
            self.parents[record["version"]] = record["parent"]
        if "branch" in record:
            self.branches[record["branch"]] = record["is"]
        if "tag" in record:
            self.tags[record["tag"]] = record["is"]


@dataclass(frozen=True)
class LedgerText:
    """A ledger as it was at one moment; empty where there is none."""

    content: bytes

    def records(self) -> LedgerRecords:
        """Return all that it says."""
        found = LedgerRecords()
        # What is behind the last line's end was being written when its writer died.
        for number, line in enumerate(self.content.split(b"\n")[:-1], start=1):
            record = _parse(line)
            if record is None:
                found.damaged.append(number)
            else:
                found.add(record)
        return found

    def named(self, kind: str, name: str) -> list[str] | None:
        """Return the versions that a branch or tag may lead to.

        An empty list if it was taken away, None if unknown.
        """
        record = self._line_at(self._newest.get(f'"{kind}": {json.dumps(name)}'.encode(), -1))
        versions: list[str] | None = None if record is None else record["is"]
        return versions

    def sum_of(self, file: str) -> str | None:
        """Return the checksum of a file; None if the ledger does not have it."""
        # In JSON, what stands within a text cannot look like a key.
        record = self._line_at(self.content.rfind(f'"{file}": "'.encode()))
        return None if record is None else record["files"][file]

    @cached_property
    def _newest(self) -> dict[bytes, int]:
        """Where the last line of each branch and tag is: there may be hundreds of them, and ten thousand lines."""
        return {found[1]: found.start() for found in _NAMED.finditer(self.content)}

    def _line_at(self, at: int) -> dict[str, Any] | None:
        """Return what the line around a place says, without reading all others.

        None if it is damaged, or not there.
        """
        begin, end = (
            self.content.rfind(b"\n", 0, max(at, 0)) + 1,
            self.content.find(b"\n", max(at, 0)),
        )
        return None if at < 0 or end < 0 else _parse(self.content[begin:end])


class Ledger:
    """The ledger of one store.

    Parameters
    ----------
    path : the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], LedgerText] = (), LedgerText(b"")

    def exists(self) -> bool:
        """Whether there is one."""
        return self._path.exists()

    def read(self) -> LedgerText:
        """Return what it says now; the same object as long as nothing changes."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                state = (
                    found.st_dev,
                    found.st_ino,
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                )
                if state != self._known[0]:
                    self._known = state, LedgerText(file.read())
        except OSError:
            return LedgerText(b"")
        return self._known[1]

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, under the store's commit lock. What cannot be written is logged: the store is as good without."""
        lines = b"".join(_line(record) for record in records)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                file.truncate(_whole_bytes(file.fileno()))
                file.write(lines)
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s); 'kpstore verify --all' will compare less",
                self._path,
                error,
            )


def file_sum(path: Path) -> str | None:
    """Return the XXH3-64 of a file in hex; None if it cannot be read."""
    try:
        return xxhash.xxh3_64_hexdigest(path.read_bytes())
    except OSError:
        return None


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record, ensure_ascii=True).encode()
    return xxhash.xxh3_64_hexdigest(body).encode() + b" " + body + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    body = line[_SUM_CHARS + 1 :]
    if xxhash.xxh3_64_hexdigest(body).encode() + b" " != line[: _SUM_CHARS + 1]:
        return None
    record: dict[str, Any] = json.loads(body)
    return record


def _whole_bytes(file: int) -> int:
    """Return where the last whole line of an open file ends."""
    size = os.fstat(file).st_size
    step = 4096
    for end in range(size, 0, -step):
        begin = max(0, end - step)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
    return 0
