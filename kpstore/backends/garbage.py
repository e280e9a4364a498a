"""Removing old versions of a store: what that takes away, and what a backend does for it.

A version is kept if a branch or a tag names it, or if it is young and a kept version builds upon
it. Everything else goes: older versions, those that no name leads to any more, and what killed
writers have left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

from kpstore.backends.base import Backend


@dataclass(frozen=True)
class Garbage:
    """What was removed from a store, or would be.

    Parameters
    ----------
    versions : ids of the removed versions, sorted.
    kept : number of versions that stay.
    bytes : size of the store before.
    bytes_freed : by how much it shrinks.
    """

    versions: tuple[str, ...]
    kept: int
    bytes: int
    bytes_freed: int

    def to_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Before:
    """Which versions and files are old.

    Parameters
    ----------
    versions, files : versions and unneeded files that were made before these times go.
    """

    versions: datetime
    files: datetime


@runtime_checkable
class Collector(Protocol):
    """A backend that can remove versions; others need not have this."""

    def collect_garbage(self, before: Before, *, apply: bool) -> Garbage:
        """Remove what no kept version needs, or without ``apply`` only say what that is.

        Kept versions, names and their readers are never disturbed. A kill at any moment leaves a
        sound store, which may be larger than it has to be.

        Raises
        ------
        BusyError
            While any write session is open, in any process.
        CorruptError
            If records of versions are damaged; nothing is removed then.
        """


Change = Callable[[Backend, str], str]
"""Makes a version on a branch of a backend, and returns the id of the version to use instead of the
one that was the branch's newest."""


@runtime_checkable
class Retagger(Protocol):
    """A backend whose tags can be moved, which only a removal may do; others need not have this."""

    def replace_tagged(self, versions: Collection[str], change: Change) -> None:
        """Let all tags of each of these versions name the one that ``change`` makes of it.

        A kill at any moment leaves each tag at one of the two, and perhaps a branch
        :data:`WORKING`, which the next call removes.
        """


WORKING = "kpstore-removal"
"""The branch on which versions are made that only tags will name."""


def kept_versions(
    tips: Iterable[str], about: Callable[[str], tuple[str | None, datetime] | None], old: datetime
) -> set[str]:
    """Return the versions to keep: named ones, and what they build upon up to the first old one.

    Parameters
    ----------
    tips : versions that branches and tags name.
    about : returns the parent of a version and when it was made; None for an unknown version.
    old : versions that were made before are old.
    """
    kept: set[str] = set()
    for tip in tips:
        at: str | None = tip
        while at is not None and (at == tip or at not in kept):
            found = about(at)
            if found is None or (at != tip and found[1] < old):
                break
            kept.add(at)
            at = found[0]
    return kept
