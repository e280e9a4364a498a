"""Decoded arrays on the local disk, memory-mapped, shared by all processes of a machine.

A version never changes, so a decoded copy is right for ever: it is found by the version's id and
the array's name, and needs no invalidation. One file per array, in numpy's own format, and behind
the values what each chunk of them adds up to: the disk under a cache goes bad as any other does.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, Chunks
from kpstore.backends.checksums import checksum
from kpstore.backends.locks import is_held, waiting_lock
from kpstore.errors import InvalidError

_log = logging.getLogger(__name__)

FOLDER_VARIABLE = "KPSTORE_CACHE"
LIMIT_VARIABLE = "KPSTORE_CACHE_GB"
DEFAULT_LIMIT_GB = 100.0
_SUFFIX = ".kpstore.npy"
"""Not merely .npy: whoever names a folder with arrays of his own as the cache must not lose them when it is cleared."""
_STATISTICS = ".kpstore.statistics.npz"
_PART = ".part"
_LOCK = ".lock"
_WRITE_BYTES = 64 * 2**20
"""Written in one go: Linux then keeps the file in large pages, and looks addresses up a third faster."""


@dataclass(frozen=True)
class CacheEntry:
    """One decoded array, or the statistics of one: of which version, how large, when last opened (s since 1970)."""

    snapshot: str
    name: str
    size_bytes: int
    used: float
    path: Path

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class DecodedArray:
    """A decoded array as it lies here, not looked at yet.

    Parameters
    ----------
    values : (rows, …), read-only, mapped.
    checksums : (chunks,) uint64, of :func:`kpstore.backends.checksums.checksum`: what each chunk
        has to add up to.
    """

    values: NDArray[Any]
    checksums: NDArray[np.uint64]


def default_folder() -> Path:
    """Return where decoded arrays go: ``$KPSTORE_CACHE``, or ``kpstore`` in the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "kpstore"


def default_limit() -> int:
    """Return how many bytes the cache may hold: ``$KPSTORE_CACHE_GB``, 100 GB if unset."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return int(float(given or DEFAULT_LIMIT_GB) * 1e9)
    except (ValueError, OverflowError):
        raise InvalidError(f"{LIMIT_VARIABLE}={given!r} is not a number of gigabytes") from None


class DecodedCache:
    """A folder of decoded arrays.

    Parameters
    ----------
    folder : made when the first array is decoded; :func:`default_folder` if not given.
    limit_bytes : of all arrays together; what was opened longest ago makes room.
        :func:`default_limit` if not given.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.folder = default_folder() if folder is None else folder
        self._limit = limit_bytes
        self.refusal = ""
        """Why the last array that was to be decoded was not."""

    @property
    def limit_bytes(self) -> int:
        """Bytes that all arrays together may take."""
        return default_limit() if self._limit is None else self._limit

    def _path(self, snapshot: str, name: str) -> Path:
        # Names come from the store's files: none of them may lead out of the folder.
        if not re.fullmatch(r"\w+", snapshot) or not re.fullmatch(r"\w+", name):
            raise InvalidError(
                f"version {snapshot!r}, array {name!r}: the cache takes letters, digits and "
                "underscores"
            )
        return self.folder / snapshot / f"{name}{_SUFFIX}"

    def statistics_path(self, snapshot: str, name: str) -> Path:
        """Return the place for statistics of a version.

        They are listed, cleared and make room as arrays do.
        """
        return self._path(snapshot, name).with_name(f"{name}{_STATISTICS}")

    def keep_statistics(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write statistics aside and give them their name when they are whole.

        A folder that cannot be written, or a decoder that clears up meanwhile, only costs measuring
        again.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, aside = _make_aside(path)
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
                os.replace(aside, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(aside)
                raise
        except OSError as error:
            _log.warning("statistics are not kept: %s", error)

    def open(
        self, snapshot: str, name: str, meta: ArrayMeta, checksums: NDArray[np.uint64] | None = None
    ) -> DecodedArray | None:
        """Return a decoded array, mapped.

        None if it is not here, or is not the copy of these chunks.

        Parameters
        ----------
        checksums : (chunks,), what the store says of its chunks; None if it says nothing.
        """
        path = self._path(snapshot, name)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            with path.open("rb") as file:
                file.seek(mapped.offset + mapped.nbytes)
                kept = np.frombuffer(file.read(), dtype="<u8").astype(np.uint64)
        except Exception:  # numpy parses headers as Python: torn ones end in errors of every kind
            return None
        if (
            mapped.shape != meta.shape
            or mapped.dtype != np.dtype(meta.dtype)
            or len(kept) != _n_chunks(meta)
        ):
            return None
        if checksums is not None and not np.array_equal(kept, checksums):
            _log.warning("%s is not a copy of %r as the store has it, and is not used", path, name)
            return None
        with suppress(OSError):
            os.utime(path)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError, ValueError):  # a kernel that has no large pages for files
                mapped._mmap.madvise(mmap.MADV_HUGEPAGE)
        # A plain array: numpy's memmap does work of its own in every call.
        return DecodedArray(np.asarray(mapped), kept)

    def drop(self, snapshot: str, name: str) -> bool:
        """Remove one decoded array, which is damaged; return whether it is gone."""
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
        """Decode an array, once on this machine however many processes ask, and return it mapped.

        Parameters
        ----------
        chunks : which check what they give: it is written down here.
        checksums : (chunks,), what the store says of them; None if it says nothing.
        on_chunk : told of progress, chunks done and chunks in all.

        Returns
        -------
        DecodedArray or None
            None if there is no room for it, within the limit or on the disk, or the folder cannot
            be written.

        Raises
        ------
        CorruptError
            If a chunk is damaged; nothing is kept then.
        """
        path = self._path(snapshot, name)
        self.refusal = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # One lock for the folder, which stays for ever: a lock that is removed while others
            # wait for it locks nothing, and whoever makes room must not be overtaken.
            with waiting_lock(self.folder / _LOCK):
                if self.open(snapshot, name, meta, checksums) is None:
                    self._remove_left_overs()
                    if not self._make_room(_decoded_bytes(meta)):
                        return None
                    _decode(path, meta, chunks, checksums, on_chunk)
        except OSError as error:
            self.refusal = f"{error.strerror or error}: {error.filename or self.folder}"
            _log.warning("%r is read without a cache: %s", name, self.refusal)
            return None
        return self.open(snapshot, name, meta, checksums)

    def _remove_left_overs(self) -> int:
        """Remove what killed processes left, under the lock that whoever decodes holds.

        Return its size.
        """
        n_bytes = 0
        for left_over in self.folder.glob(f"*/.*{_PART}"):
            n_bytes += left_over.stat().st_size
            left_over.unlink()
        return n_bytes

    def _make_room(self, n_bytes: int) -> bool:
        free = shutil.disk_usage(self.folder).free
        if n_bytes > self.limit_bytes or n_bytes > free + sum(
            entry.size_bytes for entry in self.entries()
        ):
            self.refusal = (
                f"no room in {self.folder}: it needs {n_bytes / 1e9:.3g} GB, the cache may hold "
                f"{self.limit_bytes / 1e9:.3g} GB (${LIMIT_VARIABLE}) and the disk has "
                f"{free / 1e9:.3g} GB left"
            )
            return False
        for entry in self.entries():
            held = sum(entry.size_bytes for entry in self.entries())
            if (
                held + n_bytes <= self.limit_bytes
                and n_bytes <= shutil.disk_usage(self.folder).free
            ):
                break
            _remove(entry)
        return n_bytes <= shutil.disk_usage(self.folder).free

    def entries(self) -> list[CacheEntry]:
        """Return what is here, the array that was opened longest ago first."""
        found = []
        paths = [
            path for suffix in (_SUFFIX, _STATISTICS) for path in self.folder.glob(f"*/*{suffix}")
        ]
        for path in paths:
            with suppress(FileNotFoundError):
                stat = path.stat()
                name = path.name.removesuffix(_SUFFIX).replace(_STATISTICS, " (statistics)")
                found.append(CacheEntry(path.parent.name, name, stat.st_size, stat.st_mtime, path))
        return sorted(found, key=lambda entry: entry.used)

    def clear(self, snapshots: Collection[str] | None = None) -> int:
        """Remove arrays and return how many bytes they took. Those in use stay readable where they are.

        Parameters
        ----------
        snapshots : only arrays of these versions; all by default.
        """
        entries = [
            entry for entry in self.entries() if snapshots is None or entry.snapshot in snapshots
        ]
        for entry in entries:
            _remove(entry)
        freed = sum(entry.size_bytes for entry in entries)
        if self.folder.is_dir() and not is_held(self.folder / _LOCK):
            with waiting_lock(self.folder / _LOCK):
                freed += self._remove_left_overs()
        return freed


def _decoded_bytes(meta: ArrayMeta) -> int:
    return int(np.prod(meta.shape)) * np.dtype(meta.dtype).itemsize


def _n_chunks(meta: ArrayMeta) -> int:
    return -(-meta.n_rows // meta.chunk_rows)


def _decode(
    path: Path,
    meta: ArrayMeta,
    chunks: Chunks,
    checksums: NDArray[np.uint64] | None,
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    """Write all rows, and what they add up to, to a file aside and give it its name when it is whole."""
    handle, aside = _make_aside(path)
    n_chunks = _n_chunks(meta)
    kept = np.zeros(n_chunks, dtype="<u8") if checksums is None else checksums.astype("<u8")
    try:
        with os.fdopen(handle, "wb") as file:
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
                for number in range(first, stop):
                    chunks.read_into(number, buffer[number - first])
                    if checksums is None:
                        n_rows = min(meta.chunk_rows, meta.n_rows - number * meta.chunk_rows)
                        kept[number] = checksum(meta, buffer[number - first, :n_rows])
                    if on_chunk is not None:
                        on_chunk(number + 1, n_chunks)
                n_rows = min(stop * meta.chunk_rows, meta.n_rows) - first * meta.chunk_rows
                buffer.reshape(-1, *meta.shape[1:])[:n_rows].tofile(file)
            kept.tofile(file)
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
        with suppress(
            FileNotFoundError
        ):  # the folder was still empty, and whoever cleared the cache removed it
            return tempfile.mkstemp(prefix=".", suffix=_PART, dir=path.parent)


def _remove(entry: CacheEntry) -> None:
    with suppress(OSError):
        entry.path.unlink()
    with suppress(OSError):
        entry.path.parent.rmdir()
