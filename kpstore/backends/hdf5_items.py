"""The one way to what an HDF5 file holds, which never leads into another file.

A file may come from anyone, and HDF5 lets it name other files: by external links, virtual data sets
and external raw storage. Soft links may lead to such links. h5py follows all of them, even to
answer whether a name exists. So every item is reached through :func:`item_of`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.hdf5_heaps import ObjectChecks
from kpstore.errors import InvalidError

MOST_DEEP = 100
"""Deepest group that is looked for: HDF5's own search of a file ends the process in a deep one."""

_KINDS = {
    h5py.h5l.TYPE_SOFT: "a soft link",
    h5py.h5l.TYPE_EXTERNAL: "a link into another file",
}


def has_item(group: h5py.Group, name: str) -> bool:
    """Return whether a name is taken in a group, by a link of any kind, without following it."""
    return bool(group.id.links.exists(name.encode()))


def item_of(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return an item by its name or path below a group.

    Raises
    ------
    KeyError
        If it does not exist.
    InvalidError
        If it, or a group on the way to it, is a link, or its values lie in other files.
    CorruptError
        If free space of names leads back to itself.
    """
    found: h5py.Group | h5py.Dataset = group
    checks = ObjectChecks(group)
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(found, h5py.Group) or not has_item(found, part):
            raise KeyError(f"{name!r} is missing in {group.name}")
        link = found.id.links.get_info(part.encode())
        if link.type != h5py.h5l.TYPE_HARD:
            what = _KINDS.get(link.type, "a link of an unknown kind")
            raise InvalidError(
                f"{group.file.filename}: {name!r} is {what}, which is not followed, as the file "
                "may come from anyone; copy what it leads to into the file"
            )
        checks.look(link.u)
        found = found[part]
    if isinstance(found, h5py.Dataset) and _lies_elsewhere(found):
        raise InvalidError(
            f"{group.file.filename}: the values of {name!r} lie in other files, which are not "
            "read, as the file may come from anyone; copy them into one dataset"
        )
    return found


def remove_item(group: h5py.Group, name: str) -> None:
    """Remove an item, errors as those of :func:`item_of`."""
    item_of(group, name)  # the library opens what it removes
    del group[name]


def _lies_elsewhere(array: h5py.Dataset) -> bool:
    plist = array.id.get_create_plist()
    return bool(plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count() > 0)


def look_through(item: h5py.Group | h5py.Dataset) -> None:
    """Look at all that is below an item before the library does, errors as :func:`datasets_of`."""
    if isinstance(item, h5py.Group):
        for _ in datasets_of(item):
            pass


def datasets_of(top: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield all datasets below a group with their paths, each once, without following links.

    Raises
    ------
    InvalidError
        If groups are nested too deeply.
    CorruptError
        If free space of names leads back to itself.
    """
    seen, checks = set[int](), ObjectChecks(top)
    left: list[tuple[str, h5py.Group, int]] = [("", top, 0)]
    while left:
        path, group, depth = left.pop()
        if depth > MOST_DEEP:
            raise InvalidError(
                f"{top.file.filename}: its groups are nested more than {MOST_DEEP} deep; copy what "
                "is to be read nearer to the root"
            )
        for name in group:
            raw = name.encode() if isinstance(name, str) else name  # what is not UTF-8
            if b"/" in raw or raw in (b"", b"."):
                raise InvalidError(
                    f"{top.file.filename}: it holds the name {name!r}, which HDF5 would follow as "
                    "a path, into other files as well; copy what is to be read into a new file"
                )
            link = group.id.links.get_info(raw)
            if link.type != h5py.h5l.TYPE_HARD or link.u in seen:
                continue
            seen.add(link.u)
            checks.look(link.u)
            item, full = group[name], path + raw.decode(errors="backslashreplace")
            if isinstance(item, h5py.Group):
                left.append((f"{full}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                yield full, item


_MOST_INFLATED = 1032
"""Bytes that one byte of deflate can become at most."""
_STEP_BYTES = 2**20


def read_numbers(array: h5py.Dataset, start: int, stop: int, most_bytes: int) -> NDArray[Any]:
    """Return rows of a data set whose values have a fixed length, (stop - start, …).

    Parameters
    ----------
    most_bytes : memory that a chunk may take if it becomes more than it should be.

    Raises
    ------
    ValueError
        If a chunk becomes more than it should be, for which HDF5's library has no bound.
    """
    if array.compression == "gzip":
        _check_inflated(array, start, stop, most_bytes)
    return np.asarray(array[start:stop])


def bytes_of(array: h5py.Dataset, n_rows: int) -> int:
    """Return the memory of some rows of a data set, and of a chunk while it is decoded."""
    chunk = 0 if array.chunks is None else math.prod(array.chunks)
    return int((n_rows * math.prod(array.shape[1:]) + chunk) * array.dtype.itemsize)


def _check_inflated(array: h5py.Dataset, start: int, stop: int, most_bytes: int) -> None:
    chunk_bytes = bytes_of(array, 0)
    if min(array.id.get_storage_size(), 2 * chunk_bytes) * _MOST_INFLATED <= most_bytes:
        return
    rows = slice(start, stop), *(slice(None) for _ in array.shape[1:])
    for chunk in array.iter_chunks(rows) if stop > start else ():
        corner = tuple(
            part.start // size * size for part, size in zip(chunk, array.chunks, strict=True)
        )
        info = array.id.get_chunk_info_by_coord(corner)
        if info.byte_offset is None or info.size * _MOST_INFLATED <= most_bytes:
            continue
        packed, inflater, n_bytes = array.id.read_direct_chunk(corner)[1], zlib.decompressobj(), 0
        while packed and not inflater.eof:
            n_bytes += len(inflater.decompress(packed, _STEP_BYTES))
            packed = inflater.unconsumed_tail
            if n_bytes > chunk_bytes + _STEP_BYTES:
                raise ValueError(f"the chunk at {corner} becomes more than {chunk_bytes:,} bytes")
