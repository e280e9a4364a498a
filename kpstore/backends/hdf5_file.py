"""The file of an HDF5 store: how it is opened, read, and replaced by a changed copy."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import refusals
from kpstore.backends.asides import (
    aside_of,
    check_room,
    copy_blocks,
    free_room,
    hold_room,
    left_overs,
    make_durable,
)
from kpstore.backends.base import TEXT, ArrayMeta, Commit, plain
from kpstore.backends.chunks import Chunks, NearChunks
from kpstore.backends.hdf5_heaps import open_checked
from kpstore.backends.hdf5_items import has_item, item_of
from kpstore.backends.hdf5_records import (
    DAMAGE,
    HOME,
    Names,
    damage_told,
    descriptor_of,
    has_checksums,
    read_commit,
    read_names,
    read_record,
    reason_of,
)
from kpstore.backends.hdf5_tree import StoredArray, Tree, WrongChunkError, read_tree
from kpstore.backends.links import refuse_links_beside
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.backends.mapping import FilePiece, map_chunks
from kpstore.backends.sidecar import WRITER_LOCK, FolderSidecar
from kpstore.errors import BusyError, CorruptError, KpstoreError, NotFoundError

Found = TypeVar("Found")


class StoreFile:
    """What sessions need to know of the store that they belong to.

    Parameters
    ----------
    location : path of the file.
    """

    def __init__(self, location: str) -> None:
        self.location = str(Path(location))
        """Path of the file, as it was given."""
        # If the path is a link, a commit has to replace the file that it leads to, not the link.
        self._path = Path(location).resolve()
        self._open_file: tuple[tuple[int, ...], h5py.File] | None = None

    @property
    def sidecar_dir(self) -> Path:
        """Directory for locks and live progress, beside the file."""
        return _sidecar_of(self._path)

    @property
    def sidecar(self) -> FolderSidecar:
        """Texts in that directory."""
        return FolderSidecar(self.sidecar_dir)

    def exists(self) -> bool:
        """Return whether the file exists and holds a store."""
        if not self._path.is_file():
            return False
        try:
            with open_checked(self._path) as file:
                return has_item(file, HOME) and "head" in item_of(file, HOME).attrs
        except DAMAGE:
            return _looks_like_hdf5(self._path)  # and opening it will tell what is wrong

    def _require(self) -> None:
        if not self._path.exists():
            raise NotFoundError(
                f"{self.location} does not exist; 'kpstore ingest' and 'kpstore import' make one"
            )
        if not self.exists():
            what = "is a folder" if self._path.is_dir() else "is not a kpstore store in HDF5"
            raise NotFoundError(
                f"{self.location} {what}; 'kpstore import hdf5' reads other HDF5 files"
            )

    def close(self) -> None:
        """Release the open file; it closes with its last session."""
        self._open_file = None

    def file(self) -> h5py.File:
        """Return the present file, open for reading; it stays readable after it is replaced."""
        try:
            found = os.stat(self._path)
        except OSError:
            if self._open_file is not None:
                raise refusals.gone(self.location, replaced=False) from None
            self._require()
            raise
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, os.getpid())
        if self._open_file is None or self._open_file[0] != key:
            self._require()
            try:
                file = open_checked(self._path)
            except BlockingIOError:
                raise BusyError(
                    f"{self.location} is open for writing in another program; close it there"
                ) from None
            except (PermissionError, CorruptError):
                raise
            except DAMAGE as error:
                reason = str(error).partition("(")[2].rstrip(")") or error
                raise CorruptError(
                    f"{self.location} cannot be opened as HDF5: {reason}; it is damaged"
                ) from None
            with damage_told(self.location):
                has_checksums(file)  # refuses a newer format
            self._check_same(file)
            self._open_file = key, file
        return self._open_file[1]

    def _check_same(self, file: h5py.File) -> None:
        """Raise :class:`NotFoundError` if a file is not a later state of the one that is open."""
        if self._open_file is None:
            return
        try:
            self.check_version(file, self.names(self._open_file[1]).head)
        except NotFoundError:
            raise refusals.gone(self.location, replaced=True) from None

    # -- versions ----------------------------------------------------------------------------------

    def names(self, file: h5py.File) -> Names:
        """Return the names of versions in a file of this store."""
        with damage_told(self.location):
            return read_names(file)

    def check_version(self, file: h5py.File, snapshot: str) -> None:
        """Raise :class:`NotFoundError` for an unknown version."""
        with damage_told(self.location):
            versions = item_of(file, f"{HOME}/versions")
            found = snapshot.isalnum() and has_item(versions, snapshot)
        if not found:
            raise NotFoundError(
                f"version {snapshot!r} of {self.location} not found; see 'kpstore log'"
            )

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and its ancestors, newest first."""
        file = self.file()
        self.check_version(file, snapshot)
        following: str | None = snapshot
        seen: set[str] = set()
        while following is not None:
            with damage_told(self.location, f"version {following}"):
                commit = read_commit(file, following)
                if following in seen:
                    raise ValueError("it follows itself")
            seen.add(following)
            yield commit
            following = commit.parent

    # -- copies ------------------------------------------------------------------------------------

    def left_overs(self) -> list[Path]:
        """Return the copies of killed writers, and copies of those."""
        found = left_overs(self._path, "writing")
        paths = [path for one in found for path in (one, *left_overs(one, "writing"))]
        return [path for path in paths if path.exists()]

    def _remove_left_overs(self) -> None:
        for left_over in self.left_overs():
            left_over.unlink(missing_ok=True)
            shutil.rmtree(_sidecar_of(left_over), ignore_errors=True)

    def copy_aside(self, file: h5py.File, *, empty: bool = False) -> Path:
        """Copy an open file to a new one beside it, and remove the copies of killed writers.

        With ``empty``, the new file has the old one's owner and rights, but nothing in it, and
        nothing is removed.
        """
        if not empty:
            self._remove_left_overs()
        source = descriptor_of(file)
        about = os.fstat(source)
        check_room(self._path, about.st_size)
        aside = aside_of(self._path, "writing")
        target = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Only root may change the owner, and others may only choose a group of their own.
            for owner in (-1, about.st_uid):
                with suppress(PermissionError):
                    os.fchown(target, owner, about.st_gid)
            os.fchmod(target, about.st_mode & 0o7777)
            if not empty:
                copy_blocks(source, target)
            hold_room(aside, about.st_size if empty else 0, self.location)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(target)
        return aside

    def replace_by(self, work: Path) -> None:
        """Give a complete, closed file the store's name."""
        free_room(work)
        make_durable(work)
        os.replace(work, self._path)
        make_durable(self._path.parent)

    @property
    def sessions_lock(self) -> Path:
        """File that write sessions lock together."""
        return self._lock_file("sessions.lock")

    def _lock_file(self, name: str) -> Path:
        """Return a file to lock, after refusing a folder of locks that leads elsewhere."""
        refuse_links_beside(self.sidecar_dir)
        return self.sidecar_dir / name

    def commit_lock(self) -> AbstractContextManager[None]:
        """Exclude other commits: of two that copied the same file, one would be lost."""
        return waiting_lock(self._lock_file("commit.lock"))

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Reserve the store for one long write."""
        self.file()
        return refusing_lock(self._lock_file(WRITER_LOCK), location=self.location, purpose=purpose)


def _sidecar_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.kpstore")


def _looks_like_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except PermissionError:
        return True  # opening it will raise the same error
    except OSError:
        return False


# -- versions --------------------------------------------------------------------------------------


class Session:
    """All arrays at one version."""

    def __init__(self, home: StoreFile, file: h5py.File, snapshot: str) -> None:
        self._home, self._file, self._snapshot = home, file, snapshot
        self._tree = self._read_tree(file)

    def _read_tree(self, file: h5py.File) -> Tree:
        with damage_told(self._home.location, f"version {self._snapshot}"):
            return read_tree(file, self._snapshot)

    @property
    def snapshot(self) -> str:
        """Id of the version that this session reads or changes."""
        return self._snapshot

    def attrs(self) -> Mapping[str, Any]:
        """Return a copy of the store's attributes."""
        return plain(self._tree.attrs)

    def names(self) -> list[str]:
        """Return the names of all arrays, sorted."""
        return sorted(self._tree.arrays)

    def _array(self, name: str) -> StoredArray:
        if name not in self._tree.arrays:
            raise refusals.no_array(name, self._tree.arrays)
        return self._tree.arrays[name]

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array."""
        return self._array(name).meta

    def digest(self, name: str) -> str | None:
        """Return the digest of text in a file of format 1, whose chunks have no checksums."""
        with damage_told(self._home.location, f"version {self._snapshot}"):
            if has_checksums(self._file):
                return None
            return read_record(self._file, self._snapshot).get("text", {}).get(name)

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk; None in a file of format 1."""
        array = self._array(name)
        table = self._told("checksums of ", name, lambda: array.table)
        return None if table is None else table.copy()

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return which chunks may be stored: all, if their index is damaged."""
        array = self._array(name)
        found = np.zeros(array.meta.n_chunks, dtype=np.bool_)
        try:
            found[list(array.offsets())] = True
        except (KpstoreError, *DAMAGE):  # which a read will name
            found[:] = True
        return found

    def place(self, name: str, chunk: int) -> str:
        """Return where a chunk begins in the file."""
        try:
            at = self._array(name).piece(chunk).byte()
        except DAMAGE:  # the chunk is damaged, and its index may be too
            return "at no known byte of the file"
        return "not in the file" if at is None else f"byte {at} of the file"

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows, after checking their chunks (in format 1, not those of text)."""
        array = self._array(name)
        array.meta.check_rows(name, start, stop - start)
        return self._told(f"rows {start}:{stop} of ", name, lambda: array.read(start, stop))

    def _told(self, what: str, name: str, read: Callable[[], Found]) -> Found:
        """Return what ``read`` returns; errors of damage name the array and ``what`` of it."""
        try:
            return read()
        except KpstoreError:
            raise
        except DAMAGE as error:
            if isinstance(error, WrongChunkError):
                what = f"rows {error.start}:{error.stop} of "
            raise CorruptError(
                f"{what}{name!r} in {self._home.location} cannot be read: {reason_of(error)}"
            ) from error


class HDF5ReadSession(Session):
    """A version that never changes."""

    def __init__(self, home: StoreFile, file: h5py.File, snapshot: str) -> None:
        super().__init__(home, file, snapshot)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, read from the file itself if they have no filters."""
        if name not in self._chunks:
            array = self._array(name)

            def find() -> Chunks:
                raw = array.meta.dtype != TEXT and array.is_raw
                return _RawChunks(self._file, array) if raw else _LibraryChunks(self, name, array)

            self._chunks[name] = self._told("", name, find)
        return self._chunks[name]


@dataclass(frozen=True)
class _LibraryChunks(NearChunks):
    """Chunks that HDF5's library decodes."""

    session: Session
    name: str
    array: StoredArray
    mapped = None
    how = "by the backend's own library"
    strips = None

    def bring(self, number: int) -> None:
        """Do nothing: nothing is mapped."""

    def read_into(self, number: int, out: NDArray[np.generic]) -> None:
        """Decode a chunk; see :class:`kpstore.backends.chunks.Chunks`."""
        start, stop = self.array.meta.rows_of(number)
        out[: stop - start] = self.session._told(
            f"rows {start}:{stop} of ", self.name, lambda: self.array.read_unchecked(start, stop)
        )


class _RawChunks(NearChunks):
    """Chunks without filters, mapped or read from the places that HDF5's library returns."""

    how = "from their place in the file"
    strips = None

    def __init__(self, file: h5py.File, array: StoredArray) -> None:
        self._file, self._meta = file, array.meta  # the file stays open for as long as this does
        self._handle = descriptor_of(file)
        offsets = array.offsets()
        self._places = [offsets.get(chunk) for chunk in range(array.meta.n_chunks)]
        aligned = not any(at % mmap.PAGESIZE for at in offsets.values())
        self._memory = map_chunks(self._piece, array.meta) if aligned else None
        self.mapped = None if self._memory is None else self._memory.values

    def _piece(self, number: int) -> FilePiece | None:
        at = self._places[number]
        return None if at is None else FilePiece(self._handle, at)

    def bring(self, number: int) -> None:
        """Map a chunk; see :class:`kpstore.backends.chunks.Chunks`."""
        if self._memory is not None:
            try:
                self._memory.bring(number)
            except (OSError, ValueError) as error:
                at = self._places[number]
                raise CorruptError(f"chunk {number} at byte {at} cannot be read: {error}") from None

    def read_into(self, number: int, out: NDArray[np.generic]) -> None:
        """Read a chunk; see :class:`kpstore.backends.chunks.Chunks`."""
        at = self._places[number]
        if at is None:
            out[...] = self._meta.fill
            return
        buffer = out.reshape(-1).view(np.uint8)
        try:
            done = os.preadv(self._handle, [buffer.data], at)
        except (OSError, OverflowError) as error:
            raise CorruptError(f"chunk {number} at byte {at} cannot be read: {error}") from None
        if done != buffer.nbytes:
            raise CorruptError(
                f"chunk {number} at byte {at} cannot be read: {done} of {buffer.nbytes} bytes are "
                "there"
            )
