"""Errors of Icechunk, Zarr and the codecs, and a guard against a call that would never return."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import icechunk

from kpstore.errors import CorruptError, UnsupportedError

UNREADABLE = (icechunk.IcechunkError, ValueError, RuntimeError, LookupError, OSError)
"""Raised on damaged files."""

_used_in_this_process = False
_forked_after_use = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _used_in_this_process


os.register_at_fork(after_in_child=_after_fork)


def guard_fork() -> None:
    """Raise :class:`UnsupportedError` in a forked child of a process that has used Icechunk.

    Icechunk's threads do not exist in the child, which would wait for them forever.
    """
    global _used_in_this_process
    if _forked_after_use:
        raise UnsupportedError(
            "an Icechunk store cannot be read in a process made by fork() from one that had "
            "already opened a store; start workers with 'forkserver' or 'spawn', e.g. "
            "DataLoader(..., num_workers=2, multiprocessing_context='forkserver')"
        )
    _used_in_this_process = True


def first_line(error: BaseException) -> str:
    """Return the line of an error of Icechunk, Zarr or a codec that says what happened."""
    lines = (line.strip(" x") for line in str(error).splitlines() if line.strip(" x|"))
    # Two checksums, as bytes, follow.
    return next(lines, type(error).__name__).partition(". Stored: b")[0]


@contextmanager
def translated(location: str) -> Iterator[None]:
    """Turn Icechunk's errors about damaged or foreign files into :class:`CorruptError`."""
    try:
        yield
    except icechunk.IcechunkError as error:
        raise CorruptError(
            f"{location} cannot be read as an Icechunk repository: {first_line(error)}"
        ) from error
