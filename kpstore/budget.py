"""How much memory reading a file may take: ten times the file and 256 MiB, or what a user allows.

A few packed, repeated or damaged bytes can claim gigabytes. A reader makes one
:class:`MemoryBudget` where it opens a file, and asks it before it reads something large.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from kpstore.errors import InvalidError

VALUE_BYTES = 72
"""Memory of an empty list or dict, or of a text or number without what is in it."""
SPARE_BYTES = 256 * 2**20
"""Memory that reading a file may take beyond ten times its size."""
VARIABLE = "KPSTORE_MAX_MEMORY"
"""Environment variable: bytes that reading a file may take at least, for a user who trusts it."""
_TIMES = 10
_COPIES = 4
"""Times that the rows of a video are in memory while they are read, checked and written."""
_FRAME_BYTES = 140
"""Memory of a frame beside its rows: its path, and its place in tables."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *(?:([kmgt])(i?)b?|b)?\Z", re.IGNORECASE)
_POWERS = {unit: power for power, unit in enumerate("kmgt", start=1)}


def parse_size(given: str | int) -> int:
    """Return a number of bytes that is given as such, or as text: ``8GiB``, ``500 MB``.

    Units with an i are powers of 1024, those without are powers of 1000.
    """
    found = _SIZE.match(given.strip()) if isinstance(given, str) else None
    if found is not None:
        number, unit, binary = found.groups()
        power = _POWERS.get((unit or "").lower(), 0)
        given = int(min(float(number) * (1024 if binary else 1000) ** power, sys.maxsize))
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InvalidError(f"{given!r} is no size; give bytes, or text such as 8GiB or 500MiB")
    return given


def allowed_by_user() -> int:
    """Return the bytes that the environment allows in any case; 0 if it says nothing."""
    given = os.environ.get(VARIABLE)
    try:
        return parse_size(given) if given else 0
    except InvalidError as error:
        raise InvalidError(f"{VARIABLE}: {error}") from None


class MemoryBudget:
    """The memory that reading a file may take at once.

    Parameters
    ----------
    name : the file, for messages.
    size : bytes of the file, or of all files that are read together; a function, if it takes long
        to find out.
    most : bytes that the user allows instead (if ``fixed``, a bound of ours); None for ten times
        the size and 256 MiB, or for what ``$KPSTORE_MAX_MEMORY`` allows, if that is more.
    fixed : whether no option allows more, as the file is not imported.
    """

    def __init__(
        self,
        name: str,
        size: int | Callable[[], int],
        most: int | None = None,
        *,
        fixed: bool = False,
    ) -> None:
        self._name, self._size, self._most, self._fixed = name, size, most, fixed
        self._held = 0

    @classmethod
    def of(cls, path: Path, most: int | None = None, *, fixed: bool = False) -> MemoryBudget:
        """Return the budget of a file, or of all the files of a folder."""
        return cls(str(path), lambda: sum(_sizes(path)), most, fixed=fixed)

    @cached_property
    def limit(self) -> int:
        """Bytes that may be taken at once."""
        if self._most is not None:
            return self._most
        size = self._size if isinstance(self._size, int) else self._size()
        return max(_TIMES * size + SPARE_BYTES, allowed_by_user())

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return self.limit - self._held

    def check(self, n_bytes: int, what: str) -> None:
        """Raise :class:`InvalidError` if something takes too much, beside all that is held.

        Parameters
        ----------
        n_bytes : memory that it takes for a while.
        what : the part of the file, for the message.
        """
        wanted = n_bytes + self._held
        if (wanted <= SPARE_BYTES and self._most is None) or wanted <= self.limit:
            return
        why, enough = "ten times the file and 256 MiB", f"{wanted // 2**30 + 1}GiB"
        if self._most is None and self.limit == allowed_by_user():
            why = f"as {VARIABLE} says"
        if self._most is not None:
            why = "what a sound one needs" if self._fixed else "as --max-memory says"
        allow = f"; if you trust it, import it with --max-memory {enough}"
        if self._fixed:
            allow = f"; if you trust it, set {VARIABLE}={enough}" if self._most is None else ""
        raise InvalidError(
            f"{self._name}: {what} would take {wanted / 2**20:,.0f} MiB of memory, reading it may "
            f"take {self.limit / 2**20:,.0f} ({why}); it may be damaged, or made to fill the memory"
            f"{allow}"
        )

    def check_frames(self, n_frames: int, row_bytes: int, what: str) -> None:
        """Check, as :meth:`check` does, the memory of a video while it is read and written.

        Parameters
        ----------
        row_bytes : bytes of all its rows of one frame.
        """
        self.check(n_frames * (_COPIES * row_bytes + _FRAME_BYTES), what)

    def hold(self, n_bytes: int, what: str) -> None:
        """Check as :meth:`check` does, and count what stays in memory while the file is open."""
        self.check(n_bytes, what)
        self._held += n_bytes


def _sizes(path: Path) -> Iterator[int]:
    files = path.rglob("*") if path.is_dir() else [path]
    return (file.stat().st_size for file in files if file.is_file())
