"""The local directory of an Icechunk store: repository, lock, and the files of chunks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import icechunk
import zarr

from kpstore.backends.base import MAIN
from kpstore.backends.icechunk_errors import first_line, guard_fork, translated
from kpstore.backends.icechunk_manifests import (
    Nodes,
    nodes_of,
)
from kpstore.backends.icechunk_names import Names
from kpstore.backends.icechunk_records import VersionRecords
from kpstore.backends.locks import waiting_lock
from kpstore.errors import CorruptError, NotFoundError

# Icechunk's own log lines go to standard output, where they break --json. Its warning that local
# directories are not safe for concurrent commits is answered by the lock around every commit, and
# its errors come as exceptions, but for those of reading ahead in a store that is half made and
# removed again because its input was refused.
icechunk.set_logs_filter("off")

# Reading manifests ahead takes eight milliseconds of each open, and kpstore finds chunks without
# (local_chunks).
_CONFIG = icechunk.RepositoryConfig(
    manifest=icechunk.ManifestConfig(preload=icechunk.ManifestPreloadConfig(max_total_refs=0))
)

_N_VERSIONS = 4
"""Number of versions whose descriptions of arrays are kept in memory."""


class IcechunkDirectory:
    """What sessions need to know of the store that they belong to.

    Parameters
    ----------
    location : path of the directory.
    """

    def __init__(self, location: str) -> None:
        self.location = str(Path(location))
        """Path of the directory, as it was given."""
        # Absolute, as forks and pickles go to processes that may work in another folder.
        self.path = Path(location).absolute()
        self._nodes_of: dict[str, Nodes | None] = {}

    @property
    def sidecar_dir(self) -> Path:
        """Directory for locks and live progress."""
        return self.path / "kpstore"

    def exists(self) -> bool:
        """Whether the directory holds an Icechunk repository."""
        return (self.path / "refs").is_dir() and (self.path / "snapshots").is_dir()

    def close(self) -> None:
        """Close the repository."""
        self.__dict__.pop("_repository", None)
        self._nodes_of.clear()

    @cached_property
    def _repository(self) -> icechunk.Repository:
        # Icechunk creates the directory of any path that it is given, so look before asking it.
        if not self.exists():
            what = "is not a kpstore store" if self.path.exists() else "does not exist"
            raise NotFoundError(
                f"{self.location} {what}; 'kpstore ingest' and 'kpstore import' make one"
            )
        try:
            return icechunk.Repository.open(
                icechunk.local_filesystem_storage(str(self.path)), config=_CONFIG
            )
        except icechunk.IcechunkError as error:
            # Icechunk opens nothing without its main branch, and does not say which file is at
            # fault.
            damage = self._records.names("branch").damaged.get(MAIN)
            raise CorruptError(
                damage
                or f"{self.location} cannot be read as an Icechunk repository: {first_line(error)}"
            ) from error

    def _repo(self) -> icechunk.Repository:
        guard_fork()
        return self._repository

    @cached_property
    def _records(self) -> VersionRecords:
        return VersionRecords(self.path, self.location, self._repo)

    # -- arrays of a version -----------------------------------------------------------------------

    def array_names(self, snapshot: str) -> frozenset[str]:
        """Return the names of all arrays of a version, the table of checksums included."""
        nodes = self.nodes(snapshot)
        if nodes is not None:
            return frozenset(nodes)
        store = self._repo().readonly_session(snapshot_id=snapshot).store
        return frozenset(name for name, _ in zarr.open_group(store, mode="r").arrays())

    def nodes(self, snapshot: str) -> Nodes | None:
        """Return :func:`nodes_of` a version, kept because each session asks several times."""
        repo = self._repo()
        if snapshot in self._nodes_of:
            return self._nodes_of[snapshot]
        with translated(self.location):
            found = nodes_of(repo, snapshot)
        # Only single steps on the dict, which threads share.
        self._nodes_of[snapshot] = found
        for old in list(self._nodes_of)[:-_N_VERSIONS]:
            self._nodes_of.pop(old, None)
        return found

    # -- commits -----------------------------------------------------------------------------------

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits: Icechunk itself loses some of them here (decisions/002)."""
        return waiting_lock(self.sidecar_dir / "commit.lock")

    def check_branch(self, name: str, branches: Names) -> None:
        """Raise :class:`NotFoundError` for an unknown branch."""
        if name not in branches:
            raise NotFoundError(
                f"branch {name!r} of {self.location} not found; it has {list(branches)}"
            )

    def tip(self, branch: str) -> str:
        """Return the newest version of a branch, under the lock."""
        branches = self._records.names("branch")
        self.check_branch(branch, branches)
        return branches[branch]

    def committed(self, branch: str, version: str) -> None:
        """Put a commit into the ledger, under the lock."""
        self._records.committed(branch, version)
