"""Files that stay open for reading, as to open one takes longer than to read a little of it."""

from __future__ import annotations

import errno
import os
import weakref

try:
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
except ImportError:  # Windows
    _MOST_OF_PROCESS = 512
else:
    _MOST_OF_PROCESS = getrlimit(RLIMIT_NOFILE)[0]
    if _MOST_OF_PROCESS == RLIM_INFINITY:
        _MOST_OF_PROCESS = 2**16

FilePath = str | os.PathLike[str]
MOST_OPEN = max(1, min(1024, _MOST_OF_PROCESS // 4))
"""Of all that are kept: a quarter of what this process may open."""


def are_too_many(error: Exception) -> bool:
    """Whether an error says that too many files are open, and nothing about one."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


class OpenFile:
    """A file that is closed when nothing refers to it.

    Attributes
    ----------
    number : its file descriptor.
    """

    __slots__ = ("__weakref__", "number")

    def __init__(self, path: FilePath) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # it could be opened
            os.close(self.number)


_kept: weakref.WeakSet[OpenFile] = weakref.WeakSet()
"""Files that any :class:`OpenFiles` keeps, or that are in use."""


class OpenFiles:
    """Some files of one reader, which never change; they are closed with it.

    Safe to use from several threads and after a fork, without a lock: a thread that uses a file
    refers to it, so that another one that drops it does not close it. A file that is deleted stays
    readable while it is kept, as one that is mapped.
    """

    def __init__(self) -> None:
        self._files: dict[FilePath, OpenFile] = {}

    def at(self, path: FilePath) -> OpenFile:
        """Return a file, open for reading; :class:`OSError` if it cannot be opened."""
        found = self._files.get(path)
        if found is not None:
            return found
        if len(_kept) >= MOST_OPEN:
            self._drop_oldest()
        try:
            found = OpenFile(path)
        except OSError as error:
            if not are_too_many(error) or not self._files:
                raise
            self._files.clear()
            found = OpenFile(path)
        if len(_kept) < MOST_OPEN:
            _kept.add(found)
            self._files[path] = found
        return found

    def _drop_oldest(self) -> None:
        try:
            self._files.pop(next(iter(self._files)), None)
        except (RuntimeError, StopIteration):  # another thread was here, or others keep them
            return

    def drop(self, path: FilePath) -> None:
        """Close a file that could not be read: another one may come in its place."""
        self._files.pop(path, None)
