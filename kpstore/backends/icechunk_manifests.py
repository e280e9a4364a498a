"""Icechunk's own metadata, read directly: which file of a local repository holds which chunk.

Snapshots list a version's arrays, and manifests list the places of their chunks, in a published
format (https://icechunk.io/en/stable/spec/). Only version 1 of the format is read here. For
anything else, the functions return None, and kpstore uses Icechunk instead (docs/decisions/010).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import icechunk
import numcodecs
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.flatbuffers import Numbers, Table, fields_at, offset_of

if TYPE_CHECKING:
    from kpstore.backends.object_reading import ObjectPath, ObjectReader

    Root = Path | ObjectReader

_MAGIC = "ICE🧊CHUNK".encode()
_HEADER_BYTES = 39
"""Magic (12 bytes), name of the writer (24), format version, type of the file, compression."""
_FORMAT_1, _MANIFEST, _ZSTD = 1, 2, 1

# Places of fields in their FlatBuffers tables, in the order of Icechunk's schema (manifest.fbs).
_MANIFEST_ARRAYS = 1
_ARRAY_NODE, _ARRAY_REFS = 0, 1
_REF_INDEX, _REF_INLINE, _REF_OFFSET, _REF_LENGTH, _REF_CHUNK, _REF_LOCATION = range(6)

_CROCKFORD = np.frombuffer(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ", dtype=np.uint8)
_NODE_BYTES, _CHUNK_BYTES = 8, 12
_NOWHERE, _FILE, _ELSEWHERE = range(3)
_LOCATED = np.dtype([("kind", "i1"), ("name", "S20"), ("offset", "<i8"), ("length", "<i8")])
"""Where a chunk is: nowhere, in the file of that name, in the manifest or in others' files."""
_AT_ONCE = 256
"""Number of neighbouring chunks whose places are read at once."""


class Node(TypedDict, total=False):
    """An array of a version, as Icechunk describes it."""

    id: str
    path: str
    node_type: str
    manifest_refs: list[dict[str, str]]


Nodes = Mapping[str, Node]
"""The arrays of a version by name."""
_NODE_TYPES = {"array", "group"}
_UNKNOWN = (AttributeError, LookupError, TypeError, ValueError)
"""Errors of reading metadata in an unknown format."""
_DAMAGED = (*_UNKNOWN, struct.error, OSError, RuntimeError)


def nodes_of(repository: icechunk.Repository, snapshot: str) -> Nodes | None:
    """Return the arrays of a version, or None if Icechunk describes them in an unknown way.

    Icechunk raises its own error if it cannot read the version.
    """
    try:
        nodes: list[Node] = json.loads(repository.inspect_snapshot(snapshot, pretty=False))["nodes"]
        if not _NODE_TYPES.issuperset(node["node_type"] for node in nodes):
            return None
        return {node["path"][1:]: node for node in nodes if node["node_type"] == "array"}
    except _UNKNOWN:
        return None


# Small records of what reading imports are named tuples, here and in the modules beside: a
# dataclass takes eight times as long to define, and every process that opens a store waits for it.
class ChunkPlace(NamedTuple):
    """Place of the encoded bytes of one chunk: a file of its own, or the manifest.

    Parameters
    ----------
    file : path of the chunk's file, or of the manifest; in object storage, its place there.
    offset, length : first byte in the file, and number of bytes.
    inline : the bytes themselves, if the manifest holds them.
    """

    file: str | ObjectPath
    offset: int = 0
    length: int = 0
    inline: bytes | None = None

    @property
    def n_bytes(self) -> int:
        """Number of encoded bytes."""
        return self.length if self.inline is None else len(self.inline)

    def head(self, n_bytes: int) -> bytes | memoryview:
        """Return at least so many of the first encoded bytes, or all; as :meth:`read`."""
        return self._replace(length=min(n_bytes, self.length)).read()

    def read(self, room: Callable[[int], memoryview] | None = None) -> bytes | memoryview:
        """Return the encoded bytes; :class:`ValueError` if the file does not have them.

        Parameters
        ----------
        room : returns memory of some size to read into; None for new memory.
        """
        if self.inline is not None:
            return self.inline
        if not isinstance(self.file, str) and self.file.reader.copies is None:
            found = self.file.read(self.offset, self.length)
            if len(found) != self.length:
                raise ValueError(f"{len(found)} of {self.length} bytes of {self.file} were there")
            return found
        with open(self.file, "rb", buffering=0) as file:
            # These numbers come from a file that may be damaged, so they are checked first.
            size = os.fstat(file.fileno()).st_size
            if self.offset + self.length > size:
                raise ValueError(
                    f"{self.file} has {size} bytes, those up to {self.offset + self.length} were "
                    "expected"
                )
            file.seek(self.offset)
            content = memoryview(bytearray(self.length)) if room is None else room(self.length)
            n_read = file.readinto(content)
        if n_read != self.length:
            raise ValueError(f"{n_read} of {self.length} bytes of {self.file} could be read")
        return content


def locate_chunks(nodes: Nodes | None, root: Root, array: str) -> ChunkPlaces | None:
    """Return the places of an array's written chunks, by their index in the chunk grid.

    Parameters
    ----------
    nodes : arrays of the version, from :func:`nodes_of`.
    root : directory of the repository, or what reads its objects.
    array : name of an array in the root group.

    Returns
    -------
    ChunkPlaces or None
        None if the metadata are damaged, or in an unknown format.
    """
    refs = _refs_of(nodes, root, array)
    return None if refs is None else ChunkPlaces(refs)


def locate_rows(nodes: Nodes | None, root: Root, array: str, n_chunks: int) -> RowPlaces | None:
    """Return the place of each chunk of an array with ``n_chunks`` chunks along its first axis.

    None where :func:`locate_chunks` returns None, and if chunks lie outside that grid.
    """
    refs = _refs_of(nodes, root, array)
    if refs is None or any(
        some.indices[:, 1:].any() or (some.indices[:, :1] >= n_chunks).any() for some in refs
    ):
        return None
    return RowPlaces(refs, n_chunks, root)


def _refs_of(nodes: Nodes | None, root: Root, array: str) -> list[_Refs] | None:
    """Return an array's references in each of its manifests; None if they cannot be read."""
    found: list[_Refs] = []
    try:
        node = (nodes or {})[array]
        for manifest in node["manifest_refs"]:
            path = root / "manifests" / manifest["id"]
            for refs in _arrays(path, node["id"]):
                if refs.are_foreign or not refs.indices.shape[1]:
                    return None  # other software's: in other files, or of a single number
                found.append(refs)
    except _DAMAGED:
        return None  # Icechunk will name the damaged file
    return found


def chunks_of_manifest(manifest: Path | ObjectPath) -> set[str] | None:
    """Return the names of all chunk files that a manifest needs; None if it cannot be read."""
    try:
        return {name for refs in _arrays(manifest) for name in refs.files()}
    except _DAMAGED:
        return None


def _read_manifest(path: Path | ObjectPath) -> bytes:
    content = path.read_bytes()
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise ValueError("not a manifest")
    version, kind, compression = content[36:_HEADER_BYTES]
    if version != _FORMAT_1 or kind != _MANIFEST or compression not in (0, _ZSTD):
        raise ValueError("a manifest of an unknown format")
    body = content[_HEADER_BYTES:]
    return bytes(numcodecs.Zstd().decode(body)) if compression == _ZSTD else body


def _arrays(manifest: Path | ObjectPath, node: str | None = None) -> Iterator[_Refs]:
    """Yield the references of each array in a manifest, or of the one with an id."""
    content = _read_manifest(manifest)
    for array in Table.root(content).tables(_MANIFEST_ARRAYS):
        if node is None or _name(array.fixed(_ARRAY_NODE, _NODE_BYTES)) == node:
            yield _Refs(manifest, content, array)


class _Refs:
    """The references of one array in one manifest, of which some are read when they are asked for.

    There may be many thousands of them, and a reader may want one, or each of them at once.

    Parameters
    ----------
    content : of the manifest.
    array : the array's table in it.

    Attributes
    ----------
    indices : (references, axes) int64, position of its chunk in the grid.
    are_files : whether each chunk is a file of its own.
    are_foreign : whether some chunks are parts of another program's files.
    """

    def __init__(self, manifest: Path | ObjectPath, content: bytes, array: Table) -> None:
        self._manifest, self._content = manifest, content
        self._chunks = manifest.parent.parent / "chunks"
        # Paths made one by one would take longer than all else here.
        self._folder = f"{self._chunks}{os.sep}"
        numbers = self._numbers = Numbers(content)
        self._tables = array.table_offsets(_ARRAY_REFS, numbers)
        # References of a kind share the list of where their fields are.
        layouts = self._tables - numbers.at(self._tables, "<i4")
        kinds, self._kinds = np.unique(layouts, return_inverse=True)
        self._fields = [fields_at(content, at) for at in kinds.tolist()]
        if not all(offset_of(fields, _REF_INDEX) for fields in self._fields):
            raise ValueError("a chunk without a position")
        self.are_foreign = any(offset_of(fields, _REF_LOCATION) for fields in self._fields)
        everywhere = np.arange(len(self._tables))
        self.indices = numbers.rows(self._tables + self._offsets(everywhere, _REF_INDEX))
        self.are_files = not (
            self._offsets(everywhere, _REF_INLINE).any()
            or self._values(everywhere, _REF_OFFSET).any()
        )

    def files(self) -> list[str]:
        """Return the names of the chunks' files; :class:`ValueError` if one is damaged."""
        found = self.located(np.arange(len(self._tables)))
        if (found["kind"] == _NOWHERE).any():
            raise ValueError(f"{self._manifest} is damaged")
        return [name.decode() for name in found["name"].tolist() if name]

    def located(self, which: NDArray[np.int64]) -> NDArray[Any]:
        """Return where the chunks of some references, by their numbers, are: :data:`_LOCATED`."""
        tables, at = self._tables[which], self._offsets(which, _REF_CHUNK)
        found = np.zeros(len(which), dtype=_LOCATED)
        found["offset"] = self._values(which, _REF_OFFSET)
        found["length"] = self._values(which, _REF_LENGTH)
        inline, foreign = (self._offsets(which, of) > 0 for of in (_REF_INLINE, _REF_LOCATION))
        named = (at > 0) & ~inline & self._numbers.are_inside(tables + at, _CHUNK_BYTES)
        found["name"][named] = _base32(self._numbers.raw((tables + at)[named], _CHUNK_BYTES))
        # One damaged reference is no reason to refuse those beside it.
        bad = ~(named | inline | foreign) | (found["offset"] < 0) | (found["length"] < 0)
        found["kind"] = np.select([bad, named], [_NOWHERE, _FILE], _ELSEWHERE)
        return found

    def place(self, number: int, located: NDArray[Any]) -> ChunkPlace:
        """Return where a reference's chunk is, for which :meth:`located` was called.

        :class:`ValueError` if the reference is damaged.
        """
        kind, name, offset, length = located.item()
        if kind == _FILE:
            text = name.decode()
            local = isinstance(self._chunks, Path)
            return ChunkPlace(self._folder + text if local else self._chunks / text, offset, length)
        try:
            if kind == _NOWHERE:
                raise ValueError("a chunk that is nowhere")
            content = Table(self._content, int(self._tables[number])).raw(_REF_INLINE)
            return ChunkPlace(str(self._manifest), inline=content)
        except (ValueError, struct.error) as error:
            raise ValueError(f"{self._manifest} is damaged: {error}") from None

    def _offsets(self, which: NDArray[np.int64], field: int) -> NDArray[np.int64]:
        """Return the offset of a field within the tables of some references; 0 if it is absent."""
        of = np.array([offset_of(fields, field) for fields in self._fields], dtype=np.int64)
        found: NDArray[np.int64] = of[self._kinds[which]]
        return found

    def _values(self, which: NDArray[np.int64], field: int) -> NDArray[np.int64]:
        """Return a number of some references: 0 where it is absent, negative if it cannot be."""
        tables, offsets = self._tables[which], self._offsets(which, field)
        inside = self._numbers.are_inside(tables + offsets, 8)
        some, values = (offsets > 0) & inside, np.zeros(len(which), dtype=np.int64)
        values[some] = self._numbers.at((tables + offsets)[some], "<u8")
        values[~inside] = -1
        return values


class ChunkPlaces(Mapping[tuple[int, ...], ChunkPlace]):
    """Places of an array's written chunks, by their index in the chunk grid."""

    def __init__(self, refs: Iterable[_Refs]) -> None:
        self._at = {
            tuple(index): (some, number)
            for some in refs
            for number, index in enumerate(some.indices.tolist())
        }

    def __getitem__(self, index: tuple[int, ...]) -> ChunkPlace:
        refs, number = self._at[index]
        return refs.place(number, refs.located(np.array([number]))[0])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


class RowPlaces:
    """The place of each chunk along an array's first axis; None for one that was never written.

    Attributes
    ----------
    written : (chunks,) bool.
    are_files : whether each written chunk is a file of its own.
    reader : reads them if they are objects; None if they are local files.
    """

    def __init__(self, refs: Sequence[_Refs], n_chunks: int, root: Root) -> None:
        self._refs = refs
        self.reader = None if isinstance(root, Path) else root
        self._manifests = np.zeros(n_chunks, dtype=np.int64)
        self._numbers = np.zeros(n_chunks, dtype=np.int64)
        self.written = np.zeros(n_chunks, dtype=np.bool_)
        for number, some in enumerate(refs):
            rows = some.indices[:, 0]
            self._manifests[rows], self._numbers[rows] = number, np.arange(len(rows))
            self.written[rows] = True
        self.are_files = all(some.are_files for some in refs)
        # Read in groups: a hundred places together take as long as ten, one by one.
        self._located = np.zeros(n_chunks, dtype=_LOCATED)
        self._is_located = np.zeros(-(-n_chunks // _AT_ONCE), dtype=np.bool_)

    def of(self, chunks: range) -> list[ChunkPlace | None] | None:
        """Return the places of some chunks; None if the manifest is damaged there.

        Chunks behind those of the version have none.
        """
        try:
            return [self[chunk] if chunk < len(self.written) else None for chunk in chunks]
        except ValueError:
            return None

    def name_of(self, chunk: int, root: Root) -> str:
        """Return the file that holds a chunk, relative to ``root``, for messages."""
        try:
            place = self[chunk]
        except (IndexError, ValueError):  # damage, which whoever reads the chunk is told
            return f"chunk {chunk}"
        if place is None:
            return "no file"
        return os.path.relpath(place.file, root) if isinstance(root, Path) else str(place.file)

    def __getitem__(self, chunk: int) -> ChunkPlace | None:
        if not self.written[chunk]:
            return None
        group = chunk // _AT_ONCE
        if not self._is_located[group]:
            self._locate(group)
        refs = self._refs[int(self._manifests[chunk])]
        return refs.place(int(self._numbers[chunk]), self._located[chunk])

    def _locate(self, group: int) -> None:
        """Read the places of neighbouring chunks at once.

        Two threads may do so at the same time: they find the same.
        """
        chunks = np.arange(group * _AT_ONCE, (group + 1) * _AT_ONCE)
        chunks = chunks[: len(self.written) - chunks[0]]
        chunks = chunks[self.written[chunks]]
        for number, refs in enumerate(self._refs):
            mine = chunks[self._manifests[chunks] == number]
            self._located[mine] = refs.located(self._numbers[mine])
        self._is_located[group] = True


def _name(raw: bytes) -> str:
    """Return the name of an array, of which these are the bytes."""
    return bytes(_base32(np.frombuffer(raw, dtype=np.uint8)[np.newaxis])[0]).decode()


def _base32(raw: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Return names, (names, bytes), in Crockford's base 32, which Icechunk uses for its files."""
    n_names, n_bytes = raw.shape
    n_digits = -(-8 * n_bytes // 5)
    bits = np.zeros((n_names, n_digits, 5), dtype=np.uint8)
    bits.reshape(n_names, 5 * n_digits)[:, : 8 * n_bytes] = np.unpackbits(raw, axis=1)
    digits: NDArray[np.uint8] = bits @ np.array([16, 8, 4, 2, 1], dtype=np.uint8)
    return _CROCKFORD[digits].view(f"S{n_digits}")[:, 0]
