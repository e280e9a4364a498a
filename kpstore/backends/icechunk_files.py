"""The chunks of an array, read without Icechunk and Zarr: from files, or from objects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.chunks import Strips
from kpstore.backends.icechunk_chunks import OpenArray
from kpstore.backends.icechunk_codec import ChunkCodec
from kpstore.backends.icechunk_manifests import RowPlaces
from kpstore.backends.icechunk_strips import (
    NOT_READ,
    BloscStrips,
    RawStrips,
    encoded,
    rows_in_strips,
    rows_per_read,
)
from kpstore.backends.mapping import FilePiece, map_chunks
from kpstore.backends.open_files import are_too_many
from kpstore.errors import CorruptError, KpstoreError


class LocalChunks:
    """The chunks of an array, read from files that never change, without Icechunk and Zarr.

    The files may be objects, of which copies come to the local disk.

    Parameters
    ----------
    places : place of each chunk.
    meta : shape and type of the array.
    codec : decodes chunks; their CRC-32C is not compared
        (:class:`~kpstore.backends.chunks.Chunks`).
    check_there : raises :class:`NotFoundError` if the version was removed; called when a chunk
        cannot be read.
    """

    how = "from their files"

    def __init__(
        self,
        places: RowPlaces,
        meta: ArrayMeta,
        codec: ChunkCodec,
        check_there: Callable[[], None] = lambda: None,
    ) -> None:
        self._places, self._meta, self._codec = places, meta, codec
        self._check_there = check_there
        reader = places.reader
        self.are_far = reader is not None
        self._asked = np.zeros(meta.n_chunks if self.are_far else 0, dtype=np.bool_)
        """Chunks that were asked for and not read since."""
        # Of objects without copies on the disk, whole ones are read, and nothing can be mapped.
        as_files = reader is None or reader.copies is not None
        raw = meta.codec == "raw" and places.are_files and as_files
        n_bytes = meta.n_chunks * meta.chunk_rows * meta.row_bytes
        may_stay = reader is None or (raw and reader.has_room(n_bytes))
        self._memory = map_chunks(self._piece, meta) if raw and may_stay else None
        self.mapped = None if self._memory is None else self._memory.values
        self.strips: Strips | None = None
        rows = rows_per_read(meta) if raw and self._memory is None else None
        if rows is not None:
            self.strips = RawStrips(places, meta, rows, codec.n_check, unreadable=self._unreadable)
        rows = rows_in_strips(places, meta) if meta.codec == "lz4" and as_files else None
        if rows is not None:
            self.strips = BloscStrips(
                places,
                meta,
                rows,
                codec.n_check,
                read_whole=self.read_into,
                unreadable=self._unreadable,
            )

    def ask(self, numbers: NDArray[np.int64]) -> None:
        """Begin to fetch chunks; see :class:`kpstore.backends.chunks.Chunks`."""
        if (reader := self._places.reader) is None:
            return
        numbers = numbers[~self._asked[numbers]]
        self._asked[numbers] = True
        for number in numbers.tolist():
            with suppress(ValueError, OSError, KpstoreError):  # which reading it says
                place = self._places[number]
                if place is not None and place.inline is None:
                    reader.ask(str(place.file), place.length)

    def drop_copy(self, number: int) -> bool:
        """Remove a copy; see :class:`kpstore.backends.chunks.Chunks`."""
        reader, place = self._places.reader, self._places[number]
        if reader is None or place is None or place.inline is not None:
            return False
        if self._memory is not None:
            self._memory.forget(number)
        return reader.drop(str(place.file))

    def _piece(self, number: int) -> FilePiece | None:
        place = self._places[number]
        return None if place is None else FilePiece(place.file, n_more=self._codec.n_check)

    def bring(self, number: int) -> None:
        """Map a chunk; see :class:`kpstore.backends.chunks.Chunks`."""
        if self._memory is not None:
            try:
                self._memory.bring(number)
            except NOT_READ as error:
                raise self._unreadable(number, error) from error

    def read_into(self, number: int, out: NDArray[np.generic]) -> None:
        """Decode a chunk; see :class:`kpstore.backends.chunks.Chunks`."""
        if self.are_far:
            self._asked[number] = False
        try:
            place = self._places[number]
            if place is None:
                out[...] = self._meta.fill
            else:
                self._codec.decode(place.read(encoded.bytes), out)
        except NOT_READ as error:
            raise self._unreadable(number, error) from error

    def _unreadable(self, number: int, error: Exception) -> CorruptError:
        """Return the error of a chunk that cannot be read.

        That of a removed version, and of too many open files, is raised.
        """
        if are_too_many(error):
            raise error
        at = ""
        with suppress(ValueError):
            if (place := self._places[number]) is not None:
                at = f" at {place.file}"
        self._check_there()
        return CorruptError(f"chunk {number}{at} cannot be read: {error}")


def local_chunks(
    places: RowPlaces | None,
    array: OpenArray,
    check_there: Callable[[], None] = lambda: None,
) -> LocalChunks | None:
    """Return the chunks of an array as its files hold them; None if only Zarr can read them.

    The parameters are as for :class:`LocalChunks`; ``places`` is None where Icechunk alone knows.
    """
    codec = array.codec
    if codec is None or codec.is_text or places is None:
        return None
    return LocalChunks(places, array.meta, codec, check_there)
