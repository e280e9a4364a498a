"""Equal chunks of several versions share a file.

A removal writes all arrays anew, for each branch and tag that leads to what is removed, and most of
their chunks are the same. So after garbage is collected, files of chunks that are equal to the bit
become names of one file (hard links). No version depends on this: where a file system has no hard
links, or anything is not as expected, all files stay.
"""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kpstore.backends.icechunk_ends import ASIDE, give_name

_EDGE = 64
"""Bytes at either end of a file that are compared first; those of a chunk end with a checksum."""


def share_equal_chunks(root: Path) -> None:
    """Make equal files of chunks one file, under the commit lock and without any writer.

    A name is given to another file at once, so whoever reads the old one goes on.
    """
    for files in _alike(root / "chunks"):
        kept: list[Path] = []
        for names in files:
            with suppress(OSError):  # no hard links here, too many of a file, or it has just gone
                first = names[0]
                same = next((one for one in kept if filecmp.cmp(one, first, shallow=False)), None)
                if same is None:
                    kept.append(first)
                    continue
                for name in names:
                    give_name(same, name, root / "kpstore" / ASIDE)
    filecmp.clear_cache()


def _alike(folder: Path) -> Iterator[list[list[Path]]]:
    """Yield files of one length that begin and end with the same bytes, each with its names."""
    by_size: dict[int, dict[tuple[int, int], list[Path]]] = {}
    entries = os.scandir(folder) if folder.is_dir() else ()  # a store may have no chunks yet
    for entry in sorted(entries, key=lambda entry: entry.name):
        about = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(about.st_mode) and about.st_size:
            files = by_size.setdefault(about.st_size, {})
            files.setdefault((about.st_dev, about.st_ino), []).append(Path(entry.path))
    for files in by_size.values():
        by_edges: dict[bytes, list[list[Path]]] = {}
        for names in files.values() if len(files) > 1 else ():
            with suppress(OSError):
                by_edges.setdefault(_edges(names[0]), []).append(names)
        yield from (alike for alike in by_edges.values() if len(alike) > 1)


def _edges(file: Path) -> bytes:
    with file.open("rb") as opened:
        head = opened.read(_EDGE)
        opened.seek(-min(_EDGE, os.fstat(opened.fileno()).st_size), os.SEEK_END)
        return head + opened.read()
