"""What every backend refuses, in the same words."""

from __future__ import annotations

from collections.abc import Iterable

from kpstore.backends.base import ArrayMeta
from kpstore.errors import (
    BusyError,
    ConflictError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from kpstore.schema.fields import is_storable


def no_array(name: str, names: Iterable[str]) -> NotFoundError:
    """Return the error for an array that a version does not have."""
    return NotFoundError(f"array {name!r} not found; there are {sorted(names)}")


def no_name(kind: str, name: str, names: Iterable[str], location: str) -> NotFoundError:
    """Return the error for an unknown branch or tag."""
    return NotFoundError(f"{kind} {name!r} of {location} not found; it has {sorted(names)}")


def main_stays(name: str, location: str) -> InvalidError:
    """Return the error for deleting the branch that every store has."""
    return InvalidError(
        f"branch {name!r} of {location} cannot be deleted; 'kpstore rollback' makes an earlier "
        "version its newest"
    )


def tag_taken(name: str, location: str) -> ExistsError:
    """Return the error for a tag that exists, or existed once."""
    return ExistsError(
        f"tag {name!r} of {location} is, or was, taken, and tags never move; choose another name"
    )


def check_newest(branch: str, newest: str, expected: str, location: str) -> None:
    """Raise :class:`ConflictError` if a branch has another newest version than expected."""
    if newest != expected:
        raise ConflictError(
            f"branch {branch!r} of {location} has a newer version meanwhile; try again"
        )


def changed_meanwhile(location: str, message: str, reason: str = "") -> ConflictError:
    """Return the error for a commit whose data another writer has changed."""
    return ConflictError(
        f"another writer has changed the same data of {location} in the meantime, so {message!r} "
        f"was not committed{reason}; open the store again and repeat the change"
    )


def gone(location: str, *, replaced: bool) -> NotFoundError:
    """Return the error for a store that was taken away while it was open."""
    if replaced:
        return NotFoundError(f"another store took the place of {location} while it was open")
    return NotFoundError(
        f"{location} was moved or removed while it was open; open it again where it is now"
    )


def spent(location: str) -> ReadOnlyError:
    """Return the error for a write session that was committed or discarded."""
    return ReadOnlyError(f"these changes of {location} were committed or discarded; begin new ones")


def not_forkable() -> InvalidError:
    """Return the error for forking a write session that has changes."""
    return InvalidError(
        "a session can be forked only before it has changes of its own; commit first"
    )


def check_sendable(location: str, path: str) -> None:
    """Raise :class:`UnsupportedError` for a path that Icechunk cannot send to other processes."""
    if not is_storable(path):
        raise UnsupportedError(
            f"{location}: Icechunk can send to worker processes only the path of a store that is "
            "text in UTF-8; rename the folder"
        )


def open_changes(location: str) -> BusyError:
    """Return the error for a store of which a transaction is open, here or elsewhere."""
    return BusyError(
        f"{location} has changes that are not committed yet, in this process or another; commit "
        "or discard them, then repeat it"
    )


def array_taken(name: str) -> ExistsError:
    """Return the error for an array that exists."""
    return ExistsError(f"array {name!r} exists already")


def branch_taken(name: str, location: str) -> ExistsError:
    """Return the error for a branch that exists."""
    return ExistsError(f"branch {name!r} of {location} exists already")


def held(location: str, holder: str) -> BusyError:
    """Return the error for a store that another process has reserved."""
    return BusyError(
        f"{location} is being written by another process ({holder}); wait for it, or stop it"
    )


def check_short_end(meta: ArrayMeta, name: str, n_rows: int) -> None:
    """Raise :class:`ConflictError` if an array has grown since a fork wrote its short last chunk.

    ``n_rows`` is the length that the fork saw.
    """
    if meta.n_rows != n_rows:
        raise ConflictError(
            f"{name!r} has grown from {n_rows} to {meta.n_rows} rows since a fork wrote its last "
            "chunk; write those rows again"
        )
