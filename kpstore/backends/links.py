"""A store may come from anyone: nothing in its folder may lead out of it.

A symbolic link in a stranger's folder would make kpstore, or the library of its backend, read and
overwrite files of the user; opening a pipe would wait for ever. So a folder is looked through
before anything in it is opened, and what kpstore itself opens there is opened by
:func:`open_inside`. Hard links stay, as copies made by ``cp -al`` consist of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kpstore.errors import InvalidError


def refuse_links(folder: Path) -> None:
    """Raise :class:`InvalidError` if a folder holds anything but regular files and folders.

    The folder itself may be a link, and may be missing. Names are read but no file is looked at,
    which takes a few milliseconds for thousands of files.
    """
    left = [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                        raise _refusal(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # another process has just removed it


def refuse_links_beside(folder: Path) -> None:
    """Do the same for a folder beside a store, which must not be a link itself."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _refusal(str(folder))
    refuse_links(folder)


@contextmanager
def open_inside(path: Path, flags: int) -> Iterator[BinaryIO]:
    """Open a regular file of a store, but not what a link in its place leads to.

    Parameters
    ----------
    flags : those of :func:`os.open`.

    Raises
    ------
    InvalidError
        If there is something else than a regular file.
    OSError
        As :func:`os.open` does.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait.
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _refusal(str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _refusal(str(path))
    with os.fdopen(handle, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "r+b") as file:
        yield file


def write_inside(path: Path, text: str) -> None:
    """Write a small file of a store; see :func:`open_inside`."""
    with open_inside(path, os.O_RDWR | os.O_CREAT) as file:
        file.truncate(0)
        file.write(text.encode())


def read_inside(path: Path) -> str:
    """Read a small file of a store, up to a mebibyte; see :func:`open_inside`."""
    with open_inside(path, os.O_RDONLY) as file:
        return file.read(2**20).decode()


def _refusal(path: str) -> InvalidError:
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    what = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe (FIFO)",
        stat.S_IFSOCK: "a socket",
    }.get(kind, "not a regular file")
    return InvalidError(
        f"{path!r} is {what}, which a store must not hold, as it may come from anyone; nothing was "
        "opened: remove it if you know it, or copy the store with 'cp -rL'"
    )
