"""Files that are written beside their final place: names, left-overs, and space on the disk."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import resource
import socket
import uuid
from pathlib import Path

_SPARE_BYTES = 32 * 2**20
"""Space that is left free on the disk, for HDF5's own metadata."""
_HELD_BYTES = 4 * 2**20
"""Space that is held for the metadata of a file."""
_KEEP_SIZE = 1
"""Flag of Linux's ``fallocate``: blocks are reserved behind a file's end, which stays."""
_NOT_THERE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_LONGEST_NAME = 120
"""In bytes; of 255 that file systems allow, the process and the purpose need the others."""
_FICLONE = 0x40049409
"""Linux's ioctl that lets a file share the blocks of another one until either is changed."""


def aside_of(path: Path, what: str) -> Path:
    """Return a new path beside ``path``, which names the writing process.

    It has the suffix of ``path``, which determines the backend of a store.
    """
    host, number = _host(), uuid.uuid4().hex[:8]
    return path.with_name(f".{what}-{host}-{os.getpid()}-{number}{_ending(path)}")


def _ending(path: Path) -> str:
    """Return the end of such a name: the name of ``path``, or a digest of one that is too long."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32] + path.suffix
    return f".{name}"


def left_overs(path: Path, what: str) -> list[Path]:
    """Return the paths from :func:`aside_of` whose processes no longer run.

    This includes paths of which only files are left that were written beside them in turn.
    """
    # A process on another machine cannot be checked from here, and may still be running.
    return [
        file
        for file, (host, process) in _asides_of(path, what).items()
        if host == _host() and not _runs(int(process))
    ]


def of_other_machines(path: Path, what: str) -> list[Path]:
    """Return the paths from :func:`aside_of` on other machines, whose processes may still run."""
    found = _asides_of(path, what).items()
    return [file for file, (host, _) in found if host != _host() and file.exists()]


def _asides_of(path: Path, what: str) -> dict[Path, tuple[str, str]]:
    """Return all paths from :func:`aside_of`, each with the machine and process that it names."""
    start, end = f".{what}-", _ending(path)
    found: dict[Path, tuple[str, str]] = {}
    for entry in os.listdir(path.parent) if path.parent.is_dir() else ():
        # ".writing-….building-….s.h5" would have become ".building-….s.h5".
        for name in (entry[at:] for at in range(len(entry)) if entry.startswith(start, at)):
            parts = name[len(start) : -len(end)].split("-")
            if name.endswith(end) and len(parts) == 3 and parts[1].isdigit():
                found[path.with_name(name)] = parts[0], parts[1]
    return found


def _host() -> str:
    return socket.gethostname().replace("-", "_").replace(".", "_")[:64]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, for another user
    return True


def system_error(number: int, path: object, doing: str = "") -> OSError:
    """Return an error of the system for a path, in one line that says what was being done."""
    told = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT):
        told += " (make room, then repeat it)"
    return OSError(number, f"{doing}: {told}" if doing else told, str(path))


def check_room(path: Path, n_bytes: int) -> None:
    """Raise :class:`OSError` if a disk lacks space for ``n_bytes``, as a full disk breaks HDF5."""
    about = os.statvfs(path.parent)
    if about.f_bavail * about.f_frsize < n_bytes + _SPARE_BYTES:
        raise system_error(errno.ENOSPC, path.parent, "nothing was written")


def hold_room(path: Path, n_bytes: int, told: str | Path) -> None:
    """Reserve space for ``n_bytes`` more in a file that HDF5 writes; else raise :class:`OSError`.

    HDF5's library may crash when a write fails, so a full disk, a quota or a limit has to be met
    before. Where nothing can be reserved, only the free space of the disk is compared.

    Parameters
    ----------
    told : the file's final place, for the message.
    """
    check_room(path, n_bytes)
    size, wanted = path.stat().st_size, n_bytes + _HELD_BYTES
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and size + wanted > limit:
        raise system_error(errno.EFBIG, told, "nothing was kept")
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        given = (ctypes.c_int64(size), ctypes.c_int64(wanted))
        if fallocate(handle, _KEEP_SIZE, *given) and ctypes.get_errno() not in _NOT_THERE:
            raise system_error(ctypes.get_errno(), told, "nothing was kept")
    finally:
        os.close(handle)


def free_room(path: Path) -> None:
    """Give back what :func:`hold_room` has reserved in a file and HDF5 did not need."""
    os.truncate(path, path.stat().st_size)


def copy_blocks(source: int, target: int) -> None:
    """Copy one open file to another, by descriptor; the file system shares blocks if it can."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        size, at = os.fstat(source).st_size, 0
        while at < size:
            at += os.sendfile(target, source, at, min(size - at, 2**30))


def replace_file(path: Path, content: bytes, near: Path | None = None) -> None:
    """Put a small file in place in one step, durably, and remove what killed writers have left.

    Parameters
    ----------
    near : a path on the same disk beside which it is written first; by default ``path``.
    """
    near = path if near is None else near
    for left_over in left_overs(near, "writing"):
        left_over.unlink(missing_ok=True)
    aside = aside_of(near, "writing")
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.write_bytes(content)
        make_durable(aside)
        os.replace(aside, path)
        make_durable(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def make_durable(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_disk(path: Path) -> None:
    """Wait until all that was written to the disk of ``path``, by any process, would survive.

    One call for the many files of a commit, whose order on the disk is then known
    (decisions/013). Where there is no ``syncfs``, as on macOS, it is left to the system when.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        if syncfs(handle):
            raise system_error(ctypes.get_errno(), path)
    finally:
        os.close(handle)
