"""A store in one HDF5 file, every version of it, readable with plain h5py.

An HDF5 file does not survive a process that dies while it writes. So a commit changes a copy of the
file, which replaces the file when it is complete (docs/decisions/006). A reader keeps the file that
it has opened. The price is one copy for each commit, which costs nothing on file systems that share
blocks (XFS, Btrfs).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import h5py

from kpstore.backends import hdf5_layout as layout
from kpstore.backends import refusals
from kpstore.backends.asides import aside_of, free_room, hold_room, make_durable
from kpstore.backends.base import MAIN, Capabilities, Commit, plain
from kpstore.backends.garbage import Before, Change, Garbage, kept_versions
from kpstore.backends.hdf5_changes import OPEN
from kpstore.backends.hdf5_commits import HDF5WriteSession, new_id
from kpstore.backends.hdf5_file import HDF5ReadSession, StoreFile
from kpstore.backends.hdf5_garbage import copy_versions
from kpstore.backends.hdf5_items import item_of
from kpstore.backends.hdf5_records import (
    DAMAGE,
    FORMAT,
    HOME,
    Names,
    Record,
    damage_told,
    has_checksums,
    read_commit,
    read_delta,
    read_names,
    read_record,
    reason_of,
    write_names,
    write_record,
)
from kpstore.backends.hdf5_tree import Tree, newest_tree, older_tree, read_tree, write_tree
from kpstore.backends.locks import SharedLock, lock_alone
from kpstore.errors import (
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from kpstore.backends.base import Backend

_LONGEST_NAME = 255


class HDF5Backend(StoreFile):
    """A store in a file whose name ends with ``.h5`` or ``.hdf5``."""

    capabilities = Capabilities(branches=False, parallel_writers=False)

    def __reduce__(self) -> tuple[type[HDF5Backend], tuple[str]]:
        return HDF5Backend, (str(self._path),)

    def create(self, attrs: Mapping[str, object], message: str) -> str:
        """Create the file."""
        self.check_free()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_of(self._path, "writing")
        first = Commit.now(new_id(), None, message, None)
        try:
            with h5py.File(aside, "x", **OPEN) as file:
                hold_room(aside, 0, self.location)
                file.create_group(HOME).attrs.update(
                    # A kpstore that knows only format 1 reads `head`, opens that version, and
                    # refuses the format_version of its root.
                    {"format": FORMAT, "head": first.id, "tags": "{}", "used_tags": "[]"}
                )
                write_names(file, Names(first.id, {}, ()))
                kept = plain(attrs)
                layout.set_attrs(file, kept, ())
                write_record(file, first, {"touched": [], **write_tree(file, Tree(kept, {}))})
            free_room(aside)
            make_durable(aside)
            _place(aside, self)
        finally:
            aside.unlink(missing_ok=True)
        return first.id

    def check_free(self) -> None:
        """Raise :class:`ExistsError` unless this place is free."""
        if len(os.fsencode(self.sidecar_dir.name)) > _LONGEST_NAME:
            raise InvalidError(
                f"{self.location}: the folder for its locks would need a name of more than "
                f"{_LONGEST_NAME} bytes; choose a shorter name"
            )
        if self._path.exists() or self._path.is_symlink():
            raise ExistsError(f"{self.location} already exists; choose another path for the store")

    def move(self, location: str) -> None:
        """Rename the file."""
        target = HDF5Backend(location)
        target.check_free()
        self._require()
        target._path.parent.mkdir(parents=True, exist_ok=True)
        _place(self._path, target)
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)

    def remove(self) -> None:
        """Remove the file, and the copies of killed writers beside it."""
        if self.exists():
            self._path.unlink()
        self._remove_left_overs()
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)
        self.close()

    # -- versions ----------------------------------------------------------------------------------

    def session(self, snapshot: str) -> HDF5ReadSession:
        """Open a version by its id."""
        file = self.file()
        self.check_version(file, snapshot)
        return HDF5ReadSession(self, file, snapshot)

    def begin(self, branch: str = MAIN) -> HDF5WriteSession:
        """Start changes to the newest version."""
        self._check_branch(branch)
        self.file()
        hold = SharedLock(self.sessions_lock)
        file = self.file()
        return HDF5WriteSession(self, file, self.names(file).head, hold)

    def _check_branch(self, name: str) -> None:
        if name != MAIN:
            raise NotFoundError(
                f"branch {name!r} of {self.location} not found; an HDF5 store has {MAIN!r} only"
            )

    def branches(self) -> dict[str, str]:
        """Return the only branch."""
        return {MAIN: self.names(self.file()).head}

    def create_branch(self, name: str, snapshot: str) -> None:
        """Raise :class:`UnsupportedError`: a file has no branches."""
        self.check_version(self.file(), snapshot)
        raise UnsupportedError(
            f"{self.location} is an HDF5 store, which has no branches; name the version with a "
            f"tag, or convert it: kpstore convert {self.location} STORE.kps"
        )

    def delete_branch(self, name: str) -> None:
        """Refuse: there is no other branch than ``main``."""
        self._check_branch(name)
        raise refusals.main_stays(name, self.location)

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make an earlier version the newest again; later versions stay readable."""
        self._check_branch(name)
        self.check_version(self.file(), snapshot)
        with self.commit_lock():
            file = self.file()
            refusals.check_newest(name, self.names(file).head, expected, self.location)
            if snapshot == expected:
                return
            changes = HDF5WriteSession(self, file, expected)
            try:
                changes.restore(HDF5ReadSession(self, file, snapshot))
            finally:
                changes.discard()

    # -- tags --------------------------------------------------------------------------------------

    def tags(self) -> dict[str, str]:
        """Return tags and the ids of their versions."""
        return dict(sorted(self.names(self.file()).tags.items()))

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version permanently."""
        with self.commit_lock():
            self.check_version(self.file(), snapshot)
            with self._changed_copy() as file:
                names = self.names(file)
                if name in names.used_tags:
                    raise refusals.tag_taken(name, self.location)
                tags, used = {**names.tags, name: snapshot}, (*names.used_tags, name)
                write_names(file, Names(names.head, tags, used))

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock(), self._changed_copy() as file:
            names = self.names(file)
            if name not in names.tags:
                raise refusals.no_name("tag", name, names.tags, self.location)
            tags = {tag: snapshot for tag, snapshot in names.tags.items() if tag != name}
            write_names(file, Names(names.head, tags, names.used_tags))

    def replace_tagged(self, versions: Collection[str], change: Change) -> None:
        """Let all tags of each of these versions name the one that ``change`` makes of it.

        A file has one branch, so all of it happens in a copy, whose newest version is each of them
        in turn.
        """
        if not versions:
            return
        with lock_alone(self.sessions_lock, location=self.location), self.commit_lock():
            path = self.copy_aside(self.file())
            work = HDF5Backend(str(path))
            try:
                head = work.branches()[MAIN]
                for version in versions:
                    work.reset_branch(MAIN, version, expected=work.branches()[MAIN])
                    target = change(cast("Backend", work), MAIN)
                    with work._changed_copy() as file:
                        names = self.names(file)
                        tags = {t: target if v == version else v for t, v in names.tags.items()}
                        write_names(file, replace(names, tags=tags))
                work.reset_branch(MAIN, head, expected=work.branches()[MAIN])
                work.close()
                shutil.rmtree(work.sidecar_dir, ignore_errors=True)
                self.replace_by(path)
            finally:
                work.remove()

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with names, records and tables of checksums."""
        yield from _examine(self.file())

    @contextmanager
    def _changed_copy(self) -> Iterator[h5py.File]:
        """Yield a copy of the file, which replaces it unless the block raises an error."""
        work = self.copy_aside(self.file())
        try:
            with h5py.File(work, "r+", **OPEN) as file:
                yield file
            self.replace_by(work)
        finally:
            work.unlink(missing_ok=True)

    def collect_garbage(self, before: Before, *, apply: bool) -> Garbage:
        """Write the file anew without what no kept version needs; it replaces the old one."""
        self.file()
        with lock_alone(self.sessions_lock, location=self.location), self.commit_lock():
            file = self.file()
            self._refuse_damage(file)
            versions, names = item_of(file, f"{HOME}/versions"), self.names(file)
            about = {snapshot: read_commit(file, snapshot) for snapshot in versions}
            kept = kept_versions(
                [names.head, *names.tags.values()],
                lambda snapshot: (about[snapshot].parent, about[snapshot].time),
                before.versions,
            )
            kept |= {snapshot for snapshot in about if about[snapshot].time >= before.files}
            n_bytes = sum(path.stat().st_size for path in (self._path, *self.left_overs()))
            if apply:
                self._remove_left_overs()
            work = self.copy_aside(file, empty=True)
            try:
                with damage_told(self.location), h5py.File(work, "w", **OPEN) as made:
                    copy_versions(file, made, kept)
                with h5py.File(work, "r") as made:
                    self._refuse_damage(made)
                freed = n_bytes - work.stat().st_size
                if apply:
                    self.replace_by(work)
            finally:
                work.unlink(missing_ok=True)
        return Garbage(tuple(sorted(about.keys() - kept)), len(kept), n_bytes, freed)

    def _refuse_damage(self, file: h5py.File) -> None:
        for problem in _examine(file):
            raise CorruptError(
                f"{self.location}: {problem}; nothing was removed, see 'kpstore verify --all "
                f"{self.location}'"
            )


def _place(file: Path, backend: HDF5Backend) -> None:
    """Move a file by a second name, which fails if the place is taken, unlike a rename."""
    try:
        os.link(file, backend._path)
    except FileExistsError:
        backend.check_free()
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # On a file system without second names (exFAT, some network drives), check first.
        backend.check_free()
        os.replace(file, backend._path)
    make_durable(backend._path.parent)


# -- examining -------------------------------------------------------------------------------------


def _examine(file: h5py.File) -> Iterator[str]:
    """Yield what is wrong, one line for each problem, which names the version."""
    try:
        names, versions = read_names(file), sorted(item_of(file, f"{HOME}/versions"))
    except DAMAGE as error:
        yield f"names of versions cannot be read: {reason_of(error)}"
        return
    records: dict[str, Record] = {}
    for snapshot in versions:
        try:
            records[snapshot] = read_record(file, snapshot)
        except DAMAGE as error:
            yield f"version {snapshot}: its record cannot be read: {reason_of(error)}"
    yield from _references(names, set(versions), records)
    yield from _trees(file, names.head, versions, records)


def _references(names: Names, versions: set[str], records: dict[str, Record]) -> Iterator[str]:
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
    circular: set[str | None] = set()  # each version is visited once, however long the circle
    for start in sorted(parents):
        at: str | None = start
        way: set[str | None] = set()
        while at in parents and at not in sound and at not in circular and at not in way:
            way.add(at)
            at = parents[at]
        if at in way or at in circular:
            circular.update(way)
            yield f"version {start}: it follows itself"
        else:
            sound.update(way)


def _trees(
    file: h5py.File, head: str, versions: list[str], records: dict[str, Record]
) -> Iterator[str]:
    """Read every version: the newest, those that are described by it, and so on."""
    has_tables = has_checksums(file)
    bases: dict[str, str] = {}
    for snapshot in versions:
        if snapshot == head:
            continue
        try:
            bases[snapshot] = read_delta(file, snapshot)[1].base
        except DAMAGE as error:
            yield f"version {snapshot}: what differs in it cannot be read: {reason_of(error)}"
    try:
        newest = newest_tree(file) if has_tables else read_tree(file, head)
    except DAMAGE as error:
        yield f"version {head}: its description cannot be read: {reason_of(error)}"
        return
    described_by = _longest_first(head, bases)
    reached = {head}
    left: list[tuple[str, Tree | None]] = [(head, None)]
    while left:
        snapshot, base = left.pop()
        reached.add(snapshot)
        try:
            if base is None:
                tree = newest
            else:
                tree = older_tree(base, *read_delta(file, snapshot), has_tables=has_tables)
        except DAMAGE as error:
            yield f"version {snapshot}: it cannot be put together: {reason_of(error)}"
            continue
        if has_tables and snapshot in records:
            yield from _compare(snapshot, tree, records[snapshot])
        left += ((other, tree) for other in described_by[snapshot])
    for snapshot in sorted(bases.keys() - reached):
        what = f"it is described by version {bases[snapshot]}, which leads nowhere"
        yield f"version {snapshot}: {what}"


def _longest_first(head: str, bases: dict[str, str]) -> dict[str, list[str]]:
    """Return the versions that each version describes, that with the most behind it first.

    The last one is put together first. So while the longest branch is read, which is last, nothing
    keeps its base in memory, and only a few versions are there at a time, however many there are.
    """
    found: dict[str, list[str]] = {version: [] for version in (head, *bases, *bases.values())}
    for snapshot, base in bases.items():
        found[base].append(snapshot)
    order = [head]
    for snapshot in order:  # grows: all that the newest version leads to, each after its base
        order += found[snapshot]
    behind = dict.fromkeys(order, 1)
    for snapshot in reversed(order[1:]):
        behind[bases[snapshot]] += behind[snapshot]
    for snapshot in order:
        found[snapshot].sort(key=lambda version: -behind[version])
    return found


def _compare(snapshot: str, tree: Tree, record: Record) -> Iterator[str]:
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
