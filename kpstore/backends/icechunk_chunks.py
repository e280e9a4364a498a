"""Zarr arrays of an Icechunk store, and their chunks, which are read without Icechunk if possible.

Icechunk writes every chunk to a file of its own, exactly as Zarr encoded it, and never changes it.
:mod:`kpstore.backends.icechunk_manifests` says which file holds which chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr import AsyncArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.metadata import ArrayV3Metadata
from zarr.core.sync import sync

from kpstore.backends.array_bounds import most_bytes
from kpstore.backends.base import TEXT, ArrayMeta, Codec
from kpstore.backends.checksums import checksum, matches
from kpstore.backends.icechunk_codec import HEAD_BYTES, ChunkCodec, ZarrArray
from kpstore.backends.icechunk_errors import (
    UNREADABLE,
    first_line,
    is_of_storage,
    unreachable,
)
from kpstore.backends.icechunk_manifests import ChunkPlace
from kpstore.backends.icechunk_strips import (
    blocksize,
)
from kpstore.budget import SPARE_BYTES, VARIABLE
from kpstore.errors import InvalidError


def _compressors(meta: ArrayMeta) -> tuple[BytesBytesCodec, ...]:
    match meta.codec:
        case "zstd":
            return (ZstdCodec(),)
        case "lz4":
            size = blocksize(meta)
            return (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", blocksize=size),)
        case _:
            return ()


_COPY_BYTES = 64 * 2**20
"""Writes of up to this size are copied to complete their first and last chunk.

Of larger ones, only those two chunks are copied.
"""

_FEW_CHUNKS = 4
"""Of more chunks of numbers, Zarr decodes several at once, which takes less than its calls do."""


class BadChunkError(Exception):
    """A chunk that cannot be read; without a ``reason``, it holds other values than expected."""

    def __init__(self, chunk: int, reason: str = "") -> None:
        super().__init__(reason)
        self.chunk, self.reason = chunk, reason


@dataclass
class OpenArray:
    """An array of a session.

    Parameters
    ----------
    meta : what it is to be, as a session that changes it hands lengths over later.
    """

    array: ZarrArray
    meta: ArrayMeta

    @classmethod
    def of(cls, array: ZarrArray) -> OpenArray:
        """Describe an array as it is stored."""
        return cls(array, meta_of(array))

    @cached_property
    def codec(self) -> ChunkCodec | None:
        """What reads its chunks; kept, as to find it takes as long as to read a small chunk."""
        return ChunkCodec.of(self.array)


def root_group(session: icechunk.Session) -> zarr.Group:
    """Open the group that holds a version's arrays."""
    return zarr.open_group(
        session.store,
        mode="r" if session.read_only else "r+",
        # Zarr would look for other formats, and take others' summaries for the arrays.
        zarr_format=3,
        use_consolidated=False,
    )


def open_arrays(group: zarr.Group, names: Collection[str]) -> dict[str, ZarrArray]:
    """Open arrays of a group, all at once; those that cannot be opened are left out."""

    async def found() -> list[AsyncArray[ArrayV3Metadata] | BaseException]:
        opening = (AsyncArray.open(group.store_path / name, zarr_format=3) for name in names)
        return await asyncio.gather(*opening, return_exceptions=True)

    return {
        name: zarr.Array(array)
        for name, array in zip(names, sync(found()), strict=True)
        if not isinstance(array, BaseException)
    }


def create_array(group: zarr.Group, name: str, meta: ArrayMeta) -> ZarrArray:
    """Create an array of unwritten rows."""
    text = meta.dtype == TEXT
    return group.create_array(
        name,
        shape=meta.shape,
        chunks=(meta.chunk_rows, *meta.shape[1:]),
        dtype=str if text else meta.dtype,
        fill_value="" if text else meta.fill,
        compressors=(*_compressors(meta), Crc32cCodec()),
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
    array: ZarrArray, meta: ArrayMeta, chunks: range, sums: Sequence[int] = ()
) -> NDArray[np.generic]:
    """Return the rows of consecutive chunks.

    Parameters
    ----------
    sums : checksums of these chunks; without them, only the codec checks what it reads.

    Raises
    ------
    BadChunkError
        For the first damaged chunk.
    """
    size = meta.chunk_rows
    try:
        values = np.asarray(array[chunks.start * size : min(chunks.stop * size, meta.n_rows)])
    except UNREADABLE as error:
        if is_of_storage(error):
            raise unreachable("the store", error) from None
        if len(chunks) > 1:
            for chunk in chunks:
                read_chunks(array, meta, range(chunk, chunk + 1))
        raise BadChunkError(chunks.start, first_line(error)) from error
    if values.dtype.kind == "T":
        values = values.astype(object)
    for number, expected in enumerate(sums):
        if not matches(meta, values[number * size : (number + 1) * size], int(expected)):
            raise BadChunkError(chunks.start + number)
    return values


def read_files(
    array: OpenArray,
    chunks: range,
    places: Sequence[ChunkPlace | None],
    sums: Sequence[int],
) -> NDArray[np.generic] | None:
    """Return the rows of consecutive chunks as their files hold them.

    None if :func:`read_chunks` is to be asked: about an array whose codecs are not known here, for
    many chunks of numbers, and for what is wrong with a damaged chunk.

    Parameters
    ----------
    places : where these chunks are; None for one that was never written.
    sums : their checksums.
    """
    meta, codec = array.meta, array.codec
    if codec is None or (len(chunks) > _FEW_CHUNKS and not codec.is_text):
        return None
    blocks: list[NDArray[np.generic]] = []
    for number, place, expected in zip(chunks, places, sums, strict=True):
        start, stop = meta.rows_of(number)
        n_rows = stop - start
        try:
            rows = codec.rows(place.read(), n_rows) if place else meta.unwritten(n_rows)
        except (OSError, ValueError):
            return None
        if not matches(meta, rows, expected):
            return None
        blocks.append(rows)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


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
    size = meta.chunk_rows
    blocks = {
        (start + row) // size: values[row : row + size] for row in range(0, len(values), size)
    }
    codec = ChunkCodec.of(array)
    if codec is not None:
        others = (0,) * (len(meta.shape) - 1)
        put_chunks(array, codec, {(number, *others): block for number, block in blocks.items()})
    elif blocks:
        array.with_config({"write_empty_chunks": True})[start : start + len(values)] = values
    return {number: checksum(meta, block) for number, block in blocks.items()}


def put_chunks(
    array: ZarrArray, codec: ChunkCodec, blocks: Mapping[tuple[int, ...], NDArray[np.generic]]
) -> None:
    """Write chunks, several at once, by their index; see :meth:`ChunkCodec.encode`."""

    async def put(index: tuple[int, ...], block: NDArray[np.generic]) -> None:
        await set_chunk(array, index, await asyncio.to_thread(codec.encode, block))

    sync(concurrent_map(blocks.items(), put, zarr.config.get("async.concurrency")))


async def set_chunk(array: ZarrArray, index: tuple[int, ...], encoded: bytes) -> None:
    """Hand an encoded chunk over to Icechunk."""
    key = f"{array.path}/{array.metadata.encode_chunk_key(index)}"
    await array.store.set(key, default_buffer_prototype().buffer.from_bytes(encoded))


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


def check_unpacked(array: ZarrArray, chunks: range, places: Sequence[ChunkPlace | None]) -> None:
    """Raise :class:`BadChunkError` for a chunk that Zarr must not be asked to decode.

    A few bytes can become as many as they like, and Blosc's library reads what is behind a chunk
    in memory if the chunk claims more bytes than it has.

    Parameters
    ----------
    places : where these chunks are.
    """
    codec = ChunkCodec.of(array, whole_rows=False)
    if codec is None or not codec.is_packed:
        return
    for chunk, place in zip(chunks, places, strict=True):
        if place is None:
            continue
        try:
            head = memoryview(place.head(HEAD_BYTES))
        except (OSError, ValueError):
            continue  # what reads it will say so
        try:
            n_bytes = codec.form.size_of(head, place.n_bytes - codec.n_check)
        except (LookupError, ValueError) as error:
            raise BadChunkError(chunk, first_line(error)) from error
        if n_bytes > SPARE_BYTES and n_bytes > most_bytes():
            raise BadChunkError(
                chunk,
                f"it becomes {n_bytes / 2**20:,.0f} MiB, more than {most_bytes() // 2**20}; if you "
                f"trust who made it, set {VARIABLE}={n_bytes // 2**30 + 1}GiB",
            )
