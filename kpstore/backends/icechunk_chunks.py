"""Chunks of a local Icechunk repository, mapped or read from their files without Icechunk.

Icechunk writes every chunk to a file of its own, exactly as Zarr encoded it, and never changes it.
:mod:`kpstore.backends.icechunk_manifests` says which file holds which chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from kpstore.backends.base import ArrayMeta
from kpstore.backends.icechunk_manifests import ChunkPlace, Nodes, locate_rows
from kpstore.backends.mapping import FilePiece, map_pieces
from kpstore.errors import CorruptError

_CRC_BYTES = 4
_BLOSC_SIZE_AT = 4
"""Offset of the decoded size in Blosc's header."""

_Size = Callable[[memoryview], int]
_Decode = Callable[[memoryview, NDArray[Any]], object]


def _copy(encoded: memoryview, out: NDArray[Any]) -> None:
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(encoded, dtype=np.uint8)


def _blosc_size(encoded: memoryview) -> int:
    return int.from_bytes(encoded[_BLOSC_SIZE_AT : _BLOSC_SIZE_AT + 4], "little")


def _zstd_size(encoded: memoryview) -> int:
    """Return the decoded size in the header of a Zstandard frame (RFC 8878, 3.1.1.1)."""
    descriptor = encoded[4]
    single_segment = bool(descriptor & 0x20)
    size_bytes = (int(single_segment), 2, 4, 8)[descriptor >> 6]
    at = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(encoded[at : at + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size


_FORMS: Mapping[tuple[type, ...], tuple[_Size, _Decode]] = {
    (): (len, _copy),
    (ZstdCodec,): (_zstd_size, numcodecs.zstd.decompress),
    (BloscCodec,): (_blosc_size, numcodecs.blosc.decompress),
}
"""By compressors: the decoded size of a chunk, and the decoder."""


@dataclass(frozen=True)
class ChunkDecoder:
    """Decodes chunks without Zarr, which needs a millisecond and more for each.

    Parameters
    ----------
    size_of, decode : the entry of the compressors in ``_FORMS``.
    n_check : number of bytes of the CRC-32C at the end of each chunk.
    """

    size_of: _Size
    decode: _Decode
    n_check: int

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> ChunkDecoder | None:
        """Return the decoder of an array.

        None if its chunks are cut along other axes, or encoded in a way that only Zarr knows.
        """
        serializer, codecs = array.serializer, tuple(array.compressors)
        if array.filters or array.chunks[1:] != array.shape[1:]:
            return None
        if not isinstance(serializer, BytesCodec) or (
            serializer.endian is not None and serializer.endian.value != sys.byteorder
        ):
            return None
        n_check = _CRC_BYTES if codecs and isinstance(codecs[-1], Crc32cCodec) else 0
        form = _FORMS.get(tuple(type(codec) for codec in (codecs[:-1] if n_check else codecs)))
        return None if form is None else cls(*form, n_check)

    def __call__(self, encoded: bytes, out: NDArray[Any], *, with_crc: bool = False) -> None:
        """Decode a chunk.

        Parameters
        ----------
        out : (chunk rows, *row shape), C-contiguous.
        with_crc : whether to compare the CRC-32C too, as other readers of the chunk will.

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
            size = self.size_of(body)
            # The decoders would silently leave the rest of a larger buffer as it is.
            if size != out.nbytes:
                raise ValueError(f"it holds {size} bytes, {out.nbytes} were expected")
            self.decode(body, out)
        except (RuntimeError, LookupError) as error:
            raise ValueError(str(error)) from error


class LocalChunks:
    """The chunks of an array, read from files that never change, without Icechunk and Zarr.

    Parameters
    ----------
    places : where each chunk is; None for one that was never written.
    meta : of the array.
    decode : decodes chunks; their CRC-32C is not compared here (:class:`Chunks`).
    """

    how = "from their files"

    def __init__(
        self, places: Sequence[ChunkPlace | None], meta: ArrayMeta, decode: ChunkDecoder
    ) -> None:
        self._places, self._meta, self._decode = places, meta, decode
        self.mapped: NDArray[Any] | None = None
        in_files = all(not place or (place.inline is None and not place.offset) for place in places)
        if meta.codec == "raw" and in_files:
            pieces = [
                FilePiece(place.file, n_more=decode.n_check) if place else None for place in places
            ]
            piece = (meta.chunk_rows, *meta.shape[1:])
            mapped = map_pieces(pieces, piece, np.dtype(meta.dtype), meta.fill)
            self.mapped = None if mapped is None else mapped[: meta.n_rows]

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


def local_chunks(
    nodes: Nodes | None, root: Path, array: zarr.Array[Any], meta: ArrayMeta
) -> LocalChunks | None:
    """Return the chunks of an array of a local repository; None if only Zarr can read them."""
    decode = ChunkDecoder.of(array)
    if decode is None:
        return None
    places = locate_rows(nodes, root, array.basename, meta.n_chunks)
    return None if places is None else LocalChunks(places, meta, decode)
