"""Icechunk's own metadata, read directly: which file of a local repository holds which chunk.

Snapshots list a version's arrays, and manifests list the places of their chunks, in a published
format (https://icechunk.io/en/stable/spec/). Only version 1 of the format is read here. For
anything else, the functions return None, and kpstore uses Icechunk instead (docs/decisions/010).
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import icechunk
import numcodecs
import numpy as np
from numpy.typing import NDArray

_MAGIC = "ICE🧊CHUNK".encode()
_HEADER_BYTES = 39
"""Magic (12 bytes), name of the writer (24), format version, type of the file, compression."""
_FORMAT_1, _MANIFEST, _ZSTD = 1, 2, 1

# Places of fields in their FlatBuffers tables, in the order of Icechunk's schema (manifest.fbs).
_MANIFEST_ARRAYS = 1
_ARRAY_NODE, _ARRAY_REFS = 0, 1
_REF_INDEX, _REF_INLINE, _REF_OFFSET, _REF_LENGTH, _REF_CHUNK, _REF_LOCATION = range(6)

_CROCKFORD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)
"""Translates the digits of RFC 4648's base 32 into Crockford's."""


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
_MOST_AXES = 32


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
    file : path of the chunk's file, or of the manifest.
    offset, length : first byte in the file, and number of bytes.
    inline : the bytes themselves, if the manifest holds them.
    """

    file: Path
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
        with self.file.open("rb", buffering=0) as file:
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


def locate_chunks(nodes: Nodes | None, root: Path, array: str) -> ChunkPlaces | None:
    """Return the places of an array's written chunks, by their index in the chunk grid.

    Parameters
    ----------
    nodes : arrays of the version, from :func:`nodes_of`.
    root : directory of the repository.
    array : name of an array in the root group.

    Returns
    -------
    ChunkPlaces or None
        None if the metadata are damaged, or in an unknown format.
    """
    refs = _refs_of(nodes, root, array)
    return None if refs is None else ChunkPlaces(refs)


def locate_rows(nodes: Nodes | None, root: Path, array: str, n_chunks: int) -> RowPlaces | None:
    """Return the place of each chunk of an array with ``n_chunks`` chunks along its first axis.

    None where :func:`locate_chunks` returns None, and if chunks lie outside that grid.
    """
    refs = _refs_of(nodes, root, array)
    if refs is None or any(
        some.indices[:, 1:].any() or (some.indices[:, :1] >= n_chunks).any() for some in refs
    ):
        return None
    return RowPlaces(refs, n_chunks)


def _refs_of(nodes: Nodes | None, root: Path, array: str) -> list[_Refs] | None:
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


def chunks_of_manifest(manifest: Path) -> set[str] | None:
    """Return the names of all chunk files that a manifest needs; None if it cannot be read."""
    try:
        return {name for refs in _arrays(manifest) for name in refs.files()}
    except _DAMAGED:
        return None


def _read_manifest(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise ValueError("not a manifest")
    version, kind, compression = content[36:_HEADER_BYTES]
    if version != _FORMAT_1 or kind != _MANIFEST or compression not in (0, _ZSTD):
        raise ValueError("a manifest of an unknown format")
    body = content[_HEADER_BYTES:]
    return bytes(numcodecs.Zstd().decode(body)) if compression == _ZSTD else body


def _arrays(manifest: Path, node: str | None = None) -> Iterator[_Refs]:
    """Yield the references of each array in a manifest, or of the one with an id."""
    content = _read_manifest(manifest)
    for array in _Table.root(content).tables(_MANIFEST_ARRAYS):
        if node is None or _base32(array.struct(_ARRAY_NODE, 8)) == node:
            yield _Refs(manifest, content, array)


class _Refs:
    """The references of one array in one manifest, of which each is read when it is asked for.

    There may be many thousands of them, and a reader may want one.

    Parameters
    ----------
    content : of the manifest.
    array : the array's table in it.

    Attributes
    ----------
    tables : (references,) int64, offset of each reference's table.
    indices : (references, axes) uint32, position of its chunk in the grid.
    are_files : whether each chunk is a file of its own.
    are_foreign : whether some chunks are parts of another program's files.
    """

    def __init__(self, manifest: Path, content: bytes, array: _Table) -> None:
        self._manifest, self._content = manifest, content
        numbers = _Numbers(content)
        self.tables = array.table_offsets(_ARRAY_REFS, numbers)
        layouts = self.tables - numbers.at(self.tables, "<i4")
        # References of a kind share the list of where their fields are.
        fields = {at: _fields_at(content, at) for at in set(layouts.tolist())}
        if not all(_offset(of, _REF_INDEX) for of in fields.values()):
            raise ValueError("a chunk without a position")
        self.are_foreign = any(_offset(of, _REF_LOCATION) for of in fields.values())

        def places(field: int) -> NDArray[np.int64]:
            by_layout = {at: _offset(of, field) for at, of in fields.items()}
            return np.array([by_layout[at] for at in layouts.tolist()], dtype=np.int64)

        self.indices = numbers.rows(self.tables + places(_REF_INDEX))
        offsets = places(_REF_OFFSET)
        some = offsets > 0
        self.are_files = (
            not places(_REF_INLINE).any()
            and not numbers.at(self.tables[some] + offsets[some], "<u8").any()
        )

    def files(self) -> Iterator[str]:
        """Yield the names of the chunks' files."""
        for ref in (_Table(self._content, table) for table in self.tables.tolist()):
            if not ref.has(_REF_INLINE) and not ref.has(_REF_LOCATION):
                yield _base32(ref.struct(_REF_CHUNK, 12))

    def place(self, table: int) -> ChunkPlace:
        """Return where a chunk is; :class:`ValueError` if the manifest is damaged there."""
        try:
            ref = _Table(self._content, table)
            if ref.has(_REF_INLINE):
                return ChunkPlace(self._manifest, inline=ref.raw(_REF_INLINE))
            name = _base32(ref.struct(_REF_CHUNK, 12))
            file = self._manifest.parent.parent / "chunks" / name
            return ChunkPlace(file, ref.uint64(_REF_OFFSET), ref.uint64(_REF_LENGTH))
        except struct.error as error:
            raise ValueError(f"{self._manifest} is damaged: {error}") from None


class ChunkPlaces(Mapping[tuple[int, ...], ChunkPlace]):
    """Places of an array's written chunks, by their index in the chunk grid."""

    def __init__(self, refs: Iterable[_Refs]) -> None:
        self._at = {
            tuple(index): (some, table)
            for some in refs
            for index, table in zip(some.indices.tolist(), some.tables.tolist(), strict=True)
        }

    def __getitem__(self, index: tuple[int, ...]) -> ChunkPlace:
        refs, table = self._at[index]
        return refs.place(table)

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
    """

    def __init__(self, refs: Sequence[_Refs], n_chunks: int) -> None:
        self._refs = refs
        self._manifests = np.zeros(n_chunks, dtype=np.int64)
        self._tables = np.zeros(n_chunks, dtype=np.int64)
        self.written = np.zeros(n_chunks, dtype=np.bool_)
        for number, some in enumerate(refs):
            rows = some.indices[:, 0]
            self._manifests[rows], self._tables[rows], self.written[rows] = (
                number,
                some.tables,
                True,
            )
        self.are_files = all(some.are_files for some in refs)

    def of(self, chunks: range) -> list[ChunkPlace | None] | None:
        """Return the places of some chunks; None if the manifest is damaged there.

        Chunks behind those of the version have none.
        """
        try:
            return [self[chunk] if chunk < len(self.written) else None for chunk in chunks]
        except ValueError:
            return None

    def name_of(self, chunk: int, root: Path) -> str:
        """Return the file that holds a chunk, relative to ``root``, for messages."""
        try:
            place = self[chunk]
        except (IndexError, ValueError):  # damage, which whoever reads the chunk is told
            return f"chunk {chunk}"
        return "no file" if place is None else str(place.file.relative_to(root))

    def __getitem__(self, chunk: int) -> ChunkPlace | None:
        if not self.written[chunk]:
            return None
        refs = self._refs[int(self._manifests[chunk])]
        return refs.place(int(self._tables[chunk]))


def _base32(raw: bytes) -> str:
    """Return bytes in Crockford's base 32, which Icechunk uses for names of files."""
    return base64.b32encode(raw).rstrip(b"=").translate(_CROCKFORD).decode("ascii")


def _fields_at(content: bytes, at: int) -> tuple[int, ...]:
    """Return the offsets of a table's fields within it, from the list at ``at``."""
    size = struct.unpack_from("<H", content, at)[0]
    return struct.unpack_from(f"<{max(size - 4, 0) // 2}H", content, at + 4)


def _offset(fields: tuple[int, ...], number: int) -> int:
    """Return the offset of a field within its table; 0 if it is absent."""
    return fields[number] if number < len(fields) else 0


class _Numbers:
    """Numbers at many places of a FlatBuffers file, which need not be aligned."""

    def __init__(self, content: bytes) -> None:
        self._bytes = np.frombuffer(content, dtype=np.uint8)

    def at(self, places: NDArray[np.int64], dtype: str) -> NDArray[np.int64]:
        """Return the numbers at some places; :class:`ValueError` if one is outside the file."""
        size = np.dtype(dtype).itemsize
        if places.size and not 0 <= places.min() <= places.max() <= len(self._bytes) - size:
            raise ValueError("an offset leads out of the manifest")
        found = self._bytes[places[..., np.newaxis] + np.arange(size)]
        return np.asarray(found.view(dtype)[..., 0], dtype=np.int64)

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return vectors of equally many uint32, (places, items)."""
        begins = places + self.at(places, "<u4")
        counts = set(self.at(begins, "<u4").tolist())
        n_items = max(counts, default=1)
        if len(counts) > 1 or n_items > _MOST_AXES:
            raise ValueError("the positions of chunks have several lengths")
        return self.at(begins[:, np.newaxis] + 4 + 4 * np.arange(n_items), "<u4")


class _Table:
    """A FlatBuffers table: a list of offsets of its fields, any of which may be absent."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        self._fields = _fields_at(content, at - struct.unpack_from("<i", content, at)[0])

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, struct.unpack_from("<I", content, 0)[0])

    def _field(self, number: int) -> int:
        """Return the offset of a field; 0 if it is absent."""
        offset = _offset(self._fields, number)
        return self._at + offset if offset else 0

    def _vector(self, number: int) -> tuple[int, int]:
        """Return the offset of a vector's first item, and the number of items."""
        at = self._field(number)
        if not at:
            return 0, 0
        begin = at + struct.unpack_from("<I", self._content, at)[0]
        return begin + 4, struct.unpack_from("<I", self._content, begin)[0]

    def has(self, number: int) -> bool:
        return self._field(number) != 0

    def struct(self, number: int, size: int) -> bytes:
        at = self._field(number)
        return self._content[at : at + size]

    def uint64(self, number: int) -> int:
        at = self._field(number)
        value: int = struct.unpack_from("<Q", self._content, at)[0] if at else 0
        return value

    def raw(self, number: int) -> bytes:
        begin, count = self._vector(number)
        return self._content[begin : begin + count]

    def tables(self, number: int) -> Iterator[_Table]:
        begin, count = self._vector(number)
        for item in range(begin, begin + 4 * count, 4):
            yield _Table(self._content, item + struct.unpack_from("<I", self._content, item)[0])

    def table_offsets(self, number: int, numbers: _Numbers) -> NDArray[np.int64]:
        """Return the offsets of many tables, (tables,)."""
        begin, count = self._vector(number)
        if 4 * count > len(self._content):
            raise ValueError("more tables than the manifest has room for")
        items = begin + 4 * np.arange(count)
        found: NDArray[np.int64] = items + numbers.at(items, "<u4")
        return found
