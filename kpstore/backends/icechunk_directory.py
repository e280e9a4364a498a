"""The local directory of an Icechunk store: repository, lock, and the files of chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import icechunk

from kpstore.backends import refusals
from kpstore.backends.base import MAIN
from kpstore.backends.icechunk_chunks import root_group
from kpstore.backends.icechunk_errors import guard_fork, translated, translation
from kpstore.backends.icechunk_manifests import Nodes, nodes_of
from kpstore.backends.icechunk_names import Names, read_refs
from kpstore.backends.icechunk_records import VersionRecords
from kpstore.backends.links import refuse_links
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.errors import CorruptError, NotFoundError, UnsupportedError

# Icechunk writes its own log to standard output, where it breaks --json. It warns that local
# directories are not safe for concurrent commits, which is why every commit here holds a lock. Its
# errors are exceptions, except for those of reading ahead in a store that is removed again, half
# made, because its input was refused.
icechunk.set_logs_filter("off")

# Reading manifests ahead would take eight milliseconds at each opening, and kpstore finds chunks
# without that (local_chunks).
_CONFIG = icechunk.RepositoryConfig(
    manifest=icechunk.ManifestConfig(preload=icechunk.ManifestPreloadConfig(max_total_refs=0))
)

_WAIT_S = 5.0
_N_VERSIONS = 4
"""Number of versions whose lists of arrays are kept in memory."""


class IcechunkDirectory:
    """What sessions need to know of the store that they belong to.

    Parameters
    ----------
    location : path of the directory.
    """

    def __init__(self, location: str) -> None:
        self.location = str(Path(location))
        """Path of the directory, as it was given."""
        # Absolute, because forks and pickles go to processes whose working directory may differ.
        self.path = Path(location).absolute()
        self._nodes_of: dict[str, Nodes | None] = {}
        self._told: set[str] = set()
        self._collected: int | None = None
        self._folder: tuple[int, int] | None = None
        """Device and number of the folder that is open."""
        self._looked_through = False

    @property
    def sidecar_dir(self) -> Path:
        """Directory for locks and live progress."""
        return self.path / "kpstore"

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
                icechunk.local_filesystem_storage(str(self.path)), config=_CONFIG
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

    # -- arrays of a version -----------------------------------------------------------------------

    def array_names(self, snapshot: str) -> frozenset[str]:
        """Return the names of all arrays of a version, the table of checksums included."""
        nodes = self.nodes(snapshot)
        if nodes is not None:
            return frozenset(nodes)
        with translated(self.location):
            session = self._repo().readonly_session(snapshot_id=snapshot)
            return frozenset(name for name, _ in root_group(session).arrays())

    def nodes(self, snapshot: str) -> Nodes | None:
        """Return :func:`nodes_of` a version, which is kept because each session needs it often."""
        repo = self._repo()
        if snapshot in self._nodes_of:
            return self._nodes_of[snapshot]
        with self.there(snapshot), translated(self.location):
            found = nodes_of(repo, snapshot)
        # Threads share the dict, so each access is a single step.
        self._nodes_of[snapshot] = found
        for old in list(self._nodes_of)[:-_N_VERSIONS]:
            self._nodes_of.pop(old, None)
        return found

    @contextmanager
    def there(self, snapshot: str) -> Iterator[None]:
        """Say that a version or its store was removed, where an error would call it damaged."""
        try:
            yield
        except (CorruptError, NotFoundError, OSError, icechunk.IcechunkError):
            self.check_there(snapshot)
            raise

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
            self.sidecar_dir / "writer.lock", location=self.location, purpose=purpose
        )

    def wait_for_clock(self, snapshot: str, doing: str) -> None:
        """Wait until this machine's clock is past the time of a version, to commit on top of it.

        :class:`UnsupportedError` if that would take longer than a few seconds.
        """
        with translated(self.location):
            written = next(self._repo().ancestry(snapshot_id=snapshot)).written_at
        now = datetime.now(UTC)
        behind = (written - now).total_seconds()
        if behind > _WAIT_S:
            raise UnsupportedError(
                f"{self.location}: {doing}: this machine's clock says {now:%Y-%m-%d %H:%M:%S}, but "
                f"the newest version is of {written:%Y-%m-%d %H:%M:%S} (UTC); set the clock (NTP) "
                "and repeat it"
            )
        if behind >= 0:
            time.sleep(behind + 0.01)

    def newest(self, branch: str, branches: Names) -> str:
        """Return the newest version of one of the ``branches``."""
        if branch not in branches:
            raise refusals.no_name("branch", branch, branches, self.location)
        return branches[branch]

    def move_branch(self, name: str, before: str, version: str) -> None:
        """Make a branch lead from version ``before`` to another one, under the commit lock."""
        given = read_refs(self.path, "branch")[name].given
        self._repo().reset_branch(given, version, from_snapshot_id=before)
