"""Locks between processes, which the kernel releases when their holder dies (decisions/009)."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from kpstore.errors import BusyError


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` exclusively, after waiting for others: for milliseconds, such as a commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _release(file)


@contextmanager
def refusing_lock(path: Path, *, location: str, purpose: str) -> Iterator[None]:
    """Hold ``path`` exclusively, or raise :class:`BusyError` that names the holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _take(file):
            raise BusyError(
                f"{location} is being written by another process ({_holder(path)}); wait for it, "
                "or stop it"
            )
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
            _release(file)


def _release(file: IO[Any]) -> None:
    # Closing would not be enough: a process that was forked in the meantime has the file open too.
    fcntl.flock(file, fcntl.LOCK_UN)


def _take(file: IO[Any], *, tries: int = 5) -> bool:
    """Try to lock a file, several times because another process's :func:`is_held` locks it too."""
    for left in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if left:
                time.sleep(0.02)
    return False


def is_held(path: Path) -> bool:
    """Whether any process holds ``path``; creates no file."""
    if not path.exists():
        return False
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return (
            f"{holder['purpose']}, process {holder['pid']} on {holder['host']} since "
            f"{holder['since']}"
        )
    except (OSError, ValueError, KeyError):
        return "its lock file does not say which"
