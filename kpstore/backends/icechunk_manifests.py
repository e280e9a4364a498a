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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import icechunk
import numcodecs

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


@dataclass(frozen=True)
class ChunkPlace:
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


def locate_chunks(
    nodes: Nodes | None, root: Path, array: str
) -> dict[tuple[int, ...], ChunkPlace] | None:
    """Return the places of an array's written chunks, by their index in the chunk grid.

    Parameters
    ----------
    nodes : arrays of the version, from :func:`nodes_of`.
    root : directory of the repository.
    array : name of an array in the root group.

    Returns
    -------
    dict or None
        None if the metadata are damaged, or in an unknown format.
    """
    found: dict[tuple[int, ...], ChunkPlace] = {}
    try:
        node = (nodes or {})[array]
        for manifest in node["manifest_refs"]:
            found.update(
                _array_chunks(root / "manifests" / manifest["id"], node["id"], root / "chunks")
            )
    except (*_UNKNOWN, struct.error, OSError, RuntimeError):
        return None  # if a file is damaged, Icechunk will name it
    return found


def locate_rows(
    nodes: Nodes | None, root: Path, array: str, n_chunks: int
) -> list[ChunkPlace | None] | None:
    """Return the place of each chunk of an array with ``n_chunks`` chunks along its first axis.

    None for a chunk that was never written. None instead of a list where :func:`locate_chunks`
    returns None, and if chunks lie outside that grid.
    """
    found = locate_chunks(nodes, root, array)
    if found is None or any(any(index[1:]) or index[0] >= n_chunks for index in found):
        return None
    places: list[ChunkPlace | None] = [None] * n_chunks
    for index, place in found.items():
        places[index[0]] = place
    return places


def chunks_of_manifest(manifest: Path) -> set[str] | None:
    """Return the names of all chunk files that a manifest needs; None if it cannot be read."""
    names: set[str] = set()
    try:
        root = _Table.root(_read_manifest(manifest))
        for array in root.tables(_MANIFEST_ARRAYS):
            for ref in array.tables(_ARRAY_REFS):
                if not ref.has(_REF_INLINE) and not ref.has(_REF_LOCATION):
                    names.add(_base32(ref.struct(_REF_CHUNK, 12)))
    except (*_UNKNOWN, struct.error, OSError, RuntimeError):
        return None
    return names


def _read_manifest(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise ValueError("not a manifest")
    version, kind, compression = content[36:_HEADER_BYTES]
    if version != _FORMAT_1 or kind != _MANIFEST or compression not in (0, _ZSTD):
        raise ValueError("a manifest of an unknown format")
    body = content[_HEADER_BYTES:]
    return bytes(numcodecs.Zstd().decode(body)) if compression == _ZSTD else body


def _array_chunks(
    manifest: Path, node: str, folder: Path
) -> Iterator[tuple[tuple[int, ...], ChunkPlace]]:
    root = _Table.root(_read_manifest(manifest))
    for array in root.tables(_MANIFEST_ARRAYS):
        if _base32(array.struct(_ARRAY_NODE, 8)) != node:
            continue
        for ref in array.tables(_ARRAY_REFS):
            index = ref.uint32s(_REF_INDEX)
            if not index or ref.has(_REF_LOCATION):
                raise ValueError("damage, or a reference into another program's file")
            if ref.has(_REF_INLINE):
                yield index, ChunkPlace(manifest, inline=ref.raw(_REF_INLINE))
            else:
                path = folder / _base32(ref.struct(_REF_CHUNK, 12))
                yield index, ChunkPlace(path, ref.uint64(_REF_OFFSET), ref.uint64(_REF_LENGTH))


def _base32(raw: bytes) -> str:
    """Return bytes in Crockford's base 32, which Icechunk uses for names of files."""
    return base64.b32encode(raw).rstrip(b"=").translate(_CROCKFORD).decode("ascii")


class _Table:
    """A FlatBuffers table: a list of offsets of its fields, any of which may be absent."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at = content, at
        fields: int = at - struct.unpack_from("<i", content, at)[0]
        size = struct.unpack_from("<H", content, fields)[0]
        self._offsets = struct.unpack_from(f"<{max(size - 4, 0) // 2}H", content, fields + 4)

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, struct.unpack_from("<I", content, 0)[0])

    def _field(self, number: int) -> int:
        """Return the offset of a field; 0 if it is absent."""
        offset = self._offsets[number] if number < len(self._offsets) else 0
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

    def uint32s(self, number: int) -> tuple[int, ...]:
        begin, count = self._vector(number)
        return struct.unpack_from(f"<{count}I", self._content, begin)

    def raw(self, number: int) -> bytes:
        begin, count = self._vector(number)
        return self._content[begin : begin + count]

    def tables(self, number: int) -> Iterator[_Table]:
        begin, count = self._vector(number)
        for item in range(begin, begin + 4 * count, 4):
            yield _Table(self._content, item + struct.unpack_from("<I", self._content, item)[0])
