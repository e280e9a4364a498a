"""The ledger of versions: checksums of the files that describe them, and the names they had.

Chunks have checksums inside the version that they belong to. Nothing inside a version can vouch for
the version's own description or the names that lead to it, so a text file beside them does. Each
change appends a line under the store's commit lock: the XXH3-64 of the line's JSON in hex, a space,
and that JSON:

- ``{"version": ID, "parent": ID, "files": {"snapshots/ID": XXH3-64 of the file, …}}``: a version,
  its parent, and the files that it added;
- ``{"branch": NAME, "is": [ID, …]}`` and ``{"tag": NAME, "is": [ID, …]}``: the name leads to one of
  these versions or, for a branch, to a descendant of one. If the list is empty, the name was
  deleted.

Garbage collection puts a new file in place, with the versions that it keeps.

A line may hold both. The line of a commit is written after the commit itself. After a kill in
between, the branch is ahead of the ledger, which is not damage: the next commit adds the missing
lines. A branch that is behind the ledger has lost versions.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from kpstore.backends.asides import replace_file, system_error
from kpstore.backends.links import open_inside
from kpstore.visible import logger

_log = logger(__name__)

_SUM_CHARS = 16
_KINDS = frozenset({"branch", "tag"})
_NAMED = re.compile(rb'^[0-9a-f]{16} \{("(?:branch|tag)": "(?:[^"\\]|\\.)*"), "is": ', re.MULTILINE)
"""A line that begins with a name and the versions it leads to."""
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{20}\Z")
_FILE = re.compile(rf"[a-z]+/{_ID.pattern}")


class LedgerRecords:
    """The whole contents of a ledger.

    Attributes
    ----------
    files : XXH3-64 in hex by path relative to the store.
    parents : parent of each version.
    names : versions that a name may lead to, by kind (``"branch"`` or ``"tag"``) and name; an empty
        list for a deleted name.
    damaged : numbers of damaged lines, from 1.
    """

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.parents: dict[str, str | None] = {}
        self.names: dict[str, dict[str, list[str]]] = {"branch": {}, "tag": {}}
        self.damaged: list[int] = []


class LedgerText:
    """The contents of a ledger at one moment; empty if there is no ledger."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def records(self) -> LedgerRecords:
        """Return the parsed contents."""
        found = LedgerRecords()
        # The writer of a last line without an end died while it wrote.
        for number, line in enumerate(self.content.split(b"\n")[:-1], start=1):
            record = _parse(line)
            if record is None:
                found.damaged.append(number)
                continue
            found.files.update(record.get("files", {}))
            if "version" in record:
                found.parents[record["version"]] = record["parent"]
            for kind, names in found.names.items():
                if kind in record:
                    names[record[kind]] = record["is"]
        return found

    def named(self, kind: str, name: str) -> list[str] | None:
        """Return the versions that a branch or tag may lead to.

        An empty list if the name was deleted, None if it is unknown.
        """
        record = self._line_at(self._newest.get(f'"{kind}": {json.dumps(name)}'.encode(), -1))
        versions: list[str] | None = None if record is None else record["is"]
        return versions

    def sum_of(self, file: str) -> str | None:
        """Return the checksum of a file; None if it is not in the ledger."""
        # In JSON, the inside of a string cannot look like a key.
        record = self._line_at(self.content.rfind(f'"{file}": "'.encode()))
        return None if record is None else record.get("files", {}).get(file)

    @cached_property
    def _newest(self) -> dict[bytes, int]:
        """Offset of the newest line of each branch and tag, found by one search of all lines."""
        return {found[1]: found.start() for found in _NAMED.finditer(self.content)}

    def _line_at(self, at: int) -> dict[str, Any] | None:
        """Parse the line around an offset; None if it is damaged or the offset is negative."""
        begin = self.content.rfind(b"\n", 0, max(at, 0)) + 1
        end = self.content.find(b"\n", max(at, 0))
        return None if at < 0 or end < 0 else _parse(self.content[begin:end])


class Ledger:
    """The ledger of one store.

    Parameters
    ----------
    path : the file, which may be missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], LedgerText] = (), LedgerText(b"")

    def exists(self) -> bool:
        """Return whether the file exists."""
        return self._path.exists()

    def read(self) -> LedgerText:
        """Return the present contents; the same object as long as the file does not change."""
        try:
            with open_inside(self._path, os.O_RDONLY) as file:
                s = os.fstat(file.fileno())
                state = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
                if state != self._known[0]:
                    self._known = state, LedgerText(file.read())
        except OSError:
            return LedgerText(b"")
        return self._known[1]

    def replace(self, records: Iterable[Mapping[str, object]]) -> None:
        """Put other contents in place, in one step and under the commit lock."""
        replace_file(self._path, b"".join(_line(record) for record in records))

    def write(self, records: Iterable[Mapping[str, object]], *, ahead: bool = False) -> None:
        """Append lines, under the commit lock.

        Parameters
        ----------
        ahead : whether they are of a change that comes next, and must be there before: then a
            failure is raised. Others are logged, as a store works without its ledger.
        """
        lines = b"".join(_line(record) for record in records)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open_inside(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
                file.truncate(_whole_bytes(file.fileno()))
                file.write(lines)
        except OSError as error:
            if ahead:
                told = system_error(error.errno or errno.EIO, self._path, "nothing was changed")
                raise told from error
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


def _line(record: Mapping[str, object]) -> bytes:
    body = json.dumps(record, ensure_ascii=True).encode()
    return xxhash.xxh3_64_hexdigest(body).encode() + b" " + body + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    body = line[_SUM_CHARS + 1 :]
    if xxhash.xxh3_64_hexdigest(body).encode() + b" " != line[: _SUM_CHARS + 1]:
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _is_record(record: object) -> bool:
    """Return whether a value is a line of a ledger; a checksum that fits can be made for any.

    Ids of versions become names of files, so they must look like those that Icechunk makes.
    """
    if not isinstance(record, dict):
        return False
    files, names, versions = record.get("files", {}), record.keys() & _KINDS, record.get("is", [])
    return (
        isinstance(files, dict)
        and all(_FILE.match(file) and isinstance(value, str) for file, value in files.items())
        and ("version" not in record or _is_id(record["version"]))
        and (record.get("parent") is None or _is_id(record["parent"]))
        and ("parent" in record) == ("version" in record)
        and all(isinstance(record[kind], str) for kind in names)
        and ("is" in record) == bool(names)
        and isinstance(versions, list)
        and all(_is_id(version) for version in versions)
    )


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.match(value) is not None


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
