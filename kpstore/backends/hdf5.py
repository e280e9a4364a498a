"""A store in one HDF5 file, every version of it, readable with plain h5py.

An HDF5 file does not survive a process that dies while it writes. So a commit changes a copy of the
file, which takes the file's place when it is complete (docs/decisions/006). A reader keeps the file
that it has opened. The price is one copy for each commit, which file systems that share blocks
(XFS, Btrfs) make for free.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5py

from kpstore.backends import hdf5_layout as layout
from kpstore.backends import hdf5_records as records
from kpstore.backends.asides import make_durable
from kpstore.backends.base import MAIN, Capabilities
from kpstore.backends.hdf5_changes import OPEN
from kpstore.backends.hdf5_commits import HDF5WriteSession, new_id
from kpstore.backends.hdf5_examine import examine
from kpstore.backends.hdf5_file import StoreFile
from kpstore.backends.hdf5_records import HOME, Names, write_names
from kpstore.backends.hdf5_sessions import HDF5ReadSession
from kpstore.backends.hdf5_tree import Tree, write_tree
from kpstore.backends.locks import refusing_lock
from kpstore.errors import ConflictError, ExistsError, NotFoundError, UnsupportedError


class HDF5Backend(StoreFile):
    """A store in a file whose name ends with ``.h5`` or ``.hdf5``."""

    capabilities = Capabilities(branches=False, parallel_writers=False)

    def __reduce__(self) -> tuple[type[HDF5Backend], tuple[str]]:
        return HDF5Backend, (str(self._path),)

    def create(self, attrs: Mapping[str, Any], message: str) -> str:
        """Create the file."""
        self.check_free()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._aside()
        snapshot = new_id()
        try:
            with h5py.File(aside, "x", **OPEN) as file:
                file.create_group(HOME).attrs.update(
                    # A kpstore that knows only format 1 reads `head`, opens that version, and
                    # refuses the format_version of its root.
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
        """Raise :class:`ExistsError` unless this place is free."""
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
        """Remove the file, and what killed writers left beside it."""
        if self.exists():
            self._path.unlink()
        self._remove_left_overs()
        shutil.rmtree(self.sidecar_dir, ignore_errors=True)

    # -- versions ----------------------------------------------------------------------------------

    def session(self, snapshot: str) -> HDF5ReadSession:
        """Open a version by its id."""
        file = self.file()
        self.check_version(file, snapshot)
        return HDF5ReadSession(self, file, snapshot)

    def begin(self, branch: str = MAIN) -> HDF5WriteSession:
        """Start changes to the newest version."""
        self._check_branch(branch)
        file = self.file()
        return HDF5WriteSession(self, file, self.names(file).head)

    def _check_branch(self, name: str) -> None:
        if name != MAIN:
            raise NotFoundError(
                f"branch {name!r} of {self.location} not found; an HDF5 store has {MAIN!r} only"
            )

    def branches(self) -> dict[str, str]:
        """Return the only branch."""
        return {MAIN: self.names(self.file()).head}

    def create_branch(self, name: str, snapshot: str) -> None:
        """Raise :class:`UnsupportedError`: a file has no branches."""
        self.check_version(self.file(), snapshot)
        raise UnsupportedError(
            f"{self.location} is an HDF5 store, which has no branches; name the version with a "
            f"tag, or convert it: kpstore convert {self.location} STORE.kps"
        )

    def reset_branch(self, name: str, snapshot: str, *, expected: str) -> None:
        """Make an earlier version the newest again; later versions stay readable."""
        self._check_branch(name)
        self.check_version(self.file(), snapshot)
        with self.commit_lock():
            file = self.file()
            if self.names(file).head != expected:
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
        """Return tags and the ids of their versions."""
        return dict(sorted(self.names(self.file()).tags.items()))

    def create_tag(self, name: str, snapshot: str) -> None:
        """Tag a version for good."""
        self.check_version(self.file(), snapshot)
        with self.commit_lock(), self._changed_copy() as file:
            names = self.names(file)
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
            names = self.names(file)
            if name not in names.tags:
                raise NotFoundError(
                    f"tag {name!r} of {self.location} not found; it has {sorted(names.tags)}"
                )
            tags = {tag: snapshot for tag, snapshot in names.tags.items() if tag != name}
            write_names(file, Names(names.head, tags, names.used_tags))

    def examine(self) -> Iterator[str]:
        """Yield what is wrong (:mod:`kpstore.backends.hdf5_examine`)."""
        yield from examine(self.file(), self.location)

    @contextmanager
    def _changed_copy(self) -> Iterator[h5py.File]:
        """Yield a copy of the file; it takes the file's place unless the block raises an error."""
        work = self.copy_aside(self.file())
        try:
            with h5py.File(work, "r+", **OPEN) as file:
                yield file
            self.replace_by(work)
        finally:
            work.unlink(missing_ok=True)

    def exclusive(self, purpose: str) -> AbstractContextManager[None]:
        """Hold the store for one long write."""
        self._require()
        return refusing_lock(
            self.sidecar_dir / "writer.lock", location=self.location, purpose=purpose
        )


def _place(file: Path, backend: HDF5Backend) -> None:
    """Move a file by a second name: unlike a rename, that fails if the place is taken."""
    try:
        os.link(file, backend._path)
    except FileExistsError:
        backend.check_free()
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # On a file system without second names (exFAT, some network drives), look first.
        backend.check_free()
        os.replace(file, backend._path)
