"""Reading small files that people wrote: lists, tables and settings, in any usual encoding.

A path may lead to anything, and a file may come from anyone. So only regular files are opened
(opening a FIFO waits for ever, a device may never end), at most :data:`MOST_BYTES` are read, and
what is parsed is bounded in depth and in what its references add up to. Every problem is one
:class:`InvalidError` that names the file.
"""

from __future__ import annotations

import codecs
import csv
import gc
import io
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpstore.budget import VALUE_BYTES, MemoryBudget
from kpstore.errors import InvalidError, MissingExtraError, NotFoundError

MOST_BYTES = 256 * 2**20
"""Largest list or table: a line for each of a million videos is well within it."""
_MARK = "\ufeff"
_MOST_YAML_BYTES = 2**20
_MOST_DEPTH = 100
_MOST_NODES = 100_000
"""Most values in a YAML file, each counted as often as aliases repeat it."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY = (
    (b"PK\x03\x04", "a workbook (.xlsx, .ods) or another zip file; save the sheet as CSV in UTF-8"),
    (
        b"\xd0\xcf\x11\xe0",
        "a workbook (.xls) or another Office file; save the sheet as CSV in UTF-8",
    ),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"%PDF-", "a PDF; give the list itself"),
)
"""What lists are taken for: how such a file begins, what it is, and what to do."""


def path_text(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as text; :class:`InvalidError` if no file can have that name."""
    text = os.fsdecode(path)
    if not text:  # which pathlib takes for the current folder
        raise InvalidError("the path is empty; name a file or a folder, '.' for this one")
    try:
        if b"\0" not in os.fsencode(text):
            return text
    except UnicodeEncodeError:
        pass
    raise InvalidError(f"{text!a} is not a path; no file can have such a name")


def check_regular(path: Path) -> int:
    """Return the size of a file in bytes, without opening it.

    Raises
    ------
    NotFoundError
        If there is none.
    InvalidError
        If it is a folder, a device, a FIFO or a socket.
    """
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a zero byte
        raise InvalidError(f"{path} cannot be read: {_reason(error)}") from None
    if not stat.S_ISREG(about.st_mode):
        raise InvalidError(
            f"{path} is {_KINDS.get(stat.S_IFMT(about.st_mode), 'not a file')}; give a file"
        )
    return about.st_size


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
}


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the contents of a regular file.

    Raises
    ------
    NotFoundError, InvalidError
        As :func:`check_regular` does, and if the file holds more than ``most`` bytes.
    """
    check_regular(path)
    try:
        # Not even a FIFO that took the file's place since can make this wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(most + 1)
    except PermissionError:
        raise
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {_reason(error)}") from None
    if len(content) > most:
        raise InvalidError(
            f"{path} is larger than the {most // 2**20} MiB that are read of such a file"
        )
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 that begins with a byte order mark.

    Raises
    ------
    NotFoundError, InvalidError
        As :func:`read_bytes` does, and if the file is not such text.
    """
    content = read_bytes(path, most)
    for mark, what in _BINARY:
        if content.startswith(mark):
            raise InvalidError(f"{path} is not text but {what}")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidError(
            f"{path} is not text in {encoding.upper()} ({error.reason} at byte {error.start}); "
            "save it as UTF-8 (in Excel, 'CSV UTF-8')"
        ) from None
    if "\0" in text:
        raise InvalidError(f"{path} is not text: it holds zero characters; save it as UTF-8")
    return text.lstrip(_MARK)  # files that are joined, or marked twice, keep one


Pairs = list[tuple[str, object]]


def read_json(path: Path, *, pairs: Callable[[Pairs], object] | None = None) -> object:
    """Return the value of a JSON file.

    Parameters
    ----------
    pairs : makes an object of its keys and values, in their order; a dict by default.

    Raises
    ------
    NotFoundError, InvalidError
        As :func:`read_text` does, and if the file is not JSON or too deeply nested.
    """
    return parse_json(read_text(path), str(path), pairs=pairs)


def parse_json(
    text: str | bytes, name: str, *, pairs: Callable[[Pairs], object] | None = None
) -> object:
    """Return the value of a JSON text; ``name`` says in an error what the text is."""
    signs = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    _check_values(name, len(text), sum(map(text.count, signs)))  # type: ignore[arg-type]
    try:
        with uncollected():
            return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise InvalidError(f"{name} is nested too deeply to be read") from None
    except ValueError as error:  # an integer of more digits than Python reads is one, too
        raise InvalidError(f"{name} is not JSON: {error}") from None


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from walking what a parser is making, again and again.

    Nothing of JSON or of plain pickles is garbage. A million lists in a list of JSON were read in a
    tenth of the time, a pickle of 100,000 frames in 0.8 of it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check_values(name: str, size: int, n_values: int) -> None:
    what = f"its {n_values:,} values"
    MemoryBudget(name, size, fixed=True).check(size + n_values * VALUE_BYTES, what)


def read_yaml(path: Path, extra: str) -> object:
    """Return the value of a YAML file.

    Parameters
    ----------
    extra : the extra of kpstore that installs PyYAML, for the error without it.

    Raises
    ------
    MissingExtraError
        If PyYAML is not installed.
    NotFoundError, InvalidError
        As :func:`read_text` does; if the file is not YAML, is too deeply nested, or repeats itself
        by aliases until it holds too many values.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path.name} (PyYAML is not installed)", extra=extra) from error
    text = read_text(path, _MOST_YAML_BYTES)
    try:
        _check_yaml(yaml.parse(text), yaml.events)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InvalidError(f"{path} is not YAML that can be read: {_reason(error)}") from None


def _check_yaml(events: Iterator[Any], kinds: Any) -> None:
    """Raise :class:`ValueError` for YAML that is too deep, or too large with its aliases resolved.

    Only the stream of events is looked at, which costs what the file is long. An alias counts as
    much as what it repeats, as a merge of it (``<<``) costs that.
    """
    sizes: dict[str, int] = {}
    # Of each collection that is open: its anchor, and how many values were counted before it.
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        if isinstance(event, kinds.AliasEvent):
            # An alias inside of its own anchor has no end.
            if event.anchor not in sizes:
                raise ValueError(f"the alias {event.anchor!r} repeats what is not complete")
            total += sizes[event.anchor]
        elif isinstance(event, kinds.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, kinds.CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, kinds.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_) > _MOST_DEPTH:
            raise ValueError(f"it is nested more than {_MOST_DEPTH} deep")
        if total > _MOST_NODES:
            raise ValueError(f"it holds more than {_MOST_NODES:,} values")


@dataclass(frozen=True)
class Table:
    """A table with a header.

    Parameters
    ----------
    name : of the file, for errors.
    columns : names of the columns.
    rows : the cells of each row, as many as there are columns.
    lines : the line in the file that each row ends on, from 1.

    Names and cells have no spaces around them.
    """

    name: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, *names: str) -> int | None:
        """Return the place of the first of some columns that there is, in any letter case.

        Raises
        ------
        InvalidError
            If the table has this column twice; others may have one name.
        """
        folded = [column.casefold() for column in self.columns]
        found = next((name for name in names if name in folded), None)
        if found is not None and folded.count(found) > 1:
            raise InvalidError(f"{self.name}: column {found!r} comes twice; rename one")
        return None if found is None else folded.index(found)


def parse_table(
    text: str,
    name: str,
    separators: Sequence[str] = (",", ";", "\t", "|"),
    *,
    needed: Sequence[str] = (),
) -> Table:
    """Return a table as people and spreadsheets write them.

    The separator is the one that the first line ``sep=…`` names, or else the one that the header
    holds most often. Rows without any text are left out, and so are empty cells beyond the last
    column. A line may lack its last cells, which some spreadsheets leave out where they are empty,
    but not if the file breaks off there.

    Parameters
    ----------
    name : of the file, for errors.
    separators : those that are looked for. Where ``,`` or ``;`` separates, or names of columns are
        quoted, cells may be quoted. In others quotation marks are often those of sentences: where
        tabs separate, they enclose cells if all of them can be read so, and between ``|`` they mean
        nothing.
    needed : columns whose cells no line may leave out, even if they are empty.

    Raises
    ------
    InvalidError
        If a row has more cells than there are columns, or fewer in a file that was cut off; the
        message names the line.
    """
    first, rest = _first_line(text)
    skipped = 0
    if first.strip('"').casefold().startswith("sep="):
        told = first.strip('"')[4:]
        separators, text, skipped = (told or "\t",), rest, 1
    first, _ = _first_line(text.lstrip(" \r\n"))
    separator = max(separators, key=first.count)
    if len(separator) != 1:
        raise InvalidError(f"{name}: line 1 names {separator!r} as separator; use one character")
    _check_values(name, len(text), text.count(separator) + text.count("\n"))
    quoted = _is_quoted(text, first, separator)
    source = io.StringIO(text, newline="")
    reader = _csv_reader(source, separator, quoted)
    table, least = Table(name, [], [], []), 1
    begins = 1 + skipped
    try:
        for cells in reader:
            begins = reader.line_num + skipped + 1
            cells = [cell.strip() for cell in cells]
            while len(cells) > max(1, len(table.columns)) and not cells[-1]:
                del cells[-1]
            if not any(cells):
                continue
            if not table.columns:
                table.columns.extend(cells)
                least = 1 + max((table.column(column) or 0 for column in needed), default=0)
                continue
            broken_off = source.tell() == len(text) and not text.endswith(("\n", "\r"))
            if quoted and not broken_off and len(cells) >= least:
                cells += [""] * (len(table.columns) - len(cells))
            if len(cells) != len(table.columns):
                mend = f"a cell may hold {separator!r} only within quotation marks"
                if len(cells) < len(table.columns):
                    mend = "it may have been cut off"
                raise InvalidError(
                    f"{name}: line {begins - 1} has {len(cells)} cells, the header has "
                    f"{len(table.columns)}; {mend}"
                )
            table.rows.append(cells)
            table.lines.append(begins - 1)
    except csv.Error as error:
        raise InvalidError(
            f"{name}: line {begins} is not a row of a table: {error}; a quotation mark may be "
            "missing"
        ) from None
    return table


def _first_line(text: str) -> tuple[str, str]:
    """Return the first line without spaces around it, and all others."""
    first, *rest = re.split(r"\r\n|\r|\n", text, maxsplit=1)
    return first.strip(" "), "".join(rest)


def _csv_reader(source: io.StringIO, separator: str, quoted: bool) -> Any:
    if quoted:
        return csv.reader(source, delimiter=separator, strict=True)
    return csv.reader(source, delimiter=separator, quoting=csv.QUOTE_NONE)


def _is_quoted(text: str, header: str, separator: str) -> bool:
    """Return whether quotation marks enclose cells: a spreadsheet's, and not those of sentences."""
    if separator in ",;" or header.startswith('"'):
        return True
    if separator != "\t":
        return False
    try:
        for cells in _csv_reader(io.StringIO(text, newline=""), separator, True):
            # Two marks of different sentences enclose all rows between them.
            if any(separator in cell and len(cell.splitlines()) > 1 for cell in cells):
                return False
    except csv.Error:
        return False
    return True


def unicode_forms(name: str) -> tuple[str, ...]:
    """Return a name as it is, then in the other forms that look the same.

    Letters such as ``ü`` may be one character or two (Unicode's forms NFC and NFD), and a list
    often has another form than the disk.
    """
    forms = (unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return tuple(dict.fromkeys((name, *forms)))


def spellings(names: Iterable[str]) -> Callable[[str], str]:
    """Return a function that gives a name in the form in which it is among ``names``.

    A name that is not among them in any of its forms (:func:`unicode_forms`) comes back as it is.
    """
    known = set(names)
    return lambda name: next((form for form in unicode_forms(name) if form in known), name)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
