"""Locks between processes, which the kernel releases when their holder dies (decisions/009)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kpstore.backends import refusals
from kpstore.backends.links import open_inside, read_inside
from kpstore.errors import UnsupportedError

_LOCK = os.O_RDWR | os.O_CREAT
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` exclusively, after waiting for others; for short work, such as a commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_inside(path, _LOCK) as file:
        with _locks_told(path):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _release(file.fileno())


@contextmanager
def refusing_lock(path: Path, *, location: str, purpose: str) -> Iterator[None]:
    """Hold ``path`` exclusively, or raise a :class:`BusyError` that names its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_inside(path, _LOCK) as file:
        with _locks_told(path):
            taken = _take(file.fileno())
        if not taken:
            raise refusals.held(location, _holder(path))
        holder = {
            "purpose": purpose,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.truncate(0)
        file.write(json.dumps(holder).encode())
        file.flush()
        try:
            yield
        finally:
            _release(file.fileno())


@contextmanager
def _locks_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UnsupportedError(
            f"{path.parent}: its file system has no locks ({error.strerror}), without which two "
            "writers could overwrite each other; mount it with locks, or keep the store on another "
            "one; reading needs none"
        ) from None


def _release(file: int) -> None:
    # Closing is not enough: a process that was forked in the meantime has the file open, too.
    fcntl.flock(file, fcntl.LOCK_UN)


def _take(file: int, *, tries: int = 5) -> bool:
    """Try to lock a file, several times because :func:`is_held` in another process locks it too."""
    for left in reversed(range(tries)):
        if _lock_now(file):
            return True
        if left:
            time.sleep(0.02)
    return False


def _lock_now(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Return whether any process holds ``path``, without creating that file."""
    try:
        with open_inside(path, os.O_RDWR) as file:
            return not _lock_now(file.fileno())
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False  # and nobody could hold it
        raise


def _holder(path: Path) -> str:
    try:
        holder = json.loads(read_inside(path))
        return (
            f"{holder['purpose']}, process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}"
        )
    except (OSError, ValueError, TypeError, KeyError):
        return "the lock file does not say which"
