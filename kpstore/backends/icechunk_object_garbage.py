"""Removing versions of a repository in object storage, and the objects that no version needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import icechunk

from kpstore.backends.garbage import Before, Garbage
from kpstore.backends.icechunk_errors import translated
from kpstore.backends.icechunk_garbage import Histories
from kpstore.backends.icechunk_home import CONFIG
from kpstore.backends.icechunk_manifests import chunks_of_manifest
from kpstore.backends.icechunk_names import FOLDERS
from kpstore.backends.object_clients import icechunk_storage
from kpstore.backends.object_files import Stored
from kpstore.errors import CorruptError

if TYPE_CHECKING:
    from kpstore.backends.icechunk_objects import IcechunkObjects

YOUNG = timedelta(days=1)
"""Objects of this age stay in any case: a writer, of which nothing is known here, may be about to
commit them."""


def collect(home: IcechunkObjects, before: Before, *, apply: bool) -> Garbage:
    """Remove old versions and unneeded objects, under the commit lock.

    See :meth:`kpstore.backends.garbage.Collector.collect_garbage`.
    """
    old = min(before.files, datetime.now(UTC) - YOUNG)
    tips = sorted({*home.branches().values(), *home.tags().values()})
    with translated(home.location):
        # Anew, because an open repository goes on to show what it has read before.
        repository = icechunk.Repository.open(icechunk_storage(home.files.address), config=CONFIG)
        histories = Histories.read(repository, tips, before.versions)
        objects = _objects(home)
        needed = _needed(home, repository, histories)
        gone = {name for name, one in objects.items() if name not in needed and one.time < old}
        size = sum(one.size for one in objects.values())
        freed = sum(objects[name].size for name in gone)
        if apply:
            repository.expire_snapshots(before.versions)
            repository.garbage_collect(old)
            home.close()
            freed = size - sum(one.size for one in _objects(home).values())
    versions = {name.rpartition("/")[2] for name in gone if name.startswith("snapshots/")}
    versions |= histories.versions.keys() - histories.kept
    return Garbage(tuple(sorted(versions)), len(histories.kept), size, freed)


def _objects(home: IcechunkObjects) -> Mapping[str, Stored]:
    """Return the objects of versions and chunks by name."""
    return {one.name: one for folder in FOLDERS for one in home.files.names(folder)}


def _needed(
    home: IcechunkObjects, repository: icechunk.Repository, histories: Histories
) -> Collection[str]:
    """Return the objects that the kept versions need."""
    needed: set[str] = set()
    manifests: set[str] = set()
    for version in histories.oldest_first():
        needed |= {f"snapshots/{version}", f"transactions/{version}"}
        info = next(repository.ancestry(snapshot_id=version))
        manifests |= {manifest.id for manifest in info.manifests}
    for manifest in sorted(manifests):
        chunks = chunks_of_manifest(home.root / "manifests" / manifest)
        if chunks is None:
            raise CorruptError(
                f"{home.location}: manifests/{manifest} cannot be read, so nothing was removed; "
                "see 'kpstore verify --all'"
            )
        needed.add(f"manifests/{manifest}")
        needed.update(f"chunks/{chunk}" for chunk in chunks)
    return needed
