"""Zarr v3 arrays in an Icechunk repository on a local directory."""

from __future__ import annotations

import copy
import errno
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from kpstore.backends.base import (
    MAIN,
    TEXT,
    ArrayMeta,
    Capabilities,
    Chunks,
    Codec,
    Commit,
    ReadView,
    ViewChunks,
    check_short_end,
)
from kpstore.backends.checksums import checksum, matches
from kpstore.backends.icechunk_chunks import local_chunks
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.errors import (
    ConflictError,
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

_log = logging.getLogger(__name__)

# Icechunk's own log lines go to standard output, where they break --json; what matters of them (local directories are
# not safe for concurrent commits) is answered below by a lock around every commit. Its errors come as exceptions; those
# that do not are of reading ahead in half-made stores, which are removed because their input was refused.
icechunk.set_logs_filter("off")

SIDECAR = "kpstore"
_used_in_this_process = False
_forked_after_use = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _used_in_this_process


os.register_at_fork(after_in_child=_after_fork)


def _guard_fork() -> None:
    """Refuse to touch Icechunk in a forked child of a process that used it: its threads are gone and it would hang."""
    global _used_in_this_process
    if _forked_after_use:
        raise UnsupportedError(
            "an Icechunk store cannot be read in a process made by fork() from one that had already opened a store; "
            "start workers with 'forkserver' or 'spawn', "
            "e.g. DataLoader(..., num_workers=2, multiprocessing_context='forkserver')"
        )
    _used_in_this_process = True


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
        _guard_fork()
        target = _free_place(self.location)
        # Built aside and renamed, so that a kill leaves either no store or one that opens.
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.creating-", dir=target.parent))
        try:
            repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(aside)))
            session = repository.writable_session(MAIN)
            zarr.create_group(session.store, attributes=dict(attrs))
            snapshot = str(session.commit(message))
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

    @cached_property
    def _repository(self) -> icechunk.Repository:
        # Icechunk makes the directory of whatever path it is given, so look before asking it.
        if not self.exists():
            what = "is not a kpstore store" if self._path.exists() else "does not exist"
            raise NotFoundError(f"{self.location} {what}; 'kpstore ingest' and 'kpstore import' make one")
        with _translated(self.location):
            return icechunk.Repository.open(icechunk.local_filesystem_storage(str(self._path)))

    def _repo(self) -> icechunk.Repository:
        _guard_fork()
        return self._repository

    def view(self, snapshot: str) -> _View:
        """Open a version by its id."""
        repo = self._repo()
        try:
            session = repo.readonly_session(snapshot_id=snapshot)
        except icechunk.IcechunkError as error:
            raise NotFoundError(f"version {snapshot!r} of {self.location} not found ({_first_line(error)})") from None
        try:
            return _ReadView(session, self)
        except FileNotFoundError:
            # Zarr calls a snapshot that cannot be read an empty one; Icechunk knows the difference.
            with _translated(self.location):
                next(repo.ancestry(snapshot_id=snapshot))
            raise InvalidError(
                f"{self.location} is an Icechunk repository but not a kpstore store (no root group)"
            ) from None

    def begin(self, branch: str = MAIN) -> _WriteView:
        """Start changes on top of a branch's newest version."""
        repo = self._repo()
        if branch not in self.branches():
            raise NotFoundError(f"branch {branch!r} of {self.location} not found; it has {sorted(self.branches())}")
        with _translated(self.location):
            return _WriteView(repo.writable_session(branch), self)

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and all that it builds upon, without Icechunk's own empty first one."""
        self.view(snapshot)
        with _translated(self.location):
            versions = itertools.pairwise(self._repo().ancestry(snapshot_id=snapshot))
            for info, older in versions:
                parent = None if older.parent_id is None else older.id
                yield Commit(info.id, parent, info.message, info.written_at, dict(info.metadata))

    def branches(self) -> dict[str, str]:
        """Return branches and the ids of their newest versions."""
        repo = self._repo()
        with _translated(self.location):
            return {name: repo.lookup_branch(name) for name in sorted(repo.list_branches())}

    def tags(self) -> dict[str, str]:
        """Return tags and the ids that they name."""
        repo = self._repo()
        with _translated(self.location):
            return {name: repo.lookup_tag(name) for name in sorted(repo.list_tags())}

    def create_branch(self, name: str, snapshot: str) -> None:
        """Make a branch that starts at a version."""
        with self.commit_lock():
            if name in self.branches():
                raise ExistsError(f"branch {name!r} of {self.location} exists already")
            with _translated(self.location):
                self._repo().create_branch(name, self.view(snapshot).snapshot)

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make a version the newest one of a branch."""
        with self.commit_lock(), _translated(self.location):
            if name not in self.branches():
                raise NotFoundError(f"branch {name!r} of {self.location} not found; it has {sorted(self.branches())}")
            if self.branches()[name] != expected:
                raise ConflictError(f"branch {name!r} of {self.location} has a newer version meanwhile; try again")
            self._repo().reset_branch(name, self.view(snapshot).snapshot)

    def create_tag(self, name: str, snapshot: str) -> None:
        """Name a version for good: Icechunk never gives a deleted tag's name out again."""
        with self.commit_lock():
            if name in self.tags():
                raise ExistsError(
                    f"tag {name!r} of {self.location} exists already and tags never move; choose another name"
                )
            target = self.view(snapshot).snapshot
            try:
                self._repo().create_tag(name, target)
            except icechunk.IcechunkError as error:
                raise ExistsError(f"tag {name!r} of {self.location} cannot be made: {_first_line(error)}") from None

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock():
            if name not in self.tags():
                raise NotFoundError(f"tag {name!r} of {self.location} not found; it has {sorted(self.tags())}")
            self._repo().delete_tag(name)

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the store for one long write."""
        return refusing_lock(self.sidecar_dir / "writer.lock", location=self.location, purpose=purpose)

    def local_chunks(self, view: ReadView, array: zarr.Array[Any]) -> Chunks | None:
        """Return an array's chunks as files of this directory, or None where they are not such files."""
        return local_chunks(self._repo(), self._path, view.snapshot, array, view.meta(array.basename))

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits: on a local directory Icechunk by itself loses some of them (decisions/002)."""
        return waiting_lock(self.sidecar_dir / "commit.lock")


class _View:
    """A read-only session and its open arrays."""

    def __init__(self, session: icechunk.Session, location: str) -> None:
        self._session, self._location = session, location
        self._group = zarr.open_group(session.store, mode="r" if session.read_only else "r+")
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @property
    def snapshot(self) -> str:
        return str(self._session.snapshot_id)

    def attrs(self) -> Mapping[str, Any]:
        return copy.deepcopy(dict(self._group.attrs))

    def names(self) -> list[str]:
        _guard_fork()
        return sorted(self._group.array_keys())

    def _array(self, name: str) -> zarr.Array[Any]:
        _guard_fork()
        if name not in self._arrays:
            try:
                array = self._group[name]
            except KeyError:
                raise NotFoundError(f"array {name!r} not found; there are {self.names()}") from None
            if not isinstance(array, zarr.Array):
                raise CorruptError(f"{name!r} is a group, an array was expected")
            self._arrays[name] = array
        return self._arrays[name]

    def meta(self, name: str) -> ArrayMeta:
        return _meta_of(self._array(name))

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._array(name)
        if start < 0 or stop > array.shape[0] or stop < start:
            raise InvalidError(f"rows {start}:{stop} of {name!r} asked for; it has {array.shape[0]}")
        try:
            values = np.asarray(array[start:stop])
        except (icechunk.IcechunkError, ValueError, RuntimeError) as error:
            raise CorruptError(
                f"rows {start}:{stop} of {name!r} in {self._location} cannot be read: {_first_line(error)}"
            ) from error
        return values.astype(object) if values.dtype.kind == "T" else values


def _meta_of(array: zarr.Array[Any]) -> ArrayMeta:
    text = array.dtype.kind == "T"
    return ArrayMeta(
        shape=array.shape,
        dtype=TEXT if text else array.dtype.name,
        chunk_rows=array.chunks[0],
        dims=tuple(str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ()),
        fill=0 if text else array.fill_value.item(),
        attrs=dict(array.attrs),
        codec=_codec_name(array),
    )


_COMPRESSORS: Mapping[Codec, tuple[Any, ...]] = {
    "raw": (),
    "zstd": (ZstdCodec(),),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),),
}


def _codec_name(array: zarr.Array[Any]) -> Codec:
    match array.compressors:
        case (BloscCodec(), *_):
            return "lz4"
        case (ZstdCodec(), *_):
            return "zstd"
        case _:
            return "raw"


class _ReadView(_View):
    """A version that never changes: what was learnt about it stays true."""

    def __init__(self, session: icechunk.Session, backend: IcechunkBackend) -> None:
        super().__init__(session, backend.location)
        self._backend = backend
        self._metas: dict[str, ArrayMeta] = {}
        self._chunks: dict[str, Chunks] = {}

    def meta(self, name: str) -> ArrayMeta:
        if name not in self._metas:
            self._metas[name] = super().meta(name)
        return self._metas[name]

    def digest(self, name: str) -> None:
        """Return none: Zarr checks text whenever it is read."""

    def chunks(self, name: str) -> Chunks:
        if name not in self._chunks:
            self._chunks[name] = self._backend.local_chunks(self, self._array(name)) or ViewChunks(self, name)
        return self._chunks[name]


class _WriteView(_View):
    """A writable session; commits under the store's lock."""

    def __init__(self, session: icechunk.Session, backend: IcechunkBackend) -> None:
        super().__init__(session, backend.location)
        self._backend = backend
        self._spent = False

    def _check_open(self) -> None:
        _guard_fork()
        if self._spent:
            raise ReadOnlyError(f"these changes of {self._location} were committed or discarded; begin new ones")

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        self._check_open()
        self._group.attrs.put(dict(attrs))

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        self._check_open()
        self._array(name).attrs.put(dict(attrs))
        del self._arrays[name]

    def create(self, name: str, meta: ArrayMeta) -> None:
        self._check_open()
        if name in self._group:
            raise ExistsError(f"array {name!r} exists already")
        text = meta.dtype == TEXT
        self._arrays[name] = self._group.create_array(
            name,
            shape=meta.shape,
            chunks=(meta.chunk_rows, *meta.shape[1:]),
            dtype=str if text else meta.dtype,
            fill_value="" if text else meta.fill,
            compressors=(*_COMPRESSORS[meta.codec], Crc32cCodec()),
            dimension_names=meta.dims,
            attributes=dict(meta.attrs),
            # A chunk that was written must exist even if all of it is fill: no chunk means that nobody wrote it.
            config={"write_empty_chunks": True},
        )

    def resize(self, name: str, n_rows: int) -> None:
        self._check_open()
        array = self._array(name)
        if n_rows < array.shape[0]:
            raise InvalidError(f"{name!r} has {array.shape[0]} rows and cannot shrink to {n_rows}")
        if n_rows > array.shape[0]:
            array.resize((n_rows, *array.shape[1:]))
            del self._arrays[name]

    def digest(self, name: str) -> None:
        """Return none: Zarr checks text whenever it is read."""

    def chunks(self, name: str) -> Chunks:
        return ViewChunks(self, name)

    def delete(self, name: str) -> None:
        self._check_open()
        self._array(name)
        del self._group[name]
        del self._arrays[name]

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        self._check_open()
        _write_rows(self._array(name), name, start, values)

    def fork(self) -> _Fork:
        self._check_open()
        try:
            return _Fork(self._session.fork())
        except ValueError:
            raise InvalidError("a view can be forked only before it has changes of its own; commit first") from None

    def merge(self, forks: Sequence[_Fork]) -> None:
        self._check_open()
        for fork in forks:
            for name, n_rows in fork.short_ends.items():
                check_short_end(self.meta(name), name, n_rows)
        self._session.merge(*(fork.session for fork in forks))
        self._arrays.clear()

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        self._check_open()
        self._spent = True
        if not self._session.has_uncommitted_changes:
            return self.snapshot
        with self._backend.commit_lock():
            try:
                return str(self._session.commit(message, dict(metadata or {})))
            except icechunk.ConflictError:
                return self._rebase_and_commit(message, dict(metadata or {}))

    def _rebase_and_commit(self, message: str, metadata: dict[str, Any]) -> str:
        try:
            self._session.rebase(icechunk.ConflictDetector())
        except icechunk.RebaseFailedError as error:
            raise ConflictError(
                f"another writer has changed the same data of {self._backend.location} in the meantime, so "
                f"{message!r} was not committed ({_first_line(error)}); open the store again and repeat the change"
            ) from None
        return str(self._session.commit(message, metadata))

    def discard(self) -> None:
        if not self._spent:
            self._session.discard_changes()
            self._arrays.clear()
        self._spent = True


class _Fork:
    """A forked session; pickles together with what was written through it."""

    def __init__(self, session: icechunk.ForkSession) -> None:
        self.session = session
        self.short_ends: dict[str, int] = {}
        """Rows of each array whose short last chunk was written, when it was."""
        self.checksums: dict[str, dict[int, int]] = {}
        """Of each chunk that was written, by array and number."""

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        array = self._array(name, "r+").with_config({"write_empty_chunks": True})
        meta = _meta_of(array)
        meta.check_whole_chunks(name, start, len(values))
        if meta.has_short_chunk(start, len(values)):
            self.short_ends[name] = meta.n_rows
        _write_rows(array, name, start, values)
        written = self.checksums.setdefault(name, {})
        for first in range(0, len(values), meta.chunk_rows):
            rows = np.asarray(values[first : first + meta.chunk_rows])
            written[(start + first) // meta.chunk_rows] = checksum(meta, rows)

    def check(self) -> None:
        """Read every chunk that was written, through this process's own view of the store."""
        for name, written in self.checksums.items():
            array = self._array(name, "r")
            meta = _meta_of(array)
            for chunk, expected in written.items():
                start, stop = chunk * meta.chunk_rows, min((chunk + 1) * meta.chunk_rows, meta.n_rows)
                try:
                    values = np.asarray(array[start:stop])
                except (icechunk.IcechunkError, ValueError, RuntimeError) as error:
                    raise CorruptError(
                        f"rows {start}:{stop} of {name!r}, which a worker says it wrote, cannot be read: "
                        f"{_first_line(error)}"
                    ) from error
                if not matches(meta, values, expected):
                    raise CorruptError(f"rows {start}:{stop} of {name!r} hold other values than a worker says it wrote")

    def _array(self, name: str, mode: Literal["r", "r+"]) -> zarr.Array[Any]:
        _guard_fork()
        try:
            return zarr.open_array(self.session.store, path=name, mode=mode)
        except FileNotFoundError:
            raise NotFoundError(f"array {name!r} not found") from None


def _write_rows(array: zarr.Array[Any], name: str, start: int, values: NDArray[Any]) -> None:
    ArrayMeta(array.shape, "", array.chunks[0], ()).check_values(name, start, values)
    if len(values) == 0:
        return
    if not array.config.write_empty_chunks:
        array = array.with_config({"write_empty_chunks": True})
    array[start : start + len(values)] = values


def _free_place(location: str) -> Path:
    """Return where a new store goes: nothing is there, or an empty folder, or a link to one."""
    target = Path(location).absolute().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise _taken(location)
    return target


def _taken(location: str) -> ExistsError:
    return ExistsError(f"{location} already exists and is not empty; choose another path for the store")


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


def _first_line(error: Exception) -> str:
    return next((line.strip(" x") for line in str(error).splitlines() if line.strip(" x|")), type(error).__name__)


@contextmanager
def _translated(location: str) -> Iterator[None]:
    """Turn what Icechunk raises on damaged or foreign files into one line of ours."""
    try:
        yield
    except icechunk.IcechunkError as error:
        raise CorruptError(f"{location} cannot be read as an Icechunk repository: {_first_line(error)}") from error
