"""What sessions need to know of the Icechunk store that they belong to, wherever it is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import icechunk

from kpstore.backends import refusals
from kpstore.backends.icechunk_chunks import root_group
from kpstore.backends.icechunk_errors import translated
from kpstore.backends.icechunk_manifests import Nodes, nodes_of
from kpstore.errors import CorruptError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from kpstore.backends.icechunk_ends import LastChunk
    from kpstore.backends.icechunk_manifests import Root

# Icechunk writes its own log to standard output, where it breaks --json. It warns that local
# directories are not safe for concurrent commits, which is why every commit here holds a lock. Its
# errors are exceptions, except for those of reading ahead in a store that is removed again, half
# made, because its input was refused.
icechunk.set_logs_filter("off")

_MANIFEST_CHUNKS = 8_192
"""A commit writes the whole manifest of each chunk that it writes: 19 bytes for each of these."""


def repository_config(manifest_chunks: int = _MANIFEST_CHUNKS) -> icechunk.RepositoryConfig:
    """Return how Icechunk is to keep manifests, of so many chunks of an array each."""
    along_rows: dict[Any, int] = {icechunk.ManifestSplitDimCondition.Axis(0): manifest_chunks}
    return icechunk.RepositoryConfig(
        manifest=icechunk.ManifestConfig(
            # Reading them ahead would take eight milliseconds at each opening, and kpstore finds
            # chunks without that (local_chunks).
            preload=icechunk.ManifestPreloadConfig(max_total_refs=0),
            splitting=icechunk.ManifestSplittingConfig.from_dict(
                {icechunk.ManifestSplitCondition.AnyArray(): along_rows}
            ),
        )
    )


CONFIG = repository_config()

_WAIT_S = 5.0
_N_VERSIONS = 4
"""Number of versions whose lists of arrays are kept in memory."""


class IcechunkHome(ABC):
    """A repository and the lists of arrays of its versions.

    Parameters
    ----------
    location : path or address, as it was given.
    """

    shares_ends = False
    """Whether older versions read their last chunks from files of newer ones (icechunk_ends)."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._nodes_of: dict[str, Nodes | None] = {}

    @property
    @abstractmethod
    def root(self) -> Root:
        """Where the repository's files are read from."""

    @abstractmethod
    def _repo(self) -> icechunk.Repository:
        """Return the repository, opened when it is first needed."""

    @abstractmethod
    def check_there(self, snapshot: str) -> None:
        """Raise :class:`NotFoundError` if a version or its store was removed."""

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

    # -- commits -----------------------------------------------------------------------------------

    @abstractmethod
    def check_sendable(self) -> None:
        """Raise :class:`UnsupportedError` if Icechunk cannot send forks to other processes."""

    @abstractmethod
    def commit_lock(self) -> AbstractContextManager[object]:
        """Exclude other commits."""

    @abstractmethod
    def branches_now(self) -> Mapping[str, str]:
        """Return branches and the ids of their newest versions, under the commit lock."""

    @abstractmethod
    def move_branch(self, name: str, before: str, version: str) -> None:
        """Make a branch lead from version ``before`` to another one, under the commit lock."""

    @abstractmethod
    def sync(self) -> None:
        """Wait until all that was written would survive a power failure."""

    @abstractmethod
    def settle(self, branch: str, before: str, version: str, ends: Mapping[str, LastChunk]) -> None:
        """Do what is left to do after a commit, under its lock.

        Parameters
        ----------
        ends : last chunks of arrays that the commit has made or appended to.
        """

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

    def newest(self, branch: str, branches: Mapping[str, str]) -> str:
        """Return the newest version of one of the ``branches``."""
        if branch not in branches:
            raise refusals.no_name("branch", branch, branches, self.location)
        return branches[branch]
