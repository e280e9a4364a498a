"""How versions are stored in one HDF5 file: the newest as data sets, the others as differences.

The arrays of the newest version are data sets of the root group, which any program for HDF5 can
read. Every other version is stored as its differences from another version, its *base*: chunks
with other values, other lengths and attributes, arrays that only one of the two has. The bases lead
to the newest version. Most versions are the base of the version before them, so a commit costs what
it overwrites, and reading the newest version costs nothing extra.

::

    /keypoints, /split, …            the newest version
    /_kpstore                        attribute format
    /_kpstore/names                  JSON: head (id of the newest version), tags, used_tags
    /_kpstore/tree                   JSON of the newest version: attrs,
                                     arrays {name: shape, dtype, …, attrs}
    /_kpstore/checksums              uint64, of the newest version's chunks, array by array
    /_kpstore/versions/ID/record     JSON: parent, message, time, metadata, touched,
                                     digests of tree and checksums
    /_kpstore/versions/ID/delta      for all versions but the newest:
        about                        JSON: base, attrs,
                                     arrays {name: None if absent here | {n_rows, attrs, chunks}}
        checksums                    uint64, of the chunks that differ
        chunks/NAME                  the chunks that differ, one after another
        arrays/NAME                  arrays that the base does not have

Files of format 1 have no ``tree`` and no ``checksums``, and their names are attributes. Their
arrays are described by attributes of the data sets alone, which format 2 keeps for other programs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, Codec, plain
from kpstore.backends.hdf5_items import has_item, item_of
from kpstore.backends.hdf5_records import ABSENT, DAMAGE, ArrayDelta, json_text
from kpstore.backends.hdf5_text import is_text, no_texts, read_texts
from kpstore.errors import CorruptError, InvalidError
from kpstore.schema.fields import is_storable

_META = "kpstore_meta"
"""Attribute of a data set: what HDF5 itself does not store of an array, as JSON."""

_FILTERS: Mapping[Codec, Mapping[str, object]] = {
    # All have a checksum as well, which HDF5 appends to the unchanged values.
    "raw": {},
    # Filters that every HDF5 library has, or h5py itself.
    "lz4": {"compression": "lzf", "shuffle": True},
    "zstd": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
}

# -- attributes ------------------------------------------------------------------------------------


def set_attrs(
    item: h5py.Group | h5py.Dataset, attrs: Mapping[str, object], before: Iterable[str]
) -> None:
    """Replace the attributes ``before`` by others: text as it is, everything else as JSON."""
    for name in set(before) & set(item.attrs):
        del item.attrs[name]
    for name, value in attrs.items():
        item.attrs[name] = value if _is_plain(value) else "json:" + json_text(value)


def get_attrs(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Return what :func:`set_attrs` stored, without numbers and the like from other programs."""
    return {
        name: json.loads(value[5:]) if value.startswith("json:") else value
        for name, value in item.attrs.items()
        if isinstance(value, str) and name not in (_META, "DIMENSION_LABELS")
    }


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, str)
        and not value.startswith("json:")
        and "\0" not in value
        and is_storable(value)
    )


# -- arrays ----------------------------------------------------------------------------------------


def create_array(group: h5py.Group, name: str, meta: ArrayMeta) -> h5py.Dataset:
    """Create a data set of unwritten rows."""
    text = meta.dtype == TEXT
    made = group.create_dataset(
        name,
        shape=meta.shape,
        dtype=h5py.string_dtype() if text else np.dtype(meta.dtype),
        chunks=(max(1, meta.chunk_rows), *meta.shape[1:]),
        maxshape=(None, *meta.shape[1:]),
        fillvalue=None if text else np.asarray(meta.fill, dtype=meta.dtype)[()],
        fletcher32=not text,
        **_FILTERS["zstd" if text else meta.codec],
    )
    made.attrs[_META] = json.dumps({"dtype": meta.dtype, "dims": meta.dims, "codec": meta.codec})
    for axis, dim in enumerate(meta.dims):
        made.dims[axis].label = dim
    set_attrs(made, meta.attrs, ())
    return made


def meta_of(array: h5py.Dataset) -> ArrayMeta:
    """Return the shape and type of a data set of :func:`create_array`."""
    about = json.loads(array.attrs[_META])
    return ArrayMeta(
        tuple(array.shape),
        about["dtype"],
        array.chunks[0],
        tuple(about["dims"]),
        0 if about["dtype"] == TEXT else array.fillvalue.item(),
        get_attrs(array),
        about["codec"],
    )


def meta_to_json(meta: ArrayMeta) -> dict[str, Any]:
    """Return shape and type as JSON values; fills that are no JSON numbers are named.

    The digest of a version covers the order of the keys.
    """
    named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    fill = meta.fill if np.isfinite(meta.fill) else named[str(meta.fill)]
    keys = ("shape", "dtype", "chunk_rows", "dims", "fill", "codec", "attrs")
    return {**{key: getattr(meta, key) for key in keys}, "fill": fill}


def meta_from_json(found: Mapping[str, Any]) -> ArrayMeta:
    """Return shape and type from :func:`meta_to_json`."""
    fill = float(found["fill"]) if isinstance(found["fill"], str) else found["fill"]
    shape, dims = tuple(found["shape"]), tuple(found["dims"])
    return ArrayMeta(
        shape, found["dtype"], found["chunk_rows"], dims, fill, found["attrs"], found["codec"]
    )


def stored_meta(meta: ArrayMeta) -> ArrayMeta:
    """Return a new array's shape and type as they will be read, with the fill in its dtype."""
    fill = 0 if meta.dtype == TEXT else np.asarray(meta.fill, dtype=meta.dtype).item()
    chunk_rows, attrs = max(1, meta.chunk_rows), plain(meta.attrs)
    return replace(meta, chunk_rows=chunk_rows, fill=fill, attrs=attrs)


def with_rows(meta: ArrayMeta, n_rows: int, attrs: Mapping[str, object]) -> ArrayMeta:
    """Return the same array with another length and other attributes."""
    return replace(meta.with_rows(n_rows), attrs=attrs)


def is_array(item: object) -> bool:
    """Return whether an item of the file is an array of a store."""
    return isinstance(item, h5py.Dataset) and _META in item.attrs


def read_dataset(array: h5py.Dataset, start: int, stop: int) -> NDArray[np.generic]:
    """Return rows of a data set, text as ``str``."""
    return read_texts(array, start, stop) if is_text(array) else np.asarray(array[start:stop])


_LEAST_BYTES = 4
"""Size of the smallest possible chunk: its Fletcher-32 alone."""


def check_index(array: h5py.Dataset) -> None:
    """Raise :class:`CorruptError` if the index of a data set's chunks contradicts itself.

    HDF5's library trusts it: an entry without bytes, or with the place of another chunk, crashes
    the process.
    """
    rows, n_bytes = array.chunks[0], sys.maxsize
    if array.file.mode == "r":  # in a file that is being written, chunks may lie behind its end
        n_bytes = array.file.id.get_filesize()
    seen: set[int] = set()

    def look(found: h5py.h5d.StoreInfo) -> None:
        first = int(found.chunk_offset[0])
        known = first in seen or first % rows or any(found.chunk_offset[1:])
        if known or not _LEAST_BYTES <= found.size <= n_bytes - found.byte_offset:
            damaged.append(f"the index of its chunks is damaged at row {first}")
        seen.add(first)

    damaged: list[str] = []
    array.id.chunk_iter(look)
    if damaged:
        raise CorruptError(f"{array.file.filename}: {array.name[1:]!r}: {damaged[0]}")


def check_text(name: str, values: NDArray[np.generic]) -> None:
    """Raise :class:`InvalidError` for a zero character, which ends a text in HDF5."""
    if any("\0" in word for word in values.tolist()):
        raise InvalidError(f"{name!r}: HDF5 cannot hold text with a zero character")


def byte_of(array: h5py.Dataset, chunk: int) -> int | None:
    """Return the offset in the file at which a chunk begins; None if it was never written."""
    offset = array.id.get_chunk_info_by_coord(_corner(array, chunk)).byte_offset
    return None if offset is None else int(offset)


def bytes_of(array: h5py.Dataset) -> dict[int, int]:
    """Return :func:`byte_of` for all chunks that were written, by number."""
    found, rows = dict[int, int](), array.chunks[0]
    array.id.chunk_iter(
        lambda info: found.__setitem__(int(info.chunk_offset[0]) // rows, int(info.byte_offset))
    )
    return found


def _corner(array: h5py.Dataset, chunk: int) -> tuple[int, ...]:
    return (chunk * array.chunks[0], *(0 for _ in array.shape[1:]))


def empty_chunk(array: h5py.Dataset, chunk: int) -> None:
    """Replace a chunk that cannot be read by fill, because HDF5 may read it to overwrite it.

    If the chunk is damaged text, HDF5 would even release the space that the damage points to.
    """
    if is_text(array):
        array.id.write_direct_chunk(_corner(array, chunk), no_texts(array.chunks[0]), 0)
        return
    # HDF5 writes a whole chunk without reading the old one, but only within the array.
    n_rows, first, last = array.shape[0], chunk * array.chunks[0], (chunk + 1) * array.chunks[0]
    if last > n_rows:
        array.resize(last, axis=0)
    array[first:last] = np.full(array.chunks, array.fillvalue, dtype=array.dtype)
    if last > n_rows:
        array.resize(n_rows, axis=0)


Kept = NDArray[np.generic] | bytes | None
"""The rows of a chunk that a delta keeps, as :func:`keep_chunk` takes them."""


def keep_chunk(
    kept: h5py.Group,
    name: str,
    meta: ArrayMeta,
    delta: ArrayDelta,
    chunk: int,
    rows: Kept,
) -> None:
    """Copy a chunk to the delta before it is overwritten.

    ``rows`` is None for a chunk that was never written; bytes are stored without encoding them.
    """
    if rows is None:
        delta.chunks[str(chunk)] = ABSENT
        return
    if not has_item(kept, name):
        # Compressed, because a chunk of a small store is nearly empty, and a commit must not cost
        # two megabytes.
        codec: Codec = "lz4" if meta.codec == "raw" else meta.codec
        create_array(kept, name, replace(with_rows(meta, 0, {}), codec=codec))
    copies = item_of(kept, name)
    at = copies.shape[0] // meta.chunk_rows
    copies.resize((at + 1) * meta.chunk_rows, axis=0)
    if isinstance(rows, bytes):
        copies.id.write_direct_chunk(_corner(copies, at), rows, 0)
    else:
        copies[at * meta.chunk_rows : at * meta.chunk_rows + len(rows)] = rows
    delta.chunks[str(chunk)] = at


def copy_attrs(source: h5py.Group | h5py.Dataset, target: h5py.Group | h5py.Dataset) -> None:
    """Copy all attributes, whoever wrote them."""
    for name in source.attrs:
        kind = source.attrs.get_id(name)
        target.attrs.create(name, source.attrs[name], kind.shape, kind.dtype)


def damaged_rows(*, has_checksums: bool) -> Kept:
    """Return what a delta keeps of a damaged chunk, so that it stays damaged."""
    # Absent where its checksum stays known, which fill does not match.
    return None if has_checksums else b"damaged!"


def copy_array(
    array: h5py.Dataset,
    group: h5py.Group,
    name: str,
    n_rows: int | None = None,
    but: Container[int] = (),
) -> None:
    """Copy a data set of :func:`create_array`, its chunks as they are stored.

    Text is read and written, as it lies elsewhere in the file.

    Parameters
    ----------
    n_rows : number of its first rows, and nothing behind them, that are copied; by default all.
    but : numbers of chunks that are not copied.
    """
    about, stop = array.id, min(array.shape[0], sys.maxsize if n_rows is None else n_rows)
    made = h5py.Dataset(
        h5py.h5d.create(
            group.id,
            name.encode(),
            about.get_type(),
            h5py.h5s.create_simple(
                (stop, *array.shape[1:]), (h5py.h5s.UNLIMITED, *array.shape[1:])
            ),
            dcpl=about.get_create_plist(),
        )
    )
    copy_attrs(array, made)
    text = is_text(array)
    rows, corners = array.chunks[0], list[tuple[int, ...]]()
    about.chunk_iter(lambda found: corners.append(tuple(map(int, found.chunk_offset))))
    for corner in sorted(corners):
        start, end = corner[0], min(corner[0] + rows, stop)
        if start >= stop or start // rows in but:
            continue
        if text:
            texts = read_dataset(array, start, end)
            # Each text that is written takes space, even an empty one.
            n_texts = 1 + max([0, *np.flatnonzero(texts != "").tolist()])
            made[start : start + n_texts] = texts[:n_texts]
        elif end < min(start + rows, array.shape[0]):
            _copy_start(array, made, start, end)
        else:
            skipped, stored = about.read_direct_chunk(corner)
            made.id.write_direct_chunk(corner, stored, skipped)


def _copy_start(array: h5py.Dataset, made: h5py.Dataset, start: int, end: int) -> None:
    """Copy the first rows of a chunk; a damaged one stays so."""
    try:
        rows = array[start:end]
    except DAMAGE:
        made.id.write_direct_chunk(_corner(array, start // array.chunks[0]), b"damaged!", 0)
    else:
        made[start:end] = rows
