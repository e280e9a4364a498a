"""Chunks that are encoded without Zarr have the bytes that Zarr would write."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, GzipCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from kpstore.backends.base import TEXT, ArrayMeta, Codec
from kpstore.backends.icechunk_chunks import create_array
from kpstore.backends.icechunk_codec import ChunkCodec, ZarrArray

ROWS = 8
TEXTS = ["", "ä", "gebärde\0", "🖐" * 40, "x" * 5000]


def made(dtype: str, codec: Codec, *row: int, fill: float = 0) -> ZarrArray:
    dims = ("frame", "keypoint", "space")[: len(row) + 1]
    meta = ArrayMeta((2 * ROWS, *row), dtype, ROWS, dims, fill, codec=codec)
    return create_array(zarr.create_group(MemoryStore()), "made", meta)


def values_of(array: ZarrArray, n_rows: int) -> NDArray[np.generic]:
    rng = np.random.default_rng(n_rows)
    if array.dtype.kind == "T":
        return np.array(rng.choice(TEXTS, n_rows), dtype=object)
    values = rng.standard_normal((n_rows, *array.shape[1:])) * 100
    return values.astype(array.dtype) if array.dtype.kind != "b" else values > 0


def by_zarr(array: ZarrArray, values: NDArray[np.generic]) -> bytes:
    """Return the bytes of a first chunk that holds these rows and fill."""
    array.resize((len(values), *array.shape[1:]))
    array[:] = values
    key = "made/" + array.metadata.encode_chunk_key((0,) * array.ndim)
    found = sync(array.store.get(key, default_buffer_prototype()))
    assert found is not None
    return found.to_bytes()


@pytest.mark.parametrize("n_rows", [1, ROWS - 1, ROWS])
@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
@pytest.mark.parametrize(
    ("dtype", "row"),
    [
        ("float32", (3, 2)),
        ("float16", (5,)),
        ("float64", ()),
        ("int64", ()),
        ("uint8", (2, 1)),
        ("bool", (4,)),
        ("complex64", (2,)),
        (TEXT, ()),
    ],
)
def test_bytes_are_those_of_zarr(
    dtype: str, row: tuple[int, ...], codec: Codec, n_rows: int
) -> None:
    fill = float("nan") if dtype.startswith("float") else 0
    array = made(dtype, codec, *row, fill=fill)
    values, known = values_of(array, n_rows), ChunkCodec.of(array)
    assert known is not None
    encoded = known.encode(values)
    assert encoded == by_zarr(array, values)
    found = known.rows(encoded, n_rows)
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


def test_a_row_of_numbers_may_be_anywhere_in_memory() -> None:
    array = made("float32", "raw", 3, 2)
    values, codec = np.asfortranarray(values_of(array, 2 * ROWS))[::2], ChunkCodec.of(array)
    assert codec is not None
    assert codec.encode(values) == by_zarr(array, values)


@pytest.mark.parametrize("dtype", ["float32", TEXT])
@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_no_changed_byte_is_taken_for_rows(dtype: str, codec: Codec) -> None:
    array = made(dtype, codec)
    known = ChunkCodec.of(array)
    assert known is not None
    encoded = known.encode(values_of(array, ROWS))
    for at in range(0, len(encoded), max(1, len(encoded) // 50)):
        damaged = bytearray(encoded)
        damaged[at] ^= 0x10
        for content in (bytes(damaged), encoded[:at]):
            with pytest.raises(ValueError, match=r"."):
                known.rows(content, ROWS)


@pytest.mark.parametrize("count", [0, ROWS - 1, ROWS + 1, 2**32 - 1])
def test_a_chunk_that_claims_another_number_of_texts_is_damaged(count: int) -> None:
    codec = ChunkCodec.of(made(TEXT, "zstd"))
    other = ChunkCodec.of(made(TEXT, "raw"))
    assert codec is not None
    assert other is not None
    content = bytearray(other.encode(np.full(ROWS, "a", dtype=object))[: -other.n_check])
    content[:4] = count.to_bytes(4, "little")
    body = codec.form.encode(np.frombuffer(content, dtype=np.uint8))
    with pytest.raises(ValueError, match=f"holds {count} texts"):
        ChunkCodec(codec.form, 0, codec.unwritten, ROWS).rows(body, ROWS)


@pytest.mark.parametrize("claimed", [0, 15, 2**31 - 1, 2**32 - 1])
def test_a_chunk_that_claims_more_bytes_than_it_has_is_not_decoded(claimed: int) -> None:
    codec = ChunkCodec.of(made("float32", "lz4", 300))
    assert codec is not None
    body = bytearray(codec.encode(np.ones((ROWS, 300), np.float32))[: -codec.n_check])
    struct.pack_into("<I", body, 12, claimed)
    struct.pack_into("<I", body, 16, 2**31 - 100)  # where its first block is said to be
    with pytest.raises(ValueError, match=f"claims {claimed} bytes"):
        ChunkCodec(codec.form, 0, codec.unwritten, ROWS).rows(bytes(body), ROWS)


@pytest.mark.parametrize(
    "given",
    [
        {"compressors": [GzipCodec()]},
        {"serializer": BytesCodec(endian="big")},
        {"chunks": (ROWS, 1)},
        {"shards": (2 * ROWS, 2)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_other_forms_are_left_to_zarr(given: dict[str, object]) -> None:
    how = {"chunks": (ROWS, 2), "compressors": None, **given}
    array = zarr.create_array(MemoryStore(), shape=(2 * ROWS, 2), dtype="float32", **how)
    assert ChunkCodec.of(array) is None
