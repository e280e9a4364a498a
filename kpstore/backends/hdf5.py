"""A store in one HDF5 file, every version of it, readable with plain h5py.

HDF5 files do not survive a process that dies while it writes into them. So nobody ever does: a commit changes a copy
of the file, and the copy takes the file's place when it is whole (docs/decisions/006). A reader keeps the file that it
has opened. The price is one copy for each commit; file systems that can share blocks (XFS, Btrfs) make it for nothing.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import hdf5_layout as layout
from kpstore.backends.asides import aside_of, check_room, copy_blocks, left_overs, make_durable
from kpstore.backends.base import (
    MAIN,
    TEXT,
    ArrayMeta,
    Capabilities,
    Chunks,
    Commit,
    ViewChunks,
    check_short_end,
)
from kpstore.backends.hdf5_layout import HOME, ArrayDelta, Delta, Tree
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.backends.mapping import FilePiece, map_pieces
from kpstore.errors import (
    BusyError,
    ConflictError,
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)

_OPEN = {
    "libver": ("v108", "v114"),  # attributes of more than 64 KiB, and still read by every HDF5 since 2008
    "rdcc_nbytes": 16 * 2**20,
    "alignment_threshold": 4096,  # chunks begin with a page, so that raw ones can be mapped into memory
    "alignment_interval": 4096,
}

Touched = tuple[str, str | int]
"""What a commit changed: an array and a chunk of it, or ``"meta"``; the array ``""`` stands for the root."""


class HDF5Backend:
    """A store in a file whose name ends with ``.h5`` or ``.hdf5``.

    Parameters
    ----------
    location : path of the file.
    """

    capabilities = Capabilities(branches=False, parallel_writers=False, fork_safe=True)

    def __init__(self, location: str) -> None:
        self.location = str(Path(location))
        """Path of the file, as it was given."""
        # A link's own name would be replaced by a private copy at the first commit.
        self._path = Path(location).resolve()
        self._open_file: tuple[tuple[int, ...], h5py.File] | None = None

    def __reduce__(self) -> tuple[type[HDF5Backend], tuple[str]]:
        return HDF5Backend, (str(self._path),)

    @property
    def sidecar_dir(self) -> Path:
        """Directory for locks and live progress, beside the file."""
        return self._path.with_name(f".{self._path.name}.kpstore")

    def exists(self) -> bool:
        """Whether the file is there and holds a store."""
        if not self._path.is_file():
            return False
        try:
            with h5py.File(self._path, "r") as file:
                return HOME in file and "head" in file[HOME].attrs
        except OSError:
            return _looks_like_hdf5(self._path)  # something is there; opening it will say what is wrong with it

    def create(self, attrs: Mapping[str, Any], message: str) -> str:
        """Make the file."""
        self.check_free()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._aside()
        snapshot = _new_id()
        try:
            with h5py.File(aside, "x", **_OPEN) as file:
                home = file.create_group(HOME)
                home.attrs.update({"format": layout.FORMAT, "head": snapshot, "tags": "{}", "used_tags": "[]"})
                layout.set_attrs(file, attrs)
                _write_record(file, snapshot, None, message, {}, set())
            make_durable(aside)
            _place(aside, self)
        finally:
            aside.unlink(missing_ok=True)
        return snapshot

    def check_free(self) -> None:
        """Raise :class:`ExistsError` if anything is at this place."""
        if self._path.exists() or self._path.is_symlink():
            raise ExistsError(f"{self.location} already exists; choose another path for the store")

    def move(self, location: str) -> None:
        """Rename the file."""
        target = HDF5Backend(location)
        target.check_free()
        self._require()
        target._path.parent.mkdir(parents=True, exist_ok=True)
        _place(self._path, target)
        self._path.unlink()
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)

    def remove(self) -> None:
        """Remove the file."""
        if self.exists():
            self._path.unlink()
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)

    # -- versions -------------------------------------------------------------------------------------------

    def _require(self) -> None:
        if not self._path.exists():
            raise NotFoundError(f"{self.location} does not exist; 'kpstore ingest' or kpstore.create() makes one")
        if not self.exists():
            what = "is a folder" if self._path.is_dir() else "is not a kpstore store in HDF5"
            raise NotFoundError(f"{self.location} {what}; 'kpstore import hdf5' reads other HDF5 files")

    def file(self) -> h5py.File:
        """Return the file as it is now, open for reading; who holds it keeps it, whatever takes its place later."""
        try:
            found = os.stat(self._path)
        except OSError:
            self._require()
            raise
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, os.getpid())
        if self._open_file is None or self._open_file[0] != key:
            self._require()
            try:
                self._open_file = key, h5py.File(self._path, "r")
            except BlockingIOError:
                raise BusyError(f"{self.location} is open for writing in another program; close it there") from None
            except PermissionError:
                raise
            except OSError as error:
                reason = str(error).partition("(")[2].rstrip(")") or error
                raise CorruptError(f"{self.location} cannot be opened as HDF5: {reason}; it is damaged") from None
        return self._open_file[1]

    def view(self, snapshot: str) -> _ReadView:
        """Open a version by its id."""
        file = self.file()
        self._check_version(file, snapshot)
        return _ReadView(self, file, snapshot)

    def _check_version(self, file: h5py.File, snapshot: str) -> None:
        if layout.version_group(file, snapshot) is None:
            raise NotFoundError(f"version {snapshot!r} of {self.location} not found; see 'kpstore log'")

    def begin(self, branch: str = MAIN) -> _WriteView:
        """Start changes on top of the newest version."""
        self._check_branch(branch)
        file = self.file()
        return _WriteView(self, file, layout.head_of(file))

    def _check_branch(self, name: str) -> None:
        if name != MAIN:
            raise NotFoundError(f"branch {name!r} of {self.location} not found; an HDF5 store has {MAIN!r} only")

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and all that it builds upon."""
        file = self.file()
        self._check_version(file, snapshot)
        following: str | None = snapshot
        while following is not None:
            commit = layout.read_commit(file, following)
            yield commit
            following = commit.parent

    def branches(self) -> dict[str, str]:
        """Return the one branch that there is."""
        return {MAIN: layout.head_of(self.file())}

    def create_branch(self, name: str, snapshot: str) -> None:
        """Refuse: there is one line of versions in a file."""
        self._check_version(self.file(), snapshot)
        raise UnsupportedError(
            f"{self.location} is an HDF5 store, which has no branches; name the version with a tag, "
            f"or convert it: kpstore convert {self.location} STORE.kps"
        )

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make an earlier version the newest again; the versions after it stay readable."""
        self._check_branch(name)
        self._check_version(self.file(), snapshot)
        with self.commit_lock():
            file = self.file()
            if layout.head_of(file) != expected:
                raise ConflictError(f"branch {name!r} of {self.location} has a newer version meanwhile; try again")
            if snapshot == expected:
                return
            changes = _WriteView(self, file, expected)
            try:
                changes.restore(Tree(file, snapshot))
                changes.become(snapshot)
            finally:
                changes.discard()

    # -- tags -----------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, str]:
        """Return tags and the ids that they name."""
        return dict(sorted(json.loads(self.file()[HOME].attrs["tags"]).items()))

    def create_tag(self, name: str, snapshot: str) -> None:
        """Name a version for good."""
        self._check_version(self.file(), snapshot)
        with self.commit_lock(), self._changed_copy() as file:
            used = json.loads(file[HOME].attrs["used_tags"])
            if name in used:
                raise ExistsError(
                    f"tag {name!r} of {self.location} is, or was, taken and tags never move; choose another name"
                )
            tags = json.loads(file[HOME].attrs["tags"])
            file[HOME].attrs["tags"] = json.dumps({**tags, name: snapshot})
            file[HOME].attrs["used_tags"] = json.dumps([*used, name])

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock(), self._changed_copy() as file:
            tags = json.loads(file[HOME].attrs["tags"])
            if name not in tags:
                raise NotFoundError(f"tag {name!r} of {self.location} not found; it has {sorted(tags)}")
            file[HOME].attrs["tags"] = json.dumps({key: value for key, value in tags.items() if key != name})

    @contextmanager
    def _changed_copy(self) -> Iterator[h5py.File]:
        """Give a copy of the file to change, which takes the file's place if the block ends without an error."""
        work = self.copy_aside(self.file())
        try:
            with h5py.File(work, "r+", **_OPEN) as file:
                yield file
            self.replace_by(work)
        finally:
            work.unlink(missing_ok=True)

    # -- files ----------------------------------------------------------------------------------------------

    def _aside(self) -> Path:
        return aside_of(self._path, "writing")

    def copy_aside(self, file: h5py.File) -> Path:
        """Return a copy of an open file beside it; what killed writers left behind is removed first."""
        for left_over in left_overs(self._path, "writing"):
            left_over.unlink(missing_ok=True)
        source = int(np.asarray(file.id.get_vfd_handle()).item())
        about = os.fstat(source)
        check_room(self._path, about.st_size)
        aside = self._aside()
        target = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with suppress(PermissionError):  # only root gives files away, and a group may be one's own or not
                os.fchown(target, about.st_uid, about.st_gid)
            os.fchmod(target, about.st_mode & 0o7777)
            copy_blocks(source, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(target)
        return aside

    def replace_by(self, work: Path) -> None:
        """Give a whole and closed file the store's name."""
        make_durable(work)
        os.replace(work, self._path)
        make_durable(self._path.parent)

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the store for one long write."""
        self._require()
        return refusing_lock(self.sidecar_dir / "writer.lock", location=self.location, purpose=purpose)

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits: two that each copied the same file would lose one of them."""
        return waiting_lock(self.sidecar_dir / "commit.lock")


def _new_id() -> str:
    return uuid.uuid4().hex[:20].upper()


def _write_record(
    file: h5py.File,
    snapshot: str,
    parent: str | None,
    message: str,
    metadata: Mapping[str, Any],
    touched: set[Touched],
) -> None:
    group = file[HOME].require_group("versions").create_group(snapshot)
    record = {
        "parent": parent,
        "message": message,
        "time": datetime.now(UTC).isoformat(),
        "metadata": dict(metadata),
        "touched": sorted(touched, key=str),
    }
    layout.write_json(group, "record", record)


def _looks_like_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except PermissionError:
        return True  # whoever opens it is told
    except OSError:
        return False


def _place(file: Path, backend: HDF5Backend) -> None:
    """Give a file a second name; unlike a rename, that refuses a place that was taken meanwhile."""
    try:
        os.link(file, backend._path)
    except FileExistsError:
        backend.check_free()
        raise


class _View:
    """All arrays at one version."""

    def __init__(self, backend: HDF5Backend, file: h5py.File, snapshot: str) -> None:
        self._backend, self._file, self._snapshot = backend, file, snapshot
        self._tree = Tree(file, snapshot)

    @property
    def snapshot(self) -> str:
        return self._snapshot

    def attrs(self) -> Mapping[str, Any]:
        return copy.deepcopy(self._tree.attrs)

    def names(self) -> list[str]:
        return sorted(self._tree.arrays)

    def _array(self, name: str) -> layout.StoredArray:
        if name not in self._tree.arrays:
            raise NotFoundError(f"array {name!r} not found; there are {self.names()}")
        return self._tree.arrays[name]

    def meta(self, name: str) -> ArrayMeta:
        return self._array(name).meta

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._array(name)
        if start < 0 or stop > array.meta.n_rows or stop < start:
            raise InvalidError(f"rows {start}:{stop} of {name!r} asked for; it has {array.meta.n_rows}")
        try:
            return array.read(start, stop)
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise CorruptError(
                f"rows {start}:{stop} of {name!r} in {self._backend.location} cannot be read: {error}"
            ) from error


class _ReadView(_View):
    """A version that never changes."""

    def __init__(self, backend: HDF5Backend, file: h5py.File, snapshot: str) -> None:
        super().__init__(backend, file, snapshot)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        if name not in self._chunks:
            array = self._array(name)
            raw = array.meta.dtype != TEXT and array.is_raw
            self._chunks[name] = _RawChunks(self._file, array) if raw else ViewChunks(self, name)
        return self._chunks[name]


class _RawChunks:
    """Chunks without filters, read from where they lie in the file, or mapped; HDF5's library is asked only where."""

    def __init__(self, file: h5py.File, array: layout.StoredArray) -> None:
        self._file, self._meta = file, array.meta  # the file stays open for as long as this does
        self._handle = int(np.asarray(file.id.get_vfd_handle()).item())
        offsets: dict[str, dict[int, int]] = {}
        self._places = [_offset(piece, offsets) for piece in array.pieces()]
        pieces = [None if at is None else FilePiece(self._handle, at) for at in self._places]
        mapped = map_pieces(
            pieces, (self._meta.chunk_rows, *self._meta.shape[1:]), np.dtype(self._meta.dtype), self._meta.fill
        )
        self.mapped: NDArray[Any] | None = None if mapped is None else mapped[: self._meta.n_rows]

    @property
    def how(self) -> str:
        """Where chunks are read from."""
        return "from their place in the file"

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Read a chunk; see :class:`kpstore.backends.base.Chunks`."""
        at = self._places[number]
        if at is None:
            out[...] = self._meta.fill
            return
        buffer = out.reshape(-1).view(np.uint8)
        done = os.preadv(self._handle, [buffer.data], at)
        if done != buffer.nbytes:
            raise CorruptError(f"chunk {number} at byte {at} cannot be read: {done} of {buffer.nbytes} bytes are there")


def _offset(piece: layout.Piece, known: dict[str, dict[int, int]]) -> int | None:
    """Return where in the file a chunk begins; None if nobody wrote it."""
    if piece.array is None:
        return None
    name = piece.array.name
    if name not in known:
        found = known[name] = {}
        rows = piece.array.chunks[0]
        piece.array.id.chunk_iter(lambda info: found.__setitem__(info.chunk_offset[0] // rows, info.byte_offset))
    return known[name].get(piece.chunk)


class _WriteView(_View):
    """Changes in a copy of the file, made when the first change comes."""

    def __init__(self, backend: HDF5Backend, file: h5py.File, snapshot: str) -> None:
        super().__init__(backend, file, snapshot)
        self._base = file
        self._work: tuple[Path, h5py.File] | None = None
        self._spent = False
        self._delta = Delta()
        self._touched: set[Touched] = set()
        self._steps: list[tuple[str, tuple[Any, ...]]] = []

    def chunks(self, name: str) -> Chunks:
        return ViewChunks(self, name)

    # -- the copy -------------------------------------------------------------------------------------------

    def _copy(self) -> h5py.File:
        """Return the copy, open for writing; its arrays take the place of the original's."""
        if self._spent:
            raise ReadOnlyError(
                f"these changes of {self._backend.location} were committed or discarded; begin new ones"
            )
        if self._work is None:
            path = self._backend.copy_aside(self._base)
            file = h5py.File(path, "r+", **_OPEN)
            self._work = path, file
            self._tree = Tree(file, self._snapshot)
            delta = file[HOME]["versions"][self._snapshot].create_group("delta")
            delta.create_group("chunks")
            delta.create_group("arrays")
        return self._work[1]

    def _kept(self) -> h5py.Group:
        return self._copy()[HOME]["versions"][self._snapshot]["delta"]

    def _array_delta(self, name: str) -> ArrayDelta | None:
        """Return what is noted of an array of the version that this builds upon; None if that has no such array."""
        if name not in self._delta.arrays:
            meta = self.meta(name)
            self._delta.arrays[name] = ArrayDelta(meta.n_rows, dict(meta.attrs))
        found = self._delta.arrays[name]
        return None if found is None or found.whole else found

    def _note(self, step: str, *arguments: Any, touched: set[Touched]) -> None:
        self._steps.append((step, arguments))
        self._touched |= touched

    def _refresh(self, name: str) -> None:
        array = self._copy()[name]
        self._tree.arrays[name] = layout.StoredArray(array, layout.meta_of(array), {})

    # -- changes --------------------------------------------------------------------------------------------

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        file = self._copy()
        if self._delta.attrs is None:
            self._delta.attrs = self._tree.attrs
        layout.set_attrs(file, attrs)
        self._tree.attrs = copy.deepcopy(dict(attrs))
        self._note("set_attrs", dict(attrs), touched={("", "meta")})

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        file = self._copy()
        self._array_delta(name)
        layout.set_attrs(file[name], attrs)
        self._refresh(name)
        self._note("set_array_attrs", name, dict(attrs), touched={(name, "meta")})

    def create(self, name: str, meta: ArrayMeta) -> None:
        file = self._copy()
        if name in self._tree.arrays:
            raise ExistsError(f"array {name!r} exists already")
        if name in file:
            raise ExistsError(f"{name!r} is taken in {self._backend.location} by something that is not kpstore's")
        self._delta.arrays.setdefault(name, None)
        layout.create_array(file, name, meta)
        self._refresh(name)
        self._note("create", name, meta, touched={(name, "meta")})

    def resize(self, name: str, n_rows: int) -> None:
        file = self._copy()
        old = self.meta(name).n_rows
        if n_rows < old:
            raise InvalidError(f"{name!r} has {old} rows and cannot shrink to {n_rows}")
        if n_rows > old:
            self._array_delta(name)
            file[name].resize(n_rows, axis=0)
            self._refresh(name)
            self._note("resize", name, n_rows, touched={(name, "meta")})

    def delete(self, name: str) -> None:
        file = self._copy()
        delta = self._array_delta(name)
        if delta is None:
            del file[name]
            if self._delta.arrays[name] is None:
                del self._delta.arrays[name]
        else:
            delta.whole = True
            file.move(name, f"{self._kept().name}/arrays/{name}")
        del self._tree.arrays[name]
        self._note("delete", name, touched={(name, "meta")})

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        file = self._copy()
        meta = self.meta(name)
        meta.check_values(name, start, values)
        if not len(values):
            return
        chunks = range(start // meta.chunk_rows, -(-(start + len(values)) // meta.chunk_rows))
        check_room(Path(file.filename), 2 * len(chunks) * meta.chunk_rows * meta.row_bytes)
        delta = self._array_delta(name)
        if delta is not None and start < delta.n_rows:
            for chunk in chunks:
                layout.keep_chunk(self._kept()["chunks"], file[name], delta, chunk)
        layout.write_dataset(file[name], start, values)
        self._note("write", name, start, len(values), touched={(name, chunk) for chunk in chunks})

    # -- forks ----------------------------------------------------------------------------------------------

    def fork(self) -> _Fork:
        if self._steps:
            raise InvalidError("a view can be forked only before it has changes of its own; commit first")
        return _Fork({name: array.meta for name, array in self._tree.arrays.items()})

    def merge(self, forks: Sequence[_Fork]) -> None:
        self._copy()
        for fork in forks:
            for name, start, values in fork.written:
                if fork.metas[name].has_short_chunk(start, len(values)):
                    check_short_end(self.meta(name), name, fork.metas[name].n_rows)
                self.write(name, start, values)

    # -- the end --------------------------------------------------------------------------------------------

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        if not self._steps and not self._spent:
            self.discard()
            return self._snapshot
        self._copy()
        try:
            with self._backend.commit_lock():
                file = self._backend.file()
                if layout.head_of(file) != self._snapshot:
                    self._rebase(file, message)
                snapshot = _new_id()
                _write_record(self._copy(), snapshot, self._snapshot, message, metadata or {}, self._touched)
                self.become(snapshot)
        finally:
            self.discard()
        return snapshot

    def become(self, snapshot: str) -> None:
        """Make the copy the file, with ``snapshot`` as its newest version; under the commit lock."""
        assert self._work is not None
        path, file = self._work
        layout.write_json(self._kept(), "about", self._delta.to_json(snapshot))
        newest = file[HOME]["versions"][snapshot]
        if "delta" in newest:  # it is the newest again, and differs from nothing
            del newest["delta"]
        file[HOME].attrs["head"] = snapshot
        file[HOME].attrs["tags"] = self._backend.file()[HOME].attrs["tags"]
        file[HOME].attrs["used_tags"] = self._backend.file()[HOME].attrs["used_tags"]
        file.close()
        self._backend.replace_by(path)

    def restore(self, tree: Tree) -> None:
        """Change everything to how it is in another version."""
        for name in set(self._tree.arrays) - set(tree.arrays):
            self.delete(name)
        self.set_attrs(tree.attrs)
        for name, wanted in tree.arrays.items():
            there = self._tree.arrays.get(name)
            if there is not None and not _same_layout(there.meta, wanted.meta):
                self.delete(name)
                there = None
            if there is None:
                self.create(name, wanted.meta)
            elif dict(there.meta.attrs) != dict(wanted.meta.attrs):
                self.set_array_attrs(name, wanted.meta.attrs)
            for chunk, piece in enumerate(wanted.pieces()):
                if there is None or chunk in wanted.elsewhere:
                    self._restore_chunk(name, wanted, chunk, piece)

    def _restore_chunk(self, name: str, wanted: layout.StoredArray, chunk: int, piece: layout.Piece) -> None:
        written = piece.array is not None and layout.is_written(piece.array, piece.chunk)
        if written or layout.is_written(self._copy()[name], chunk):
            rows = wanted.meta.chunk_rows
            start, stop = chunk * rows, min((chunk + 1) * rows, wanted.meta.n_rows)
            self.write(name, start, wanted.read(start, stop))

    def _rebase(self, file: h5py.File, message: str) -> None:
        """Do the same steps again in a copy of a newer version, unless that changed the same data."""
        since = list(itertools.takewhile(lambda c: c.id != self._snapshot, self._backend.history(layout.head_of(file))))
        theirs = {(name, what) for commit in since for name, what in _touched(file, commit.id)}
        reshaped = {name for name, what in theirs if what == "meta"}
        followed = since and since[-1].parent == self._snapshot
        if not followed or theirs & self._touched or reshaped & {name for name, _ in self._touched}:
            raise ConflictError(
                f"another writer has changed the same data of {self._backend.location} in the meantime, so "
                f"{message!r} was not committed; open the store again and repeat the change"
            )
        again = _WriteView(self._backend, file, layout.head_of(file))
        try:
            for step, arguments in self._steps:
                if step == "write":
                    name, start, n_rows = arguments
                    if name in self._tree.arrays:
                        again.write(name, start, self.read(name, start, start + n_rows))
                else:
                    getattr(again, step)(*arguments)
        except BaseException:
            again.discard()
            raise
        self._close_work()
        self._snapshot, self._base, self._work = again._snapshot, file, again._work
        self._tree, self._delta, self._touched = again._tree, again._delta, again._touched

    def discard(self) -> None:
        self._spent = True
        self._close_work()
        self._tree = Tree(self._base, self._snapshot)

    def _close_work(self) -> None:
        if self._work is not None:
            path, file = self._work
            self._work = None
            file.close()
            path.unlink(missing_ok=True)


def _same_layout(one: ArrayMeta, other: ArrayMeta) -> bool:
    """Whether an array of the one kind can be made into one of the other by writing."""
    return (one.shape, one.dtype, one.chunk_rows, one.dims, one.codec) == (
        other.shape,
        other.dtype,
        other.chunk_rows,
        other.dims,
        other.codec,
    )


def _touched(file: h5py.File, snapshot: str) -> set[Touched]:
    record = layout.read_json(file[HOME]["versions"][snapshot], "record")
    return {(name, what) for name, what in record["touched"]}


class _Fork:
    """Rows for another process to gather; the view that merges it writes them."""

    def __init__(self, metas: dict[str, ArrayMeta]) -> None:
        self.metas = metas
        self.written: list[tuple[str, int, NDArray[Any]]] = []

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        if name not in self.metas:
            raise NotFoundError(f"array {name!r} not found; there are {sorted(self.metas)}")
        self.metas[name].check_values(name, start, values)
        self.metas[name].check_whole_chunks(name, start, len(values))
        self.written.append((name, start, np.array(values)))
