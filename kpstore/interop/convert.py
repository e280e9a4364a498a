"""Copying a store to another backend: one version, or all of its history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kpstore.backends.base import MAIN, ArrayMeta, Backend, Commit, ReadSession, WriteSession
from kpstore.errors import ExistsError
from kpstore.store import format as fmt
from kpstore.store import history
from kpstore.store.copying import block_rows, write_differing
from kpstore.store.store import backend_for, moved_into_place


@dataclass(frozen=True)
class Converted:
    """Result of a conversion.

    Parameters
    ----------
    location, snapshot : the new store and its newest version.
    versions : number of versions in the new store.
    notes : what could not be carried over, one line each.
    """

    location: str
    snapshot: str
    versions: int
    notes: tuple[str, ...]


def convert(
    location: str,
    target: str,
    *,
    at: history.At = None,
    with_history: bool = False,
    on_version: Callable[[int, int], None] | None = None,
) -> Converted:
    """Copy a store to a new place, in the backend that the name of the place selects.

    The copy has the same arrays and attributes, to the bit. Its versions get new ids and times, and
    keep the old ones in their metadata (``converted_from``). It has the newest format: this is how
    a store of format 1 gets checksums by place.

    Parameters
    ----------
    at : the version to convert; the newest by default.
    with_history : whether to copy all versions that it builds upon too, with the tags that name
        them.
    on_version : called with the number of versions done, and the number of all versions.

    Raises
    ------
    ExistsError
        If ``target`` is taken.
    InvalidError
        If the store is of a format, or uses a part of it, that this kpstore does not know.
    """
    source, place = backend_for(location), backend_for(target)
    commits = list(source.history(history.resolve(source, at)))
    if place.exists():
        raise ExistsError(f"{target} already exists; choose another place for the copy")
    chosen = commits[::-1] if with_history else commits[:1]
    with moved_into_place(place) as copy:
        ids = _copy_versions(source, copy, chosen, on_version or (lambda done, total: None))
        newest = ids[chosen[-1].id]
        versions = sum(1 for _ in copy.history(newest))
        notes = _notes(source, ids, with_history)
    return Converted(target, newest, versions, notes)


def _copy_versions(
    source: Backend, copy: Backend, commits: list[Commit], on_version: Callable[[int, int], None]
) -> dict[str, str]:
    """Create each version in the copy, with the tags that name it; return new ids by old ones."""
    ids: dict[str, str] = {}
    tags = source.tags()
    before: ReadSession | None = None
    for number, commit in enumerate(commits, start=1):
        session = source.session(commit.id)
        fmt.read_root(session, source.location)
        attrs = fmt.upgraded(session.attrs())
        about = {"id": commit.id, "time": commit.time.isoformat(), "location": source.location}
        if before is None:
            ids[commit.id] = copy.create(attrs, commit.message)
        changes = copy.begin(MAIN)
        if dict(changes.attrs()) != attrs:
            changes.set_attrs(attrs)
        for name in changes.names():
            if name not in session.names():
                changes.delete(name)
        for name in session.names():
            _copy_array(before, session, changes, name)
        # A first version without arrays is the empty one that create() has made.
        ids[commit.id] = changes.commit(
            commit.message, {**commit.metadata, "converted_from": about}
        )
        for tag, snapshot in tags.items():
            if snapshot == commit.id:
                copy.create_tag(tag, ids[commit.id])
        before = session
        on_version(number, len(commits))
    return ids


def _copy_array(
    before: ReadSession | None, session: ReadSession, changes: WriteSession, name: str
) -> None:
    meta = session.meta(name)
    there = changes.meta(name) if name in changes.names() else None
    if there is not None and (_kind(there) != _kind(meta) or there.n_rows > meta.n_rows):
        changes.delete(name)
        there = None
    if there is None:
        changes.create(name, meta)
        before = None
    else:
        changes.resize(name, meta.n_rows)
        if dict(there.attrs) != dict(meta.attrs):
            changes.set_array_attrs(name, meta.attrs)
    step = block_rows(meta)
    for start in range(0, meta.n_rows, step):
        stop = min(start + step, meta.n_rows)
        values = session.read(name, start, stop)
        known = values[:0]
        if before is not None and before.meta(name).n_rows > start:
            known = before.read(name, start, min(stop, before.meta(name).n_rows))
        old = np.concatenate([known, meta.unwritten(len(values) - len(known))])
        write_differing(changes, name, start, values, old)


def _kind(meta: ArrayMeta) -> tuple[object, ...]:
    return meta.shape[1:], meta.dtype, meta.chunk_rows, meta.codec


def _notes(source: Backend, ids: dict[str, str], with_history: bool) -> tuple[str, ...]:
    notes = []
    tags = [tag for tag, snapshot in source.tags().items() if snapshot not in ids]
    branches = [name for name in source.branches() if name != MAIN]
    if tags:
        more = "" if with_history else " (--history takes more)"
        notes.append(f"tags of other versions: {', '.join(tags)}{more}")
    if branches:
        notes.append(f"branches: {', '.join(branches)}")
    return tuple(notes)
