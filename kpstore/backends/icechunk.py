"""Zarr v3 arrays in an Icechunk repository on a local directory."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import icechunk
import zarr

from kpstore.backends.base import MAIN, ArrayMeta, Capabilities, Chunks, Commit
from kpstore.backends.checksums import TABLE
from kpstore.backends.icechunk_chunks import (
    ChunkPlace,
    Nodes,
    local_chunks,
    locate_chunks,
    locate_rows,
    nodes_of,
)
from kpstore.backends.icechunk_names import Kind, Names, encode, read_refs
from kpstore.backends.icechunk_records import VersionRecords
from kpstore.backends.icechunk_sessions import (
    IcechunkReadSession,
    IcechunkWriteSession,
    first_line,
    guard_fork,
)
from kpstore.backends.icechunk_table import ChecksumTable
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.errors import ConflictError, CorruptError, ExistsError, InvalidError, NotFoundError

_log = logging.getLogger(__name__)

# Icechunk's own log lines go to standard output, where they break --json; what matters of them
# (local directories are not safe for concurrent commits) is answered below by a lock around every
# commit. Its errors come as exceptions; those that do not are of reading ahead in half-made stores,
# which are removed because their input was refused.
icechunk.set_logs_filter("off")

# Reading manifests ahead takes eight milliseconds of each open, and what is read here is found
# without (local_chunks).
_CONFIG = icechunk.RepositoryConfig(
    manifest=icechunk.ManifestConfig(preload=icechunk.ManifestPreloadConfig(max_total_refs=0))
)

SIDECAR = "kpstore"
_N_VERSIONS = 4
"""Of so many versions, what is said of their arrays is kept."""


class IcechunkBackend:
    """A store in a local directory.

    Parameters
    ----------
    location : path of the directory.
    """

    capabilities = Capabilities(branches=True, parallel_writers=True)

    def __init__(self, location: str) -> None:
        self.location = str(Path(location))
        """Path of the directory, as it was given."""
        # Forks and pickles go to processes that may work in another folder.
        self._path = Path(location).absolute()
        self._told: set[str] = set()
        self._nodes_of: dict[str, Nodes] = {}

    def __reduce__(self) -> tuple[type[IcechunkBackend], tuple[str]]:
        return IcechunkBackend, (str(self._path),)

    @property
    def sidecar_dir(self) -> Path:
        """Directory for locks and live progress."""
        return self._path / SIDECAR

    def exists(self) -> bool:
        """Whether the directory holds an Icechunk repository."""
        return (self._path / "refs").is_dir() and (self._path / "snapshots").is_dir()

    def create(self, attrs: Mapping[str, Any], message: str) -> str:
        """Make the directory and an empty store in it."""
        guard_fork()
        target = _free_place(self.location)
        # Built aside and renamed, so that a kill leaves either no store or one that opens.
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.creating-", dir=target.parent))
        try:
            repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(aside)))
            session = repository.writable_session(MAIN)
            ChecksumTable.create(zarr.create_group(session.store, attributes=dict(attrs)))
            snapshot = str(session.commit(message))
            VersionRecords(aside, self.location, lambda: repository).committed(MAIN, snapshot)
            aside.chmod(0o777 & ~_umask())
            _rename(aside, target, self.location)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return snapshot

    def move(self, location: str) -> None:
        """Rename the directory."""
        _rename(self._path, _free_place(location), location)

    def remove(self) -> None:
        """Remove the directory."""
        if self.exists():
            shutil.rmtree(self._path)

    def close(self) -> None:
        """Let go of the open repository."""
        self.__dict__.pop("_repository", None)
        self._nodes_of.clear()

    @cached_property
    def _repository(self) -> icechunk.Repository:
        # Icechunk makes the directory of whatever path it is given, so look before asking it.
        if not self.exists():
            what = "is not a kpstore store" if self._path.exists() else "does not exist"
            raise NotFoundError(
                f"{self.location} {what}; 'kpstore ingest' and 'kpstore import' make one"
            )
        try:
            return icechunk.Repository.open(
                icechunk.local_filesystem_storage(str(self._path)), config=_CONFIG
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
        return VersionRecords(self._path, self.location, self._repo)

    def session(self, snapshot: str) -> IcechunkReadSession:
        """Open a version by its id."""
        repo = self._repo()
        self._check_description(snapshot)
        try:
            session = repo.readonly_session(snapshot_id=snapshot)
        except icechunk.IcechunkError as error:
            raise NotFoundError(
                f"version {snapshot!r} of {self.location} not found ({first_line(error)})"
            ) from None
        try:
            return IcechunkReadSession(session, self)
        except FileNotFoundError:
            # Zarr calls a snapshot that cannot be read an empty one; Icechunk knows the difference.
            with _translated(self.location):
                next(repo.ancestry(snapshot_id=snapshot))
            raise InvalidError(
                f"{self.location} is an Icechunk repository but not a kpstore store (no root group)"
            ) from None

    def _check_description(self, version: str) -> None:
        damage = self._records.damage_of(version)
        if damage:
            raise CorruptError(damage)

    def begin(self, branch: str = MAIN) -> IcechunkWriteSession:
        """Start changes on top of a branch's newest version."""
        repo, branches = self._repo(), self.branches()
        self._check_branch(branch, branches)
        self._check_description(branches[branch])
        given = read_refs(self._path, "branch")[branch].given
        with _translated(self.location):
            return IcechunkWriteSession(repo.writable_session(given), self, branch)

    def _check_branch(self, name: str, branches: Names) -> None:
        if name not in branches:
            raise NotFoundError(
                f"branch {name!r} of {self.location} not found; it has {list(branches)}"
            )

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and all that it builds upon, without Icechunk's own empty first one."""
        self.session(snapshot)
        with _translated(self.location):
            versions = itertools.pairwise(self._repo().ancestry(snapshot_id=snapshot))
            seen: set[str] = set()
            for info, older in versions:
                if (
                    info.id in seen
                ):  # snapshots that have changed places may follow each other in a circle
                    raise CorruptError(
                        f"the history of {snapshot!r} of {self.location} leads back to {info.id}"
                    )
                seen.add(info.id)
                parent = None if older.parent_id is None else older.id
                yield Commit(info.id, parent, info.message, info.written_at, dict(info.metadata))

    def branches(self) -> Names:
        """Return branches and the ids of their newest versions.

        Asking for a damaged one raises `CorruptError`.
        """
        return self._names("branch")

    def tags(self) -> Names:
        """Return tags and the ids that they name.

        Asking for a damaged one raises `CorruptError`.
        """
        return self._names("tag")

    def _names(self, kind: Kind) -> Names:
        self._repo()
        names = self._records.names(kind)
        if names.damaged:  # or somebody is in the middle of a change
            with self._quiet():
                names = self._records.names(kind)
        for problem in names.damaged.values():
            if problem not in self._told:  # whoever lists names does not see it otherwise
                self._told.add(problem)
                _log.warning("%s", problem)
        return names

    def _quiet(self) -> AbstractContextManager[None]:
        """Hold off commits while something is read, where that is possible without writing anything."""
        lock = self.sidecar_dir / "commit.lock"
        return self.commit_lock() if os.access(lock, os.R_OK | os.W_OK) else nullcontext()

    def create_branch(self, name: str, snapshot: str) -> None:
        """Make a branch that starts at a version."""
        given = encode("branch", name)
        with self.commit_lock():
            names = self._records.names("branch")
            if name in names:
                raise ExistsError(f"branch {name!r} of {self.location} exists already")
            target = self.session(snapshot).snapshot
            with _translated(self.location):
                self._repo().create_branch(given, target)
            self._note_name("branch", name, target)

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch."""
        with self.commit_lock(), _translated(self.location):
            branches = self._records.names("branch")
            self._check_branch(name, branches)
            if branches[name] != expected:
                raise ConflictError(
                    f"branch {name!r} of {self.location} has a newer version meanwhile; try again"
                )
            target = self.session(snapshot).snapshot
            # Either is right if a kill comes now.
            self._records.named("branch", name, expected, target)
            self._repo().reset_branch(read_refs(self._path, "branch")[name].given, target)
            self._note_name("branch", name, target)

    def create_tag(self, name: str, snapshot: str) -> None:
        """Name a version for good: the name of a deleted tag is never given out again."""
        given = encode("tag", name)
        with self.commit_lock():
            if name in self._records.names("tag") or name in read_refs(self._path, "tag"):
                raise ExistsError(
                    f"tag {name!r} of {self.location} exists, or did, and tags never move; choose "
                    "another name"
                )
            target = self.session(snapshot).snapshot
            try:
                self._repo().create_tag(given, target)
            except icechunk.IcechunkError as error:
                raise ExistsError(
                    f"tag {name!r} of {self.location} cannot be made: {first_line(error)}"
                ) from None
            self._note_name("tag", name, target)

    def _note_name(self, kind: Kind, name: str, version: str) -> None:
        """Put a name into the ledger, once it is seen to be there."""
        ref = read_refs(self._path, kind).get(name)
        if ref is None or ref.version != version:
            raise CorruptError(
                f"{kind} {name!r} of {self.location} was made but cannot be found again"
            )
        self._records.named(kind, name, version)

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock():
            tags = self._records.names("tag")
            if name not in tags:
                raise NotFoundError(
                    f"tag {name!r} of {self.location} not found; it has {list(tags)}"
                )
            with _translated(self.location):
                self._repo().delete_tag(read_refs(self._path, "tag")[name].given)
            self._records.named("tag", name)

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with names, and with the files that describe versions, one line each."""
        try:
            self._repo()
        except CorruptError as error:
            yield str(error)
            return
        with self._quiet():
            seen = self._records.look()
        yield from self._records.examine(seen)

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the store for one long write."""
        return refusing_lock(
            self.sidecar_dir / "writer.lock", location=self.location, purpose=purpose
        )

    # -- for sessions ------------------------------------------------------------------------------

    def array_names(self, snapshot: str) -> frozenset[str]:
        """Return the names of all arrays of a version, the table of checksums included."""
        return frozenset(self._nodes(snapshot))

    def _nodes(self, snapshot: str) -> Nodes:
        """Return what is said of each array of a version, kept for a few of them, as each session asks several times."""
        repo, found = self._repo(), self._nodes_of.get(snapshot)
        if found is None:
            with _translated(self.location):
                found = nodes_of(repo, snapshot)
            # Only single steps on the dict, which threads share.
            self._nodes_of[snapshot] = found
            for old in list(self._nodes_of)[:-_N_VERSIONS]:
                self._nodes_of.pop(old, None)
        return found

    def local_chunks(self, snapshot: str, array: zarr.Array[Any], meta: ArrayMeta) -> Chunks | None:
        """Return an array's chunks as files of this directory, or None where they are not such files."""
        return local_chunks(self._nodes(snapshot), self._path, array, meta)

    def table_chunks(self, snapshot: str) -> Mapping[tuple[int, ...], ChunkPlace] | None:
        """Return where the chunks of a version's table of checksums are.

        None where they are not files.
        """
        return locate_chunks(self._nodes(snapshot), self._path, TABLE)

    def places(self, snapshot: str, name: str, n_chunks: int) -> Sequence[str] | None:
        """Return the file of each chunk of an array, relative to this directory.

        None if they cannot be told.
        """
        places = locate_rows(self._nodes(snapshot), self._path, name, n_chunks)
        if places is None:
            return None
        return [
            "no file" if place is None else str(place.file.relative_to(self._path))
            for place in places
        ]

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits: on a local directory Icechunk by itself loses some of them (decisions/002)."""
        return waiting_lock(self.sidecar_dir / "commit.lock")

    def tip(self, branch: str) -> str:
        """Return the newest version of a branch, under the lock."""
        branches = self._records.names("branch")
        self._check_branch(branch, branches)
        return branches[branch]

    def committed(self, branch: str, version: str) -> None:
        """Put a commit into the ledger, under the lock."""
        self._records.committed(branch, version)


def _free_place(location: str) -> Path:
    """Return where a new store goes: nothing is there, or an empty folder, or a link to one."""
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
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _taken(location) from None  # by another process, meanwhile
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _translated(location: str) -> Iterator[None]:
    """Turn what Icechunk raises on damaged or foreign files into one line of ours."""
    try:
        yield
    except icechunk.IcechunkError as error:
        raise CorruptError(
            f"{location} cannot be read as an Icechunk repository: {first_line(error)}"
        ) from error
