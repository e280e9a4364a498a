"""The local directory of an Icechunk store: repository, lock, and the files of chunks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import icechunk

from kpstore.backends import refusals
from kpstore.backends.asides import sync_disk
from kpstore.backends.base import MAIN
from kpstore.backends.icechunk_errors import guard_fork, translation
from kpstore.backends.icechunk_home import CONFIG, IcechunkHome
from kpstore.backends.icechunk_names import Names, read_refs
from kpstore.backends.icechunk_records import VersionRecords
from kpstore.backends.links import refuse_links
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.backends.sidecar import WRITER_LOCK, FolderSidecar
from kpstore.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    from kpstore.backends.icechunk_ends import LastChunk


class IcechunkDirectory(IcechunkHome):
    """The folder of a store.

    Parameters
    ----------
    location : path of the directory.
    """

    shares_ends = True

    def __init__(self, location: str) -> None:
        super().__init__(str(Path(location)))
        # Absolute, because forks and pickles go to processes whose working directory may differ.
        self.path = Path(location).absolute()
        self._told: set[str] = set()
        self._collected: int | None = None
        self._folder: tuple[int, int] | None = None
        """Device and number of the folder that is open."""
        self._looked_through = False

    @property
    def root(self) -> Path:
        """The absolute path of the directory."""
        return self.path

    @property
    def sidecar_dir(self) -> Path:
        """Directory for locks and live progress."""
        return self.path / "kpstore"

    @property
    def sidecar(self) -> FolderSidecar:
        """Texts in that directory."""
        return FolderSidecar(self.sidecar_dir)

    @property
    def sessions_lock(self) -> Path:
        """File that write sessions lock together; each garbage collection sets its time."""
        return self.sidecar_dir / "sessions.lock"

    def exists(self) -> bool:
        """Return whether the directory holds an Icechunk repository."""
        return (self.path / "refs").is_dir() and (self.path / "snapshots").is_dir()

    def close(self) -> None:
        """Close the repository."""
        self._forget()
        self._folder = None

    def _forget(self) -> None:
        self.__dict__.pop("_repository", None)
        self._looked_through = False
        self._nodes_of.clear()

    def _folder_now(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _check_in_place(self) -> None:
        """Raise :class:`NotFoundError` if the folder that is open was moved, removed or replaced.

        Before anything is written: locks and chunks would go to another store, or be all of one.
        """
        if self._folder is None or self._folder == (found := self._folder_now()):
            return
        raise refusals.gone(self.location, replaced=found is not None and self.exists())

    def _look_for_links(self) -> None:
        """Refuse a folder that holds links, once for each opening, before anything is opened."""
        if not self._looked_through:
            refuse_links(self.path)
            self._looked_through = True

    @cached_property
    def _repository(self) -> icechunk.Repository:
        # Icechunk creates the directory of any path that it is given, so check before that.
        if not self.exists():
            what = "is not a kpstore store" if self.path.exists() else "does not exist"
            raise NotFoundError(
                f"{self.location} {what}; 'kpstore ingest' and 'kpstore import' make one"
            )
        self._look_for_links()
        self._folder = self._folder_now()
        try:
            return icechunk.Repository.open(
                icechunk.local_filesystem_storage(str(self.path)), config=CONFIG
            )
        except icechunk.IcechunkError as error:
            # Icechunk opens nothing without its main branch, and does not name the damaged file.
            told = translation(error, self.location)
            damage = self.records.names("branch").damaged.get(MAIN)
            if damage and isinstance(told, CorruptError):
                told = CorruptError(damage)
            raise told from error

    def _repo(self) -> icechunk.Repository:
        """Return the repository; opened again after a garbage collection, whoever made it.

        An open one keeps the snapshots that it has read, and so the ends of histories.
        """
        guard_fork()
        self._check_in_place()
        try:
            collected = self.sessions_lock.stat().st_mtime_ns
        except OSError:
            collected = None
        if collected != self._collected:
            self._forget()
            self._collected = collected
        return self._repository

    @cached_property
    def records(self) -> VersionRecords:
        """The ledger, which the repository is compared with."""
        return VersionRecords(self.path, self.location, self._repo)

    def check_there(self, snapshot: str) -> None:
        """Raise :class:`NotFoundError` if a version or its store was removed."""
        self._check_in_place()
        if self.records.was_removed(snapshot):
            raise NotFoundError(
                f"version {snapshot} of {self.location} was removed ('kpstore gc' or 'kpstore "
                "remove') after it had been opened; open the store again"
            ) from None

    # -- commits -----------------------------------------------------------------------------------

    def commit_lock(self) -> AbstractContextManager[None]:
        """Exclude other commits, of which Icechunk itself would lose some (decisions/002)."""
        self._check_in_place()
        self._look_for_links()
        return waiting_lock(self.sidecar_dir / "commit.lock")

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Reserve the store for one long write."""
        self._check_in_place()
        self._look_for_links()
        return refusing_lock(
            self.sidecar_dir / WRITER_LOCK, location=self.location, purpose=purpose
        )

    def move_branch(self, name: str, before: str, version: str) -> None:
        """Make a branch lead from version ``before`` to another one, under the commit lock."""
        given = read_refs(self.path, "branch")[name].given
        self._repo().reset_branch(given, version, from_snapshot_id=before)

    def check_sendable(self) -> None:
        """Raise :class:`UnsupportedError` if Icechunk cannot send the path to other processes."""
        refusals.check_sendable(self.location, str(self.path))

    def branches_now(self) -> Names:
        """Return branches and the ids of their newest versions."""
        return self.records.names("branch")

    def sync(self) -> None:
        """Wait until all that was written would survive a power failure."""
        sync_disk(self.path)

    def settle(self, branch: str, before: str, version: str, ends: Mapping[str, LastChunk]) -> None:
        """Record a commit in the ledger, and let older versions share last chunks with it."""
        from kpstore.backends.icechunk_ends import share_last_chunks  # which only writers need

        self.records.committed(branch, version)
        self.sync()
        share_last_chunks(self, before, version, ends)
