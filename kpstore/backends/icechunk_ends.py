"""Last chunks of older versions share a file with the newest version's.

A commit that appends a few rows writes the array's last chunk anew, as Zarr's chunks have one size,
and the version before keeps its own. Of that chunk it only ever reads the rows that it has, with
which the new chunk begins. So where chunks are raw, and thus of one length, the older file's name
is given to the new file (a hard link): many small commits then cost little more than their rows.

So an older version's last file may hold rows behind that version's end. Readers stop at the end,
and checksums count what is behind it as fill. Whoever goes on from such a version, on another
branch or after a rollback, puts fill there first (:func:`rows_with_fill_behind`).

No commit depends on this. It happens after one, each step is atomic, and where a file system has no
hard links, or anything is not as expected, both files stay.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.icechunk_chunks import ZarrArray
from kpstore.backends.icechunk_directory import IcechunkDirectory
from kpstore.backends.icechunk_errors import UNREADABLE
from kpstore.backends.icechunk_manifests import locate_chunks
from kpstore.backends.links import read_inside, write_inside

_CHUNK_NAME = re.compile(r"[0-9A-Z]{20}")


@dataclass(frozen=True)
class LastChunk:
    """The last chunk of an array before a commit has appended rows.

    Parameters
    ----------
    meta : the array after the commit.
    n_rows : number of rows before it.
    """

    meta: ArrayMeta
    n_rows: int

    @property
    def number(self) -> int:
        """Number of the chunk."""
        return self.n_rows // self.meta.chunk_rows

    @property
    def n_bytes(self) -> int:
        """Number of its bytes that the version before reads."""
        return self.n_rows % self.meta.chunk_rows * self.meta.row_bytes


def share_last_chunks(
    home: IcechunkDirectory, before: str, after: str, ends: Mapping[str, LastChunk]
) -> None:
    """Give the files of last chunks the names of those that they continue, under the commit lock.

    Parameters
    ----------
    before, after : the version that a commit built upon, and the one that it made.
    ends : last chunks of arrays that the commit has appended to.
    """
    ends = {name: end for name, end in ends.items() if end.meta.codec == "raw" and end.n_bytes}
    if not ends:
        return
    noted = _Noted(home.sidecar_dir / "last-chunks")
    for name, end in ends.items():
        try:
            old, new = (_file_of(home, version, name, end) for version in (before, after))
            if old is None or new is None or not _continues(new, old, end.n_bytes):
                continue
            names = noted.before(name, old)
            for older in names:
                _give_name(new, older, noted.path.with_name("last-chunk"))
        except OSError:
            continue
        noted.files[name] = [older.name for older in names] + [new.name]
    noted.write()


def rows_with_fill_behind(
    array: ZarrArray, meta: ArrayMeta, n_rows: int
) -> NDArray[np.generic] | None:
    """Return a lengthened array's chunk that row ``n_rows`` is in, with fill from that row on.

    None if it is so already.
    """
    start, stop = meta.rows_of(n_rows // meta.chunk_rows)
    if meta.codec != "raw" or start == n_rows:
        return None
    try:
        rows = np.array(array[start:stop])
    except UNREADABLE:  # said by whoever reads the rows before
        return None
    fill = meta.unwritten(stop - n_rows)
    if rows[n_rows - start :].tobytes() == fill.tobytes():
        return None
    rows[n_rows - start :] = fill
    return rows


def _file_of(home: IcechunkDirectory, version: str, name: str, end: LastChunk) -> Path | None:
    """Return the file that holds the chunk alone; None if there is no such file."""
    places = locate_chunks(home.nodes(version), home.path, name) or {}
    place = places.get((end.number, *(0 for _ in end.meta.shape[1:])))
    if place is None or place.inline is not None or place.offset:
        return None
    return place.file if place.file.stat().st_size == place.length else None


def _continues(new: Path, old: Path, n_bytes: int) -> bool:
    """Whether two files are of one length and begin with the same bytes."""
    if new == old or new.stat().st_size != old.stat().st_size:
        return False
    with new.open("rb") as one, old.open("rb") as other:
        return one.read(n_bytes) == other.read(n_bytes)


def _give_name(file: Path, name: Path, aside: Path) -> None:
    """Make ``name`` a name of ``file``, at once; ``aside`` is used on the way."""
    aside.unlink(missing_ok=True)
    os.link(file, aside)
    os.replace(aside, name)


class _Noted:
    """Names that share one file, by array, in the order in which commits made them.

    The last name is that of the newest version. The others end earlier, so whatever continues the
    last one continues them all. The note may be missing, cut, or wrong on purpose in a store of
    others: then older names keep the file that they have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.files: dict[str, list[str]] = dict(json.loads(read_inside(path)))
        except (OSError, ValueError, TypeError):
            self.files = {}

    def before(self, array: str, file: Path) -> list[Path]:
        """Return the names of the same file that end where ``file`` ends or before, and it last."""
        names = self.files.get(array)
        if not isinstance(names, list) or names[-1:] != [file.name]:
            return [file]
        older = (
            file.with_name(name)
            for name in names[:-1]
            if isinstance(name, str) and _CHUNK_NAME.fullmatch(name)
        )
        return [*(name for name in older if name.is_file() and name.samefile(file)), file]

    def write(self) -> None:
        """Replace the note."""
        with suppress(OSError):
            write_inside(self.path, json.dumps(self.files))
