"""A store in the memory of one process: the shortest backend, for tests and examples."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kpstore.backends import refusals
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Capabilities, Commit, plain
from kpstore.backends.chunks import Chunks
from kpstore.backends.gathered import GatheredRows, Touched, collide
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import ExistsError, NotFoundError


@dataclass
class _Tree:
    """All arrays at one version, and what its commit touched."""

    attrs: dict[str, object] = field(default_factory=dict)
    arrays: dict[str, tuple[ArrayMeta, NDArray[np.generic]]] = field(default_factory=dict)
    touched: set[Touched] = field(default_factory=set)

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
    """A store named ``memory://NAME``, which lasts as long as this process."""

    capabilities = Capabilities(branches=True, parallel_writers=False)
    sidecar = None

    def __init__(self, location: str) -> None:
        self.location = location

    def exists(self) -> bool:
        """Return whether this process has created a store of that name."""
        return self.location in _repositories

    def _repo(self) -> _Repository:
        if not self.exists():
            raise NotFoundError(
                f"{self.location} does not exist in this process; kpstore.create() makes one"
            )
        return _repositories[self.location]

    def create(self, attrs: Mapping[str, object], message: str) -> str:
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
            raise refusals.no_name("branch", branch, repo.branches, self.location)
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
        repo = self._repo()
        if name in repo.branches:
            raise refusals.branch_taken(name, self.location)
        repo.branches[name] = self.session(snapshot).snapshot

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch."""
        repo = self._repo()
        if name not in repo.branches:
            raise refusals.no_name("branch", name, repo.branches, self.location)
        with repo.lock:
            refusals.check_newest(name, repo.branches[name], expected, self.location)
            repo.branches[name] = self.session(snapshot).snapshot

    def delete_branch(self, name: str) -> None:
        """Remove a branch."""
        repo = self._repo()
        if name not in repo.branches:
            raise refusals.no_name("branch", name, repo.branches, self.location)
        if name == MAIN:
            raise refusals.main_stays(name, self.location)
        del repo.branches[name]

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version permanently."""
        repo = self._repo()
        if name in repo.used_tags:
            raise refusals.tag_taken(name, self.location)
        repo.tags[name] = self.session(snapshot).snapshot
        repo.used_tags.add(name)

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        if self._repo().tags.pop(name, None) is None:
            raise refusals.no_name("tag", name, self.tags(), self.location)

    def examine(self) -> Iterator[str]:
        """Yield nothing: arrays in memory are never damaged."""
        yield from ()

    @contextmanager
    def exclusive(self, purpose: str) -> Iterator[None]:
        """Reserve the store for one long write."""
        repo = self._repo()
        with repo.lock:
            if repo.writer:
                raise refusals.held(self.location, repo.writer)
            repo.writer = purpose
        try:
            yield
        finally:
            repo.writer = ""


class _Session:
    def __init__(self, snapshot: str, tree: _Tree) -> None:
        self.snapshot = snapshot
        self._tree = tree

    def attrs(self) -> Mapping[str, object]:
        return plain(self._tree.attrs)

    def names(self) -> list[str]:
        return sorted(self._tree.arrays)

    def meta(self, name: str) -> ArrayMeta:
        if name not in self._tree.arrays:
            raise refusals.no_array(name, self._tree.arrays)
        return self._tree.arrays[name][0]

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        self.meta(name).check_rows(name, start, stop - start)
        return self._tree.arrays[name][1][start:stop].copy()

    def digest(self, name: str) -> None:
        """Return None: arrays in memory are never damaged."""

    def checksums(self, name: str) -> None:
        """Return None: arrays in memory are never damaged."""

    def stored(self, name: str) -> NDArray[np.bool_]:
        return np.ones(self.meta(name).n_chunks, dtype=np.bool_)

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
            raise refusals.spent(self._backend.location)

    def _apply(self, change: Callable[[_Tree], None], touched: set[Touched]) -> None:
        self._check_open()
        change(self._tree)
        self._changes.append(change)
        self._tree.touched |= touched

    def set_attrs(self, attrs: Mapping[str, object]) -> None:
        kept = plain(attrs)
        self._apply(lambda tree: setattr(tree, "attrs", kept), {("", "meta")})

    def set_array_attrs(self, name: str, attrs: Mapping[str, object]) -> None:
        meta = replace(self.meta(name), attrs=dict(attrs))
        self._apply(
            lambda tree: tree.arrays.update({name: (meta, tree.arrays[name][1])}), {(name, "meta")}
        )

    def create(self, name: str, meta: ArrayMeta) -> None:
        if name in self._tree.arrays:
            raise refusals.array_taken(name)
        rows = meta.unwritten(meta.n_rows)
        self._apply(lambda tree: tree.arrays.update({name: (meta, rows)}), {(name, "meta")})

    def resize(self, name: str, n_rows: int) -> None:
        old = self.meta(name)
        longer = old.extended(name, n_rows)
        added = old.unwritten(n_rows - old.n_rows)

        def change(tree: _Tree) -> None:
            tree.arrays[name] = longer, np.concatenate([tree.arrays[name][1], added])

        if len(added):
            self._apply(change, {(name, "meta")})

    def delete(self, name: str) -> None:
        self.meta(name)
        self._apply(lambda tree: tree.arrays.__delitem__(name), {(name, "meta")})

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
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
            raise refusals.not_forkable()
        return GatheredRows({name: meta for name, (meta, _) in self._tree.arrays.items()})

    def merge(self, forks: Sequence[GatheredRows]) -> None:
        self._check_open()
        for fork in forks:
            for name, start, values in fork.rows(self.meta):
                self.write(name, start, values)

    def commit(self, message: str, metadata: Mapping[str, object] | None = None) -> str:
        self._check_open()
        self._spent = True
        if not self._changes:
            return self.snapshot
        with self._repo.lock:
            branches = self._repo.branches
            if self._branch not in branches:
                raise refusals.no_name("branch", self._branch, branches, self._backend.location)
            tip = branches[self._branch]
            if tip != self.snapshot:
                self._rebase(tip, message)
            new = f"M{next(self._repo.ids):06d}"
            self._repo.trees[new] = self._tree
            self._repo.commits[new] = Commit.now(new, tip or None, message, metadata)
            self._repo.branches[self._branch] = new
            return new

    def _rebase(self, tip: str, message: str) -> None:
        since = itertools.takewhile(
            lambda commit: commit.id != self.snapshot, self._backend.history(tip)
        )
        touched = self._tree.touched
        if any(collide(touched, self._repo.trees[commit.id].touched) for commit in since):
            raise refusals.changed_meanwhile(self._backend.location, message)
        self._tree = self._repo.trees[tip].child()
        for change in self._changes:
            change(self._tree)
        self._tree.touched = touched

    def discard(self) -> None:
        self._spent = True
        self._changes.clear()
        self._tree = self._repo.trees[self.snapshot].child()
