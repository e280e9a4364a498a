"""What lies beside the versions of a store in object storage: texts, and the writer's lease."""

from __future__ import annotations

from dataclasses import dataclass

from kpstore.backends.base import MAIN
from kpstore.backends.icechunk_names import file_of
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.object_lease import Lease

MAIN_FILE = file_of("branch", MAIN)
"""The object that makes a place a store."""
OWN = "kpstore/"
"""What the names of kpstore's own objects begin with."""
WRITER = f"{OWN}writer"


@dataclass(frozen=True)
class ObjectSidecar:
    """Texts beside a store in object storage; see :class:`kpstore.backends.sidecar.Sidecar`."""

    files: ObjectFiles

    @property
    def store(self) -> str:
        """The address of the store."""
        return str(self.files.address)

    def exists(self) -> bool:
        """Return whether this process sees the store."""
        return self.files.about(MAIN_FILE) is not None

    def read(self, name: str) -> str:
        """Return a text."""
        return self.files.read(OWN + name).decode()

    def write(self, name: str, text: str) -> None:
        """Write a text."""
        self.files.write(OWN + name, text.encode())

    def clear(self, group: str) -> None:
        """Remove all texts of a group."""
        self.files.delete([one.name for one in self.files.names(f"{OWN}{group}")])

    def place(self, name: str) -> str:
        """Return the name of the object that holds a text."""
        return f"{OWN}{name} of {self.store}"

    def is_reserved(self) -> bool:
        """Return whether a process holds the writer's reservation."""
        return Lease(self.files, WRITER).is_held()
