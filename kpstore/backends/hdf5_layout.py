"""How versions are stored in one HDF5 file: the newest as data sets, the others as differences.

The arrays of the newest version are data sets of the root group, which any program that reads HDF5
can read. Every other version is stored as its differences from another version, its *base*: chunks
with other values, other lengths and attributes, arrays that only one of the two has. Following the
bases leads to the newest version. Most versions are the base of the version before them, so a
commit costs what it overwrites, and reading the newest version costs nothing extra.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, Codec
from kpstore.backends.hdf5_text import can_read, no_texts, read_text
from kpstore.errors import CorruptError, InvalidError

_META = "kpstore_meta"
"""Attribute of a data set: JSON of everything about the array that HDF5 itself does not hold."""

_FILTERS: Mapping[Codec, Mapping[str, Any]] = {
    # All have a checksum too, which HDF5 appends to the values and which leaves them as they are.
    "raw": {},
    # Filters that every HDF5 library or h5py itself has.
    "lz4": {"compression": "lzf", "shuffle": True},
    "zstd": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
}

ABSENT = -1
"""In a delta: a chunk that was never written in this version."""

Table = NDArray[np.uint64]
"""The checksum of each chunk of one array, by number."""


# -- attributes ------------------------------------------------------------------------------------


def set_attrs(
    item: h5py.Group | h5py.Dataset, attrs: Mapping[str, Any], before: Iterable[str]
) -> None:
    """Replace the attributes ``before``: text as it is, everything else as JSON text."""
    for name in set(before) & set(item.attrs):
        del item.attrs[name]
    for name, value in attrs.items():
        item.attrs[name] = (
            value if _is_plain(value) else "json:" + json.dumps(value, ensure_ascii=False)
        )


def get_attrs(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Return what :func:`set_attrs` stored, without numbers and the like from other programs."""
    return {
        name: json.loads(value[5:]) if value.startswith("json:") else value
        for name, value in item.attrs.items()
        if isinstance(value, str) and name not in (_META, "DIMENSION_LABELS")
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("json:") and "\0" not in value


def plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON returns them; a version's digest is of these."""
    return dict(json.loads(json.dumps(dict(attrs))))


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
    """Return shape and type of a data set of :func:`create_array`."""
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
    """Return shape and type as JSON values; a fill that is no JSON number becomes ``"NaN"``."""
    named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    fill = meta.fill if np.isfinite(meta.fill) else named[str(meta.fill)]
    return {
        "shape": list(meta.shape),
        "dtype": meta.dtype,
        "chunk_rows": meta.chunk_rows,
        "dims": list(meta.dims),
        "fill": fill,
        "codec": meta.codec,
        "attrs": dict(meta.attrs),
    }


def meta_from_json(found: Mapping[str, Any]) -> ArrayMeta:
    """Return shape and type from :func:`meta_to_json`."""
    fill = float(found["fill"]) if isinstance(found["fill"], str) else found["fill"]
    shape, dims = tuple(found["shape"]), tuple(found["dims"])
    return ArrayMeta(
        shape, found["dtype"], found["chunk_rows"], dims, fill, found["attrs"], found["codec"]
    )


def stored_meta(meta: ArrayMeta) -> ArrayMeta:
    """Return a new array's shape and type as they will be read: the fill in the array's type."""
    fill = 0 if meta.dtype == TEXT else np.asarray(meta.fill, dtype=meta.dtype).item()
    chunk_rows, attrs = max(1, meta.chunk_rows), plain(meta.attrs)
    return replace(meta, chunk_rows=chunk_rows, fill=fill, attrs=attrs)


def with_rows(meta: ArrayMeta, n_rows: int, attrs: Mapping[str, Any]) -> ArrayMeta:
    """Return the same array with another length and other attributes."""
    return replace(meta, shape=(n_rows, *meta.shape[1:]), attrs=attrs)


def is_array(item: Any) -> bool:
    """Whether an item of the file is an array of a store."""
    return isinstance(item, h5py.Dataset) and _META in item.attrs


def open_array(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return a data set of this file; :class:`CorruptError` for a link to another file."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise CorruptError(
            f"{group.file.filename}: array {name!r} is missing, or lies in another file"
        )
    array = group[name]
    if array.is_virtual or array.external:
        raise CorruptError(
            f"{group.file.filename}: array {name!r} lies in another file, which is not read"
        )
    return array


def read_dataset(array: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a data set, text as ``str``."""
    if h5py.check_string_dtype(array.dtype) is None:
        return np.asarray(array[start:stop])
    if can_read(array):
        return read_text(array, start, stop)
    return np.asarray(array.asstr()[start:stop], dtype=object)


_LEAST_BYTES = 4
"""Size of the smallest possible chunk: its Fletcher-32 alone."""


def check_index(array: h5py.Dataset) -> None:
    """Raise :class:`CorruptError` if the index of a data set's chunks contradicts itself.

    HDF5's library trusts it: an entry with no bytes, or with the place of another chunk, ends the
    process.
    """
    rows, n_bytes = array.chunks[0], sys.maxsize
    if array.file.mode == "r":  # in a file that is being written, chunks may lie behind its end
        n_bytes = array.file.id.get_filesize()
    seen: set[int] = set()

    def look(found: Any) -> None:
        first = int(found.chunk_offset[0])
        known = first in seen or first % rows or any(found.chunk_offset[1:])
        if known or not _LEAST_BYTES <= found.size <= n_bytes - found.byte_offset:
            damaged.append(f"the index of its chunks is damaged at row {first}")
        seen.add(first)

    damaged: list[str] = []
    array.id.chunk_iter(look)
    if damaged:
        raise CorruptError(f"{array.file.filename}: {array.name[1:]!r}: {damaged[0]}")


def check_text(name: str, values: NDArray[Any]) -> None:
    """Raise :class:`InvalidError` for a zero character, at which text in HDF5 ends."""
    if any("\0" in word for word in values.tolist()):
        raise InvalidError(f"{name!r}: HDF5 cannot hold text with a zero character")


def byte_of(array: h5py.Dataset, chunk: int) -> int | None:
    """Return where in the file a chunk begins; None if it was never written."""
    offset = array.id.get_chunk_info_by_coord(_corner(array, chunk)).byte_offset
    return None if offset is None else int(offset)


def _corner(array: h5py.Dataset, chunk: int) -> tuple[int, ...]:
    return (chunk * array.chunks[0], *(0 for _ in array.shape[1:]))


def empty_chunk(array: h5py.Dataset, chunk: int) -> None:
    """Replace a chunk that cannot be read by fill, because HDF5 may read it to overwrite it.

    If the chunk is damaged text, HDF5 would even release the space that the damage points to.
    """
    if h5py.check_string_dtype(array.dtype) is not None:
        array.id.write_direct_chunk(_corner(array, chunk), no_texts(array.chunks[0]), 0)
        return
    # HDF5 writes a whole chunk without reading the old one, but only inside of the array.
    n_rows, first, last = array.shape[0], chunk * array.chunks[0], (chunk + 1) * array.chunks[0]
    if last > n_rows:
        array.resize(last, axis=0)
    array[first:last] = np.full(array.chunks, array.fillvalue, dtype=array.dtype)
    if last > n_rows:
        array.resize(n_rows, axis=0)


# -- what differs ----------------------------------------------------------------------------------


@dataclass
class Delta:
    """How a version differs from its base, collected while the base is made from it.

    Parameters
    ----------
    attrs : attributes of the root, if they differ.
    arrays : by name; None for an array that only the base has.
    metas : shape and type of the arrays that only the version has.
    """

    attrs: dict[str, Any] | None = None
    arrays: dict[str, ArrayDelta | None] = field(default_factory=dict)
    metas: dict[str, ArrayMeta] = field(default_factory=dict)

    def to_json(self, base: str, fmt: int) -> dict[str, Any]:
        """Return the JSON that is stored beside the chunks."""
        arrays = {
            name: None if array is None else vars(array) for name, array in self.arrays.items()
        }
        about = {"base": base, "attrs": self.attrs, "arrays": arrays}
        if fmt > 1:
            about["metas"] = {name: meta_to_json(meta) for name, meta in self.metas.items()}
        return about

    def checksums(self, tables: Callable[[str], Table]) -> Table:
        """Return the checksums of the chunks in the delta, array by array."""
        parts = [
            tables(name)[numbers_of(array)]
            for name, array in sorted(self.arrays.items())
            if array is not None
        ]
        return np.concatenate([np.empty(0, np.uint64), *parts])


@dataclass
class ArrayDelta:
    """How one array differs.

    Parameters
    ----------
    n_rows, attrs : length and attributes in this version.
    chunks : by number (as text, for JSON), the chunk of the delta that holds it, or :data:`ABSENT`.
    whole : whether the base has no such array, so that all of it is in the delta.
    """

    n_rows: int
    attrs: dict[str, Any]
    chunks: dict[str, int] = field(default_factory=dict)
    whole: bool = False

    def lacks(self, chunk: int, chunk_rows: int) -> bool:
        """Whether a chunk of this version must be kept before it is overwritten."""
        return str(chunk) not in self.chunks and chunk * chunk_rows < self.n_rows


def numbers_of(array: ArrayDelta) -> Any:
    """Return the chunks whose checksums a delta holds: those in it in order, or all."""
    return (
        slice(None)
        if array.whole
        else np.array(sorted(int(chunk) for chunk in array.chunks), dtype=np.int64)
    )


def keep_chunk(
    kept: h5py.Group,
    name: str,
    meta: ArrayMeta,
    delta: ArrayDelta,
    chunk: int,
    rows: NDArray[Any] | None,
) -> None:
    """Copy a chunk to the delta before it is overwritten; ``rows`` is None if never written."""
    if rows is None:
        delta.chunks[str(chunk)] = ABSENT
        return
    copies, at = _room_for_chunk(kept, name, meta)
    copies[at * meta.chunk_rows : at * meta.chunk_rows + len(rows)] = rows
    delta.chunks[str(chunk)] = at


def keep_damaged_chunk(
    kept: h5py.Group, name: str, meta: ArrayMeta, delta: ArrayDelta, chunk: int, *, has_table: bool
) -> None:
    """Record in the delta that a chunk of this version cannot be read.

    Where its checksum stays known it is called absent: fill does not match the checksum.
    """
    if has_table:
        delta.chunks[str(chunk)] = ABSENT
        return
    copies, at = _room_for_chunk(kept, name, meta)
    copies.id.write_direct_chunk(_corner(copies, at), b"damaged!", 0)
    delta.chunks[str(chunk)] = at


def _room_for_chunk(kept: h5py.Group, name: str, meta: ArrayMeta) -> tuple[h5py.Dataset, int]:
    if name not in kept:
        # Compressed: a chunk of a small store is nearly empty, and a commit must not cost two
        # megabytes.
        codec: Codec = "lz4" if meta.codec == "raw" else meta.codec
        create_array(kept, name, replace(with_rows(meta, 0, {}), codec=codec))
    copies = kept[name]
    at = copies.shape[0] // meta.chunk_rows
    copies.resize((at + 1) * meta.chunk_rows, axis=0)
    return copies, at
