"""Locks between processes on one machine or one shared file system, released by the kernel when their holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from kpstore.errors import BusyError


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` exclusively, waiting for others; for work that takes milliseconds, such as a commit."""
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
                f"{location} is being written by another process ({_holder(path)}); wait for it, or stop it"
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
    # Not by closing alone: a process that was forked meanwhile has the file open too, and would keep it locked.
    fcntl.flock(file, fcntl.LOCK_UN)


def _take(file: IO[Any], *, tries: int = 5) -> bool:
    """Try to lock a file; more than once, since :func:`is_held` of another process holds it for a moment."""
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
        return f"{holder['purpose']}, process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "it has not said who it is"


def aside_of(path: Path, what: str) -> Path:
    """Return a new name beside ``path`` for what is being made; it says which process makes it.

    It ends like ``path`` does: what becomes of a store hangs on that.
    """
    host, number = _host(), uuid.uuid4().hex[:8]
    return path.with_name(f".{what}-{host}-{os.getpid()}-{number}.{path.name}")


def left_overs(path: Path, what: str) -> list[Path]:
    """Return what processes that are gone have left of making ``path``: names of :func:`aside_of`."""
    start, end = f".{what}-", f".{path.name}"
    found = []
    for name in os.listdir(path.parent) if path.parent.is_dir() else ():
        parts = name[len(start) : -len(end)].split("-")
        ours = name.startswith(start) and name.endswith(end) and len(parts) == 3 and parts[1].isdigit()
        # A process of another machine cannot be looked up from here, and may still be at work.
        if ours and parts[0] == _host() and not _runs(int(parts[1])):
            found.append(path.with_name(name))
    return found


def _host() -> str:
    return socket.gethostname().replace("-", "_").replace(".", "_")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
