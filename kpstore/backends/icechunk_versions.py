"""Versions of an Icechunk store, opened to read or to write, wherever the store is."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import icechunk
import zarr

from kpstore.backends.base import MAIN, Commit
from kpstore.backends.icechunk_errors import first_line, is_of_storage, translated, unreachable
from kpstore.backends.icechunk_home import IcechunkHome
from kpstore.backends.icechunk_names import is_version
from kpstore.backends.icechunk_sessions import IcechunkReadSession
from kpstore.backends.icechunk_table import ChecksumTable
from kpstore.errors import CorruptError, InvalidError, NotFoundError

if TYPE_CHECKING:
    from kpstore.backends.icechunk_changes import IcechunkWriteSession
    from kpstore.backends.locks import SharedLock


class IcechunkVersions(IcechunkHome):
    """A store's versions."""

    @abstractmethod
    def branches(self) -> Mapping[str, str]:
        """Return branches and the ids of their newest versions."""

    @abstractmethod
    def _check_snapshot(self, snapshot: str) -> None:
        """Raise :class:`CorruptError` if a version's description is not what was written."""

    @abstractmethod
    def _check_answers(self, snapshot: str) -> None:
        """Raise :class:`UnreachableError` if the storage of versions does not answer."""

    @abstractmethod
    def _hold(self) -> SharedLock | None:
        """Keep garbage collection away from a session that begins."""

    @abstractmethod
    def _given(self, branch: str) -> str:
        """Return Icechunk's name of a branch."""

    def session(self, snapshot: str) -> IcechunkReadSession:
        """Open a version by its id."""
        repo = self._repo()
        if not is_version(snapshot):  # before a file of that name is looked for: ../../dev/zero
            raise NotFoundError(f"version {snapshot!r} of {self.location} not found")
        self._check_snapshot(snapshot)
        try:
            session = repo.readonly_session(snapshot_id=snapshot)
        except icechunk.IcechunkError as error:
            if is_of_storage(error):
                raise unreachable(self.location, error) from None
            self._check_answers(snapshot)  # else Icechunk finds nothing
            raise NotFoundError(
                f"version {snapshot!r} of {self.location} not found ({first_line(error)})"
            ) from None
        try:
            return IcechunkReadSession(session, self)
        except FileNotFoundError:
            # For Zarr, a snapshot that cannot be read is empty; Icechunk knows the difference.
            with translated(self.location):
                next(repo.ancestry(snapshot_id=snapshot))
            raise InvalidError(
                f"{self.location} is an Icechunk repository but not a kpstore store (no root group)"
            ) from None

    def begin(self, branch: str = MAIN) -> IcechunkWriteSession:
        """Start changes to a branch's newest version."""
        # Reading does not wait for the modules that write.
        from kpstore.backends.icechunk_changes import IcechunkWriteSession

        self._repo()
        # Before the newest version is looked up, which would otherwise be removed meanwhile.
        hold = self._hold()
        repo = self._repo()
        newest = self.newest(branch, self.branches())
        self._check_snapshot(newest)
        self.wait_for_clock(newest, "nothing was begun")
        given = self._given(branch)
        with translated(self.location):
            return IcechunkWriteSession(repo.writable_session(given), self, branch, hold)

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and its ancestors, without Icechunk's own empty first one."""
        self.session(snapshot)
        with translated(self.location):
            versions = itertools.pairwise(self._repo().ancestry(snapshot_id=snapshot))
            seen: set[str] = set()
            for info, older in versions:
                if info.id in seen:  # snapshot files that were swapped may form a circle
                    raise CorruptError(
                        f"the history of {snapshot!r} of {self.location} leads back to {info.id}"
                    )
                seen.add(info.id)
                parent = None if older.parent_id is None else older.id
                yield Commit(info.id, parent, info.message, info.written_at, dict(info.metadata))


def first_version(
    repository: icechunk.Repository, attrs: Mapping[str, object], message: str
) -> str:
    """Commit the first version of a store, which has no arrays; return its id."""
    session = repository.writable_session(MAIN)
    ChecksumTable.create(zarr.create_group(session.store, attributes=dict(attrs)))
    return str(session.commit(message))
