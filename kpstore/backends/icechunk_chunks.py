"""Which file holds which chunk of a local Icechunk repository, read from Icechunk's own metadata.

Icechunk writes every chunk as a file of its own, exactly as Zarr encoded it, and never changes it.
Its snapshots and manifests (a published format: https://icechunk.io/en/stable/spec/) say which file
is which chunk. Who knows that can map or read the files directly, without a call into Icechunk for
each chunk.

Only version 1 of the format is read here; for anything else :func:`locate_chunks` returns None, and
readers go through Icechunk itself.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import icechunk
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from kpstore.backends.base import ArrayMeta
from kpstore.backends.mapping import FilePiece, map_pieces
from kpstore.errors import CorruptError

_MAGIC = "ICE🧊CHUNK".encode()
_HEADER_BYTES = 39
"""Magic 12, name of the writer 24, version of the format, type of the file, compression."""
_FORMAT_1, _MANIFEST, _ZSTD = 1, 2, 1

# Places of fields in their FlatBuffers tables, in the order of Icechunk's schema (manifest.fbs).
_MANIFEST_ARRAYS = 1
_ARRAY_NODE, _ARRAY_REFS = 0, 1
_REF_INDEX, _REF_INLINE, _REF_OFFSET, _REF_LENGTH, _REF_CHUNK, _REF_LOCATION = range(6)

_CRC_BYTES = 4
_BLOSC_SIZE_AT = 4
"""Where Blosc's header says how many bytes it unpacks to."""

_CROCKFORD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)
"""From the digits of RFC 4648's base 32."""

Nodes = Mapping[str, Mapping[str, Any]]
"""What a version's snapshot says of each array of the root group, by name."""


_Decode = Callable[[memoryview, NDArray[Any]], object]


@dataclass(frozen=True)
class ChunkDecoder:
    """Turns the encoded bytes of a chunk into values, without Zarr, which takes a millisecond and more for each.

    Parameters
    ----------
    decode : of the one codec that packs values.
    n_check : bytes of the codec's own checksum, a CRC-32C, at the end of each chunk.
    """

    decode: _Decode
    n_check: int

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> ChunkDecoder | None:
        """Return that of an array.

        None if its chunks are cut along other axes, or encoded in a way only Zarr knows.
        """
        serializer, codecs = array.serializer, tuple(array.compressors)
        if (
            array.filters
            or not isinstance(serializer, BytesCodec)
            or array.chunks[1:] != array.shape[1:]
        ):
            return None
        if serializer.endian is not None and serializer.endian.value != sys.byteorder:
            return None
        n_check = _CRC_BYTES if codecs and isinstance(codecs[-1], Crc32cCodec) else 0
        decode = _decode_of(codecs[:-1] if n_check else codecs)
        return None if decode is None else cls(decode, n_check)

    def __call__(self, encoded: bytes, out: NDArray[Any], *, with_crc: bool = False) -> None:
        """Decode a chunk.

        Parameters
        ----------
        out : (chunk rows, *row shape), C-contiguous.
        with_crc : whether to compare the codec's own checksum too, as others who read the chunk
            will.

        Raises
        ------
        ValueError
            If these are not the bytes of such a chunk.
        """
        whole = memoryview(encoded)
        body, crc = whole[: len(whole) - self.n_check], whole[len(whole) - self.n_check :]
        if (
            with_crc
            and self.n_check
            and google_crc32c.value(bytes(body)) != int.from_bytes(crc, "little")
        ):
            raise ValueError("it does not have the CRC-32C that stands at its end")
        try:
            self.decode(body, out)
        except (ValueError, RuntimeError, LookupError, struct.error) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class ChunkPlace:
    """Where the encoded bytes of one chunk are: in a file of its own, or right here.

    Parameters
    ----------
    file : the file; the manifest, if ``inline`` holds the bytes.
    offset, length : which bytes of the file.
    inline : the bytes, if they are in the manifest; None if they are not.
    """

    file: Path
    offset: int = 0
    length: int = 0
    inline: bytes | None = None

    @property
    def path(self) -> Path | None:
        """The chunk's own file; None if it has none."""
        return self.file if self.inline is None else None

    def read(self) -> bytes:
        """Return the encoded bytes; :class:`ValueError` if the file does not have them."""
        if self.inline is not None:
            return self.inline
        with self.file.open("rb", buffering=0) as file:
            # Before anything is read: the numbers are a file's, and may be damaged.
            size = os.fstat(file.fileno()).st_size
            if self.offset + self.length > size:
                raise ValueError(
                    f"{self.file} has {size} bytes, those up to {self.offset + self.length} were "
                    "expected"
                )
            file.seek(self.offset)
            content = file.read(self.length)
        if len(content) != self.length:
            raise ValueError(f"{len(content)} of {self.length} bytes of {self.file} could be read")
        return content


class LocalChunks:
    """The chunks of an array as files that nothing changes any more: decoded without a call into Icechunk or Zarr.

    Parameters
    ----------
    places : of each chunk.
    meta : of the array.
    decode : its own checksum at the end of each chunk is passed over: see :class:`Chunks`.
    """

    def __init__(
        self, places: Sequence[ChunkPlace | None], meta: ArrayMeta, decode: ChunkDecoder
    ) -> None:
        self._places, self._meta, self._decode = places, meta, decode
        self.mapped: NDArray[Any] | None = None
        whole = all(place is None or (place.path and place.offset == 0) for place in places)
        if meta.codec == "raw" and whole:
            pieces = [
                FilePiece(place.path, n_more=decode.n_check) if place and place.path else None
                for place in places
            ]
            piece = (meta.chunk_rows, *meta.shape[1:])
            mapped = map_pieces(pieces, piece, np.dtype(meta.dtype), meta.fill)
            self.mapped = None if mapped is None else mapped[: meta.n_rows]

    @property
    def how(self) -> str:
        """Where chunks are read from."""
        return "from their files"

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Decode a chunk; see :class:`kpstore.backends.base.Chunks`."""
        place = self._places[number]
        if place is None:
            out[...] = self._meta.fill
            return
        try:
            self._decode(place.read(), out)
        except (OSError, ValueError) as error:
            raise CorruptError(f"chunk {number} at {place.file} cannot be read: {error}") from error


def nodes_of(repository: icechunk.Repository, snapshot: str) -> Nodes:
    """Return what a version's snapshot says of its arrays.

    Icechunk's error if it cannot be read.
    """
    nodes = json.loads(repository.inspect_snapshot(snapshot, pretty=False))["nodes"]
    return {node["path"][1:]: node for node in nodes if node["node_type"] == "array"}


def local_chunks(
    nodes: Nodes, root: Path, array: zarr.Array[Any], meta: ArrayMeta
) -> LocalChunks | None:
    """Return the chunks of an array of a local repository.

    None where only Icechunk and Zarr can read them.
    """
    decode = ChunkDecoder.of(array)
    if decode is None:
        return None
    places = locate_rows(nodes, root, array.basename, -(-meta.n_rows // meta.chunk_rows))
    return None if places is None else LocalChunks(places, meta, decode)


def _decode_of(compressors: tuple[Any, ...]) -> _Decode | None:
    match compressors:
        case ():
            return _copy
        case (ZstdCodec(),):
            return _unpack_zstd
        case (BloscCodec(),):
            return _unpack_blosc
        case _:
            return None


def _copy(encoded: memoryview, out: NDArray[Any]) -> None:
    _check_size(len(encoded), out)
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(encoded, dtype=np.uint8)


def _unpack_blosc(encoded: memoryview, out: NDArray[Any]) -> None:
    # A decoder fills what it has values for and says nothing of the rest of the buffer.
    _check_size(struct.unpack_from("<I", encoded, _BLOSC_SIZE_AT)[0], out)
    numcodecs.blosc.decompress(encoded, out)


def _unpack_zstd(encoded: memoryview, out: NDArray[Any]) -> None:
    _check_size(_zstd_size(encoded), out)
    numcodecs.zstd.decompress(encoded, out)


def _zstd_size(encoded: memoryview) -> int:
    """Return the size that a Zstandard frame announces (RFC 8878, 3.1.1.1)."""
    descriptor = encoded[4]
    single_segment = bool(descriptor & 0x20)
    size_bytes = (int(single_segment), 2, 4, 8)[descriptor >> 6]
    at = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(encoded[at : at + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size


def _check_size(n_bytes: int, out: NDArray[Any]) -> None:
    if n_bytes != out.nbytes:
        raise ValueError(f"it holds {n_bytes} bytes, {out.nbytes} were expected")


class _UnknownFormatError(Exception):
    """Not the version that is understood here."""


def locate_chunks(nodes: Nodes, root: Path, array: str) -> dict[tuple[int, ...], ChunkPlace] | None:
    """Return the places of an array's chunks in a version, by their index in the grid, of those that were written.

    Parameters
    ----------
    nodes : of the version; see :func:`nodes_of`.
    root : directory of the repository.
    array : name of an array in the root group.

    Returns
    -------
    dict or None
        None if the repository is not in the format that is understood here.
    """
    try:
        node = nodes[array]
        found: dict[tuple[int, ...], ChunkPlace] = {}
        for manifest in node.get("manifest_refs", ()):
            found.update(
                _array_chunks(root / "manifests" / manifest["id"], node["id"], root / "chunks")
            )
    except (
        *(_UnknownFormatError, AttributeError, LookupError, TypeError, ValueError, struct.error),
        *(OSError, RuntimeError),  # a damaged file: Icechunk, which will be asked then, says which
    ):
        return None
    return found


def locate_rows(
    nodes: Nodes, root: Path, array: str, n_chunks: int
) -> list[ChunkPlace | None] | None:
    """Return the places of chunks of an array that is cut along its first axis alone, None for one never written.

    See :func:`locate_chunks`; None as well if the array is cut along another axis, or has more
    chunks than are asked.
    """
    found = locate_chunks(nodes, root, array)
    if found is None or any(any(index[1:]) or index[0] >= n_chunks for index in found):
        return None
    places: list[ChunkPlace | None] = [None] * n_chunks
    for index, place in found.items():
        places[index[0]] = place
    return places


def _read_manifest(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) < _HEADER_BYTES or not content.startswith(_MAGIC):
        raise _UnknownFormatError
    version, kind, compression = content[36:_HEADER_BYTES]
    if version != _FORMAT_1 or kind != _MANIFEST or compression not in (0, _ZSTD):
        raise _UnknownFormatError
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
                raise _UnknownFormatError  # damage, or a reference into somebody else's file
            if ref.has(_REF_INLINE):
                yield index, ChunkPlace(manifest, inline=ref.raw(_REF_INLINE))
            else:
                path = folder / _base32(ref.struct(_REF_CHUNK, 12))
                yield index, ChunkPlace(path, ref.uint64(_REF_OFFSET), ref.uint64(_REF_LENGTH))


def _base32(raw: bytes) -> str:
    """Return bytes in Crockford's base 32, as Icechunk names its files."""
    return base64.b32encode(raw).rstrip(b"=").translate(_CROCKFORD).decode("ascii")


@dataclass(frozen=True)
class _Table:
    """A FlatBuffers table: fields found through a list of offsets, each of which may be absent (default 0)."""

    content: bytes
    at: int

    @classmethod
    def root(cls, content: bytes) -> _Table:
        return cls(content, struct.unpack_from("<I", content, 0)[0])

    def _field(self, number: int) -> int:
        """Return where a field is, 0 if it is absent."""
        fields = self.at - struct.unpack_from("<i", self.content, self.at)[0]
        size = struct.unpack_from("<H", self.content, fields)[0]
        entry = 4 + 2 * number
        if entry >= size:
            return 0
        offset: int = struct.unpack_from("<H", self.content, fields + entry)[0]
        return self.at + offset if offset else 0

    def _vector(self, number: int) -> tuple[int, int]:
        """Return where a vector's items begin, and how many there are."""
        at = self._field(number)
        if not at:
            return 0, 0
        begin = at + struct.unpack_from("<I", self.content, at)[0]
        return begin + 4, struct.unpack_from("<I", self.content, begin)[0]

    def has(self, number: int) -> bool:
        return self._field(number) != 0

    def struct(self, number: int, size: int) -> bytes:
        at = self._field(number)
        return self.content[at : at + size]

    def uint64(self, number: int) -> int:
        at = self._field(number)
        value: int = struct.unpack_from("<Q", self.content, at)[0] if at else 0
        return value

    def uint32s(self, number: int) -> tuple[int, ...]:
        begin, count = self._vector(number)
        return struct.unpack_from(f"<{count}I", self.content, begin)

    def raw(self, number: int) -> bytes:
        begin, count = self._vector(number)
        return self.content[begin : begin + count]

    def tables(self, number: int) -> Iterator[_Table]:
        begin, count = self._vector(number)
        for item in range(begin, begin + 4 * count, 4):
            yield _Table(self.content, item + struct.unpack_from("<I", self.content, item)[0])
