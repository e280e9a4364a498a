"""What a backend may offer beside its contract: texts, a place to build, copies of far stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from kpstore.backends.base import Backend


class Sidecar(Protocol):
    """Small texts beside a store that no version contains: progress, and what workers show.

    It goes to workers, who see the same texts if they see the same store.
    """

    @property
    def store(self) -> str:
        """The store that this is beside, for messages."""

    def exists(self) -> bool:
        """Return whether this process sees the place at all."""

    def read(self, name: str) -> str:
        """Return a text; :class:`FileNotFoundError` if there is none of that name."""

    def write(self, name: str, text: str) -> None:
        """Write a text in one step, so that no reader sees half of it."""

    def clear(self, group: str) -> None:
        """Remove all texts whose names begin with ``group`` and a slash."""

    def place(self, name: str) -> str:
        """Return where a text is, for messages."""

    def is_reserved(self) -> bool:
        """Return whether a process writes to the store."""


@runtime_checkable
class HasAside(Protocol):
    """A backend that says where a store is built before it shows; others need not have this.

    Of paths it is a path beside them.
    """

    def aside(self) -> Backend:
        """Return the backend of a temporary place, from which ``move`` goes to this one."""


COPIES, COPIES_OF = "objects", ".address"
"""Part of the cache's folder for copies of objects, and the file that says of which store."""


class CopiesPlace(NamedTuple):
    """Where copies of what is far away may be kept.

    Parameters
    ----------
    folder : of the cache, on the local disk.
    limit_bytes : of all copies in it.
    """

    folder: Path
    limit_bytes: int


@runtime_checkable
class KeepsCopies(Protocol):
    """A backend whose stores are not on this machine; others need not have this."""

    def keep_copies(self, place: CopiesPlace | None) -> None:
        """Keep copies of what is read at a place; nothing with None."""

    def sizes(self) -> Iterator[int]:
        """Yield the sizes of all that the store consists of, in bytes."""
