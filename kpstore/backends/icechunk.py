"""Zarr v3 arrays in an Icechunk repository on a local directory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import icechunk

from kpstore.backends import refusals
from kpstore.backends.asides import (
    aside_of,
    left_overs,
    make_durable,
    replace_file,
    sync_disk,
)
from kpstore.backends.base import MAIN, Capabilities
from kpstore.backends.garbage import WORKING, Before, Change, Garbage
from kpstore.backends.icechunk_directory import IcechunkDirectory
from kpstore.backends.icechunk_errors import first_line, guard_fork, translated, translation
from kpstore.backends.icechunk_names import Kind, Names, encode, read_refs
from kpstore.backends.icechunk_records import VersionRecords
from kpstore.backends.icechunk_versions import IcechunkVersions, first_version
from kpstore.backends.locks import SharedLock, lock_alone, looking_lock
from kpstore.errors import CorruptError, ExistsError
from kpstore.visible import logger

if TYPE_CHECKING:
    from kpstore.backends.base import Backend

_log = logger(__name__)


class IcechunkBackend(IcechunkVersions, IcechunkDirectory):
    """A store in a local directory."""

    capabilities = Capabilities(branches=True, parallel_writers=True)

    def __reduce__(self) -> tuple[type[IcechunkBackend], tuple[str]]:
        return IcechunkBackend, (str(self.path),)

    def create(self, attrs: Mapping[str, object], message: str) -> str:
        """Create the directory and an empty store in it."""
        guard_fork()
        target = _free_place(self.location)
        # Built beside its place and renamed, so that a kill leaves either no store or a whole one.
        for left_over in left_overs(target, "creating"):
            shutil.rmtree(left_over, ignore_errors=True)
        aside = aside_of(target, "creating")
        aside.mkdir(parents=True)
        try:
            with translated(self.location, "no store was made"):
                snapshot = self._create_at(aside, attrs, message)
            sync_disk(aside)
            _rename(aside, target, self.location)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return snapshot

    def _create_at(self, aside: Path, attrs: Mapping[str, object], message: str) -> str:
        repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(aside)))
        snapshot = first_version(repository, attrs, message)
        VersionRecords(aside, self.location, lambda: repository).committed(MAIN, snapshot)
        return snapshot

    def move(self, location: str) -> None:
        """Rename the directory."""
        _rename(self.path, _free_place(location), location)
        self.close()

    def remove(self) -> None:
        """Remove the directory."""
        if self.exists():
            shutil.rmtree(self.path)
        self.close()

    def _check_snapshot(self, snapshot: str) -> None:
        self.records.check_snapshot(snapshot)

    def _check_answers(self, snapshot: str) -> None:
        """Do nothing: a disk says itself what is wrong."""

    def _hold(self) -> SharedLock:
        return SharedLock(self.sessions_lock)

    def _given(self, branch: str) -> str:
        return read_refs(self.path, "branch")[branch].given

    def branches(self) -> Names:
        """Return branches and the ids of their newest versions.

        Looking up a damaged one raises :class:`CorruptError`.
        """
        return self._names("branch")

    def tags(self) -> Names:
        """Return tags and the ids of their versions.

        Looking up a damaged one raises :class:`CorruptError`.
        """
        return self._names("tag")

    def _names(self, kind: Kind) -> Names:
        self._repo()
        names = self.records.names(kind)
        if names.damaged:  # unless another process is in the middle of a change
            with self._quiet():
                names = self.records.names(kind)
        for problem in names.damaged.values():
            if problem not in self._told:  # because lists of names omit it
                self._told.add(problem)
                _log.warning("%s", problem)
        return names

    def _quiet(self) -> AbstractContextManager[None]:
        """Exclude commits while reading."""
        return looking_lock(self.sidecar_dir / "commit.lock")

    def create_branch(self, name: str, snapshot: str) -> None:
        """Create a branch at a version."""
        given = encode("branch", name)
        with self.commit_lock():
            names = self.records.names("branch")
            if name in names:
                raise refusals.branch_taken(name, self.location)
            target = self.session(snapshot).snapshot
            with translated(self.location):
                self._repo().create_branch(given, target)
            self._note_name("branch", name, target)

    def delete_branch(self, name: str) -> None:
        """Remove a branch; its versions stay until garbage is collected."""
        with self.commit_lock():
            branches = self.records.names("branch")
            if name not in branches:
                raise refusals.no_name("branch", name, branches, self.location)
            if name == MAIN:
                raise refusals.main_stays(name, self.location)
            # First, and on the disk: after a kill or a power cut at this point, the branch is there
            # or not, and either is right.
            self.records.named("branch", name, ahead=True)
            sync_disk(self.path)
            with translated(self.location):
                self._repo().delete_branch(read_refs(self.path, "branch")[name].given)
            sync_disk(self.path)

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch."""
        with self.commit_lock(), translated(self.location):
            newest = self.newest(name, self.records.names("branch"))
            refusals.check_newest(name, newest, expected, self.location)
            target = self.session(snapshot).snapshot
            # After a kill or a power cut at this point, either version is right.
            self.records.named("branch", name, expected, target, ahead=True)
            sync_disk(self.path)
            self.move_branch(name, newest, target)
            self._note_name("branch", name, target)

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version permanently: the name of a deleted tag is never used again."""
        given = encode("tag", name)
        with self.commit_lock():
            ref = read_refs(self.path, "tag").get(name)
            # An empty folder is left where Icechunk could not write, or was killed.
            is_taken = ref is not None and (ref.is_deleted or (self.path / ref.file).exists())
            if is_taken or name in self.records.names("tag"):
                raise refusals.tag_taken(name, self.location)
            target = self.session(snapshot).snapshot
            try:
                self._repo().create_tag(given, target)
            except icechunk.IcechunkError as error:
                told = translation(error, self.location)
                if isinstance(told, OSError):
                    raise told from error
                raise ExistsError(
                    f"tag {name!r} of {self.location} cannot be created: {first_line(error)}"
                ) from None
            self._note_name("tag", name, target)

    def _note_name(self, kind: Kind, name: str, version: str) -> None:
        """Record a new name in the ledger, after reading it back."""
        ref = read_refs(self.path, kind).get(name)
        if ref is None or ref.version != version:
            raise CorruptError(
                f"{kind} {name!r} of {self.location} was created but cannot be read back"
            )
        self.records.named(kind, name, version)
        sync_disk(self.path)

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock():
            tags = self.records.names("tag")
            if name not in tags:
                raise refusals.no_name("tag", name, tags, self.location)
            # Last, unlike for branches: what Icechunk leaves of a deleted tag says so itself, but a
            # tag that is there again after the ledger has called it deleted is damage.
            with translated(self.location):
                self._repo().delete_tag(read_refs(self.path, "tag")[name].given)
            sync_disk(self.path)
            self.records.named("tag", name)
            sync_disk(self.path)

    def replace_tagged(self, versions: Collection[str], change: Change) -> None:
        """Let all tags of each of these versions name the one that ``change`` makes of it."""
        if WORKING in self.branches():  # of a call that was killed
            self.delete_branch(WORKING)
        for version in versions:
            self.create_branch(WORKING, version)
            target = change(cast("Backend", self), WORKING)
            for tag in [tag for tag, named in self.tags().items() if named == version]:
                self._move_tag(tag, version, target)
            self.delete_branch(WORKING)

    def _move_tag(self, name: str, version: str, target: str) -> None:
        """Write the file of a tag anew, which Icechunk itself never does."""
        with self.commit_lock():
            ref = read_refs(self.path, "tag").get(name)
            if ref is None or ref.is_deleted or ref.version != version:
                return  # somebody has just deleted it
            # After a kill or a power cut at this point, either version is right.
            self.records.named("tag", name, version, target, ahead=True)
            sync_disk(self.path)
            content = json.dumps({"snapshot": target}, separators=(",", ":")).encode()
            replace_file(self.path / ref.file, content, near=self.sidecar_dir / "tag")
            self._note_name("tag", name, target)

    def collect_garbage(self, before: Before, *, apply: bool) -> Garbage:
        """Remove what no kept version needs."""
        guard_fork()
        self._repo()
        with (
            lock_alone(self.sessions_lock, location=self.location) as changed,
            self.commit_lock(),
        ):
            for problem in self.records.examine(nullcontext()):
                raise CorruptError(
                    f"{problem}; nothing was removed, see 'kpstore verify --all {self.location}'"
                )
            # Imported here, as whoever opens a store waits for what it never uses.
            from kpstore.backends.icechunk_garbage import collect

            try:
                return collect(self.path, self.location, before, apply=apply)
            finally:
                if apply:  # tells whoever has the repository open
                    changed.truncate(0)
                    os.utime(changed.fileno())

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with names and with the files that describe versions."""
        try:
            self._repo()
        except CorruptError as error:
            yield str(error)
            return
        yield from self.records.examine(self._quiet())


def _free_place(location: str) -> Path:
    """Return the path of a new store: free, an empty folder, or a link to one."""
    target = Path(location).absolute().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _taken(location)
    return target


def _taken(location: str) -> ExistsError:
    return ExistsError(
        f"{location} already exists and is not empty; choose another path for the store"
    )


def _rename(folder: Path, target: Path, location: str) -> None:
    try:
        folder.rename(target)
        make_durable(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _taken(location) from None  # by another process in the meantime
        raise
