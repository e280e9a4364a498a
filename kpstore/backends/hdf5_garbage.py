"""Writing an HDF5 store's file anew with some of its versions, as space in a file is never freed.

Everything is copied as it is, except for a version whose base is not copied, or which has arrays of
its own: its delta is written anew on the nearest base that is, without the chunks that both have.
"""

from __future__ import annotations

from collections.abc import Collection

import h5py
import numpy as np

from kpstore.backends import hdf5_layout as layout
from kpstore.backends.checksums import same_bits
from kpstore.backends.hdf5_items import has_item, item_of, look_through
from kpstore.backends.hdf5_records import (
    DAMAGE,
    HOME,
    ArrayDelta,
    Delta,
    deltas,
    has_checksums,
    read_names,
    read_record,
    write_delta,
    write_json,
)
from kpstore.backends.hdf5_tree import Piece, StoredArray, Tree, read_tree


def copy_versions(source: h5py.File, target: h5py.File, kept: set[str]) -> None:
    """Copy a store with the versions ``kept``, among them the newest and all that have tags.

    A version follows the nearest kept one of those that it followed.

    Parameters
    ----------
    target : an empty file.

    Raises
    ------
    OSError, ValueError, …
        One of ``DAMAGE`` if records, or arrays that are copied whole, cannot be read. Chunks that
        are damaged stay so.
    """
    head = read_names(source).head
    layout.copy_attrs(source, target)
    old, home = item_of(source, HOME), target.create_group(HOME)
    layout.copy_attrs(old, home)
    for name in old:
        if name != "versions":
            _copy_bytes(old, home, name)
    _copy_items(source, target, but=HOME)
    home.create_group("versions")
    for snapshot in sorted(kept):
        _copy_version(source, target, snapshot, head, kept)


def _copy_version(
    source: h5py.File, target: h5py.File, snapshot: str, head: str, kept: set[str]
) -> None:
    new = target[HOME]["versions"].create_group(snapshot)
    record = read_record(source, snapshot)
    parent = record["parent"]
    while parent is not None and parent not in kept:
        parent = read_record(source, parent)["parent"]
    write_json(new, "record", {**record, "parent": parent})
    if snapshot == head:
        return
    steps = [delta for _, delta in deltas(source, snapshot, head)]
    base = next(delta.base for delta in steps if delta.base in kept)
    # Arrays that the next version lacked or has written anew, perhaps with many of the same rows
    has_whole = any(array is not None and array.whole for array in steps[0].arrays.values())
    group = new.create_group("delta")
    for name in ("chunks", "arrays"):
        group.create_group(name)
    if base == steps[0].base and not has_whole:
        old = item_of(source, f"{HOME}/versions/{snapshot}/delta")
        for name in ("about", "checksums"):
            if has_item(old, name):
                _copy_bytes(old, group, name)
        for name in ("chunks", "arrays"):
            _copy_items(item_of(old, name), group[name])
    else:
        _write_difference(group, read_tree(source, snapshot), base, read_tree(source, base))


# -- a delta on another base -----------------------------------------------------------------------


def _write_difference(group: h5py.Group, tree: Tree, base: str, of_base: Tree) -> None:
    """Store how a version differs from another one, with all chunks that the other lacks."""
    delta = Delta(base, None if tree.attrs == of_base.attrs else tree.attrs)
    for name in sorted(tree.arrays.keys() | of_base.arrays.keys()):
        if name not in tree.arrays:
            delta.arrays[name] = None
            continue
        array, other = tree.arrays[name], of_base.arrays.get(name)
        found = ArrayDelta(array.meta.n_rows, dict(array.meta.attrs))
        chunks: Collection[int] | None = None
        if other is not None:
            is_there = array.source.place == other.source.place
            chunks = _differing(array, other) if is_there else _unlike(array, other)
        if chunks is None:
            found.whole = True
            delta.metas[name] = layout.meta_to_json(array.meta)
            # Not the rows of later versions, which may be of a video that is being removed.
            n_rows, but = array.meta.n_rows, array.elsewhere
            layout.copy_array(array.source.array, group["arrays"], name, n_rows, but)
            chunks = sorted(array.elsewhere)
        for chunk in chunks:
            rows = _rows_of(array, chunk)
            layout.keep_chunk(group["chunks"], name, array.meta, found, chunk, rows)
        same = other is not None and not found.whole and not found.chunks
        if not (same and other is not None and array.meta == other.meta):
            delta.arrays[name] = found
    write_delta(group, delta)
    if has_checksums(group.file):
        numbers = delta.checksums(lambda name: tree.arrays[name].stored_table())
        group.create_dataset("checksums", data=numbers.astype("<u8").view(np.uint8))


def _differing(array: StoredArray, other: StoredArray) -> list[int]:
    """Return the chunks of an array that another one keeps elsewhere, or has other checksums of."""
    chunks = array.elsewhere.keys() | other.elsewhere.keys()
    found = {
        chunk
        for chunk in chunks
        if chunk < array.meta.n_chunks and _at(array.piece(chunk)) != _at(other.piece(chunk))
    }
    if array.checksums is not None and other.checksums is not None:
        table, base = array.stored_table(), other.stored_table()
        there = np.zeros_like(table)
        there[: len(base)] = base[: len(table)]
        found.update(np.flatnonzero(table != there).tolist())
    return sorted(found)


def _unlike(array: StoredArray, other: StoredArray) -> list[int] | None:
    """Return the chunks whose rows differ from those of an array that was written by itself.

    A removal writes all arrays anew, for each tag and branch, and most rows are in all of them.
    None if nothing is the same.
    """
    if array.checksums is None or other.checksums is None or _kind(array) != _kind(other):
        return None
    table, base, meta = array.stored_table(), other.stored_table(), array.meta
    chunks = range(meta.n_chunks)
    found = [
        chunk
        for chunk in chunks
        if meta.rows_of(chunk)[1] > other.meta.n_rows
        or table[chunk] != base[chunk]
        or not _same_rows(_rows_of(array, chunk), _rows_of(other, chunk))
    ]
    return found if len(found) < len(chunks) else None


def _kind(array: StoredArray) -> dict[str, object]:
    return layout.meta_to_json(layout.with_rows(array.meta, 0, {}))


def _same_rows(one: layout.Kept, other: layout.Kept) -> bool:
    if one is None or other is None:
        return one is other
    assert isinstance(one, np.ndarray)
    assert isinstance(other, np.ndarray)
    return same_bits(one, other[: len(one)])


def _at(piece: Piece) -> tuple[str, int]:
    return ("", 0) if piece.source is None else (piece.source.place, piece.chunk)


def _rows_of(array: StoredArray, chunk: int) -> layout.Kept:
    """Return the rows of a chunk as :func:`layout.keep_chunk` takes them."""
    try:
        return array.read_chunk(chunk)
    except DAMAGE:
        return layout.damaged_rows(has_checksums=array.checksums is not None)


# -- copies ----------------------------------------------------------------------------------------


def _copy_items(source: h5py.Group, target: h5py.Group, but: str = "") -> None:
    for name in source:
        if name == but:
            continue
        item = item_of(source, name)
        if layout.is_array(item):
            layout.copy_array(item, target, name)
        else:  # of another program
            look_through(item)
            source.copy(item, target, name=name)


def _copy_bytes(source: h5py.Group, target: h5py.Group, name: str) -> None:
    target.create_dataset(name, data=item_of(source, name)[()])
