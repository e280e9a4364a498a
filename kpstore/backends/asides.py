"""Files that are made beside the place that they will take: their names, what is left of them, the room they need."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import uuid
from pathlib import Path

_SPARE_BYTES = 32 * 2**20
"""Left free on the disk: for what HDF5 writes of its own."""
_FICLONE = 0x40049409
"""Linux: let a file share another one's blocks until one of them is changed."""


def aside_of(path: Path, what: str) -> Path:
    """Return a new name beside ``path`` for what is being made; it says which process makes it.

    It ends like ``path`` does: what becomes of a store hangs on that.
    """
    host, number = _host(), uuid.uuid4().hex[:8]
    return path.with_name(f".{what}-{host}-{os.getpid()}-{number}.{path.name}")


def left_overs(path: Path, what: str) -> list[Path]:
    """Return what processes that are gone have left of making ``path``: names of :func:`aside_of`.

    One of which nothing is left but files that were being made beside it in turn is named as well.
    """
    start, end = f".{what}-", f".{path.name}"
    found: dict[Path, None] = {}
    for entry in os.listdir(path.parent) if path.parent.is_dir() else ():
        # ".writing-….building-….s.h5" was to become ".building-….s.h5".
        name = entry[max(0, entry.rfind(start)) :]
        parts = name[len(start) : -len(end)].split("-")
        ours = (
            name.startswith(start) and name.endswith(end) and len(parts) == 3 and parts[1].isdigit()
        )
        # A process of another machine cannot be looked up from here, and may still be at work.
        if ours and parts[0] == _host() and not _runs(int(parts[1])):
            found[path.with_name(name)] = None
    return list(found)


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


def check_room(path: Path, n_bytes: int) -> None:
    """Raise :class:`OSError` if a disk has no room for so much more: HDF5 itself does not survive to find that out."""
    about = os.statvfs(path.parent)
    if about.f_bavail * about.f_frsize < n_bytes + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def copy_blocks(source: int, target: int) -> None:
    """Copy an open file into another, given by their numbers.

    For nothing where the file system shares blocks.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        size, at = os.fstat(source).st_size, 0
        while at < size:
            at += os.sendfile(target, source, at, min(size - at, 2**30))


def make_durable(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
