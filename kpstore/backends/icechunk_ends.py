"""Last chunks of older versions share a file with the newest version's.

A commit that appends a few rows writes the array's last chunk anew, as Zarr's chunks have one size,
and the version before keeps its own. Of that chunk it only ever reads the rows that it has, with
which the new chunk begins. So where chunks are raw, and thus of one length, the older file's name
is given to the new file (a hard link): many small commits then cost little more than their rows.

So an older version's last file may hold rows behind that version's end. Readers stop at the end,
and checksums count what is behind it as fill. Whoever goes on from such a version, on another
branch or after a rollback, puts fill there first (:func:`filled_behind`). What puts an end
to the versions that have those rows puts fill there too (:func:`clear_ends`), as a removed video
may be among them.

All versions that read a last chunk from one file have to end at the same row. So whatever lengthens
an array writes its last chunk anew, and only files that are noted as written so get another one.

No commit depends on this. It happens after one, each step is atomic, and where a file system has no
hard links, or anything is not as expected, both files stay.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import icechunk
import numpy as np
import zarr
from numpy.typing import NDArray

from kpstore.backends.asides import replace_file
from kpstore.backends.base import ArrayMeta
from kpstore.backends.icechunk_chunks import meta_of, root_group
from kpstore.backends.icechunk_codec import ChunkCodec
from kpstore.backends.icechunk_directory import IcechunkDirectory
from kpstore.backends.icechunk_errors import UNREADABLE
from kpstore.backends.icechunk_manifests import ChunkPlace, locate_chunks, nodes_of
from kpstore.backends.links import read_inside, write_inside
from kpstore.errors import KpstoreError

_CHUNK_NAME = re.compile(r"[0-9A-Z]{20}")
ASIDE = "last-chunk"
"""A second name of a file, in the sidecar, while it gets another one's name."""

Places = Mapping[tuple[int, ...], ChunkPlace]


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

    @property
    def is_shared(self) -> bool:
        """Whether its file may become one of a later version, too."""
        return self.meta.codec == "raw" and self.n_bytes > 0


def share_last_chunks(
    home: IcechunkDirectory, before: str, after: str, ends: Mapping[str, LastChunk]
) -> None:
    """Give the files of last chunks the names of those that they continue, under the commit lock.

    Parameters
    ----------
    before, after : the version that a commit built upon, and the one that it made.
    ends : last chunks of arrays that the commit has made or appended to.
    """
    ends = {name: end for name, end in ends.items() if end.meta.codec == "raw"}
    if not ends:
        return
    noted = _Noted(home.sidecar_dir / "last-chunks")
    for name, end in ends.items():
        try:
            newest = end.meta.n_rows // end.meta.chunk_rows
            last = _file_of(home, after, name, newest)
            names = _share(home, before, after, name, end, noted) if end.is_shared else []
        except (*UNREADABLE, KpstoreError):
            continue
        if last is None:
            noted.files.pop(name, None)
        else:
            continued = names if newest == end.number else []
            noted.files[name] = [*(older.name for older in continued), last.name]
    noted.write()


def _share(
    home: IcechunkDirectory, before: str, after: str, name: str, end: LastChunk, noted: _Noted
) -> list[Path]:
    """Do that for one array; return the names that lead to the new file now."""
    old, new = (_file_of(home, version, name, end.number) for version in (before, after))
    if old is None or new is None or not _continues(new, old, end.n_bytes):
        return []
    names = noted.before(name, old)
    try:
        for older in names:
            give_name(new, older, home.sidecar_dir / ASIDE)
    except OSError:
        return []
    return names


def filled_behind(
    rows: NDArray[np.generic], meta: ArrayMeta, n_rows: int
) -> NDArray[np.generic] | None:
    """Return rows of a chunk with fill from row ``n_rows`` of its array on; None if they are so.

    Parameters
    ----------
    rows : those of the chunk that this row is in, as far as the lengthened array has them.
    """
    kept = n_rows % meta.chunk_rows
    fill = meta.unwritten(len(rows) - kept)
    if rows[kept:].tobytes() == fill.tobytes():
        return None
    return np.concatenate([rows[:kept], fill])


def _file_of(home: IcechunkDirectory, version: str, name: str, chunk: int) -> Path | None:
    """Return the file that holds a chunk alone; None if there is no such file."""
    return _only_file(locate_chunks(home.nodes(version), home.path, name), chunk)


def _only_file(places: Places | None, chunk: int) -> Path | None:
    for index in places or ():
        if places and index[0] == chunk and not any(index[1:]):
            place = places[index]
            file, alone = Path(place.file), place.inline is None and not place.offset
            return file if alone and file.stat().st_size == place.length else None
    return None


def _continues(new: Path, old: Path, n_bytes: int) -> bool:
    """Whether two files are of one length and begin with the same bytes."""
    if new == old or new.stat().st_size != old.stat().st_size:
        return False
    with new.open("rb") as one, old.open("rb") as other:
        return one.read(n_bytes) == other.read(n_bytes)


# -- what no version has any more ------------------------------------------------------------------


def clear_ends(repository: icechunk.Repository, root: Path, versions: Iterable[str]) -> None:
    """Put fill behind the ends of versions, where none of them has rows.

    Under the commit lock, with all versions that are left, and after the files that they do not
    need are gone. A file is replaced at once, so whoever reads the old one goes on.
    """
    sidecar = root / "kpstore"
    (sidecar / ASIDE).unlink(missing_ok=True)
    ends: dict[str, tuple[ArrayMeta, int]] = {}
    for version in versions:
        ends.update(_ends_of(repository, root, version, ends))
    names: dict[tuple[int, int], list[Path]] = {}
    for entry in os.scandir(root / "chunks") if ends else ():
        about = entry.stat(follow_symlinks=False)
        names.setdefault((about.st_dev, about.st_ino), []).append(Path(entry.path))
    for same in names.values():
        if all(file.name in ends for file in same):  # else one of them needs all of it
            # Of arrays with rows of other lengths, too (kpstore.backends.icechunk_equal).
            longest = max((ends[file.name] for file in same), key=lambda e: e[1] * e[0].row_bytes)
            _clear_end(same, *longest, sidecar)


def _ends_of(
    repository: icechunk.Repository, root: Path, version: str, known: Container[str]
) -> Iterator[tuple[str, tuple[ArrayMeta, int]]]:
    """Yield files of last chunks that a version reads in part: array and number of rows by name.

    Parameters
    ----------
    known : names of files that are known already.
    """
    nodes = nodes_of(repository, version) or {}
    group = root_group(repository.readonly_session(snapshot_id=version))
    for name in nodes:
        places = locate_chunks(nodes, root, name)
        last = max((index[0] for index in places or ()), default=0)
        file = _only_file(places, last)
        if file is None or file.name in known:
            continue  # before the array is opened, which takes longest
        array = group[name]
        if isinstance(array, zarr.Array) and (codec := ChunkCodec.of(array)) is not None:
            meta = meta_of(array)
            number, n_rows = divmod(meta.n_rows, meta.chunk_rows)
            if meta.codec == "raw" and codec.n_check and number == last and n_rows:
                yield file.name, (meta, n_rows)


def _clear_end(names: list[Path], meta: ArrayMeta, n_rows: int, sidecar: Path) -> None:
    """Put fill behind the rows of a chunk, in the file that has these names."""
    kept, n_bytes = n_rows * meta.row_bytes, meta.chunk_rows * meta.row_bytes
    fill = meta.unwritten(meta.chunk_rows - n_rows).tobytes()
    content = names[0].read_bytes()
    if len(content) <= n_bytes or content[kept:n_bytes] == fill:
        return
    body = content[:kept] + fill
    # Damage stays: the checksum in the version's table does not match it.
    crc = google_crc32c.value(body).to_bytes(len(content) - n_bytes, "little")
    replace_file(names[0], body + crc, near=sidecar / ASIDE)
    for name in names[1:]:
        give_name(names[0], name, sidecar / ASIDE)


# -- files and their names -------------------------------------------------------------------------


def give_name(file: Path, name: Path, aside: Path) -> None:
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
        """Return the names of the same file that end where ``file`` ends or before, and it last.

        None at all if it is not noted as the file of one version's end.
        """
        names = self.files.get(array)
        if not isinstance(names, list) or names[-1:] != [file.name]:
            return []
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
