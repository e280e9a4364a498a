"""One version of an HDF5 store: its arrays, and where their chunks and checksums are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import hdf5_layout as layout
from kpstore.backends.base import ArrayMeta
from kpstore.backends.checksums import matches
from kpstore.backends.hdf5_items import item_of
from kpstore.backends.hdf5_records import (
    ABSENT,
    CONTINUED,
    HOME,
    Delta,
    Record,
    Table,
    deltas,
    digest,
    has_checksums,
    json_text,
    read_bytes,
    read_names,
    read_record,
    write_bytes,
)
from kpstore.errors import CorruptError


class WrongChunkError(ValueError):
    """A chunk, with rows ``start`` to ``stop``, that is not what was committed there."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__("they do not match their checksum")
        self.start, self.stop = start, stop


@dataclass
class DataSet:
    """A data set that holds chunks, which is opened and checked at its first use.

    Parameters
    ----------
    group, name : place of the data set.
    meta : shape and type that it must have, except for its length.
    n_rows : length that it must have, if known.
    """

    group: h5py.Group
    name: str
    meta: ArrayMeta
    n_rows: int | None = None

    @property
    def place(self) -> str:
        """Path in the file."""
        return f"{self.group.name.rstrip('/')}/{self.name}"

    @cached_property
    def array(self) -> h5py.Dataset:
        """The data set; :class:`CorruptError` if it has another shape or type."""
        array, row_shape = item_of(self.group, self.name), self.meta.shape[1:]
        n_rows = array.shape[0] if self.n_rows is None else self.n_rows
        chunks = (self.meta.chunk_rows, *row_shape)
        if array.shape != (n_rows, *row_shape) or array.chunks != chunks:
            raise CorruptError(
                f"{array.file.filename}: {array.name[1:]!r} has shape {array.shape} in chunks of "
                f"{array.chunks}, which is not what was committed; it is damaged"
            )
        layout.check_index(array)
        return array


@dataclass
class Checksums:
    """The checksums of an array's chunks: all of them, or those that differ from another version.

    Parameters
    ----------
    kept : reads them.
    base : checksums of the version that this one differs from; None if ``kept`` reads all.
    length, numbers : with a base, the number of chunks of the array, and the chunks whose
        checksums ``kept`` reads, (kept,).
    """

    kept: Callable[[], Table]
    base: Checksums | None = None
    length: int = 0
    numbers: NDArray[np.int64] | None = None
    _found: Table | None = field(default=None, init=False)

    def read(self) -> Table:
        """Return the checksum of each chunk, (chunks,)."""
        way: list[Checksums] = []
        at: Checksums | None = self
        while at is not None and at._found is None:
            way.append(at)
            at = at.base
        table = np.empty(0, np.uint64) if at is None or at._found is None else at._found
        for step in reversed(way):  # a loop, as a history may be too long for recursion
            table = step._on(table)
        # What it was made from is not needed any more, and a history may be long.
        self._found, self.base = table, None
        return table

    def _on(self, base: Table) -> Table:
        if self.numbers is None:
            return self.kept()
        table = np.zeros(self.length, np.uint64)
        table[: len(base)] = base[: self.length]
        table[self.numbers] = self.kept()
        return table


@dataclass(frozen=True)
class Piece:
    """The place of a chunk: a chunk of ``source``, which is None if it was never written."""

    source: DataSet | None
    chunk: int

    def byte(self) -> int | None:
        """Return the offset in the file at which it begins; None if it was never written."""
        return None if self.source is None else layout.byte_of(self.source.array, self.chunk)


@dataclass
class StoredArray:
    """One array at one version: a data set, and the chunks that are elsewhere.

    Parameters
    ----------
    source : the data set that holds all other chunks.
    meta : shape and type of the array at this version.
    elsewhere : places of the chunks that are elsewhere, by number.
    checksums : checksums of all chunks; None in files of format 1.
    table_digest : digest of the checksums; None if unknown.
    """

    source: DataSet
    meta: ArrayMeta
    elsewhere: Mapping[int, Piece] = field(default_factory=dict)
    checksums: Checksums | None = None
    table_digest: str | None = None

    @cached_property
    def table(self) -> Table | None:
        """The checksums of all chunks; :class:`ValueError` if they are damaged.

        None in files of format 1.
        """
        if self.checksums is None:
            return None
        found = self.checksums.read()
        if self.table_digest is not None and digest(found) != self.table_digest:
            raise ValueError("the table of its checksums is damaged")
        return found

    def stored_table(self) -> Table:
        """Return the checksums of all chunks as they are stored, even if damaged (format 2)."""
        assert self.checksums is not None
        return self.checksums.read()

    def piece(self, chunk: int) -> Piece:
        """Return the place of a chunk."""
        return self.elsewhere.get(chunk, Piece(self.source, chunk))

    def offsets(self) -> dict[int, int]:
        """Return where in the file each chunk that was written begins, by its number."""
        known: dict[str, dict[int, int]] = {}

        def of(source: DataSet) -> dict[int, int]:
            if source.place not in known:
                known[source.place] = layout.bytes_of(source.array)
            return known[source.place]

        found = {
            chunk: at
            for chunk, at in of(self.source).items()
            if chunk < self.meta.n_chunks and chunk not in self.elsewhere
        }
        for chunk, piece in self.elsewhere.items():
            if piece.source is not None and piece.chunk in of(piece.source):
                found[chunk] = of(piece.source)[piece.chunk]
        return found

    @property
    def is_raw(self) -> bool:
        """Whether all chunks are stored in the file as they are in memory."""
        sources = [self.source, *(piece.source for piece in self.elsewhere.values())]
        return all(source is None or source.array.compression is None for source in sources)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows, after comparing their chunks with their checksums (format 2).

        Raises
        ------
        WrongChunkError
            If a chunk is not what was committed there. HDF5's library raises its own errors for
            other damage.
        """
        table = self.table
        if table is None or stop == start:
            return self.read_unchecked(start, stop)
        chunks = self.meta.chunks_of(start, stop)
        begin, end = self.meta.rows_of(chunks[0])[0], self.meta.rows_of(chunks[-1])[1]
        rows = self.read_unchecked(begin, end)
        for chunk in chunks:
            first, last = self.meta.rows_of(chunk)
            if not matches(self.meta, rows[first - begin : last - begin], int(table[chunk])):
                raise WrongChunkError(first, last)
        wanted = rows[start - begin : stop - begin]
        return wanted if len(wanted) == len(rows) else wanted.copy()

    def read_unchecked(self, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows as HDF5's library reads them."""
        if not self.elsewhere:
            rows = layout.read_dataset(self.source.array, start, stop)
        else:
            rows = self.meta.unwritten(stop - start)
            for chunk in self.meta.chunks_of(start, stop):
                begin, end = self.meta.rows_of(chunk)
                first, last = max(start, begin), min(stop, end)
                piece = self.piece(chunk)
                if piece.source is not None:
                    shift = (piece.chunk - chunk) * self.meta.chunk_rows
                    rows[first - start : last - start] = layout.read_dataset(
                        piece.source.array, first + shift, last + shift
                    )
        if rows.shape != (stop - start, *self.meta.shape[1:]):
            raise ValueError(f"it holds rows of shape {rows.shape}")
        return rows

    def read_chunk(self, chunk: int) -> NDArray[np.generic] | None:
        """Return the rows of one chunk, after checking it; None if it was never written."""
        if self.piece(chunk).byte() is None and (self.table is None or not self.table[chunk]):
            return None
        return self.read(*self.meta.rows_of(chunk))


@dataclass
class Tree:
    """All arrays at one version, by name, and the attributes of the root."""

    attrs: dict[str, Any]
    arrays: dict[str, StoredArray]

    def to_json(self) -> bytes:
        """Return the version's description, whose digest is in its record."""
        arrays = {
            name: layout.meta_to_json(array.meta) for name, array in sorted(self.arrays.items())
        }
        return json_text({"attrs": self.attrs, "arrays": arrays}).encode()

    def compare(self, record: Record) -> None:
        """Raise :class:`ValueError` unless this matches the version's record.

        Checksums are compared later, when they are read.
        """
        if digest(self.to_json()) != record["tree"]:
            raise ValueError("the description of its arrays does not match its checksum")
        for name, array in self.arrays.items():
            array.table_digest = record["checksums"][name]


def read_tree(file: h5py.File, snapshot: str) -> Tree:
    """Return a version, after comparing it with its record (format 2).

    Raises
    ------
    ValueError
        If it is not what was committed. HDF5's library raises its own errors for other damage.
    """
    steps = list(deltas(file, snapshot, read_names(file).head))
    has_tables = has_checksums(file)
    tree = newest_tree(file) if has_tables else _newest_by_attributes(file)
    for group, delta in reversed(steps):
        tree = older_tree(tree, group, delta, has_tables=has_tables)
    if has_tables:
        tree.compare(read_record(file, snapshot))
    return tree


def write_tree(file: h5py.File, tree: Tree) -> dict[str, object]:
    """Store the newest version's description and checksums; return the digests of both."""
    described, home = tree.to_json(), item_of(file, HOME)
    write_bytes(home, "tree", described, b" ")
    tables: dict[str, Table] = {}
    digests: dict[str, str] = {}
    for name, array in sorted(tree.arrays.items()):
        tables[name] = array.stored_table()
        # Unchanged checksums keep their digest, so that damaged ones do not get a new one.
        digests[name] = array.table_digest or digest(tables[name])
    numbers = np.concatenate([np.empty(0, "<u8"), *tables.values()]).astype("<u8")
    write_bytes(home, "checksums", numbers.tobytes(), b"\0")
    return {"tree": digest(described), "checksums": digests}


def newest_tree(file: h5py.File) -> Tree:
    """Return the newest version of a file of format 2, not yet compared with its record."""
    found = json.loads(read_bytes(item_of(file, HOME), "tree"))
    tables = _Tables(item_of(file, HOME))
    arrays, at = {}, 0
    for name, described in found["arrays"].items():
        meta = layout.meta_from_json(described)
        stored = Checksums(partial(tables.part, at, meta.n_chunks))
        arrays[name] = StoredArray(DataSet(file, name, meta, meta.n_rows), meta, {}, stored)
        at += meta.n_chunks
    return Tree(found["attrs"], arrays)


def _newest_by_attributes(file: h5py.File) -> Tree:
    arrays = {}
    for name in file:
        item = item_of(file, name)
        if layout.is_array(item):
            meta = layout.meta_of(item)
            arrays[name] = StoredArray(DataSet(file, name, meta), meta)
    return Tree(layout.get_attrs(file), arrays)


def older_tree(base: Tree, group: h5py.Group, differs: Delta, *, has_tables: bool) -> Tree:
    """Return the version that differs from ``base`` by a delta; the base stays as it is."""
    arrays, tables, at = dict(base.arrays), _Tables(group), 0
    for name, delta in sorted(differs.arrays.items()):
        if delta is None:
            del arrays[name]
            continue
        if delta.whole:
            if has_tables:
                meta = layout.meta_from_json(differs.metas[name])
            else:
                meta = layout.meta_of(item_of(group, f"arrays/{name}"))
            under = StoredArray(DataSet(item_of(group, "arrays"), name, meta), meta)
        else:
            under = arrays[name]
        meta = layout.with_rows(under.meta, delta.n_rows, delta.attrs)
        copies = DataSet(item_of(group, "chunks"), name, meta)
        placed = {
            int(chunk): Piece(None, 0) if place == ABSENT else Piece(copies, place)
            for chunk, place in delta.chunks.items()
            if place != CONTINUED
        }
        elsewhere = {**under.elsewhere, **placed}
        elsewhere = {chunk: piece for chunk, piece in elsewhere.items() if chunk < meta.n_chunks}
        checksums = None
        if has_tables:
            numbers = np.arange(meta.n_chunks)[delta.numbers()]
            kept = partial(tables.part, at, len(numbers))
            checksums = Checksums(kept, under.checksums, meta.n_chunks, numbers)
            at += len(numbers)
        arrays[name] = StoredArray(under.source, meta, elsewhere, checksums)
    return Tree(base.attrs if differs.attrs is None else differs.attrs, arrays)


@dataclass
class _Tables:
    """Checksums of several arrays, stored one after another and read at the first use."""

    group: h5py.Group

    @cached_property
    def _numbers(self) -> Table:
        return np.frombuffer(read_bytes(self.group, "checksums"), dtype="<u8").astype(np.uint64)

    def part(self, start: int, length: int) -> Table:
        """Return ``length`` checksums from ``start`` on."""
        found = self._numbers[start : start + length] if length else np.empty(0, np.uint64)
        if len(found) != length:
            raise ValueError("the table of its checksums ends early")
        return found
