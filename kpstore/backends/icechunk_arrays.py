"""Zarr arrays of an Icechunk store: what they are, and their chunks as values with checksums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from kpstore.backends.base import TEXT, ArrayMeta, Codec
from kpstore.backends.checksums import checksum, matches
from kpstore.backends.icechunk_errors import UNREADABLE, first_line
from kpstore.errors import InvalidError

_COMPRESSORS: Mapping[Codec, tuple[BytesBytesCodec, ...]] = {
    "raw": (),
    "zstd": (ZstdCodec(),),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),),
}


class BadChunkError(Exception):
    """A chunk that cannot be read, for a reason; without a reason, one that holds other values."""

    def __init__(self, chunk: int, reason: str = "") -> None:
        super().__init__(reason)
        self.chunk, self.reason = chunk, reason


def create_array(group: zarr.Group, name: str, meta: ArrayMeta) -> zarr.Array[Any]:
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
        # A chunk that was written must exist even if all of it is fill: a missing chunk means that
        # it was never written.
        config={"write_empty_chunks": True},
    )


def meta_of(array: zarr.Array[Any]) -> ArrayMeta:
    """Return shape and type of an array."""
    text = array.dtype.kind == "T"
    return ArrayMeta(
        shape=array.shape,
        dtype=TEXT if text else array.dtype.name,
        chunk_rows=array.chunks[0],
        dims=tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ()),
        fill=0 if text else array.fill_value.item(),
        attrs=dict(array.attrs),
        codec=_codec_name(array),
    )


def _codec_name(array: zarr.Array[Any]) -> Codec:
    match array.compressors:
        case (BloscCodec(), *_):
            return "lz4"
        case (ZstdCodec(), *_):
            return "zstd"
        case _:
            return "raw"


def read_chunks(
    array: zarr.Array[Any], meta: ArrayMeta, chunks: range, sums: Sequence[int] = ()
) -> NDArray[Any]:
    """Return the rows of chunks that follow each other.

    Parameters
    ----------
    sums : checksums of these chunks; without them, only the codec checks what it reads.

    Raises
    ------
    BadChunkError
        For the first chunk that is damaged.
    """
    size = meta.chunk_rows
    try:
        values = np.asarray(array[chunks.start * size : min(chunks.stop * size, meta.n_rows)])
    except UNREADABLE as error:
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


def write_chunks(
    array: zarr.Array[Any], meta: ArrayMeta, start: int, values: NDArray[Any]
) -> dict[int, int]:
    """Write whole chunks of values :func:`as_stored`; return their checksums by number."""
    if not array.config.write_empty_chunks:
        array = array.with_config({"write_empty_chunks": True})
    if len(values):
        array[start : start + len(values)] = values
    size = meta.chunk_rows
    return {
        (start + row) // size: checksum(meta, values[row : row + size])
        for row in range(0, len(values), size)
    }


def as_stored(name: str, meta: ArrayMeta, values: NDArray[Any]) -> NDArray[Any]:
    """Return values in the array's type: checksums are of the values that will be read."""
    if meta.dtype != TEXT:
        return np.asarray(values, dtype=meta.dtype)
    texts = np.asarray(values, dtype=object)
    wrong = next((text for text in texts.tolist() if not isinstance(text, str)), None)
    if wrong is not None:
        raise InvalidError(f"{wrong!r} given for {name!r}, which holds text")
    return texts
