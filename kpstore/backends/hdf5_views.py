"""Versions of an HDF5 store, to read; and changes on top of one, in a copy of the file."""

from __future__ import annotations

import copy
import itertools
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import hdf5_layout as layout
from kpstore.backends.asides import check_room
from kpstore.backends.base import TEXT, ArrayMeta, Chunks, Commit, ViewChunks, check_short_end, text_digest
from kpstore.backends.hdf5_layout import HOME, ArrayDelta, Delta, Tree
from kpstore.backends.mapping import FilePiece, map_pieces
from kpstore.errors import ConflictError, CorruptError, ExistsError, InvalidError, NotFoundError, ReadOnlyError

OPEN = {
    "libver": ("v108", "v114"),  # attributes of more than 64 KiB, and still read by every HDF5 since 2008
    "rdcc_nbytes": 16 * 2**20,
    "alignment_threshold": 4096,  # chunks begin with a page, so that raw ones can be mapped into memory
    "alignment_interval": 4096,
}

Touched = tuple[str, str | int]
"""What a commit changed: an array and a chunk of it, or ``"meta"``; the array ``""`` stands for the root."""


class Place(Protocol):
    """What changes need to know of the file that they will replace."""

    @property
    def location(self) -> str:
        """Path of the file, as it was given."""

    def file(self) -> h5py.File:
        """Return the file as it is now, open for reading."""

    def history(self, snapshot: str) -> Iterator[Commit]:
        """Yield a version and all that it builds upon."""

    def commit_lock(self) -> AbstractContextManager[None]:
        """Hold off other commits."""

    def copy_aside(self, file: h5py.File) -> Path:
        """Return a copy of an open file beside it."""

    def replace_by(self, work: Path) -> None:
        """Give a whole and closed file the store's name."""


def new_id() -> str:
    """Return an id for a version."""
    return uuid.uuid4().hex[:20].upper()


def write_record(
    file: h5py.File,
    snapshot: str,
    parent: str | None,
    message: str,
    metadata: Mapping[str, Any],
    touched: set[Touched],
    text: Mapping[str, str],
) -> None:
    """Write down who a version follows, when and why it was made, and the digests of its text."""
    group = file[HOME].require_group("versions").create_group(snapshot)
    record = {
        "parent": parent,
        "message": message,
        "time": datetime.now(UTC).isoformat(),
        "metadata": dict(metadata),
        "touched": sorted(touched, key=str),
        "text": dict(text),
    }
    layout.write_json(group, "record", record)


class _View:
    """All arrays at one version."""

    def __init__(self, backend: Place, file: h5py.File, snapshot: str) -> None:
        self._backend, self._file, self._snapshot = backend, file, snapshot
        with layout.damage_told(backend.location):
            self._tree = Tree(file, snapshot)

    @property
    def snapshot(self) -> str:
        return self._snapshot

    def attrs(self) -> Mapping[str, Any]:
        return copy.deepcopy(self._tree.attrs)

    def names(self) -> list[str]:
        return sorted(self._tree.arrays)

    def _array(self, name: str) -> layout.StoredArray:
        if name not in self._tree.arrays:
            raise NotFoundError(f"array {name!r} not found; there are {self.names()}")
        return self._tree.arrays[name]

    def meta(self, name: str) -> ArrayMeta:
        return self._array(name).meta

    def digest(self, name: str) -> str | None:
        """Return the digest of an array of text, which HDF5 itself does not check."""
        return layout.text_digests(self._file, self._snapshot).get(name)

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        array = self._array(name)
        if start < 0 or stop > array.meta.n_rows or stop < start:
            raise InvalidError(f"rows {start}:{stop} of {name!r} asked for; it has {array.meta.n_rows}")
        try:
            return array.read(start, stop)
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise CorruptError(
                f"rows {start}:{stop} of {name!r} in {self._backend.location} cannot be read: {error}"
            ) from error


class HDF5ReadView(_View):
    """A version that never changes."""

    def __init__(self, backend: Place, file: h5py.File, snapshot: str) -> None:
        super().__init__(backend, file, snapshot)
        self._chunks: dict[str, Chunks] = {}

    def chunks(self, name: str) -> Chunks:
        """Return chunks as they lie in the file, where they are stored without a filter."""
        if name not in self._chunks:
            array = self._array(name)
            raw = array.meta.dtype != TEXT and array.is_raw
            self._chunks[name] = _RawChunks(self._file, array) if raw else ViewChunks(self, name)
        return self._chunks[name]


class _RawChunks:
    """Chunks without filters, read from where they lie in the file, or mapped; HDF5's library is asked only where."""

    def __init__(self, file: h5py.File, array: layout.StoredArray) -> None:
        self._file, self._meta = file, array.meta  # the file stays open for as long as this does
        self._handle = int(np.asarray(file.id.get_vfd_handle()).item())
        offsets: dict[str, dict[int, int]] = {}
        self._places = [_offset(piece, offsets) for piece in array.pieces()]
        pieces = [None if at is None else FilePiece(self._handle, at) for at in self._places]
        mapped = map_pieces(
            pieces, (self._meta.chunk_rows, *self._meta.shape[1:]), np.dtype(self._meta.dtype), self._meta.fill
        )
        self.mapped: NDArray[Any] | None = None if mapped is None else mapped[: self._meta.n_rows]

    @property
    def how(self) -> str:
        """Where chunks are read from."""
        return "from their place in the file"

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        """Read a chunk; see :class:`kpstore.backends.base.Chunks`."""
        at = self._places[number]
        if at is None:
            out[...] = self._meta.fill
            return
        buffer = out.reshape(-1).view(np.uint8)
        done = os.preadv(self._handle, [buffer.data], at)
        if done != buffer.nbytes:
            raise CorruptError(f"chunk {number} at byte {at} cannot be read: {done} of {buffer.nbytes} bytes are there")


def _offset(piece: layout.Piece, known: dict[str, dict[int, int]]) -> int | None:
    """Return where in the file a chunk begins; None if nobody wrote it."""
    if piece.array is None:
        return None
    name = piece.array.name
    if name not in known:
        found = known[name] = {}
        rows = piece.array.chunks[0]
        piece.array.id.chunk_iter(lambda info: found.__setitem__(info.chunk_offset[0] // rows, info.byte_offset))
    return known[name].get(piece.chunk)


class HDF5WriteView(_View):
    """Changes in a copy of the file, made when the first change comes."""

    def __init__(self, backend: Place, file: h5py.File, snapshot: str) -> None:
        super().__init__(backend, file, snapshot)
        self._base = file
        self._work: tuple[Path, h5py.File] | None = None
        self._spent = False
        self._delta = Delta()
        self._touched: set[Touched] = set()
        self._steps: list[tuple[str, tuple[Any, ...]]] = []

    def chunks(self, name: str) -> Chunks:
        """Return chunks that are read through this view."""
        return ViewChunks(self, name)

    # -- the copy -------------------------------------------------------------------------------------------

    def _copy(self) -> h5py.File:
        """Return the copy, open for writing; its arrays take the place of the original's."""
        if self._spent:
            raise ReadOnlyError(
                f"these changes of {self._backend.location} were committed or discarded; begin new ones"
            )
        if self._work is None:
            path = self._backend.copy_aside(self._base)
            file = h5py.File(path, "r+", **OPEN)
            self._work = path, file
            self._tree = Tree(file, self._snapshot)
            delta = file[HOME]["versions"][self._snapshot].create_group("delta")
            delta.create_group("chunks")
            delta.create_group("arrays")
        return self._work[1]

    def _kept(self) -> h5py.Group:
        return self._copy()[HOME]["versions"][self._snapshot]["delta"]

    def _array_delta(self, name: str) -> ArrayDelta | None:
        """Return what is noted of an array of the version that this builds upon; None if that has no such array."""
        if name not in self._delta.arrays:
            meta = self.meta(name)
            self._delta.arrays[name] = ArrayDelta(meta.n_rows, dict(meta.attrs))
        found = self._delta.arrays[name]
        return None if found is None or found.whole else found

    def _note(self, step: str, *arguments: Any, touched: set[Touched]) -> None:
        self._steps.append((step, arguments))
        self._touched |= touched

    def _refresh(self, name: str) -> None:
        array = self._copy()[name]
        self._tree.arrays[name] = layout.StoredArray(array, layout.meta_of(array), {})

    # -- changes --------------------------------------------------------------------------------------------

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Replace the store's attributes."""
        file = self._copy()
        if self._delta.attrs is None:
            self._delta.attrs = self._tree.attrs
        layout.set_attrs(file, attrs)
        self._tree.attrs = copy.deepcopy(dict(attrs))
        self._note("set_attrs", dict(attrs), touched={("", "meta")})

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Replace the attributes of one array."""
        file = self._copy()
        self._array_delta(name)
        layout.set_attrs(file[name], attrs)
        self._refresh(name)
        self._note("set_array_attrs", name, dict(attrs), touched={(name, "meta")})

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Make an array of unwritten rows."""
        file = self._copy()
        if name in self._tree.arrays:
            raise ExistsError(f"array {name!r} exists already")
        if name in file:
            raise ExistsError(f"{name!r} is taken in {self._backend.location} by something that is not kpstore's")
        self._delta.arrays.setdefault(name, None)
        layout.create_array(file, name, meta)
        self._refresh(name)
        self._note("create", name, meta, touched={(name, "meta")})

    def resize(self, name: str, n_rows: int) -> None:
        """Make an array longer."""
        file = self._copy()
        old = self.meta(name).n_rows
        if n_rows < old:
            raise InvalidError(f"{name!r} has {old} rows and cannot shrink to {n_rows}")
        if n_rows > old:
            self._array_delta(name)
            file[name].resize(n_rows, axis=0)
            self._refresh(name)
            self._note("resize", name, n_rows, touched={(name, "meta")})

    def delete(self, name: str) -> None:
        """Remove an array; the version before keeps it."""
        file = self._copy()
        delta = self._array_delta(name)
        if delta is None:
            del file[name]
            if self._delta.arrays[name] is None:
                del self._delta.arrays[name]
        else:
            delta.whole = True
            file.move(name, f"{self._kept().name}/arrays/{name}")
        del self._tree.arrays[name]
        self._note("delete", name, touched={(name, "meta")})

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write any run of rows; what it overwrites is kept for the version before."""
        file = self._copy()
        meta = self.meta(name)
        meta.check_values(name, start, values)
        if not len(values):
            return
        chunks = range(start // meta.chunk_rows, -(-(start + len(values)) // meta.chunk_rows))
        check_room(Path(file.filename), 2 * len(chunks) * meta.chunk_rows * meta.row_bytes)
        delta = self._array_delta(name)
        if delta is not None and start < delta.n_rows:
            for chunk in chunks:
                layout.keep_chunk(self._kept()["chunks"], file[name], delta, chunk)
        layout.write_dataset(file[name], start, values)
        self._note("write", name, start, len(values), touched={(name, chunk) for chunk in chunks})

    # -- forks ----------------------------------------------------------------------------------------------

    def fork(self) -> HDF5Fork:
        """Return a writer for another process."""
        if self._steps:
            raise InvalidError("a view can be forked only before it has changes of its own; commit first")
        return HDF5Fork({name: array.meta for name, array in self._tree.arrays.items()})

    def merge(self, forks: Sequence[HDF5Fork]) -> None:
        """Write what forks have gathered."""
        self._copy()
        for fork in forks:
            for name, start, values in fork.written:
                if fork.metas[name].has_short_chunk(start, len(values)):
                    check_short_end(self.meta(name), name, fork.metas[name].n_rows)
                self.write(name, start, values)

    # -- the end --------------------------------------------------------------------------------------------

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Make the copy the file, as the next version; on top of others' commits since then that are of other data."""
        if not self._steps and not self._spent:
            self.discard()
            return self._snapshot
        self._copy()
        try:
            with self._backend.commit_lock():
                file = self._backend.file()
                if layout.head_of(file) != self._snapshot:
                    self._rebase(file, message)
                snapshot = new_id()
                text = self._text_digests(file)
                write_record(self._copy(), snapshot, self._snapshot, message, metadata or {}, self._touched, text)
                self.become(snapshot)
        finally:
            self.discard()
        return snapshot

    def _text_digests(self, file: h5py.File) -> dict[str, str]:
        """Return the digests of all text; what was not touched keeps the one it has."""
        known, touched = layout.text_digests(file, self._snapshot), {name for name, _ in self._touched}
        before = Tree(file, self._snapshot).arrays
        for name in known.keys() & touched:
            # Damage that is there already must not be given a digest of its own.
            if text_digest(before[name].read(0, before[name].meta.n_rows)) != known[name]:
                raise CorruptError(
                    f"{name!r} in {self._backend.location} is not the text that was committed: the file is damaged, "
                    "and nothing is added to it; restore it from a copy"
                )
        found = {}
        for name, array in self._tree.arrays.items():
            if array.meta.dtype == TEXT:
                as_before = name in known and name not in touched
                found[name] = known[name] if as_before else text_digest(self.read(name, 0, array.meta.n_rows))
        return found

    def become(self, snapshot: str) -> None:
        """Make the copy the file, with ``snapshot`` as its newest version; under the commit lock."""
        assert self._work is not None
        path, file = self._work
        layout.write_json(self._kept(), "about", self._delta.to_json(snapshot))
        newest = file[HOME]["versions"][snapshot]
        if "delta" in newest:  # it is the newest again, and differs from nothing
            del newest["delta"]
        file[HOME].attrs["head"] = snapshot
        file[HOME].attrs["tags"] = self._backend.file()[HOME].attrs["tags"]
        file[HOME].attrs["used_tags"] = self._backend.file()[HOME].attrs["used_tags"]
        file.close()
        self._backend.replace_by(path)

    def restore(self, tree: Tree) -> None:
        """Change everything to how it is in another version."""
        for name in set(self._tree.arrays) - set(tree.arrays):
            self.delete(name)
        self.set_attrs(tree.attrs)
        for name, wanted in tree.arrays.items():
            there = self._tree.arrays.get(name)
            if there is not None and not _same_layout(there.meta, wanted.meta):
                self.delete(name)
                there = None
            if there is None:
                self.create(name, wanted.meta)
            elif dict(there.meta.attrs) != dict(wanted.meta.attrs):
                self.set_array_attrs(name, wanted.meta.attrs)
            for chunk, piece in enumerate(wanted.pieces()):
                if there is None or chunk in wanted.elsewhere:
                    self._restore_chunk(name, wanted, chunk, piece)

    def _restore_chunk(self, name: str, wanted: layout.StoredArray, chunk: int, piece: layout.Piece) -> None:
        written = piece.array is not None and layout.is_written(piece.array, piece.chunk)
        if written or layout.is_written(self._copy()[name], chunk):
            rows = wanted.meta.chunk_rows
            start, stop = chunk * rows, min((chunk + 1) * rows, wanted.meta.n_rows)
            self.write(name, start, wanted.read(start, stop))

    def _rebase(self, file: h5py.File, message: str) -> None:
        """Do the same steps again in a copy of a newer version, unless that changed the same data."""
        since = list(itertools.takewhile(lambda c: c.id != self._snapshot, self._backend.history(layout.head_of(file))))
        theirs = {(name, what) for commit in since for name, what in _touched(file, commit.id)}
        reshaped = {name for name, what in theirs if what == "meta"}
        followed = since and since[-1].parent == self._snapshot
        if not followed or theirs & self._touched or reshaped & {name for name, _ in self._touched}:
            raise ConflictError(
                f"another writer has changed the same data of {self._backend.location} in the meantime, so "
                f"{message!r} was not committed; open the store again and repeat the change"
            )
        again = HDF5WriteView(self._backend, file, layout.head_of(file))
        try:
            for step, arguments in self._steps:
                if step == "write":
                    name, start, n_rows = arguments
                    if name in self._tree.arrays:
                        again.write(name, start, self.read(name, start, start + n_rows))
                else:
                    getattr(again, step)(*arguments)
        except BaseException:
            again.discard()
            raise
        self._close_work()
        self._snapshot, self._base, self._work = again._snapshot, file, again._work
        self._tree, self._delta, self._touched = again._tree, again._delta, again._touched

    def discard(self) -> None:
        """Remove the copy."""
        self._spent = True
        self._close_work()
        self._tree = Tree(self._base, self._snapshot)

    def _close_work(self) -> None:
        if self._work is not None:
            path, file = self._work
            self._work = None
            file.close()
            path.unlink(missing_ok=True)


def _same_layout(one: ArrayMeta, other: ArrayMeta) -> bool:
    """Whether an array of the one kind can be made into one of the other by writing."""
    return (one.shape, one.dtype, one.chunk_rows, one.dims, one.codec) == (
        other.shape,
        other.dtype,
        other.chunk_rows,
        other.dims,
        other.codec,
    )


def _touched(file: h5py.File, snapshot: str) -> set[Touched]:
    record = layout.read_json(file[HOME]["versions"][snapshot], "record")
    return {(name, what) for name, what in record["touched"]}


class HDF5Fork:
    """Rows for another process to gather; the view that merges it writes them."""

    def __init__(self, metas: dict[str, ArrayMeta]) -> None:
        self.metas = metas
        self.written: list[tuple[str, int, NDArray[Any]]] = []

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Gather whole chunks."""
        if name not in self.metas:
            raise NotFoundError(f"array {name!r} not found; there are {sorted(self.metas)}")
        self.metas[name].check_values(name, start, values)
        self.metas[name].check_whole_chunks(name, start, len(values))
        self.written.append((name, start, np.array(values)))

    def check(self) -> None:
        """Pass: the rows themselves come with the fork."""
