"""Locks between processes on one machine or one shared file system, released by the kernel when their holder dies."""

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
    """Hold ``path`` exclusively, waiting for others.

    For work that takes milliseconds, such as a commit.
    """
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
    # Not by closing alone: a process that was forked meanwhile has the file open too, and would
    # keep it locked.
    fcntl.flock(file, fcntl.LOCK_UN)


def _take(file: IO[Any], *, tries: int = 5) -> bool:
    """Try to lock a file.

    More than once, since :func:`is_held` of another process holds it for a moment.
    """
    for left in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if left:
                time.sleep(0.02)
    return False


def is_held(path: Path) -> bool:
    """Whether some process holds ``path``; opens no file that is not there."""
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
        return "it has not said who it is"
