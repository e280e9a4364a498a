"""Files that stay open for reading, as to open one takes longer than to read a little of it.

For files that never change. One that is deleted stays readable, and its space in use, while it is
open, as one that is mapped.
"""

from __future__ import annotations

import os

try:
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
except ImportError:  # Windows
    _MOST_OF_PROCESS = 512
else:
    _MOST_OF_PROCESS = getrlimit(RLIMIT_NOFILE)[0]
    if _MOST_OF_PROCESS == RLIM_INFINITY:
        _MOST_OF_PROCESS = 2**16

MOST_OPEN = max(1, min(1024, _MOST_OF_PROCESS // 4))
"""A quarter of what this process may open."""


class OpenFile:
    """A file that is closed when nothing refers to it.

    Attributes
    ----------
    number : its file descriptor.
    """

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # it could be opened
            os.close(self.number)


_open: dict[str, OpenFile] = {}


def opened(path: str) -> OpenFile:
    """Return a file of this process, open for reading; :class:`OSError` if it cannot be opened.

    Safe to use from several threads and after a fork, without a lock: a thread that uses a file
    refers to it, so that another one that drops it does not close it.
    """
    found = _open.get(path)
    if found is None:
        while len(_open) >= MOST_OPEN:
            try:
                _open.pop(next(iter(_open)), None)
            except (RuntimeError, StopIteration):  # another thread was here meanwhile
                continue
        found = _open[path] = OpenFile(path)
    return found
