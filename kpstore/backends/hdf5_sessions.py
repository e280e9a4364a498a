"""Versions of an HDF5 store, to read."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, Chunks
from kpstore.backends.hdf5_file import StoreFile
from kpstore.backends.hdf5_records import DAMAGE, damage_told, format_of, read_record, reason_of
from kpstore.backends.hdf5_tree import Piece, StoredArray, Tree, WrongChunkError, read_tree
from kpstore.backends.mapping import FilePiece, map_pieces
from kpstore.errors import CorruptError, KpstoreError, NotFoundError

Found = TypeVar("Found")


class Session:
    """All arrays at one version."""

    def __init__(self, home: StoreFile, file: h5py.File, snapshot: str) -> None:
        self._home, self._file, self._snapshot = home, file, snapshot
        self._tree = self._read_tree(file)

    def _read_tree(self, file: h5py.File) -> Tree:
        with damage_told(self._home.location, f"version {self._snapshot}"):
            return read_tree(file, self._snapshot)

    @property
    def snapshot(self) -> str:
        """Id of the version that this session reads or changes."""
        return self._snapshot

    def attrs(self) -> Mapping[str, Any]:
        """Return a copy of the store's attributes."""
        return copy.deepcopy(self._tree.attrs)

    def names(self) -> list[str]:
        """Return the names of all arrays, sorted."""
        return sorted(self._tree.arrays)

    def _array(self, name: str) -> StoredArray:
        if name not in self._tree.arrays:
            raise NotFoundError(f"array {name!r} not found; there are {self.names()}")
        return self._tree.arrays[name]

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array."""
        return self._array(name).meta

    def digest(self, name: str) -> str | None:
        """Return the digest of text in a file of format 1, where its chunks have no checksums."""
        with damage_told(self._home.location, f"version {self._snapshot}"):
            if format_of(self._file) > 1:
                return None
            found: str | None = read_record(self._file, self._snapshot).get("text", {}).get(name)
            return found

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk; None in a file of format 1."""
        array = self._array(name)
        table = self._told("checksums of ", name, lambda: array.table)
        return None if table is None else table.copy()

    def place(self, name: str, chunk: int) -> str:
        """Return where a chunk begins in the file."""
        try:
            at = self._array(name).piece(chunk).byte()
        except DAMAGE:  # the chunk is damaged, and its index may be too
            return "at no known byte of the file"
        return "not in the file" if at is None else f"byte {at} of the file"

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows, after checking their chunks (format 1: not those of text)."""
        array = self._array(name)
        array.meta.check_rows(name, start, stop - start)
        return self._told(f"rows {start}:{stop} of ", name, lambda: array.read(start, stop))

    def _told(self, what: str, name: str, read: Callable[[], Found]) -> Found:
        """Return what ``read`` returns; its errors become one that names the array and ``what``."""
        try:
            return read()
        except KpstoreError:
            raise
        except DAMAGE as error:
            if isinstance(error, WrongChunkError):
                what = f"rows {error.start}:{error.stop} of "
            raise CorruptError(
                f"{what}{name!r} in {self._home.location} cannot be read: {reason_of(error)}"
            ) from error


class HDF5ReadSession(Session):
    """A version that never changes."""

    def __init__(self, home: StoreFile, file: h5py.File, snapshot: str) -> None:
        super().__init__(home, file, snapshot)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array, from their place in the file if they have no filter."""
        if name not in self._chunks:
            array = self._array(name)

            def find() -> Chunks:
                raw = array.meta.dtype != TEXT and array.is_raw
                return _RawChunks(self._file, array) if raw else _LibraryChunks(self, name, array)

            self._chunks[name] = self._told("", name, find)
        return self._chunks[name]


class _LibraryChunks:
    """Chunks that HDF5's library decodes."""

    mapped = None
    how = "by the backend's own library"

    def __init__(self, session: Session, name: str, array: StoredArray) -> None:
        self._session, self._name, self._array = session, name, array

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Decode a chunk; see :class:`kpstore.backends.base.Chunks`."""
        start, stop = self._array.meta.rows_of(number)
        what = f"rows {start}:{stop} of "
        out[: stop - start] = self._session._told(
            what, self._name, lambda: self._array.read_unchecked(start, stop)
        )


class _RawChunks:
    """Chunks without filters, mapped or read from their places, which HDF5's library tells."""

    how = "from their place in the file"

    def __init__(self, file: h5py.File, array: StoredArray) -> None:
        self._file, self._meta = file, array.meta  # the file stays open for as long as this does
        self._handle = int(np.asarray(file.id.get_vfd_handle()).item())
        offsets: dict[str, dict[int, int]] = {}
        self._places = [
            _offset(array.piece(chunk), offsets) for chunk in range(array.meta.n_chunks)
        ]
        pieces = [None if at is None else FilePiece(self._handle, at) for at in self._places]
        mapped = map_pieces(
            pieces,
            (self._meta.chunk_rows, *self._meta.shape[1:]),
            np.dtype(self._meta.dtype),
            self._meta.fill,
        )
        self.mapped: NDArray[Any] | None = None if mapped is None else mapped[: self._meta.n_rows]

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Read a chunk; see :class:`kpstore.backends.base.Chunks`."""
        at = self._places[number]
        if at is None:
            out[...] = self._meta.fill
            return
        buffer = out.reshape(-1).view(np.uint8)
        try:
            done = os.preadv(self._handle, [buffer.data], at)
        except (OSError, OverflowError) as error:
            raise CorruptError(f"chunk {number} at byte {at} cannot be read: {error}") from None
        if done != buffer.nbytes:
            raise CorruptError(
                f"chunk {number} at byte {at} cannot be read: {done} of {buffer.nbytes} bytes are "
                "there"
            )


def _offset(piece: Piece, known: dict[str, dict[int, int]]) -> int | None:
    """Return where in the file a chunk begins; None if it was never written."""
    if piece.source is None:
        return None
    array = piece.source.array
    if array.name not in known:
        found = known[array.name] = {}
        rows = array.chunks[0]
        array.id.chunk_iter(
            lambda info: found.__setitem__(info.chunk_offset[0] // rows, info.byte_offset)
        )
    return known[array.name].get(piece.chunk)
