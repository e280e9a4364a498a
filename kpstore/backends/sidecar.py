"""Small texts beside a store that no version contains: progress, and what workers show."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from kpstore.backends.links import read_inside, refuse_links_beside, write_inside
from kpstore.backends.locks import is_held

WRITER_LOCK = "writer.lock"


@dataclass(frozen=True)
class FolderSidecar:
    """Texts in files of a folder."""

    folder: Path

    @property
    def store(self) -> str:
        """The folder that this one is in."""
        return str(self.folder.parent)

    def exists(self) -> bool:
        """Return whether the folder exists."""
        return self.folder.exists()

    def read(self, name: str) -> str:
        """Return a text."""
        refuse_links_beside(self.folder)
        return read_inside(self.folder / name)

    def write(self, name: str, text: str) -> None:
        """Write a text, and rename it when it is complete."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.stem}.{os.getpid()}")
        write_inside(aside, text)
        aside.replace(path)

    def clear(self, group: str) -> None:
        """Remove a folder in it."""
        shutil.rmtree(self.folder / group, ignore_errors=True)

    def place(self, name: str) -> str:
        """Return the path of a text."""
        return str(self.folder / name)

    def is_reserved(self) -> bool:
        """Return whether a process holds the writer's lock."""
        return is_held(self.folder / WRITER_LOCK)
