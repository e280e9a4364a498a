"""Locks between processes, which the kernel releases when their holder dies (decisions/009)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from kpstore.backends import refusals
from kpstore.backends.asides import system_error
from kpstore.backends.links import open_inside, read_inside
from kpstore.errors import DAMAGE, UnsupportedError

_LOCK = os.O_RDWR | os.O_CREAT
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` exclusively, after waiting for others; for short work, such as a commit."""
    with _opened(path) as file:
        with _locks_told(path):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _release(file.fileno())


@contextmanager
def looking_lock(path: Path) -> Iterator[None]:
    """Exclude the holders of ``path`` while something is read; needs no right to write.

    Without the file, or without the right to read it, nothing is excluded.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_inside(path, os.O_RDONLY))
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            _release(file.fileno())


@contextmanager
def refusing_lock(path: Path, *, location: str, purpose: str) -> Iterator[None]:
    """Hold ``path`` exclusively, or raise a :class:`BusyError` that names its holder."""
    with _opened(path) as file:
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


class SharedLock:
    """A lock that many hold together, from now on until this object is released or collected.

    It waits for whoever holds the file by :func:`lock_alone`. A copy of this object in a process
    made by ``fork`` releases nothing.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            file = stack.enter_context(_opened(path))
            with _locks_told(path):
                fcntl.flock(file, fcntl.LOCK_SH)
            self.release = weakref.finalize(
                self, _let_go, stack.pop_all(), file.fileno(), os.getpid()
            )


def _let_go(opened: ExitStack, file: int, process: int) -> None:
    if process == os.getpid():
        _release(file)
    opened.close()


@contextmanager
def lock_alone(path: Path, *, location: str) -> Iterator[BinaryIO]:
    """Hold ``path`` alone, and yield it open; :class:`BusyError` while a :class:`SharedLock` is."""
    with _opened(path) as file:
        with _locks_told(path):
            taken = _take(file.fileno())
        if not taken:
            raise refusals.open_changes(location)
        try:
            yield file
        finally:
            _release(file.fileno())


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Yield the file of a lock, which is made if it is not there yet."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open_inside(path, _LOCK))
        except OSError as error:
            if error.errno is None or error.errno not in _NO_RIGHT:
                raise
            told = "nothing was changed, which needs the right to write to the store"
            raise system_error(error.errno, path, told) from None
        yield file


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


def _lock_now(file: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Return whether any process holds ``path``, without creating it or opening it for writing."""
    try:
        with open_inside(path, os.O_RDONLY) as file:
            return not _lock_now(file.fileno(), fcntl.LOCK_SH)
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
    except (OSError, *DAMAGE):
        return "the lock file does not say which"
