"""Checks of an HDF5 store's names, records and tables of checksums, but not of its chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py

from kpstore.backends.hdf5_records import (
    DAMAGE,
    HOME,
    Names,
    format_of,
    read_json,
    read_names,
    read_record,
    reason_of,
)
from kpstore.backends.hdf5_tree import Tree, newest_tree, older_tree, read_tree


def examine(file: h5py.File, location: str) -> Iterator[str]:
    """Yield what is wrong, one line each, with the version concerned."""
    try:
        names, versions = read_names(file), sorted(file[HOME]["versions"])
        has_tables = format_of(file) > 1
    except DAMAGE as error:
        yield f"names of versions cannot be read: {reason_of(error)}"
        return
    records: dict[str, dict[str, Any]] = {}
    for snapshot in versions:
        try:
            records[snapshot] = read_record(file, snapshot)
        except DAMAGE as error:
            yield f"version {snapshot}: its record cannot be read: {reason_of(error)}"
    yield from _references(names, set(versions), records)
    yield from _trees(file, names.head, versions, records, has_tables=has_tables)


def _references(
    names: Names, versions: set[str], records: dict[str, dict[str, Any]]
) -> Iterator[str]:
    if names.head not in versions:
        yield f"the newest version is {names.head}, which is missing"
    for tag, snapshot in sorted(names.tags.items()):
        if snapshot not in versions:
            yield f"tag {tag!r} names version {snapshot}, which is missing"
    for snapshot, record in sorted(records.items()):
        parent = record.get("parent")
        if parent is not None and parent not in versions:
            yield f"version {snapshot}: it follows version {parent}, which is missing"
    yield from _circles({snapshot: record.get("parent") for snapshot, record in records.items()})


def _circles(parents: dict[str, str | None]) -> Iterator[str]:
    """Yield versions whose ancestors have no end."""
    sound: set[str | None] = set()
    for start in sorted(parents):
        at: str | None = start
        way: set[str | None] = set()
        while at in parents and at not in sound and at not in way:
            way.add(at)
            at = parents[at]
        if at in way:
            yield f"version {start}: it follows itself"
        else:
            sound.update(way)


def _trees(
    file: h5py.File,
    head: str,
    versions: list[str],
    records: dict[str, dict[str, Any]],
    *,
    has_tables: bool,
) -> Iterator[str]:
    """Read every version, from the newest to those that are described by it, and so on."""
    described_by: dict[str, list[str]] = {}
    abouts: dict[str, dict[str, Any]] = {}
    for snapshot in versions:
        if snapshot == head:
            continue
        try:
            abouts[snapshot] = read_json(
                file[HOME]["versions"][snapshot]["delta"], "about", format_of(file)
            )
            described_by.setdefault(abouts[snapshot]["base"], []).append(snapshot)
        except DAMAGE as error:
            yield f"version {snapshot}: what differs in it cannot be read: {reason_of(error)}"
    try:
        newest = newest_tree(file) if has_tables else read_tree(file, head)
    except DAMAGE as error:
        yield f"version {head}: its description cannot be read: {reason_of(error)}"
        return
    reached, left = set(), [(head, newest)]
    while left:
        snapshot, tree = left.pop()
        reached.add(snapshot)
        if has_tables and snapshot in records:
            yield from _compare(snapshot, tree, records[snapshot])
        for other in described_by.get(snapshot, []):
            try:
                group = file[HOME]["versions"][other]["delta"]
                left.append((other, older_tree(tree, group, abouts[other], has_tables=has_tables)))
            except DAMAGE as error:
                reached.add(other)
                yield f"version {other}: it cannot be put together: {reason_of(error)}"
    for snapshot in sorted(abouts.keys() - reached):
        yield (
            f"version {snapshot}: it is described by version {abouts[snapshot].get('base')}, which "
            "leads nowhere"
        )


def _compare(snapshot: str, tree: Tree, record: dict[str, Any]) -> Iterator[str]:
    try:
        tree.compare(record)
    except DAMAGE as error:
        yield f"version {snapshot}: {reason_of(error)}"
        return
    for name, array in sorted(tree.arrays.items()):
        try:
            if array.table is None:
                raise ValueError("it has no checksums")
        except DAMAGE as error:
            yield f"version {snapshot}: {name!r}: {reason_of(error)}"
