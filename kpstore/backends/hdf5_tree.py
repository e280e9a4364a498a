"""One version of an HDF5 store, put together: its arrays, where their chunks lie, and what these add up to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import hdf5_layout as layout
from kpstore.backends.base import TEXT, ArrayMeta
from kpstore.backends.checksums import matches
from kpstore.backends.hdf5_layout import Table, n_chunks
from kpstore.backends.hdf5_records import (
    HOME,
    deltas,
    digest,
    format_of,
    read_bytes,
    read_names,
    read_record,
    write_bytes,
)
from kpstore.errors import CorruptError


class WrongChunkError(ValueError):
    """A chunk, of rows ``start`` to ``stop``, that is not what was committed at its place."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__("they do not match their checksum")
        self.start, self.stop = start, stop


class DataSet:
    """A data set that holds chunks; looked at when it is first read.

    Parameters
    ----------
    group, name : where it is.
    meta : what it has to be; its length may be another in a version that is not the newest.
    n_rows : its length, if it is known.
    """

    def __init__(
        self, group: h5py.Group, name: str, meta: ArrayMeta, n_rows: int | None = None
    ) -> None:
        self._group, self._name, self._meta, self._n_rows = group, name, meta, n_rows

    @cached_property
    def array(self) -> h5py.Dataset:
        """The data set; :class:`CorruptError` if it is not what it has to be."""
        array, meta = layout.open_array(self._group, self._name), self._meta
        rows = array.shape[0] if self._n_rows is None else self._n_rows
        if array.shape != (rows, *meta.shape[1:]) or array.chunks != (
            meta.chunk_rows,
            *meta.shape[1:],
        ):
            raise CorruptError(
                f"{array.file.filename}: {array.name[1:]!r} has shape {array.shape} in chunks of "
                f"{array.chunks}, which is not what was committed; it is damaged"
            )
        layout.check_index(array)
        return array


class Checksums:
    """Where the checksums of an array's chunks are: together, or those that differ from another version's.

    Parameters
    ----------
    kept : gives them.
    base : of the version that this one is described by; None if ``kept`` gives all, or all that
        there are.
    length, numbers : how many chunks the array has, and whose checksums ``kept`` gives, (kept,); if
        there is a base.
    """

    def __init__(
        self,
        kept: Callable[[], Table],
        base: Checksums | None = None,
        length: int = 0,
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        self._kept, self._base, self._length, self._numbers = kept, base, length, numbers
        self._found: Table | None = None

    def read(self) -> Table:
        """Return the checksum of each chunk, (chunks,)."""
        way: list[Checksums] = []
        at: Checksums | None = self
        while at is not None and at._found is None:
            way.append(at)
            at = at._base
        table = np.empty(0, np.uint64) if at is None or at._found is None else at._found
        for step in reversed(way):  # not each by the one below it: there may be thousands
            table = step._on(table)
        self._found = table
        return table

    def _on(self, base: Table) -> Table:
        if self._numbers is None:
            return self._kept()
        table = np.zeros(self._length, np.uint64)
        table[: len(base)] = base[: self._length]
        table[self._numbers] = self._kept()
        return table


@dataclass(frozen=True)
class Piece:
    """A chunk's place: which chunk of which data set; ``source`` is None where nobody wrote it."""

    source: DataSet | None
    chunk: int

    def byte(self) -> int | None:
        """Return where in the file it begins; None if nobody wrote it."""
        return None if self.source is None else layout.byte_of(self.source.array, self.chunk)


class StoredArray:
    """One array at one version: a data set, and the chunks that are elsewhere.

    Parameters
    ----------
    source : the data set that holds all other chunks.
    meta : of the array at this version.
    elsewhere : by chunk.
    checksums : where the checksums of all chunks are; None in files of format 1.
    table_digest : what they have to add up to; None if nothing is known of that.
    """

    def __init__(
        self,
        source: DataSet,
        meta: ArrayMeta,
        elsewhere: Mapping[int, Piece],
        checksums: Checksums | None,
        table_digest: str | None = None,
    ) -> None:
        self.source, self.meta, self.elsewhere = source, meta, elsewhere
        self.checksums, self.table_digest = checksums, table_digest

    @cached_property
    def table(self) -> Table | None:
        """The checksums of all chunks.

        None in files of format 1. :class:`ValueError` if they are damaged.
        """
        if self.checksums is None:
            return None
        found = self.checksums.read()
        if self.table_digest is not None and digest(found) != self.table_digest:
            raise ValueError("the table of its checksums is damaged")
        return found

    def stored_table(self) -> Table:
        """Return the checksums of all chunks as they are stored, damaged or not.

        Only in files of format 2.
        """
        assert self.checksums is not None
        return self.checksums.read()

    def piece(self, chunk: int) -> Piece:
        """Return where a chunk is."""
        return self.elsewhere.get(chunk, Piece(self.source, chunk))

    def pieces(self) -> list[Piece]:
        """Return where each chunk is."""
        return [self.piece(chunk) for chunk in range(n_chunks(self.meta))]

    @property
    def is_raw(self) -> bool:
        """Whether all chunks lie in the file as they are in memory."""
        sources = [self.source, *(piece.source for piece in self.elsewhere.values())]
        return all(source is None or source.array.compression is None for source in sources)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows; every chunk that they lie in is compared with its checksum (format 2).

        Raises
        ------
        WrongChunkError
            If a chunk is not what was committed at its place. Damage also shows as whatever HDF5's
            library raises.
        """
        table = self.table
        if table is None or stop == start:
            return self.read_unchecked(start, stop)
        size = self.meta.chunk_rows
        first, last = start // size, -(-stop // size)
        rows = self.read_unchecked(first * size, min(last * size, self.meta.n_rows))
        for chunk in range(first, last):
            at = (chunk - first) * size
            if not matches(self.meta, rows[at : at + size], int(table[chunk])):
                raise WrongChunkError(chunk * size, min((chunk + 1) * size, self.meta.n_rows))
        wanted = rows[start - first * size : stop - first * size]
        return wanted if len(wanted) == len(rows) else wanted.copy()

    def read_unchecked(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows as HDF5 gives them."""
        if not self.elsewhere:
            rows = layout.read_dataset(self.source.array, start, stop)
        else:
            text = self.meta.dtype == TEXT
            rows = np.empty(
                (stop - start, *self.meta.shape[1:]), dtype=object if text else self.meta.dtype
            )
            for chunk in range(start // self.meta.chunk_rows, -(-stop // self.meta.chunk_rows)):
                first, last = (
                    max(start, chunk * self.meta.chunk_rows),
                    min(stop, (chunk + 1) * self.meta.chunk_rows),
                )
                rows[first - start : last - start] = self._part(chunk, first, last)
        if rows.shape != (stop - start, *self.meta.shape[1:]):
            raise ValueError(f"it holds rows of shape {rows.shape}")
        return rows

    def _part(self, chunk: int, first: int, last: int) -> Any:
        piece = self.piece(chunk)
        if piece.source is None:
            return "" if self.meta.dtype == TEXT else self.meta.fill
        shift = (piece.chunk - chunk) * self.meta.chunk_rows
        return layout.read_dataset(piece.source.array, first + shift, last + shift)

    def read_chunk(self, chunk: int) -> NDArray[Any] | None:
        """Return the rows of one chunk, compared with its checksum; None if nobody wrote it."""
        if self.piece(chunk).byte() is None and (self.table is None or not self.table[chunk]):
            return None
        size = self.meta.chunk_rows
        return self.read(chunk * size, min((chunk + 1) * size, self.meta.n_rows))


class Tree:
    """All arrays at one version, put together from the newest and the differences on the way to this one.

    Parameters
    ----------
    attrs : of the root.
    arrays : by name.
    """

    def __init__(self, attrs: dict[str, Any], arrays: dict[str, StoredArray]) -> None:
        self.attrs, self.arrays = attrs, arrays

    def to_json(self) -> bytes:
        """Return the description that a version's record holds the digest of."""
        arrays = {
            name: layout.meta_to_json(array.meta) for name, array in sorted(self.arrays.items())
        }
        return json.dumps({"attrs": self.attrs, "arrays": arrays}, ensure_ascii=False).encode()

    def compare(self, record: Mapping[str, Any]) -> None:
        """Raise :class:`ValueError` unless this is what a version's record says.

        Tables are compared when read.
        """
        if digest(self.to_json()) != record["tree"]:
            raise ValueError("the description of its arrays does not match its checksum")
        for name, array in self.arrays.items():
            array.table_digest = record["checksums"][name]


def read_tree(file: h5py.File, snapshot: str) -> Tree:
    """Return a version; in files of format 2 it is compared with its record.

    Raises
    ------
    ValueError
        If it is not what was committed. Damage also shows as whatever HDF5's library raises.
    """
    steps = list(deltas(file, snapshot, read_names(file).head))
    has_tables = format_of(file) > 1
    tree = newest_tree(file) if has_tables else _newest_by_attributes(file)
    for group, about in reversed(steps):
        tree = older_tree(tree, group, about, has_tables=has_tables)
    if has_tables:
        tree.compare(read_record(file, snapshot))
    return tree


def write_tree(file: h5py.File, tree: Tree) -> dict[str, Any]:
    """Store the newest version's description and tables.

    Return what its record has to hold of them.
    """
    described = tree.to_json()
    write_bytes(file[HOME], "tree", described, b" ")
    tables: dict[str, Table] = {}
    digests: dict[str, str] = {}
    for name, array in sorted(tree.arrays.items()):
        tables[name] = array.stored_table()
        # Of a table that nobody touched the digest stays, also if it is damaged.
        digests[name] = array.table_digest or digest(tables[name])
    numbers = np.concatenate([np.empty(0, "<u8"), *tables.values()]).astype("<u8")
    write_bytes(file[HOME], "checksums", numbers.tobytes(), b"\0")
    return {"tree": digest(described), "checksums": digests}


def newest_tree(file: h5py.File) -> Tree:
    """Return the newest version of a file of format 2, not yet compared with its record."""
    found = json.loads(read_bytes(file[HOME], "tree"))
    tables = _Tables(file[HOME])
    arrays, at = {}, 0
    for name, described in found["arrays"].items():
        meta = layout.meta_from_json(described)
        stored = partial(tables.part, at, n_chunks(meta))
        arrays[name] = StoredArray(
            DataSet(file, name, meta, meta.n_rows), meta, {}, Checksums(stored)
        )
        at += n_chunks(meta)
    return Tree(found["attrs"], arrays)


def _newest_by_attributes(file: h5py.File) -> Tree:
    arrays = {}
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and layout.is_array(file[name]):
            meta = layout.meta_of(layout.open_array(file, name))
            arrays[name] = StoredArray(DataSet(file, name, meta), meta, {}, None)
    return Tree(layout.get_attrs(file), arrays)


def older_tree(
    base: Tree, group: h5py.Group, about: Mapping[str, Any], *, has_tables: bool
) -> Tree:
    """Return the version that differs from ``base`` by a delta; the base stays as it is."""
    arrays, tables, at = dict(base.arrays), _Tables(group), 0
    for name, found in sorted(about["arrays"].items()):
        if found is None:
            del arrays[name]
            continue
        delta = layout.ArrayDelta(**found)
        if delta.whole:
            meta = _whole_meta(group, about, name, has_tables=has_tables)
            source, elsewhere, under = (
                DataSet(group["arrays"], name, meta),
                dict[int, Piece](),
                None,
            )
        else:
            under = arrays[name]
            source, meta, elsewhere = under.source, under.meta, dict(under.elsewhere)
        meta = layout.with_rows(meta, delta.n_rows, delta.attrs)
        copies = DataSet(group["chunks"], name, meta)
        for chunk, place in delta.chunks.items():
            elsewhere[int(chunk)] = (
                Piece(None, 0) if place == layout.ABSENT else Piece(copies, place)
            )
        elsewhere = {chunk: piece for chunk, piece in elsewhere.items() if chunk < n_chunks(meta)}
        checksums = None
        if has_tables:
            numbers = np.arange(n_chunks(meta))[layout.numbers_of(delta)]
            kept = partial(tables.part, at, len(numbers))
            checksums = Checksums(
                kept, None if under is None else under.checksums, n_chunks(meta), numbers
            )
            at += len(numbers)
        arrays[name] = StoredArray(source, meta, elsewhere, checksums)
    return Tree(base.attrs if about["attrs"] is None else about["attrs"], arrays)


def _whole_meta(
    group: h5py.Group, about: Mapping[str, Any], name: str, *, has_tables: bool
) -> ArrayMeta:
    if has_tables:
        return layout.meta_from_json(about["metas"][name])
    return layout.meta_of(layout.open_array(group["arrays"], name))


class _Tables:
    """Checksums of several arrays, one behind the other, read when the first is asked for."""

    def __init__(self, group: h5py.Group) -> None:
        self._group = group

    @cached_property
    def _numbers(self) -> Table:
        return np.frombuffer(read_bytes(self._group, "checksums"), dtype="<u8").astype(np.uint64)

    def part(self, start: int, length: int) -> Table:
        """Return those from one on."""
        found = self._numbers[start : start + length] if length else np.empty(0, np.uint64)
        if len(found) != length:
            raise ValueError("the table of its checksums ends early")
        return found
