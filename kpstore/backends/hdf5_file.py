"""The file of an HDF5 store: opening it, and replacing it by a changed copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import h5py
import numpy as np

from kpstore.backends.asides import aside_of, check_room, copy_blocks, left_overs, make_durable
from kpstore.backends.base import Commit
from kpstore.backends.hdf5_records import (
    DAMAGE,
    HOME,
    Names,
    damage_told,
    format_of,
    read_commit,
    read_names,
    version_group,
)
from kpstore.backends.locks import waiting_lock
from kpstore.errors import BusyError, CorruptError, NotFoundError


class StoreFile:
    """What sessions need to know of the store that they belong to.

    Parameters
    ----------
    location : path of the file.
    """

    def __init__(self, location: str) -> None:
        self.location = str(Path(location))
        """Path of the file, as it was given."""
        # If the path is a link, a commit has to replace the file behind it, not the link.
        self._path = Path(location).resolve()
        self._open_file: tuple[tuple[int, ...], h5py.File] | None = None

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
        except DAMAGE:
            return _looks_like_hdf5(self._path)  # opening it will say what is wrong with it

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
        """Return the present file, open for reading; it stays readable when it is replaced."""
        try:
            found = os.stat(self._path)
        except OSError:
            self._require()
            raise
        key = (found.st_dev, found.st_ino, found.st_mtime_ns, os.getpid())
        if self._open_file is None or self._open_file[0] != key:
            self._require()
            try:
                file = h5py.File(self._path, "r")
            except BlockingIOError:
                raise BusyError(
                    f"{self.location} is open for writing in another program; close it there"
                ) from None
            except PermissionError:
                raise
            except DAMAGE as error:
                reason = str(error).partition("(")[2].rstrip(")") or error
                raise CorruptError(
                    f"{self.location} cannot be opened as HDF5: {reason}; it is damaged"
                ) from None
            with damage_told(self.location):
                format_of(file)
            self._open_file = key, file
        return self._open_file[1]

    # -- versions ----------------------------------------------------------------------------------

    def names(self, file: h5py.File) -> Names:
        """Return the names of versions in a file of this store."""
        with damage_told(self.location):
            return read_names(file)

    def check_version(self, file: h5py.File, snapshot: str) -> None:
        """Raise :class:`NotFoundError` for an unknown version."""
        with damage_told(self.location):
            found = version_group(file, snapshot)
        if found is None:
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

    def _aside(self) -> Path:
        return aside_of(self._path, "writing")

    def _remove_left_overs(self) -> None:
        for left_over in left_overs(self._path, "writing"):
            left_over.unlink(missing_ok=True)

    def copy_aside(self, file: h5py.File) -> Path:
        """Copy an open file to a new one beside it, and remove what killed writers left there."""
        self._remove_left_overs()
        source = int(np.asarray(file.id.get_vfd_handle()).item())
        about = os.fstat(source)
        check_room(self._path, about.st_size)
        aside = self._aside()
        target = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Only root gives files away, and others change the group only to one of their own.
            with suppress(PermissionError):
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
        """Give a complete, closed file the store's name."""
        make_durable(work)
        os.replace(work, self._path)
        make_durable(self._path.parent)

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits: of two that copied the same file, one would be lost."""
        return waiting_lock(self.sidecar_dir / "commit.lock")


def _looks_like_hdf5(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except PermissionError:
        return True  # opening it will raise the same error
    except OSError:
        return False
