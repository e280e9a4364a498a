"""Zarr v3 arrays in an Icechunk repository in object storage: S3, Google or Azure.

Icechunk's commits are safe there, as storage replaces an object only on conditions. What a folder
on a local disk needs beside them has another form: a reservation is an object that is renewed
(:mod:`kpstore.backends.object_lease`), and there is no ledger of names, as storage keeps its own
checksums. A new store shows when it is complete: until then an object says that it is being made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import icechunk

from kpstore.backends import refusals
from kpstore.backends.base import MAIN, Capabilities
from kpstore.backends.garbage import WORKING, Before, Change, Garbage
from kpstore.backends.icechunk_errors import first_line, guard_fork, translated, translation
from kpstore.backends.icechunk_home import CONFIG
from kpstore.backends.icechunk_manifests import Nodes
from kpstore.backends.icechunk_names import encode, file_of, is_version
from kpstore.backends.icechunk_versions import IcechunkVersions, first_version
from kpstore.backends.object_address import parse_address
from kpstore.backends.object_clients import icechunk_storage
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.object_lease import Held, Lease
from kpstore.backends.object_names import ObjectNames
from kpstore.backends.object_place import Making, delete_repository, is_incomplete
from kpstore.backends.object_reading import Copies, ObjectReader
from kpstore.backends.object_sidecar import MAIN_FILE, OWN, WRITER, ObjectSidecar
from kpstore.backends.optional import CopiesPlace
from kpstore.errors import (
    DAMAGE,
    CorruptError,
    ExistsError,
    KpstoreError,
    NotFoundError,
    UnreachableError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from kpstore.backends.base import Backend
    from kpstore.backends.icechunk_ends import LastChunk

_COMMIT = f"{OWN}commit"


class IcechunkObjects(IcechunkVersions):
    """A store in object storage.

    Parameters
    ----------
    location : its address, see :mod:`kpstore.backends.object_address`.
    building : whether it is not to show before :meth:`move` is called.
    """

    capabilities = Capabilities(branches=True, parallel_writers=True)

    def __init__(self, location: str, *, building: bool = False) -> None:
        address = parse_address(location)
        super().__init__(str(address))
        self.files = ObjectFiles(address)
        self._building = building
        self._making: Making | None = None
        """Reserves the place of a store that was made and does not show yet."""
        self._reserved: Held | None = None
        self._copies: CopiesPlace | None = None

    def __reduce__(self) -> tuple[type[IcechunkObjects], tuple[str]]:
        return IcechunkObjects, (self.location,)

    # -- the place ---------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether there is a complete store."""
        return self.files.about(MAIN_FILE) is not None and (
            self._building or not is_incomplete(self.files)
        )

    def create(self, attrs: Mapping[str, object], message: str) -> str:
        """Create an empty store."""
        guard_fork()
        self._keep_apart()
        making = Making(self.files)
        try:
            if not making.is_free():
                raise self._taken()
            making.hide()
            try:
                snapshot = self._first_version(attrs, message)
                if not self._building:
                    making.show()
                    return snapshot
            except BaseException:
                with suppress(KpstoreError):
                    making.delete()
                raise
        except BaseException:
            making.release()
            raise
        self._making = making
        return snapshot

    def _keep_apart(self) -> None:
        """Raise :class:`ExistsError` if a new store would lie in another one."""
        parts = self.files.address.prefix.split("/")
        for n_parts in range(1, len(parts)):
            outer = self.files.address._replace(prefix="/".join(parts[:n_parts]))
            if ObjectFiles(outer).about(MAIN_FILE) is not None:
                raise ExistsError(
                    f"{self.location} lies in the store {outer}; choose another place"
                )

    def _first_version(self, attrs: Mapping[str, object], message: str) -> str:
        """Make a repository on the local disk and upload it, what makes it a store last.

        Icechunk itself makes one only where there is nothing, and not in one step.
        """
        with TemporaryDirectory(prefix="kpstore-") as folder:
            with translated(self.location, "no store was made"):
                local = icechunk.Repository.create(icechunk.local_filesystem_storage(folder))
                snapshot = first_version(local, attrs, message)
            paths = [path for path in Path(folder).rglob("*") if path.is_file()]
            content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        main = content.pop(MAIN_FILE)
        for name, one in content.items():
            self.files.write(name, one)
        if self.files.write_new(MAIN_FILE, main) is None:
            raise self._taken()
        return snapshot

    def _taken(self) -> ExistsError:
        return ExistsError(
            f"{self.location} already exists and is not empty; choose another place for the store"
        )

    def aside(self) -> IcechunkObjects:
        """Return a backend of the same place, whose store shows when it is moved here."""
        return IcechunkObjects(self.location, building=True)

    def move(self, location: str) -> None:
        """Let a store show that was built at this place, or copy all objects to another one."""
        target = IcechunkObjects(location)
        if target.files.address == self.files.address:
            if self._making is None:
                raise NotFoundError(f"nothing was built at {self.location}")
            self._making.show()
            self._making = None
        else:
            self._copy_to(target)
            self.remove()
        self.close()

    def _copy_to(self, target: IcechunkObjects) -> None:
        if target.files.address._replace(prefix="") != self.files.address._replace(prefix=""):
            raise UnsupportedError(
                f"{target.location}: a store moves only within its bucket; use 'kpstore convert'"
            )
        making = Making(target.files)
        try:
            if not making.is_free():
                raise target._taken()
            making.hide()
            for one in self.files.names():
                if not one.name.startswith(OWN):
                    target.files.write(one.name, self.files.read(one.name))
            making.show()
        except BaseException:
            making.release()
            raise

    def remove(self) -> None:
        """Remove the store, if it exists; of a temporary place, what was built there."""
        if self._building:
            making, self._making = self._making, None
            if making is not None:
                try:
                    making.delete()
                finally:
                    making.release()
        elif self.files.about(MAIN_FILE) is not None:
            # First what makes it a store, so that nobody opens half of it.
            self.files.delete([MAIN_FILE])
            delete_repository(self.files)
            self.files.delete([one.name for one in self.files.names(OWN.rstrip("/"))])
        self.close()

    def close(self) -> None:
        """Close the repository and forget what was read of it."""
        self.__dict__.pop("_repository", None)
        self.__dict__.pop("root", None)
        self._nodes_of.clear()

    def keep_copies(self, place: CopiesPlace | None) -> None:
        """Keep copies of objects that are read at a place on the local disk; none with None."""
        if place != self._copies:
            self._copies = place
            self.__dict__.pop("root", None)

    @cached_property
    def root(self) -> ObjectReader:
        """What reads the repository's objects."""
        copies = None if self._copies is None else Copies(self._copies, self.files)
        return ObjectReader(self.files, copies)

    @cached_property
    def _repository(self) -> icechunk.Repository:
        if not self.exists():
            what = "is not complete yet: it is being made, or that was stopped"
            if self.files.about(MAIN_FILE) is None:
                next(self.files.names(), None)  # a missing bucket, or no right to list, is told
                what = "does not exist"
            raise NotFoundError(
                f"{self.location} {what}; 'kpstore ingest' and 'kpstore import' make one"
            )
        with translated(self.location):
            return icechunk.Repository.open(icechunk_storage(self.files.address), config=CONFIG)

    def _repo(self) -> icechunk.Repository:
        guard_fork()
        return self._repository

    def nodes(self, snapshot: str) -> Nodes | None:
        """Return the arrays of a version, whose manifests begin to come."""
        is_new = snapshot not in self._nodes_of
        found = super().nodes(snapshot)
        if is_new and found is not None:
            refs = [ref for node in found.values() for ref in node["manifest_refs"]]
            for manifest in {ref["id"] for ref in refs}:
                self.root.ask(f"manifests/{manifest}", 0)
        return found

    def check_there(self, snapshot: str) -> None:
        """Raise :class:`NotFoundError` if a version or its store was removed."""
        if self.files.about(MAIN_FILE) is None:
            raise refusals.gone(self.location, replaced=False)
        if is_version(snapshot) and self.files.about(f"snapshots/{snapshot}") is None:
            raise NotFoundError(
                f"version {snapshot} of {self.location} was removed after it had been opened; open "
                "the store again"
            )

    def _check_snapshot(self, snapshot: str) -> None:
        """Do nothing: storage keeps checksums of its objects."""

    def _check_answers(self, snapshot: str) -> None:
        self.files.about(f"snapshots/{snapshot}")

    def _hold(self) -> None:
        """Hold nothing: young objects are never removed."""

    # -- commits -----------------------------------------------------------------------------------

    def check_sendable(self) -> None:
        """Do nothing: an address is plain text."""

    def sync(self) -> None:
        """Do nothing: what storage has confirmed it keeps."""

    def settle(self, branch: str, before: str, version: str, ends: Mapping[str, LastChunk]) -> None:
        """Do nothing: there is no ledger, and objects have one name."""

    @contextmanager
    def commit_lock(self) -> Iterator[None]:
        """Exclude other commits of kpstore, which would have to be repeated."""
        with Lease(self.files, _COMMIT).held("a commit", wait=True):
            for held in (self._reserved, self._making):
                if held is not None:
                    held.check()
            yield

    @contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """Reserve the store for one long write."""
        with Lease(self.files, WRITER).held(purpose, wait=False) as held:
            self._reserved = held
            try:
                yield
            finally:
                self._reserved = None

    @property
    def sidecar(self) -> ObjectSidecar:
        """Texts in objects of their own."""
        return ObjectSidecar(self.files)

    def branches_now(self) -> Mapping[str, str]:
        """Return branches and the ids of their newest versions."""
        return self.branches()

    def move_branch(self, name: str, before: str, version: str) -> None:
        """Make a branch lead from version ``before`` to another one."""
        self._repo().reset_branch(encode("branch", name), version, from_snapshot_id=before)

    # -- names -------------------------------------------------------------------------------------

    def _given(self, branch: str) -> str:
        return encode("branch", branch)

    def branches(self) -> Mapping[str, str]:
        """Return branches and the ids of their newest versions, each looked up when asked for."""
        repo = self._repo()
        return ObjectNames(self.location, "branch", repo.list_branches, repo.lookup_branch)

    def tags(self) -> Mapping[str, str]:
        """Return tags and the ids of their versions, each looked up when it is asked for."""
        repo = self._repo()
        return ObjectNames(self.location, "tag", repo.list_tags, repo.lookup_tag)

    def create_branch(self, name: str, snapshot: str) -> None:
        """Create a branch at a version."""
        given = encode("branch", name)
        with self.commit_lock():
            if name in self.branches():
                raise refusals.branch_taken(name, self.location)
            target = self.session(snapshot).snapshot
            with translated(self.location):
                self._repo().create_branch(given, target)

    def delete_branch(self, name: str) -> None:
        """Remove a branch; its versions stay until garbage is collected."""
        with self.commit_lock():
            branches = self.branches()
            if name not in branches:
                raise refusals.no_name("branch", name, branches, self.location)
            if name == MAIN:
                raise refusals.main_stays(name, self.location)
            with translated(self.location):
                self._repo().delete_branch(encode("branch", name))

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch."""
        with self.commit_lock(), translated(self.location):
            newest = self.newest(name, self.branches())
            refusals.check_newest(name, newest, expected, self.location)
            self.move_branch(name, newest, self.session(snapshot).snapshot)

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version permanently: the name of a deleted tag is never used again."""
        given = encode("tag", name)
        with self.commit_lock():
            if name in self.tags():
                raise refusals.tag_taken(name, self.location)
            target = self.session(snapshot).snapshot
            try:
                self._repo().create_tag(given, target)
            except icechunk.IcechunkError as error:
                told = translation(error, self.location)
                if isinstance(told, UnreachableError):
                    raise told from error
                if "already exists" in str(error):
                    raise refusals.tag_taken(name, self.location) from None
                raise ExistsError(
                    f"tag {name!r} of {self.location} cannot be created: {first_line(error)}"
                ) from None

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock():
            tags = self.tags()
            if name not in tags:
                raise refusals.no_name("tag", name, tags, self.location)
            with translated(self.location):
                self._repo().delete_tag(encode("tag", name))

    def replace_tagged(self, versions: Collection[str], change: Change) -> None:
        """Let all tags of each of these versions name the one that ``change`` makes of it."""
        if WORKING in self.branches():  # of a call that was killed
            self.delete_branch(WORKING)
        for version in versions:
            self.create_branch(WORKING, version)
            target = change(cast("Backend", self), WORKING)
            for tag in [tag for tag, named in self.tags().items() if named == version]:
                # Icechunk itself never moves a tag.
                content = json.dumps({"snapshot": target}, separators=(",", ":")).encode()
                self.files.write(file_of("tag", tag), content)
            self.delete_branch(WORKING)

    def collect_garbage(self, before: Before, *, apply: bool) -> Garbage:
        """Remove what no kept version needs, but for objects of the last day."""
        from kpstore.backends.icechunk_object_garbage import collect  # which is rarely needed

        self._repo()
        with self.commit_lock():
            return collect(self, before, apply=apply)

    # -- all of it ---------------------------------------------------------------------------------

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with the versions that names lead to."""
        done: set[str] = set()
        for kind, names in (("branch", self.branches()), ("tag", self.tags())):
            for name in names:
                try:
                    for commit in self.history(names[name]):
                        if commit.id in done:
                            break
                        self.session(commit.id)
                        done.add(commit.id)
                except (CorruptError, NotFoundError, *DAMAGE) as error:
                    yield f"{kind} {name!r} of {self.location} cannot be read: {first_line(error)}"

    def sizes(self) -> Iterator[int]:
        """Yield the size of each object of the store, in bytes."""
        return (one.size for one in self.files.names())
