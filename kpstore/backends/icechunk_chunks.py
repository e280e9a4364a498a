"""Zarr arrays of an Icechunk store, and their chunks, which are read without Icechunk if possible.

Icechunk writes every chunk to a file of its own, exactly as Zarr encoded it, and never changes it.
:mod:`kpstore.backends.icechunk_manifests` says which file holds which chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import google_crc32c
import icechunk
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata

from kpstore.backends.array_bounds import most_bytes
from kpstore.backends.base import TEXT, ArrayMeta, Chunks, Codec
from kpstore.backends.checksums import checksum, matches
from kpstore.backends.icechunk_errors import UNREADABLE, first_line
from kpstore.backends.icechunk_manifests import RowPlaces
from kpstore.backends.mapping import FilePiece, map_chunks
from kpstore.budget import SPARE_BYTES, VARIABLE
from kpstore.errors import CorruptError, InvalidError

ZarrArray = zarr.Array[ArrayV3Metadata]

_COMPRESSORS: Mapping[Codec, tuple[BytesBytesCodec, ...]] = {
    "raw": (),
    "zstd": (ZstdCodec(),),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),),
}


_COPY_BYTES = 64 * 2**20
"""Writes of up to this size are copied to complete their first and last chunk.

Of larger ones, only those two chunks are copied.
"""


class BadChunkError(Exception):
    """A chunk that cannot be read; without a ``reason``, it holds other values than expected."""

    def __init__(self, chunk: int, reason: str = "") -> None:
        super().__init__(reason)
        self.chunk, self.reason = chunk, reason


def root_group(session: icechunk.Session) -> zarr.Group:
    """Open the group that holds a version's arrays."""
    return zarr.open_group(
        session.store,
        mode="r" if session.read_only else "r+",
        # Zarr would look for other formats, and take others' summaries for the arrays.
        zarr_format=3,
        use_consolidated=False,
    )


def create_array(group: zarr.Group, name: str, meta: ArrayMeta) -> ZarrArray:
    """Create an array of unwritten rows."""
    text = meta.dtype == TEXT
    return group.create_array(
        name,
        shape=meta.shape,
        chunks=(meta.chunk_rows, *meta.shape[1:]),
        dtype=str if text else meta.dtype,
        fill_value="" if text else meta.fill,
        compressors=(*_COMPRESSORS[meta.codec], Crc32cCodec()),
        dimension_names=meta.dims,
        attributes=dict(meta.attrs),
        # A written chunk has to exist even if all of it is fill, because a missing chunk is one
        # that was never written.
        config={"write_empty_chunks": True},
    )


def meta_of(array: ZarrArray) -> ArrayMeta:
    """Return shape and type of an array."""
    text = array.dtype.kind == "T"
    return ArrayMeta(
        shape=array.shape,
        dtype=TEXT if text else array.dtype.name,
        chunk_rows=array.chunks[0] if array.chunks else 1,
        dims=tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ()),
        fill=0 if text else array.fill_value.item(),
        attrs=dict(array.attrs),
        codec=_codec_name(array),
    )


def _codec_name(array: ZarrArray) -> Codec:
    match array.compressors:
        case (BloscCodec(), *_):
            return "lz4"
        case (ZstdCodec(), *_):
            return "zstd"
        case _:
            return "raw"


def read_chunks(
    array: ZarrArray,
    meta: ArrayMeta,
    chunks: range,
    sums: Sequence[int] = (),
    local: Chunks | None = None,
) -> NDArray[np.generic]:
    """Return the rows of consecutive chunks.

    Parameters
    ----------
    sums : checksums of these chunks; without them, only the codec checks what it reads.
    local : the chunks of the array; those in files are read without Zarr.

    Raises
    ------
    BadChunkError
        For the first damaged chunk.
    """
    size, source = meta.chunk_rows, local if isinstance(local, LocalChunks) else array
    try:
        values = np.asarray(source[chunks.start * size : min(chunks.stop * size, meta.n_rows)])
    except UNREADABLE as error:
        if len(chunks) > 1:
            for chunk in chunks:
                read_chunks(array, meta, range(chunk, chunk + 1), local=local)
        raise BadChunkError(chunks.start, first_line(error)) from error
    if values.dtype.kind == "T":
        values = values.astype(object)
    for number, expected in enumerate(sums):
        if not matches(meta, values[number * size : (number + 1) * size], int(expected)):
            raise BadChunkError(chunks.start + number)
    return values


def whole_chunks(
    meta: ArrayMeta,
    start: int,
    values: NDArray[np.generic],
    read: Callable[[int, int], NDArray[np.generic]],
) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """Yield values as runs of whole chunks, each with its first row.

    Chunks that are written in part are completed with the rows that ``read`` returns, which are
    checked when they are read, so that a damaged chunk never gets a new checksum.
    """
    size, stop = meta.chunk_rows, start + len(values)
    begin, end = start // size * size, min(-(-stop // size) * size, meta.n_rows)
    if not len(values):
        return
    if (begin, end) == (start, stop):
        yield start, values
    elif end - begin <= size:
        block = read(begin, end)
        block[start - begin : stop - begin] = values
        yield begin, block
    elif (end - begin) * meta.row_bytes <= _COPY_BYTES:
        yield begin, np.concatenate([read(begin, start), values, read(stop, end)])
    else:
        # Whole chunks in the middle are not copied.
        first, last = -(-start // size) * size, stop // size * size
        for one, other in ((start, first), (first, last), (last, stop)):
            yield from whole_chunks(meta, one, values[one - start : other - start], read)


def write_chunks(
    array: ZarrArray, meta: ArrayMeta, start: int, values: NDArray[np.generic]
) -> dict[int, int]:
    """Write whole chunks of values from :func:`as_stored`; return their checksums by number."""
    if not array.config.write_empty_chunks:
        array = array.with_config({"write_empty_chunks": True})
    if len(values):
        array[start : start + len(values)] = values
    size = meta.chunk_rows
    return {
        (start + row) // size: checksum(meta, values[row : row + size])
        for row in range(0, len(values), size)
    }


def as_stored(name: str, meta: ArrayMeta, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values in the array's dtype, because checksums are of the values as they are read."""
    if meta.dtype != TEXT:
        return np.asarray(values, dtype=meta.dtype)
    texts = np.asarray(values, dtype=object)
    wrong = next((text for text in texts.tolist() if not isinstance(text, str)), None)
    if wrong is not None:
        raise InvalidError(f"{wrong!r} given for {name!r}, which holds text")
    return texts


# -- without Zarr ----------------------------------------------------------------------------------

_CRC_BYTES = 4
_BLOSC_SIZE_AT = 4
"""Offset of the decoded size in Blosc's header."""

_Size = Callable[[memoryview], int]
_Decode = Callable[[memoryview, NDArray[np.generic]], object]


def _copy(encoded: memoryview, out: NDArray[np.generic]) -> None:
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
"""Functions that return the decoded size of a chunk, and decode it, by compressors."""


@dataclass(frozen=True)
class ChunkDecoder:
    """Decodes chunks without Zarr, which takes at least a millisecond for each.

    Parameters
    ----------
    size_of, decode : entry of the compressors in ``_FORMS``.
    n_check : number of bytes of the CRC-32C at the end of each chunk.
    """

    size_of: _Size
    decode: _Decode
    n_check: int

    @classmethod
    def of(cls, array: ZarrArray) -> ChunkDecoder | None:
        """Return the decoder of an array.

        None if its chunks are divided along other axes, or encoded in a way that only Zarr knows.
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

    def __call__(self, encoded: bytes, out: NDArray[np.generic], *, with_crc: bool = False) -> None:
        """Decode a chunk.

        Parameters
        ----------
        out : (chunk rows, *row shape), C-contiguous.
        with_crc : whether to compare the CRC-32C as well, as other readers of the chunk do.

        Raises
        ------
        ValueError
            If the bytes are not those of such a chunk.
        """
        whole = memoryview(encoded)
        body, crc = whole[: len(whole) - self.n_check], whole[len(whole) - self.n_check :]
        if (
            with_crc
            and self.n_check
            and google_crc32c.value(bytes(body)) != int.from_bytes(crc, "little")
        ):
            raise ValueError("it does not match the CRC-32C checksum at its end")
        try:
            size = self.size_of(body)
            # The decoders silently leave the rest of a larger buffer unchanged.
            if size != out.nbytes:
                raise ValueError(f"it holds {size} bytes, {out.nbytes} were expected")
            self.decode(body, out)
        except (RuntimeError, LookupError) as error:
            raise ValueError(str(error)) from error


def check_unpacked(array: ZarrArray, chunks: range, places: RowPlaces | None) -> None:
    """Raise :class:`BadChunkError` for a chunk of text that becomes more than a chunk may be.

    Of numbers the size is known, but a few bytes of text can become as many as they like.
    """
    if places is None or not isinstance(next(iter(array.compressors), None), ZstdCodec):
        return
    for chunk in chunks:
        try:
            place = places[chunk]
            n_bytes = 0 if place is None else _zstd_size(memoryview(place.read()))
        except (OSError, ValueError, LookupError):
            continue  # what reads it will say so
        if n_bytes > SPARE_BYTES and n_bytes > most_bytes():
            raise BadChunkError(
                chunk,
                f"it becomes {n_bytes / 2**20:,.0f} MiB, more than {most_bytes() // 2**20}; if you "
                f"trust who made it, set {VARIABLE}={n_bytes // 2**30 + 1}GiB",
            )


There = Callable[[], AbstractContextManager[None]]


class LocalChunks:
    """The chunks of an array, read from files that never change, without Icechunk and Zarr.

    Parameters
    ----------
    places : place of each chunk.
    meta : shape and type of the array.
    decode : decodes chunks; their CRC-32C is not compared (:class:`~kpstore.backends.base.Chunks`).
    there : makes a context in which reading fails in other words if the version was removed.
    """

    how = "from their files"

    def __init__(
        self,
        places: RowPlaces,
        meta: ArrayMeta,
        decode: ChunkDecoder,
        there: There = nullcontext,
    ) -> None:
        self._places, self._meta, self._decode, self._there = places, meta, decode, there
        raw = meta.codec == "raw" and places.are_files
        self._memory = map_chunks(self._piece, meta) if raw else None
        self.mapped = None if self._memory is None else self._memory.values

    def _piece(self, number: int) -> FilePiece | None:
        place = self._places[number]
        return None if place is None else FilePiece(place.file, n_more=self._decode.n_check)

    def bring(self, number: int) -> None:
        """Map a chunk; see :class:`kpstore.backends.base.Chunks`."""
        if self._memory is not None:
            with self._reading(number):
                self._memory.bring(number)

    def read_into(self, number: int, out: NDArray[np.generic]) -> None:
        """Decode a chunk; see :class:`kpstore.backends.base.Chunks`."""
        with self._reading(number):
            place = self._places[number]
            if place is None:
                out[...] = self._meta.fill
            else:
                self._decode(place.read(), out)

    @contextmanager
    def _reading(self, number: int) -> Iterator[None]:
        """Name a chunk, and its file, in the error of what cannot be read."""
        with self._there():
            try:
                yield
            except (OSError, ValueError) as error:
                raise CorruptError(
                    f"chunk {number}{self._file_of(number)} cannot be read: {error}"
                ) from error

    def _file_of(self, number: int) -> str:
        with suppress(ValueError):
            if (place := self._places[number]) is not None:
                return f" at {place.file}"
        return ""

    def __getitem__(self, rows: slice) -> NDArray[np.generic]:
        """Return the rows of whole chunks as Zarr does, which compares their CRC-32C."""
        meta = self._meta
        found = np.empty((rows.stop - rows.start, *meta.shape[1:]), dtype=meta.dtype)
        for number in meta.chunks_of(rows.start, rows.stop):
            (start, stop), place = meta.rows_of(number), self._places[number]
            out = found[start - rows.start : stop - rows.start]
            if place is None:
                out[...] = meta.fill
            elif stop - start == meta.chunk_rows:
                self._decode(place.read(), out, with_crc=True)
            else:
                whole = np.empty((meta.chunk_rows, *meta.shape[1:]), dtype=meta.dtype)
                self._decode(place.read(), whole, with_crc=True)
                out[...] = whole[: stop - start]
        return found


def local_chunks(
    places: RowPlaces | None, array: ZarrArray, meta: ArrayMeta, there: There = nullcontext
) -> LocalChunks | None:
    """Return the chunks of an array of a local repository; None if only Zarr can read them.

    The parameters are as for :class:`LocalChunks`; ``places`` is None where Icechunk alone knows.
    """
    decode = ChunkDecoder.of(array)
    if decode is None or places is None:
        return None
    return LocalChunks(places, meta, decode, there)
