"""Files of weights: known by their SHA-256, their names told in short."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

SHOWN_NAMES = 4


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; a file that did not change is read once in a process."""
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def some_of(names: Iterable[object]) -> str:
    """Return the first of some names, sorted, and how many more there are."""
    listed = sorted(str(name) for name in names)
    more = f" and {len(listed) - SHOWN_NAMES} more" if len(listed) > SHOWN_NAMES else ""
    return f"{', '.join(map(repr, listed[:SHOWN_NAMES])) or 'nothing'}{more}"
