"""A place in object storage where a store is being made, which shows when it is complete.

Two objects stand for it. A lease (:mod:`kpstore.backends.object_lease`) keeps others away while
somebody makes a store, or looks whether the place is free. A mark says that what is there is not
complete; under the lease it says that its maker was killed.
"""

from __future__ import annotations

import uuid
from contextlib import suppress

from kpstore.backends.icechunk_names import FOLDERS
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.object_lease import FREE, Lease
from kpstore.backends.object_sidecar import OWN
from kpstore.errors import BusyError

_LEASE, _MARK = f"{OWN}making", f"{OWN}incomplete"


def is_incomplete(files: ObjectFiles) -> bool:
    """Return whether what is at a place is not to be shown."""
    try:
        return files.read(_MARK) != FREE
    except FileNotFoundError:
        return False


def delete_repository(files: ObjectFiles) -> None:
    """Delete what repositories consist of; all else is somebody's."""
    for folder in ("refs", *FOLDERS, "overwritten"):
        files.delete([one.name for one in files.names(folder)])


class Making:
    """A place that this process holds alone; :class:`BusyError` names who else does."""

    def __init__(self, files: ObjectFiles) -> None:
        self._files = files
        self._held = Lease(files, _LEASE).take("creating the store", wait=False)
        self._content = uuid.uuid4().hex.encode()
        self._tag: str | None = None

    def is_free(self) -> bool:
        """Return whether nothing is here, after deleting what a killed process left incomplete."""
        if is_incomplete(self._files):
            self._held.check()
            delete_repository(self._files)
        return all(one.name.startswith(OWN) for one in self._files.names())

    def hide(self) -> None:
        """Say that what will be made here is not complete."""
        self._held.check()
        before = self._files.about(_MARK)
        if before is None:
            tag = self._files.write_new(_MARK, self._content)
        else:
            tag = self._files.replace(_MARK, self._content, before.tag)
        self._tag = tag or self._own_tag()
        if self._tag is None:
            raise self._held.lost()

    def _own_tag(self) -> str | None:
        """Return the mark's tag if it is this process's: the answer may have been lost."""
        content, stored = self._files.read_tagged(_MARK)
        return stored.tag if content == self._content else None

    def check(self) -> None:
        """Raise :class:`BusyError` if another process has taken the place over."""
        self._held.check()

    def show(self) -> None:
        """Say that the store is complete; :class:`BusyError` if the place was taken over."""
        self._held.check()
        assert self._tag is not None
        if self._files.replace(_MARK, FREE, self._tag) is None and is_incomplete(self._files):
            raise self._held.lost()
        self._held.release()

    def delete(self) -> None:
        """Delete what was made here, unless another process has taken the place over."""
        if self._tag is None:
            return
        with suppress(BusyError):
            self._held.check()
            delete_repository(self._files)
            self._files.replace(_MARK, FREE, self._tag)

    def release(self) -> None:
        """Let others have the place."""
        self._held.release()
