"""Decoded arrays on the local disk, memory-mapped, shared by all processes of a machine.

A version never changes, so a decoded copy is never outdated: it is found by the version's id and
the array's name. Each array is one file in numpy's own format, followed by a checksum of each
chunk, as the disk under a cache may fail too.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.checksums import checksum
from kpstore.backends.chunks import Chunks
from kpstore.backends.locks import is_held, waiting_lock
from kpstore.backends.optional import COPIES, COPIES_OF
from kpstore.errors import InvalidError
from kpstore.visible import logger

_log = logger(__name__)

FOLDER_VARIABLE = "KPSTORE_CACHE"
LIMIT_VARIABLE = "KPSTORE_CACHE_GB"
DEFAULT_LIMIT_GB = 100.0
_SUFFIX = ".kpstore.npy"
"""Not only .npy: clearing the cache must not remove a user's own arrays in the same folder."""
_STATISTICS = ".kpstore.statistics.npz"
_PART = ".part"
_LOCK = ".lock"
_WRITE_BYTES = 64 * 2**20
"""Size of one write: Linux then keeps the file in large pages, which speeds lookups by a third."""


@dataclass(frozen=True)
class CacheEntry:
    """One decoded array, or its statistics: version, size, and last use in seconds since 1970.

    Copies of a store's objects are one entry, of no version and named as the store's address.
    """

    snapshot: str
    name: str
    size_bytes: int
    used: float
    path: Path

    def to_json(self) -> dict[str, object]:
        """Return the entry as JSON values."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class DecodedArray:
    """A decoded array in the cache, not checked yet.

    Parameters
    ----------
    values : (rows, …), read-only, mapped.
    checksums : (chunks,) uint64, of :func:`kpstore.backends.checksums.checksum`.
    """

    values: NDArray[Any]
    checksums: NDArray[np.uint64]


def default_folder() -> Path:
    """Return the folder: ``$KPSTORE_CACHE``, or ``kpstore`` in the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "kpstore"


def default_limit() -> int:
    """Return the most bytes that the cache may hold: ``$KPSTORE_CACHE_GB``, 100 GB if unset."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return int(float(given or DEFAULT_LIMIT_GB) * 1e9)
    except (ValueError, OverflowError):
        raise InvalidError(f"{LIMIT_VARIABLE}={given!r} is not a number of gigabytes") from None


class DecodedCache:
    """A folder of decoded arrays.

    Parameters
    ----------
    folder : created when the first array is decoded; :func:`default_folder` if not given.
    limit_bytes : of all arrays together; the least recently used are removed to make room.
        :func:`default_limit` if not given.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.folder = default_folder() if folder is None else folder
        self._limit = limit_bytes
        self.refusal = ""
        """Why the last array could not be decoded; ``""`` if it was."""

    @property
    def limit_bytes(self) -> int:
        """Bytes that all arrays together may take."""
        return default_limit() if self._limit is None else self._limit

    def _path(self, snapshot: str, name: str) -> Path:
        # Names come from the store's files, and must not lead out of the folder.
        if not re.fullmatch(r"\w+", snapshot) or not re.fullmatch(r"\w+", name):
            raise InvalidError(
                f"version {snapshot!r}, array {name!r}: the cache takes letters, digits and "
                "underscores"
            )
        return self.folder / snapshot / f"{name}{_SUFFIX}"

    def statistics_path(self, snapshot: str, name: str) -> Path:
        """Return the path for statistics of a version, which are listed and removed like arrays."""
        return self._path(snapshot, name).with_name(f"{name}{_STATISTICS}")

    def keep_statistics(self, path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Write statistics to a temporary file, and rename it when it is complete.

        If the folder cannot be written, or is cleared meanwhile, they are measured again next time.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _written_aside(path) as file:
                np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
        except OSError as error:
            _log.warning("statistics are not kept: %s", error)

    def open(
        self, snapshot: str, name: str, meta: ArrayMeta, checksums: NDArray[np.uint64] | None = None
    ) -> DecodedArray | None:
        """Return a decoded array, mapped; None if there is none, or it was made of other chunks.

        Parameters
        ----------
        checksums : (chunks,), as the store has them; None if it has none.
        """
        path = self._path(snapshot, name)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            with path.open("rb") as file:
                file.seek(mapped.offset + mapped.nbytes)
                kept = np.frombuffer(file.read(), dtype="<u8").astype(np.uint64)
        except Exception:  # numpy parses headers as Python: damaged ones raise errors of any kind
            return None
        if (
            mapped.shape != meta.shape
            or mapped.dtype != np.dtype(meta.dtype)
            or len(kept) != meta.n_chunks
        ):
            return None
        if checksums is not None and not np.array_equal(kept, checksums):
            _log.warning(
                "%s is not a copy of %r as it is in the store, and is not used", path, name
            )
            return None
        with suppress(OSError):
            os.utime(path)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError, ValueError):  # the kernel may not have large pages for files
                mapped._mmap.madvise(mmap.MADV_HUGEPAGE)
        # A plain array: numpy's memmap has overhead in every call.
        return DecodedArray(np.asarray(mapped), kept)

    def drop(self, snapshot: str, name: str) -> bool:
        """Remove a damaged decoded array; return whether it is gone."""
        path = self._path(snapshot, name)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return not path.exists()

    def build(
        self,
        snapshot: str,
        name: str,
        meta: ArrayMeta,
        chunks: Chunks,
        checksums: NDArray[np.uint64] | None = None,
        *,
        on_chunk: Callable[[int, int], None] | None = None,
    ) -> DecodedArray | None:
        """Decode an array, once on a machine even if several processes ask, and return it mapped.

        Parameters
        ----------
        chunks : chunks that are checked when they are read.
        checksums : (chunks,), as the store has them; None if it has none.
        on_chunk : called with the number of chunks done and the number of all chunks.

        Returns
        -------
        DecodedArray or None
            None if it exceeds the limit or the space on the disk, or the folder cannot be written.

        Raises
        ------
        CorruptError
            If a chunk is damaged; nothing is kept then.
        """
        path = self._path(snapshot, name)
        self.refusal = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # One lock for the folder, which is never removed: others may be waiting for it.
            with waiting_lock(self.folder / _LOCK):
                if self.open(snapshot, name, meta, checksums) is None:
                    self._remove_left_overs()
                    if not self._make_room(meta.n_rows * meta.row_bytes):
                        return None
                    _decode(path, meta, chunks, checksums, on_chunk)
        except OSError as error:
            self.refusal = f"{error.strerror or error}: {error.filename or self.folder}"
            _log.warning("%r is read without a cache: %s", name, self.refusal)
            return None
        return self.open(snapshot, name, meta, checksums)

    def _remove_left_overs(self) -> int:
        """Remove files that killed processes left, under the lock; return their size."""
        n_bytes = 0
        for left_over in self.folder.glob(f"*/.*{_PART}"):
            n_bytes += left_over.stat().st_size
            left_over.unlink()
        return n_bytes

    def _make_room(self, n_bytes: int) -> bool:
        free, held = shutil.disk_usage(self.folder).free, self._held()
        if n_bytes > self.limit_bytes or n_bytes > free + held:
            self.refusal = (
                f"no room in {self.folder}: it needs {n_bytes / 1e9:.3g} GB, the cache may hold "
                f"{self.limit_bytes / 1e9:.3g} GB (${LIMIT_VARIABLE}) and the disk has "
                f"{free / 1e9:.3g} GB left"
            )
            return False
        for entry in self.entries():
            free = shutil.disk_usage(self.folder).free
            if self._held() + n_bytes <= self.limit_bytes and n_bytes <= free:
                break
            _remove(entry)
        return n_bytes <= shutil.disk_usage(self.folder).free

    def _held(self) -> int:
        return sum(entry.size_bytes for entry in self.entries())

    def entries(self) -> list[CacheEntry]:
        """Return the entries of the cache, the least recently used first."""
        found = []
        paths = [
            path for suffix in (_SUFFIX, _STATISTICS) for path in self.folder.glob(f"*/*{suffix}")
        ]
        for path in paths:
            with suppress(FileNotFoundError):
                about = path.stat()
                name = path.name.removesuffix(_SUFFIX).replace(_STATISTICS, " (statistics)")
                found.append(
                    CacheEntry(path.parent.name, name, about.st_size, about.st_mtime, path)
                )
        return sorted([*found, *self._copies()], key=lambda entry: entry.used)

    def _copies(self) -> Iterator[CacheEntry]:
        """Yield copies of objects, those of each store together, under its address."""
        for folder in (self.folder / COPIES).glob("*/"):
            with suppress(OSError, UnicodeError):  # as copies come and go
                files = [path.stat() for path in folder.iterdir()]
                name = (folder / COPIES_OF).read_text(encoding="utf-8")
                size, used = sum(f.st_size for f in files), max(f.st_mtime for f in files)
                yield CacheEntry("", name, size, used, folder)

    def clear(self, snapshots: Collection[str] | None = None, location: str = "") -> int:
        """Remove arrays and return their size; arrays in use stay readable.

        Parameters
        ----------
        snapshots : only arrays of these versions; all by default.
        location : only copies of this store's objects, besides those.
        """
        entries = [
            entry
            for entry in self.entries()
            if snapshots is None
            or (entry.snapshot in snapshots if entry.snapshot else entry.name == location)
        ]
        for entry in entries:
            _remove(entry)
        kept = [entry for entry in entries if entry.path.exists()]
        if kept:
            _log.warning(
                "%d of %d copies stay: this user may not remove %s",
                len(kept),
                len(entries),
                kept[0].path,
            )
        freed = sum(entry.size_bytes for entry in entries if entry not in kept)
        with suppress(PermissionError):  # a folder of another user, whose programs tidy up
            if self.folder.is_dir() and not is_held(self.folder / _LOCK):
                with waiting_lock(self.folder / _LOCK):
                    freed += self._remove_left_overs()
        return freed


def _decode(
    path: Path,
    meta: ArrayMeta,
    chunks: Chunks,
    checksums: NDArray[np.uint64] | None,
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    """Write all rows and their checksums."""
    n_chunks = meta.n_chunks
    kept = np.zeros(n_chunks, dtype="<u8") if checksums is None else checksums.astype("<u8")
    with _written_aside(path) as file:
        header = {
            "descr": np.dtype(meta.dtype).str,
            "fortran_order": False,
            "shape": meta.shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        per_write = max(1, _WRITE_BYTES // max(1, meta.chunk_rows * meta.row_bytes))
        buffer = np.empty((per_write, meta.chunk_rows, *meta.shape[1:]), dtype=meta.dtype)
        for first in range(0, n_chunks, per_write):
            stop = min(first + per_write, n_chunks)
            chunks.ask(np.arange(first, min(stop + per_write, n_chunks)))
            for number in range(first, stop):
                chunks.read_into(number, buffer[number - first])
                if checksums is None:
                    begin, end = meta.rows_of(number)
                    kept[number] = checksum(meta, buffer[number - first, : end - begin])
                if on_chunk is not None:
                    on_chunk(number + 1, n_chunks)
            n_rows = min(stop * meta.chunk_rows, meta.n_rows) - first * meta.chunk_rows
            buffer.reshape(-1, *meta.shape[1:])[:n_rows].tofile(file)
        kept.tofile(file)


@contextmanager
def _written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, which gets its name when it is complete."""
    handle, aside = _make_aside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside)
        raise


def _make_aside(path: Path) -> tuple[int, str]:
    while True:
        path.parent.mkdir(exist_ok=True)
        if path.parent.is_symlink():
            raise NotADirectoryError(f"{path.parent} is a link; the cache does not write elsewhere")
        with suppress(FileNotFoundError):  # the cache was cleared, and the empty folder removed
            handle, aside = tempfile.mkstemp(prefix=".", suffix=_PART, dir=path.parent)
            # Copies are private, as the store may be, except in a folder set up for a group.
            if path.parent.stat().st_mode & stat.S_ISGID:
                os.fchmod(handle, 0o660)
            return handle, aside


def _remove(entry: CacheEntry) -> None:
    if not entry.snapshot:
        shutil.rmtree(entry.path, ignore_errors=True)
        return
    with suppress(OSError):
        entry.path.unlink()
    with suppress(OSError):
        entry.path.parent.rmdir()
