"""Chunks of Zarr arrays, decoded and encoded without Zarr, which takes a millisecond for each.

Only the codecs that kpstore itself chooses are known here; all others are left to Zarr. The bytes
are those that Zarr would write.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

import google_crc32c
import numcodecs
import numcodecs.vlen
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, VLenUTF8Codec, ZstdCodec
from zarr.codecs.blosc import BloscShuffle
from zarr.core.metadata import ArrayV3Metadata

from kpstore.backends.array_bounds import most_bytes
from kpstore.budget import SPARE_BYTES

ZarrArray = zarr.Array[ArrayV3Metadata]

_CRC_BYTES = 4
HEAD_BYTES = 32
"""The first bytes of a chunk, in which compressors say what it becomes."""
BLOSC_HEADER = struct.Struct("<4s3I")
"""Versions, flags and size of a number; then bytes decoded, of a block, and encoded."""
_COUNT_BYTES = 4
"""Of the number of texts before them, and of the length before each."""

_Bytes = NDArray[np.uint8]
_TEXTS = numcodecs.vlen.VLenUTF8()
_SHUFFLES = {
    BloscShuffle.noshuffle: numcodecs.blosc.NOSHUFFLE,
    BloscShuffle.shuffle: numcodecs.blosc.SHUFFLE,
    BloscShuffle.bitshuffle: numcodecs.blosc.BITSHUFFLE,
}


class _Form(NamedTuple):
    """How bytes are compressed.

    Parameters
    ----------
    size_of : returns the decoded size, from the first bytes (:data:`HEAD_BYTES`) and their number
        with the others.
    decode : decodes into bytes of that size.
    encode : returns the compressed bytes.
    """

    size_of: Callable[[memoryview, int], int]
    decode: Callable[[memoryview, NDArray[np.generic]], object]
    encode: Callable[[_Bytes], bytes | memoryview]


def _copy(encoded: memoryview, out: NDArray[np.generic]) -> None:
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(encoded, dtype=np.uint8)


def _blosc_size(head: memoryview, n_bytes: int) -> int:
    """Return the decoded size in Blosc's header.

    :class:`ValueError` for a header that claims another encoded size than there is: Blosc's library
    would believe it, and read whatever is there in memory behind these bytes.
    """
    if len(head) < BLOSC_HEADER.size:
        raise ValueError(f"it has {len(head)} bytes, fewer than Blosc's header")
    _, size, _, n_encoded = BLOSC_HEADER.unpack_from(head)
    if n_encoded != n_bytes:
        raise ValueError(f"it claims {n_encoded} bytes, {n_bytes} are there")
    return int(size)


def _zstd_size(head: memoryview, _: int) -> int:
    """Return the decoded size in the header of a Zstandard frame (RFC 8878, 3.1.1.1)."""
    descriptor = head[4]
    single_segment = bool(descriptor & 0x20)
    size_bytes = (int(single_segment), 2, 4, 8)[descriptor >> 6]
    at = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(head[at : at + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size


def _form_of(codecs: tuple[object, ...]) -> _Form | None:
    match codecs:
        case ():
            return _Form(
                lambda _, n_bytes: n_bytes, _copy, lambda content: content.data.toreadonly()
            )
        case (ZstdCodec(level=level, checksum=check),):
            compress = numcodecs.zstd.compress
            return _Form(
                _zstd_size,
                numcodecs.zstd.decompress,
                lambda content: compress(content, level, check),
            )
        case (BloscCodec() as blosc,):
            shuffle = _SHUFFLES[blosc.shuffle]
            given = blosc.cname.name.encode(), blosc.clevel, shuffle, blosc.blocksize
            return _Form(
                _blosc_size,
                numcodecs.blosc.decompress,
                lambda content: numcodecs.blosc.compress(content, *given, blosc.typesize),
            )
        case _:
            return None


class ChunkCodec(NamedTuple):
    """Decodes and encodes the chunks of an array.

    Parameters
    ----------
    form : how they are compressed.
    n_check : number of bytes of the CRC-32C at the end of each chunk.
    unwritten : one row of fill, (1, *row shape); of dtype object for text.
    chunk_rows : rows per chunk.
    """

    form: _Form
    n_check: int
    unwritten: NDArray[np.generic]
    chunk_rows: int

    @classmethod
    def of(cls, array: ZarrArray, *, whole_rows: bool = True) -> ChunkCodec | None:
        """Return the codec of an array; None if its chunks are encoded as only Zarr knows.

        Parameters
        ----------
        whole_rows : return None also if chunks do not consist of whole rows.
        """
        serializer, codecs = array.serializer, tuple(array.compressors)
        if array.shards is not None or array.filters or not array.shape:
            return None
        if whole_rows and array.chunks[1:] != array.shape[1:]:
            return None
        text = isinstance(serializer, VLenUTF8Codec)
        if text and (array.ndim > 1 or array.fill_value != ""):
            return None
        if not text and (
            not isinstance(serializer, BytesCodec)
            or (serializer.endian is not None and serializer.endian.value != sys.byteorder)
        ):
            return None
        n_check = _CRC_BYTES if codecs and isinstance(codecs[-1], Crc32cCodec) else 0
        form = _form_of(codecs[:-1] if n_check else codecs)
        shape = (1, *array.chunks[1:])
        fill = np.full(shape, array.fill_value, dtype=object if text else array.dtype)
        return None if form is None else cls(form, n_check, fill, array.chunks[0])

    @property
    def is_packed(self) -> bool:
        """Whether chunks are compressed."""
        return self.form.decode is not _copy

    @property
    def is_text(self) -> bool:
        """Whether the array holds text."""
        return self.unwritten.dtype == object

    def decode(
        self, encoded: bytes | memoryview, out: NDArray[np.generic], *, with_crc: bool = False
    ) -> None:
        """Decode a chunk of numbers.

        Parameters
        ----------
        out : (chunk rows, *row shape), C-contiguous.
        with_crc : whether to compare the CRC-32C as well, as other readers of the chunk do.

        Raises
        ------
        ValueError
            If the bytes are not those of such a chunk.
        """
        body = self._body(encoded, with_crc=with_crc)
        try:
            size = self.form.size_of(body, len(body))
            # The decoders silently leave the rest of a larger buffer unchanged.
            if size != out.nbytes:
                raise ValueError(f"it holds {size} bytes, {out.nbytes} were expected")
            self.form.decode(body, out)
        except (RuntimeError, LookupError) as error:
            raise ValueError(str(error)) from error

    def _body(self, encoded: bytes | memoryview, *, with_crc: bool) -> memoryview:
        """Return the bytes before the CRC-32C."""
        whole = memoryview(encoded)
        body, crc = whole[: len(whole) - self.n_check], whole[len(whole) - self.n_check :]
        if with_crc and self.n_check and _crc(body) != crc:
            raise ValueError("it does not match the CRC-32C at its end")
        return body

    def rows(self, encoded: bytes | memoryview, n_rows: int) -> NDArray[np.generic]:
        """Return the first rows of a chunk of numbers or text, after comparing the CRC-32C.

        :class:`ValueError` if the bytes are not those of such a chunk.
        """
        if self.is_text:
            return self._texts(self._body(encoded, with_crc=True), n_rows)
        out = np.empty((self.chunk_rows, *self.unwritten.shape[1:]), dtype=self.unwritten.dtype)
        self.decode(encoded, out, with_crc=True)
        return out if n_rows == len(out) else out[:n_rows].copy()

    def _texts(self, body: memoryview, n_rows: int) -> NDArray[np.generic]:
        try:
            size = self.form.size_of(body, len(body))
            # A few bytes can become as many as they like.
            if size < _COUNT_BYTES or (size > SPARE_BYTES and size > most_bytes()):
                raise ValueError(f"it holds {size} bytes of text")
            content = np.empty(size, dtype=np.uint8)
            self.form.decode(body, content)
        except (RuntimeError, LookupError) as error:
            raise ValueError(str(error)) from error
        count = content[:_COUNT_BYTES].view("<u4")
        if count[0] != self.chunk_rows:
            raise ValueError(f"it holds {count[0]} texts, {self.chunk_rows} were expected")
        count[0] = n_rows  # those behind the rows, most of a short chunk, are not looked at
        texts: NDArray[np.generic] = _TEXTS.decode(content)
        return texts

    def encode(self, values: NDArray[np.generic]) -> bytes:
        """Return the bytes of a chunk; fewer rows than it has are followed by fill.

        Parameters
        ----------
        values : (rows, *row shape), in the array's dtype; object for text.
        """
        n_missing = self.chunk_rows - len(values)
        if self.is_text:
            encoded: bytearray = _TEXTS.encode(values)
            encoded[:_COUNT_BYTES] = self.chunk_rows.to_bytes(_COUNT_BYTES, "little")
            content = np.frombuffer(encoded + bytes(n_missing * _COUNT_BYTES), dtype=np.uint8)
        else:
            if n_missing:
                fill = np.broadcast_to(self.unwritten, (n_missing, *values.shape[1:]))
                values = np.concatenate([values, fill])
            content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        body = self.form.encode(content)
        return b"".join([body, _crc(body)] if self.n_check else [body])


def _crc(body: bytes | memoryview) -> bytes:
    # As an array, because it takes no memoryview.
    return int(google_crc32c.value(np.frombuffer(body, np.uint8))).to_bytes(_CRC_BYTES, "little")
