"""How versions lie in one HDF5 file: the newest as plain data sets, the others as what differs.

The arrays of the newest version are data sets of the root group, so that anything that reads HDF5 reads them. Every
other version is written down as its differences from another one, its *base*: chunks with other values, other lengths
and attributes, arrays that only one of the two has. From base to base one gets to the newest version. Most versions are
the base of the version before them, so a commit costs what it overwrites, and reading the newest costs nothing.

::

    /keypoints, /split, …            the newest version
    /_kpstore            attributes  head (id of the newest version), tags, used_tags, format
    /_kpstore/versions/ID/record     JSON: parent, message, time, metadata, touched, digests of text
    /_kpstore/versions/ID/delta      for all but the newest
        about                        JSON: base, attrs, arrays {name: None if absent here | {n_rows, attrs, chunks}}
        chunks/NAME                  the chunks that differ, one behind the other
        arrays/NAME                  arrays that the base does not have
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, Codec, Commit
from kpstore.errors import CorruptError, InvalidError, KpstoreError

HOME = "_kpstore"
FORMAT = 1
_META = "kpstore_meta"
"""Attribute of a data set that holds what HDF5 itself does not say of an array, as JSON."""

_FILTERS: Mapping[Codec, Mapping[str, Any]] = {
    "raw": {},  # with a checksum, as all of them: HDF5 puts it behind the values, which stay as they are
    # Filters that every HDF5 library has, or that h5py brings along.
    "lz4": {"compression": "lzf", "shuffle": True},
    "zstd": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
}

ABSENT = -1
"""In a delta: a chunk that nobody has written in this version."""


@contextmanager
def damage_told(location: str) -> Iterator[None]:
    """Turn what reading a damaged file runs into, in HDF5's library or in its JSON, into :class:`CorruptError`."""
    try:
        yield
    except KpstoreError:
        raise
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).strip("'").split())
        raise CorruptError(
            f"{location}: what it says of its arrays and versions cannot be read ({what}); it is damaged"
        ) from error


def write_json(group: h5py.Group, name: str, value: Any) -> None:
    """Store JSON of any length as a data set of bytes; attributes end at 64 KiB."""
    if name in group:
        del group[name]
    group.create_dataset(name, data=np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), dtype=np.uint8))


def read_json(group: h5py.Group, name: str) -> Any:
    """Return what :func:`write_json` stored."""
    return json.loads(group[name][:].tobytes())


def set_attrs(item: h5py.Group | h5py.Dataset, attrs: Mapping[str, Any]) -> None:
    """Replace the attributes of an array or of the root: text as it is, everything else as JSON text."""
    for name in get_attrs(item):
        del item.attrs[name]
    for name, value in attrs.items():
        item.attrs[name] = value if _is_plain(value) else "json:" + json.dumps(value, ensure_ascii=False)


def get_attrs(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Return what :func:`set_attrs` stored; numbers and the like are somebody else's, who added them by h5py."""
    found = {name: item.attrs[name] for name in item.attrs if name not in (_META, "DIMENSION_LABELS")}
    found = {name: value for name, value in found.items() if isinstance(value, str)}
    return {name: json.loads(value[5:]) if value.startswith("json:") else value for name, value in found.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith("json:") and "\0" not in value


def create_array(group: h5py.Group, name: str, meta: ArrayMeta) -> h5py.Dataset:
    """Make a data set of unwritten rows."""
    text = meta.dtype == TEXT
    made = group.create_dataset(
        name,
        shape=meta.shape,
        dtype=h5py.string_dtype() if text else np.dtype(meta.dtype),
        chunks=(max(1, meta.chunk_rows), *meta.shape[1:]),
        maxshape=(None, *meta.shape[1:]),
        fillvalue=None if text else np.asarray(meta.fill, dtype=meta.dtype)[()],
        fletcher32=not text,
        **_FILTERS[meta.codec],
    )
    made.attrs[_META] = json.dumps({"dtype": meta.dtype, "dims": meta.dims, "codec": meta.codec})
    for axis, dim in enumerate(meta.dims):
        made.dims[axis].label = dim
    set_attrs(made, meta.attrs)
    return made


def meta_of(array: h5py.Dataset) -> ArrayMeta:
    """Return shape and type of a data set that :func:`create_array` made."""
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


def is_array(item: Any) -> bool:
    """Whether something in the file is an array of a store."""
    return isinstance(item, h5py.Dataset) and _META in item.attrs


def _is_own(file: h5py.File, name: str) -> bool:
    """Whether a name stands for an array of the store that lies in this file, and not for a way into another one."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not is_array(file[name]):
        return False
    if file[name].is_virtual or file[name].external:
        raise CorruptError(f"{file.filename}: array {name!r} lies in another file, which is not read")
    return True


def read_dataset(array: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a data set, text as ``str``."""
    if h5py.check_string_dtype(array.dtype) is None:
        return np.asarray(array[start:stop])
    words = array.asstr()[start:stop]
    return np.asarray(words, dtype=object)


def write_dataset(array: h5py.Dataset, start: int, values: NDArray[Any]) -> None:
    """Write rows; HDF5's text ends at a zero character, so there can be none in it."""
    if array.dtype.kind == "O" and any("\0" in word for word in values.tolist()):
        raise InvalidError(f"{array.name[1:]!r}: HDF5 cannot hold text with a zero character")
    if len(values):
        array[start : start + len(values)] = values


def is_written(array: h5py.Dataset, chunk: int) -> bool:
    """Whether a chunk is in the file; what nobody wrote is not."""
    offset = (chunk * array.chunks[0], *(0 for _ in array.shape[1:]))
    return array.id.get_chunk_info_by_coord(offset).byte_offset is not None


@dataclass
class Delta:
    """What differs between a version and its base, while the base is being made from it.

    Parameters
    ----------
    attrs : of the root, if they differ.
    arrays : by name; None for an array that only the base has.
    """

    attrs: dict[str, Any] | None = None
    arrays: dict[str, ArrayDelta | None] = field(default_factory=dict)

    def to_json(self, base: str) -> dict[str, Any]:
        """Return what is stored beside the chunks."""
        arrays = {name: None if array is None else vars(array) for name, array in self.arrays.items()}
        return {"base": base, "attrs": self.attrs, "arrays": arrays}


@dataclass
class ArrayDelta:
    """What differs in one array.

    Parameters
    ----------
    n_rows, attrs : as they are in this version.
    chunks : by number (as text, for JSON), which chunk of the delta holds it, or :data:`ABSENT`.
    whole : whether the base has no such array, so that all of it is in the delta.
    """

    n_rows: int
    attrs: dict[str, Any]
    chunks: dict[str, int] = field(default_factory=dict)
    whole: bool = False


def keep_chunk(kept: h5py.Group, array: h5py.Dataset, delta: ArrayDelta, chunk: int) -> None:
    """Copy a chunk to the delta before it is overwritten, unless it is there or this version does not reach it."""
    rows = array.chunks[0]
    if str(chunk) in delta.chunks or chunk * rows >= delta.n_rows:
        return
    if not is_written(array, chunk):
        delta.chunks[str(chunk)] = ABSENT
        return
    name = array.name[1:]
    if name not in kept:
        create_array(kept, name, _without_rows(meta_of(array)))
    copies = kept[name]
    at = copies.shape[0] // rows
    copies.resize((at + 1) * rows, axis=0)
    write_dataset(copies, at * rows, read_dataset(array, chunk * rows, min((chunk + 1) * rows, array.shape[0])))
    delta.chunks[str(chunk)] = at


def _without_rows(meta: ArrayMeta) -> ArrayMeta:
    # Compressed, as a chunk of a small store is nearly empty, and a commit must not cost two megabytes.
    codec: Codec = "lz4" if meta.codec == "raw" else meta.codec
    return ArrayMeta((0, *meta.shape[1:]), meta.dtype, meta.chunk_rows, meta.dims, meta.fill, {}, codec)


@dataclass(frozen=True)
class Piece:
    """A chunk's place: which chunk of which data set; ``array`` is None where nobody wrote it."""

    array: h5py.Dataset | None
    chunk: int


class StoredArray:
    """One array at one version: a data set, and the chunks that are elsewhere.

    Parameters
    ----------
    array : the data set that holds all other chunks.
    meta : of the array at this version.
    elsewhere : by chunk.
    """

    def __init__(self, array: h5py.Dataset, meta: ArrayMeta, elsewhere: Mapping[int, Piece]) -> None:
        self.array, self.meta, self.elsewhere = array, meta, elsewhere

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows."""
        if not self.elsewhere:
            return read_dataset(self.array, start, stop)
        rows = self.meta.chunk_rows
        text = self.meta.dtype == TEXT
        out = np.empty((stop - start, *self.meta.shape[1:]), dtype=object if text else self.meta.dtype)
        for chunk in range(start // rows, -(-stop // rows)):
            first, last = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
            piece = self.elsewhere.get(chunk, Piece(self.array, chunk))
            if piece.array is None:
                out[first - start : last - start] = "" if text else self.meta.fill
            else:
                shift = (piece.chunk - chunk) * rows
                out[first - start : last - start] = read_dataset(piece.array, first + shift, last + shift)
        return out

    @property
    def is_raw(self) -> bool:
        """Whether all chunks lie in the file as they are in memory."""
        arrays = [self.array, *(piece.array for piece in self.elsewhere.values())]
        return all(array is None or array.compression is None for array in arrays)

    def pieces(self) -> list[Piece]:
        """Return where each chunk is."""
        n_chunks = -(-self.meta.n_rows // self.meta.chunk_rows)
        return [self.elsewhere.get(chunk, Piece(self.array, chunk)) for chunk in range(n_chunks)]


def version_group(file: h5py.File, snapshot: str) -> h5py.Group | None:
    """Return what is kept of a version; None if there is no such version."""
    versions = file[HOME]["versions"]
    return versions[snapshot] if snapshot.isalnum() and snapshot in versions else None


def text_digests(file: h5py.File, snapshot: str) -> dict[str, str]:
    """Return the digests of a version's arrays of text, by name."""
    return dict(read_json(file[HOME]["versions"][snapshot], "record").get("text", {}))


def read_commit(file: h5py.File, snapshot: str) -> Commit:
    """Return who a version follows, and when and why it was made."""
    record = read_json(file[HOME]["versions"][snapshot], "record")
    time = datetime.fromisoformat(record["time"])
    return Commit(snapshot, record["parent"], record["message"], time, record["metadata"])


def head_of(file: h5py.File) -> str:
    """Return the newest version."""
    return str(file[HOME].attrs["head"])


class Tree:
    """All arrays at one version, put together from the newest and the differences on the way to this one."""

    def __init__(self, file: h5py.File, snapshot: str) -> None:
        self.attrs = get_attrs(file)
        self.arrays: dict[str, StoredArray] = {
            name: StoredArray(file[name], meta_of(file[name]), {}) for name in file if _is_own(file, name)
        }
        for group in reversed(list(_path(file, snapshot))):
            self._apply(group)

    def _apply(self, group: h5py.Group) -> None:
        about = read_json(group, "about")
        if about["attrs"] is not None:
            self.attrs = about["attrs"]
        for name, found in about["arrays"].items():
            if found is None:
                del self.arrays[name]
                continue
            delta = ArrayDelta(**found)
            array = group["arrays"][name] if delta.whole else self.arrays[name].array
            elsewhere = {} if delta.whole else dict(self.arrays[name].elsewhere)
            elsewhere.update(_pieces(group, name, delta.chunks.items()))
            meta = meta_of(array)
            shape = (delta.n_rows, *meta.shape[1:])
            meta = ArrayMeta(shape, meta.dtype, meta.chunk_rows, meta.dims, meta.fill, delta.attrs, meta.codec)
            n_chunks = -(-delta.n_rows // meta.chunk_rows)
            self.arrays[name] = StoredArray(
                array, meta, {chunk: piece for chunk, piece in elsewhere.items() if chunk < n_chunks}
            )


def _pieces(group: h5py.Group, name: str, chunks: Iterable[tuple[str, int]]) -> dict[int, Piece]:
    return {int(chunk): Piece(None, 0) if at == ABSENT else Piece(group["chunks"][name], at) for chunk, at in chunks}


def _path(file: h5py.File, snapshot: str) -> Iterable[h5py.Group]:
    """Yield the differences of a version, of its base, of that one's base, … up to the newest, which has none."""
    while snapshot != head_of(file):
        group = file[HOME]["versions"][snapshot]["delta"]
        yield group
        snapshot = read_json(group, "about")["base"]
