"""A store in the memory of one process: the shortest backend, for tests and examples."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import (
    MAIN,
    TEXT,
    ArrayMeta,
    Capabilities,
    Chunks,
    Commit,
    SessionChunks,
)
from kpstore.backends.gathered import GatheredRows
from kpstore.errors import (
    BusyError,
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
)

_Key = tuple[str, int | str]
"""What a change touches: an array's name and a chunk's number, or ``"meta"``."""


@dataclass
class _Tree:
    """All arrays at one version, and what its commit touched."""

    attrs: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, tuple[ArrayMeta, NDArray[Any]]] = field(default_factory=dict)
    touched: set[_Key] = field(default_factory=set)

    def child(self) -> _Tree:
        return _Tree(dict(self.attrs), dict(self.arrays))


@dataclass
class _Repository:
    trees: dict[str, _Tree] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    used_tags: set[str] = field(default_factory=set)
    ids: Iterator[int] = field(default_factory=itertools.count)
    lock: threading.RLock = field(default_factory=threading.RLock)
    writer: str = ""


_repositories: dict[str, _Repository] = {}


class MemoryBackend:
    """A store named ``memory://NAME``; it lives in this process and ends with it."""

    capabilities = Capabilities(branches=True, parallel_writers=False)
    sidecar_dir = None

    def __init__(self, location: str) -> None:
        self.location = location

    def exists(self) -> bool:
        """Whether this process has created a store of that name."""
        return self.location in _repositories

    def _repo(self) -> _Repository:
        if not self.exists():
            raise NotFoundError(
                f"{self.location} does not exist in this process; kpstore.create() makes one"
            )
        return _repositories[self.location]

    def create(self, attrs: Mapping[str, Any], message: str) -> str:
        """Create an empty store."""
        if self.exists():
            raise ExistsError(f"{self.location} already exists; choose another name for the store")
        repo = _repositories[self.location] = _Repository()
        repo.trees[""] = _Tree()
        repo.branches[MAIN] = ""
        session = self.begin()
        session.set_attrs(attrs)
        return session.commit(message)

    def move(self, location: str) -> None:
        """Give the store another name."""
        if location in _repositories:
            raise ExistsError(f"{location} already exists; choose another name for the store")
        self._repo()
        _repositories[location] = _repositories.pop(self.location)

    def remove(self) -> None:
        """Remove the store."""
        _repositories.pop(self.location, None)

    def close(self) -> None:
        """Do nothing: no files are open."""

    def session(self, snapshot: str) -> _Session:
        """Open a version by its id."""
        if snapshot not in self._repo().commits:
            raise NotFoundError(f"version {snapshot!r} of {self.location} not found")
        return _Session(snapshot, self._repo().trees[snapshot])

    def begin(self, branch: str = MAIN) -> _WriteSession:
        """Start changes to a branch's newest version."""
        repo = self._repo()
        if branch not in repo.branches:
            raise NotFoundError(
                f"branch {branch!r} of {self.location} not found; it has {sorted(repo.branches)}"
            )
        return _WriteSession(self, repo, branch)

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and its ancestors, newest first."""
        at: str | None = self.session(snapshot).snapshot
        while at:
            yield self._repo().commits[at]
            at = self._repo().commits[at].parent

    def branches(self) -> dict[str, str]:
        """Return branches and the ids of their newest versions."""
        return dict(sorted(self._repo().branches.items()))

    def tags(self) -> dict[str, str]:
        """Return tags and the ids of their versions."""
        return dict(sorted(self._repo().tags.items()))

    def create_branch(self, name: str, snapshot: str) -> None:
        """Create a branch at a version."""
        if name in self._repo().branches:
            raise ExistsError(f"branch {name!r} of {self.location} exists already")
        self._repo().branches[name] = self.session(snapshot).snapshot

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch."""
        if name not in self._repo().branches:
            raise NotFoundError(
                f"branch {name!r} of {self.location} not found; it has "
                f"{sorted(self._repo().branches)}"
            )
        with self._repo().lock:
            if self._repo().branches[name] != expected:
                raise ConflictError(
                    f"branch {name!r} of {self.location} has a newer version meanwhile; try again"
                )
            self._repo().branches[name] = self.session(snapshot).snapshot

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version for good."""
        repo = self._repo()
        if name in repo.used_tags:
            raise ExistsError(
                f"tag {name!r} of {self.location} is, or was, taken and tags never move; choose "
                "another name"
            )
        repo.tags[name] = self.session(snapshot).snapshot
        repo.used_tags.add(name)

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        if self._repo().tags.pop(name, None) is None:
            raise NotFoundError(
                f"tag {name!r} of {self.location} not found; it has {sorted(self.tags())}"
            )

    def examine(self) -> Iterator[str]:
        """Yield nothing: arrays in memory are not damaged."""
        yield from ()

    @contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """Hold the store for one long write."""
        repo = self._repo()
        with repo.lock:
            if repo.writer:
                raise BusyError(
                    f"{self.location} is being written by another process ({repo.writer}); wait "
                    "for it, or stop it"
                )
            repo.writer = purpose
        try:
            yield
        finally:
            repo.writer = ""


class _Session:
    def __init__(self, snapshot: str, tree: _Tree) -> None:
        self.snapshot = snapshot
        self._tree = tree

    def attrs(self) -> Mapping[str, Any]:
        return copy.deepcopy(self._tree.attrs)

    def names(self) -> list[str]:
        return sorted(self._tree.arrays)

    def meta(self, name: str) -> ArrayMeta:
        if name not in self._tree.arrays:
            raise NotFoundError(f"array {name!r} not found; there are {self.names()}")
        return self._tree.arrays[name][0]

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        self.meta(name).check_rows(name, start, stop - start)
        return self._tree.arrays[name][1][start:stop].copy()

    def digest(self, name: str) -> None:
        """Return None: arrays in memory are not damaged."""

    def checksums(self, name: str) -> None:
        """Return None: arrays in memory are not damaged."""

    def place(self, name: str, chunk: int) -> str:
        return "memory"

    def chunks(self, name: str) -> Chunks:
        self.meta(name)
        rows = self._tree.arrays[name][1].view()
        rows.flags.writeable = False
        return SessionChunks(self, name, mapped=rows)


class _WriteSession(_Session):
    """Changes kept as a list, so that they can be replayed on a newer version."""

    def __init__(self, backend: MemoryBackend, repo: _Repository, branch: str) -> None:
        base = repo.branches[branch]
        super().__init__(base, repo.trees[base].child())
        self._backend, self._repo, self._branch = backend, repo, branch
        self._changes: list[Callable[[_Tree], None]] = []
        self._spent = False

    def _check_open(self) -> None:
        if self._spent:
            raise ReadOnlyError(
                f"these changes of {self._backend.location} were committed or discarded; begin new "
                "ones"
            )

    def _apply(self, change: Callable[[_Tree], None], touched: set[_Key]) -> None:
        self._check_open()
        change(self._tree)
        self._changes.append(change)
        self._tree.touched |= touched

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        kept = copy.deepcopy(dict(attrs))
        self._apply(lambda tree: setattr(tree, "attrs", kept), {("", "meta")})

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        meta = replace(self.meta(name), attrs=dict(attrs))
        self._apply(
            lambda tree: tree.arrays.update({name: (meta, tree.arrays[name][1])}), {(name, "meta")}
        )

    def create(self, name: str, meta: ArrayMeta) -> None:
        if name in self._tree.arrays:
            raise ExistsError(f"array {name!r} exists already")
        rows = meta.unwritten(meta.n_rows)
        self._apply(lambda tree: tree.arrays.update({name: (meta, rows)}), {(name, "meta")})

    def resize(self, name: str, n_rows: int) -> None:
        old = self.meta(name)
        if n_rows < old.n_rows:
            raise InvalidError(f"{name!r} has {old.n_rows} rows and cannot shrink to {n_rows}")
        if n_rows == old.n_rows:
            return
        longer = replace(old, shape=(n_rows, *old.shape[1:]))
        added = old.unwritten(n_rows - old.n_rows)

        def change(tree: _Tree) -> None:
            tree.arrays[name] = longer, np.concatenate([tree.arrays[name][1], added])

        self._apply(change, {(name, "meta")})

    def delete(self, name: str) -> None:
        self.meta(name)
        self._apply(lambda tree: tree.arrays.__delitem__(name), {(name, "meta")})

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        meta, stop = self.meta(name), start + len(values)
        meta.check_values(name, start, values)
        kept = np.array(values, dtype=object if meta.dtype == TEXT else meta.dtype)

        def change(tree: _Tree) -> None:
            meta, rows = tree.arrays[name]
            tree.arrays[name] = meta, np.concatenate([rows[:start], kept, rows[stop:]])

        if len(values):
            self._apply(change, {(name, chunk) for chunk in meta.chunks_of(start, stop)})

    def fork(self) -> GatheredRows:
        if self._changes:
            raise InvalidError(
                "a session can be forked only before it has changes of its own; commit first"
            )
        return GatheredRows({name: meta for name, (meta, _) in self._tree.arrays.items()})

    def merge(self, forks: Sequence[GatheredRows]) -> None:
        self._check_open()
        for fork in forks:
            for name, start, values in fork.rows(self.meta):
                self.write(name, start, values)

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        self._check_open()
        self._spent = True
        if not self._changes:
            return self.snapshot
        with self._repo.lock:
            tip = self._repo.branches[self._branch]
            if tip != self.snapshot:
                self._rebase(tip, message)
            new = f"M{next(self._repo.ids):06d}"
            self._repo.trees[new] = self._tree
            self._repo.commits[new] = Commit(
                new, tip or None, message, datetime.now(UTC), dict(metadata or {})
            )
            self._repo.branches[self._branch] = new
            return new

    def _rebase(self, tip: str, message: str) -> None:
        since = itertools.takewhile(
            lambda commit: commit.id != self.snapshot, self._backend.history(tip)
        )
        theirs = set().union(*(self._repo.trees[commit.id].touched for commit in since))
        reshaped = {name for name, what in theirs if what == "meta"}
        if theirs & self._tree.touched or reshaped & {name for name, _ in self._tree.touched}:
            raise ConflictError(
                f"another writer has changed the same data of {self._backend.location} in the "
                f"meantime, so {message!r} was not committed; open the store again and repeat the "
                "change"
            )
        touched, self._tree = self._tree.touched, self._repo.trees[tip].child()
        for change in self._changes:
            change(self._tree)
        self._tree.touched = touched

    def discard(self) -> None:
        self._spent = True
        self._changes.clear()
        self._tree = self._repo.trees[self.snapshot].child()
