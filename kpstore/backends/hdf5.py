"""A store in one HDF5 file, every version of it, readable with plain h5py.

HDF5 files do not survive a process that dies while it writes into them. So nobody ever does: a
commit changes a copy of the file, and the copy takes the file's place when it is whole
(docs/decisions/006). A reader keeps the file that it has opened. The price is one copy for each
commit; file systems that can share blocks (XFS, Btrfs) make it for nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kpstore.backends import hdf5_layout as layout
from kpstore.backends import hdf5_records as records
from kpstore.backends.asides import aside_of, check_room, copy_blocks, left_overs, make_durable
from kpstore.backends.base import (
    MAIN,
    Capabilities,
    Commit,
)
from kpstore.backends.hdf5_changes import OPEN, HDF5WriteSession, new_id
from kpstore.backends.hdf5_examine import examine
from kpstore.backends.hdf5_records import HOME, Names, damage_told, read_names, write_names
from kpstore.backends.hdf5_sessions import HDF5ReadSession
from kpstore.backends.hdf5_tree import Tree, write_tree
from kpstore.backends.locks import refusing_lock, waiting_lock
from kpstore.errors import (
    BusyError,
    ConflictError,
    CorruptError,
    ExistsError,
    NotFoundError,
    UnsupportedError,
)


class HDF5Backend:
    """A store in a file whose name ends with ``.h5`` or ``.hdf5``.

    Parameters
    ----------
    location : path of the file.
    """

    capabilities = Capabilities(branches=False, parallel_writers=False)

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
        except records.DAMAGE:
            return _looks_like_hdf5(
                self._path
            )  # something is there; opening it will say what is wrong with it

    def create(self, attrs: Mapping[str, Any], message: str) -> str:
        """Make the file."""
        self.check_free()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._aside()
        snapshot = new_id()
        try:
            with h5py.File(aside, "x", **OPEN) as file:
                file.create_group(HOME).attrs.update(
                    # A kpstore that knows format 1 alone takes `head` for the newest version, and
                    # gets with it as far as the root's format_version, which it refuses.
                    {"format": records.FORMAT, "head": snapshot, "tags": "{}", "used_tags": "[]"}
                )
                write_names(file, Names(snapshot, {}, ()))
                kept = layout.plain(attrs)
                layout.set_attrs(file, kept, ())
                about = {"touched": [], **write_tree(file, Tree(kept, {}))}
                records.write_record(
                    file, snapshot, records.commit_now(snapshot, None, message, {}), about
                )
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
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)

    def remove(self) -> None:
        """Remove the file, and what killed writers of it left."""
        if self.exists():
            self._path.unlink()
        self._remove_left_overs()
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)

    def close(self) -> None:
        """Let go of the open file; it closes with the last session of it."""
        self._open_file = None

    # -- versions ----------------------------------------------------------------------------------

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

    def file(self) -> h5py.File:
        """Return the file as it is now, open for reading.

        Who holds it keeps it, whatever takes its place later.
        """
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
            except records.DAMAGE as error:
                reason = str(error).partition("(")[2].rstrip(")") or error
                raise CorruptError(
                    f"{self.location} cannot be opened as HDF5: {reason}; it is damaged"
                ) from None
            with damage_told(self.location):
                records.format_of(file)
            self._open_file = key, file
        return self._open_file[1]

    def session(self, snapshot: str) -> HDF5ReadSession:
        """Open a version by its id."""
        file = self.file()
        self._check_version(file, snapshot)
        return HDF5ReadSession(self, file, snapshot)

    def _check_version(self, file: h5py.File, snapshot: str) -> None:
        with damage_told(self.location):
            found = records.version_group(file, snapshot)
        if found is None:
            raise NotFoundError(
                f"version {snapshot!r} of {self.location} not found; see 'kpstore log'"
            )

    def begin(self, branch: str = MAIN) -> HDF5WriteSession:
        """Start changes on top of the newest version."""
        self._check_branch(branch)
        file = self.file()
        return HDF5WriteSession(self, file, self._names(file).head)

    def _check_branch(self, name: str) -> None:
        if name != MAIN:
            raise NotFoundError(
                f"branch {name!r} of {self.location} not found; an HDF5 store has {MAIN!r} only"
            )

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and all that it builds upon."""
        file = self.file()
        self._check_version(file, snapshot)
        following: str | None = snapshot
        seen: set[str] = set()
        while following is not None:
            with damage_told(self.location, f"version {following}"):
                commit = records.read_commit(file, following)
                if following in seen:
                    raise ValueError("it follows itself")
            seen.add(following)
            yield commit
            following = commit.parent

    def branches(self) -> dict[str, str]:
        """Return the one branch that there is."""
        return {MAIN: self._names(self.file()).head}

    def _names(self, file: h5py.File) -> Names:
        with damage_told(self.location):
            return read_names(file)

    def create_branch(self, name: str, snapshot: str) -> None:
        """Refuse: there is one line of versions in a file."""
        self._check_version(self.file(), snapshot)
        raise UnsupportedError(
            f"{self.location} is an HDF5 store, which has no branches; name the version with a "
            f"tag, or convert it: kpstore convert {self.location} STORE.kps"
        )

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make an earlier version the newest again; the versions after it stay readable."""
        self._check_branch(name)
        self._check_version(self.file(), snapshot)
        with self.commit_lock():
            file = self.file()
            if self._names(file).head != expected:
                raise ConflictError(
                    f"branch {name!r} of {self.location} has a newer version meanwhile; try again"
                )
            if snapshot == expected:
                return
            changes = HDF5WriteSession(self, file, expected)
            try:
                changes.restore(HDF5ReadSession(self, file, snapshot))
            finally:
                changes.discard()

    # -- tags --------------------------------------------------------------------------------------

    def tags(self) -> dict[str, str]:
        """Return tags and the ids that they name."""
        return dict(sorted(self._names(self.file()).tags.items()))

    def create_tag(self, name: str, snapshot: str) -> None:
        """Name a version for good."""
        self._check_version(self.file(), snapshot)
        with self.commit_lock(), self._changed_copy() as file:
            names = self._names(file)
            if name in names.used_tags:
                raise ExistsError(
                    f"tag {name!r} of {self.location} is, or was, taken and tags never move; "
                    "choose another name"
                )
            write_names(
                file, Names(names.head, {**names.tags, name: snapshot}, (*names.used_tags, name))
            )

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.commit_lock(), self._changed_copy() as file:
            names = self._names(file)
            if name not in names.tags:
                raise NotFoundError(
                    f"tag {name!r} of {self.location} not found; it has {sorted(names.tags)}"
                )
            tags = {tag: snapshot for tag, snapshot in names.tags.items() if tag != name}
            write_names(file, Names(names.head, tags, names.used_tags))

    def examine(self) -> Iterator[str]:
        """Yield what is wrong with names, records and tables of versions.

        See :mod:`kpstore.backends.hdf5_examine`.
        """
        yield from examine(self.file(), self.location)

    @contextmanager
    def _changed_copy(self) -> Iterator[h5py.File]:
        """Give a copy of the file to change, which takes the file's place if the block ends without an error."""
        work = self.copy_aside(self.file())
        try:
            with h5py.File(work, "r+", **OPEN) as file:
                yield file
            self.replace_by(work)
        finally:
            work.unlink(missing_ok=True)

    # -- files -------------------------------------------------------------------------------------

    def _aside(self) -> Path:
        return aside_of(self._path, "writing")

    def _remove_left_overs(self) -> None:
        for left_over in left_overs(self._path, "writing"):
            left_over.unlink(missing_ok=True)

    def copy_aside(self, file: h5py.File) -> Path:
        """Return a copy of an open file beside it.

        What killed writers left behind is removed first.
        """
        self._remove_left_overs()
        source = int(np.asarray(file.id.get_vfd_handle()).item())
        about = os.fstat(source)
        check_room(self._path, about.st_size)
        aside = self._aside()
        target = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with suppress(
                PermissionError
            ):  # only root gives files away, and a group may be one's own or not
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
        return refusing_lock(
            self.sidecar_dir / "writer.lock", location=self.location, purpose=purpose
        )

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits: two that each copied the same file would lose one of them."""
        return waiting_lock(self.sidecar_dir / "commit.lock")


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
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without second names (exFAT, some network drives): all that is left is to
        # look first.
        backend.check_free()
        os.replace(file, backend._path)
