"""Locks between processes, which the kernel releases when their holder dies (decisions/009)."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from kpstore.backends import refusals


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` exclusively, after waiting for others; for short work, such as a commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
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
    try:
        file = path.open("rb")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            _release(file.fileno())


@contextmanager
def refusing_lock(path: Path, *, location: str, purpose: str) -> Iterator[None]:
    """Hold ``path`` exclusively, or raise a :class:`BusyError` that names its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _take(file.fileno()):
            raise refusals.held(location, _holder(path))
        holder = {
            "purpose": purpose,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.truncate(0)
        file.write(json.dumps(holder))
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
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except BaseException:
            file.close()
            raise
        self.release = weakref.finalize(self, _let_go, file, os.getpid())


def _let_go(file: BinaryIO, process: int) -> None:
    if process == os.getpid():
        _release(file.fileno())
    file.close()


@contextmanager
def lock_alone(path: Path, *, location: str) -> Iterator[BinaryIO]:
    """Hold ``path`` alone, and yield it open; :class:`BusyError` while a :class:`SharedLock` is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not _take(file.fileno()):
            raise refusals.held(location, "it has begun changes that it has not committed yet")
        try:
            yield file
        finally:
            _release(file.fileno())


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
        with path.open("rb") as file:
            return not _lock_now(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return (
            f"{holder['purpose']}, process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}"
        )
    except (OSError, ValueError, KeyError):
        return "the lock file does not say which"
