"""Changes on top of a version of an HDF5 store, in a copy of the file."""

from __future__ import annotations

import copy
import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends import hdf5_layout as layout
from kpstore.backends.asides import check_room
from kpstore.backends.base import (
    TEXT,
    ArrayMeta,
    Chunks,
    SessionChunks,
    check_short_end,
    text_digest,
)
from kpstore.backends.checksums import checksum
from kpstore.backends.hdf5_layout import ArrayDelta, Delta, Table, n_chunks
from kpstore.backends.hdf5_records import (
    DAMAGE,
    HOME,
    commit_now,
    damage_told,
    format_of,
    read_names,
    read_record,
    write_json,
    write_names,
    write_record,
)
from kpstore.backends.hdf5_sessions import Place, Session
from kpstore.backends.hdf5_tree import Checksums, DataSet, StoredArray, read_tree, write_tree
from kpstore.errors import (
    ConflictError,
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
)

OPEN = {
    "libver": (
        "v108",
        "v114",
    ),  # attributes of more than 64 KiB, and still read by every HDF5 since 2008
    "rdcc_nbytes": 16 * 2**20,
    # chunks begin with a page, so that raw ones can be mapped into memory
    "alignment_threshold": 4096,
    "alignment_interval": 4096,
}

Touched = tuple[str, str | int]
"""What a commit changed: an array and a chunk of it, or ``"meta"``.

The array ``""`` stands for the root.
"""


def new_id() -> str:
    """Return an id for a version."""
    return uuid.uuid4().hex[:20].upper()


class HDF5WriteSession(Session):
    """Changes in a copy of the file, made when the first change comes."""

    def __init__(self, backend: Place, file: h5py.File, snapshot: str) -> None:
        super().__init__(backend, file, snapshot)
        with damage_told(backend.location):
            self._has_tables = format_of(file) > 1
        self._base = file
        self._work: tuple[Path, h5py.File] | None = None
        self._spent = False
        self._delta = Delta()
        self._touched: set[Touched] = set()
        self._steps: list[tuple[str, tuple[Any, ...]]] = []
        self._before: dict[str, StoredArray] = {}
        self._kept_checksums: Table | None = None
        self._tables: dict[str, Table] = {}
        # By array, one chunk that was written in part, as it is now: its checksum is made once
        # nothing more is written to it. Videos come one after another, and many of them share a
        # chunk.
        self._part_written: dict[str, tuple[int, NDArray[Any]]] = {}

    def chunks(self, name: str) -> Chunks:
        """Return chunks that are read through this session."""
        return SessionChunks(self, name)

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows as they are after the changes so far."""
        self._sum_up(name)
        return super().read(name, start, stop)

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksum of each chunk as it is after the changes so far."""
        self._sum_up(name)
        return super().checksums(name)

    # -- the copy ----------------------------------------------------------------------------------

    def _copy(self) -> h5py.File:
        """Return the copy, open for writing; its arrays take the place of the original's."""
        if self._spent:
            raise ReadOnlyError(
                f"these changes of {self._backend.location} were committed or discarded; begin new "
                "ones"
            )
        if self._work is None:
            path = self._backend.copy_aside(self._base)
            with self._writing():
                file = h5py.File(path, "r+", **OPEN)
                self._work = path, file
                self._tree = self._read_tree(file)
                self._before = dict(self._tree.arrays)
                delta = file[HOME]["versions"][self._snapshot].create_group("delta")
                delta.create_group("chunks")
                delta.create_group("arrays")
        return self._work[1]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell of damage that HDF5's library meets while it writes.

        A full disk and the like stay what they are.
        """
        try:
            yield
        except DAMAGE as error:
            if isinstance(error, UnicodeEncodeError) or (
                isinstance(error, OSError) and error.errno is not None
            ):
                raise
            with damage_told(self._backend.location):
                raise

    def _kept(self) -> h5py.Group:
        return self._copy()[HOME]["versions"][self._snapshot]["delta"]

    def _array_delta(self, name: str) -> ArrayDelta | None:
        """Return what is noted of an array of the version that this builds upon.

        None if that has no such array.
        """
        if name not in self._delta.arrays:
            meta = self.meta(name)
            self._delta.arrays[name] = ArrayDelta(meta.n_rows, dict(meta.attrs))
        found = self._delta.arrays[name]
        return None if found is None or found.whole else found

    def _note(self, step: str, *arguments: Any, touched: set[Touched]) -> None:
        self._steps.append((step, arguments))
        self._touched |= touched

    def _put(self, name: str, meta: ArrayMeta) -> None:
        """Describe an array as it is in the copy now."""
        before = self._tree.arrays.get(name)
        checksums = before.checksums if before is not None else None
        table_digest = before.table_digest if before is not None else None
        if name in self._tables:
            checksums, table_digest = Checksums(partial(self._tables.__getitem__, name)), None
        source = DataSet(self._copy(), name, meta, meta.n_rows)
        self._tree.arrays[name] = StoredArray(source, meta, {}, checksums, table_digest)

    def _table(self, name: str) -> Table | None:
        """Return the checksums of an array, to be changed."""
        if self._has_tables and name not in self._tables:
            found = super().checksums(name)
            assert found is not None
            self._tables[name] = found
            self._put(name, self.meta(name))
        return self._tables.get(name)

    # -- changes -----------------------------------------------------------------------------------

    def set_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Replace the store's attributes."""
        file, kept = self._copy(), layout.plain(attrs)
        if self._delta.attrs is None:
            self._delta.attrs = self._tree.attrs
        with self._writing():
            layout.set_attrs(file, kept, self._tree.attrs)
        self._tree.attrs = kept
        self._note("set_attrs", copy.deepcopy(kept), touched={("", "meta")})

    def set_array_attrs(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Replace the attributes of one array."""
        file, kept = self._copy(), layout.plain(attrs)
        self._array_delta(name)
        meta = self.meta(name)
        with self._writing():
            layout.set_attrs(file[name], kept, meta.attrs)
        self._put(name, replace(meta, attrs=kept))
        self._note("set_array_attrs", name, kept, touched={(name, "meta")})

    def create(self, name: str, meta: ArrayMeta) -> None:
        """Make an array of unwritten rows."""
        file = self._copy()
        if name in self._tree.arrays:
            raise ExistsError(f"array {name!r} exists already")
        if name in file:
            raise ExistsError(
                f"{name!r} is taken in {self._backend.location} by something that is not kpstore's"
            )
        self._delta.arrays.setdefault(name, None)
        with self._writing():
            layout.create_array(file, name, meta)
        stored = layout.stored_meta(meta)
        if self._has_tables:
            self._tables[name] = np.zeros(n_chunks(stored), np.uint64)
        self._put(name, stored)
        self._note("create", name, meta, touched={(name, "meta")})

    def resize(self, name: str, n_rows: int) -> None:
        """Make an array longer."""
        file = self._copy()
        meta = self.meta(name)
        if n_rows < meta.n_rows:
            raise InvalidError(f"{name!r} has {meta.n_rows} rows and cannot shrink to {n_rows}")
        if n_rows == meta.n_rows:
            return
        self._sum_up(name)
        self._array_delta(name)
        table, longer = self._table(name), layout.with_rows(meta, n_rows, meta.attrs)
        with self._writing():
            file[name].resize(n_rows, axis=0)
        if table is not None:
            self._tables[name] = np.concatenate(
                [table, np.zeros(n_chunks(longer) - len(table), np.uint64)]
            )
        self._put(name, longer)
        self._note("resize", name, n_rows, touched={(name, "meta")})

    def delete(self, name: str) -> None:
        """Remove an array; the version before keeps it."""
        file = self._copy()
        delta = self._array_delta(name)
        with self._writing():
            if delta is None:
                del file[name]
                if self._delta.arrays[name] is None:
                    del self._delta.arrays[name]
            else:
                delta.whole = True
                self._delta.metas[name] = layout.with_rows(
                    self.meta(name), delta.n_rows, delta.attrs
                )
                file.move(name, f"{self._kept().name}/arrays/{name}")
        del self._tree.arrays[name]
        self._tables.pop(name, None)
        self._part_written.pop(name, None)
        self._note("delete", name, touched={(name, "meta")})

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Write any run of rows; what it overwrites is kept for the version before.

        Raises
        ------
        CorruptError
            If only a part of a chunk is given and its other rows are damaged.
        """
        file, meta = self._copy(), self.meta(name)
        meta.check_values(name, start, values)
        if not len(values):
            return
        values = np.asarray(values, dtype=object if meta.dtype == TEXT else meta.dtype)
        if meta.dtype == TEXT:
            layout.check_text(name, values)
        chunks = range(start // meta.chunk_rows, -(-(start + len(values)) // meta.chunk_rows))
        check_room(Path(file.filename), 2 * len(chunks) * meta.chunk_rows * meta.row_bytes)
        self._array_delta(name)
        for chunk in chunks:
            self._write_chunk(name, chunk, start, values)
        with self._writing():
            file[name][start : start + len(values)] = values
        self._note("write", name, start, len(values), touched={(name, chunk) for chunk in chunks})

    def _write_chunk(self, name: str, chunk: int, start: int, values: NDArray[Any]) -> None:
        """Keep a chunk that is about to be overwritten, and find its checksum."""
        meta = self.meta(name)
        first, last = chunk * meta.chunk_rows, min((chunk + 1) * meta.chunk_rows, meta.n_rows)
        given = values[max(0, first - start) : last - start]
        at = max(first, start) - first
        whole = len(given) == last - first
        if name in self._part_written and self._part_written[name][0] != chunk:
            self._sum_up(name)
        if name in self._part_written:
            rows = self._part_written[name][1]
        else:
            old = self._old_rows(name, chunk, whole=whole)
            table = self._table(name)
            if table is not None and whole:
                table[chunk] = checksum(meta, given)
            if table is None or whole:
                return
            rows = _unwritten(meta, last - first) if old is None else old
            self._part_written[name] = chunk, rows
        rows[at : at + len(given)] = given

    def _old_rows(self, name: str, chunk: int, *, whole: bool) -> NDArray[Any] | None:
        """Return a chunk as it was, after it was kept for the version before.

        None if nobody wrote it, or needs it.

        Damage stays in the version before, where it can be told from data; here it must be
        overwritten as a whole.
        """
        meta, delta = self.meta(name), self._array_delta(name)
        keep = delta is not None and delta.lacks(chunk, meta.chunk_rows)
        if not keep and (whole or not self._has_tables):
            return None
        kept = self._kept()["chunks"]
        first, last = chunk * meta.chunk_rows, min((chunk + 1) * meta.chunk_rows, meta.n_rows)
        try:
            rows = self._told(
                f"rows {first}:{last} of ", name, lambda: self._array(name).read_chunk(chunk)
            )
        except CorruptError as error:
            if not whole:
                raise CorruptError(
                    f"{error}; only some of them are given, so nothing is written: give all, or "
                    "use 'kpstore repair'"
                ) from error
            with self._writing():
                if keep:
                    assert delta is not None
                    layout.keep_damaged_chunk(
                        kept, name, meta, delta, chunk, has_table=self._has_tables
                    )
                layout.empty_chunk(self._array(name).source.array, chunk)
            return None
        if keep:
            assert delta is not None
            with self._writing():
                layout.keep_chunk(kept, name, meta, delta, chunk, rows)
        return rows

    def _sum_up(self, name: str) -> None:
        """Find the checksum of the chunk of an array that was written in part."""
        if name in self._part_written:
            chunk, rows = self._part_written.pop(name)
            self._tables[name][chunk] = checksum(self.meta(name), rows)

    # -- forks -------------------------------------------------------------------------------------

    def fork(self) -> HDF5Fork:
        """Return a writer for another process."""
        if self._steps:
            raise InvalidError(
                "a session can be forked only before it has changes of its own; commit first"
            )
        return HDF5Fork({name: array.meta for name, array in self._tree.arrays.items()})

    def merge(self, forks: Sequence[HDF5Fork]) -> None:
        """Write what forks have gathered."""
        self._copy()
        for fork in forks:
            for name, start, values in fork.written:
                if fork.metas[name].has_short_chunk(start, len(values)):
                    check_short_end(self.meta(name), name, fork.metas[name].n_rows)
                self.write(name, start, values)

    # -- the end -----------------------------------------------------------------------------------

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Make the copy the file, as the next version.

        On top of others' commits since then that are of other data.
        """
        if not self._steps and not self._spent:
            self.discard()
            return self._snapshot
        self._copy()
        try:
            with self._backend.commit_lock():
                file = self._backend.file()
                with damage_told(self._backend.location):
                    head = read_names(file).head
                if head != self._snapshot:
                    self._rebase(file, head, message)
                commit = commit_now(new_id(), self._snapshot, message, metadata)
                about = {"touched": sorted(self._touched, key=str)}
                described = (
                    self._describe() if self._has_tables else {"text": self._text_digests(file)}
                )
                with self._writing():
                    write_record(self._copy(), commit.id, commit, {**about, **described})
                self.become(commit.id)
        finally:
            self.discard()
        return commit.id

    def _describe(self) -> dict[str, Any]:
        """Write down all arrays and their checksums.

        Return what the version's record holds of them.
        """
        for name in list(self._part_written):
            self._sum_up(name)
        with self._writing():
            # First: the tables of the version before are about to be overwritten.
            self._kept_checksums = self._delta.checksums(
                lambda name: self._before[name].stored_table()
            )
            return write_tree(self._copy(), self._tree)

    def _text_digests(self, file: h5py.File) -> dict[str, str]:
        """Return the digests of all text (format 1); what was not touched keeps the one it has."""
        with damage_told(self._backend.location, f"version {self._snapshot}"):
            known = read_record(file, self._snapshot).get("text", {})
            before = read_tree(file, self._snapshot).arrays
        touched = {name for name, _ in self._touched}
        for name in known.keys() & touched:
            # Damage that is there already must not be given a digest of its own.
            old = self._told("", name, partial(before[name].read, 0, before[name].meta.n_rows))
            if text_digest(old) != known[name]:
                raise CorruptError(
                    f"{name!r} in {self._backend.location} is not the text that was committed: the "
                    "file is damaged, and nothing is added to it; restore it from a copy"
                )
        found = {}
        for name, array in self._tree.arrays.items():
            if array.meta.dtype == TEXT:
                as_before = name in known and name not in touched
                found[name] = (
                    known[name] if as_before else text_digest(self.read(name, 0, array.meta.n_rows))
                )
        return found

    def become(self, snapshot: str) -> None:
        """Make the copy the file, with ``snapshot`` as its newest version.

        Under the commit lock.
        """
        assert self._work is not None
        path, file = self._work
        with damage_told(self._backend.location):
            names = read_names(self._backend.file())
        with self._writing():
            kept, fmt = self._kept(), format_of(file)
            write_json(kept, "about", self._delta.to_json(snapshot, fmt), fmt)
            if self._kept_checksums is not None:
                kept.create_dataset(
                    "checksums", data=self._kept_checksums.astype("<u8").view(np.uint8)
                )
            newest = file[HOME]["versions"][snapshot]
            if "delta" in newest:  # it is the newest again, and differs from nothing
                del newest["delta"]
            write_names(file, replace(names, head=snapshot))
            file.close()
        self._backend.replace_by(path)

    def restore(self, session: Session) -> None:
        """Make everything how it is in another version, and that one the newest.

        Under the commit lock.
        """
        tree = session._tree
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
            changed = [
                chunk
                for chunk in range(n_chunks(wanted.meta))
                if there is None or chunk in wanted.elsewhere
            ]
            for chunk in changed:
                self._restore_chunk(name, wanted, chunk)
            if changed and self._has_tables:
                self._restore_table(name, wanted)
        if self._has_tables:
            self._describe()
        self.become(session.snapshot)

    def _restore_chunk(self, name: str, wanted: StoredArray, chunk: int) -> None:
        what = f"chunk {chunk} of "
        try:
            rows = self._told(what, name, lambda: wanted.read_chunk(chunk))
        except CorruptError as error:
            raise CorruptError(f"{error}; so nobody can go back to that version") from error
        if rows is None:
            if self._told(what, name, self._array(name).piece(chunk).byte) is None:
                return
            size = wanted.meta.chunk_rows
            rows = _unwritten(wanted.meta, min(size, wanted.meta.n_rows - chunk * size))
        self.write(name, chunk * wanted.meta.chunk_rows, rows)

    def _restore_table(self, name: str, wanted: StoredArray) -> None:
        """Take over the checksums.

        They differ for chunks that nobody had written then, which are fill now.
        """
        table, before = self._table(name), wanted.table
        assert table is not None
        assert before is not None
        table[:] = before

    def _rebase(self, file: h5py.File, head: str, message: str) -> None:
        """Do the same steps again in a copy of a newer version, unless that changed the same data."""
        since = list(
            itertools.takewhile(lambda c: c.id != self._snapshot, self._backend.history(head))
        )
        with damage_told(self._backend.location):
            theirs = {
                (name, what)
                for commit in since
                for name, what in read_record(file, commit.id)["touched"]
            }
        reshaped = {name for name, what in theirs if what == "meta"}
        followed = since and since[-1].parent == self._snapshot
        if not followed or theirs & self._touched or reshaped & {name for name, _ in self._touched}:
            raise ConflictError(
                f"another writer has changed the same data of {self._backend.location} in the "
                f"meantime, so {message!r} was not committed; open the store again and repeat the "
                "change"
            )
        again = HDF5WriteSession(self._backend, file, head)
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
        self._before, self._tables, self._part_written = (
            again._before,
            again._tables,
            again._part_written,
        )

    def discard(self) -> None:
        """Remove the copy."""
        self._spent = True
        self._close_work()
        self._part_written.clear()
        self._tree = self._read_tree(self._base)

    def _close_work(self) -> None:
        if self._work is not None:
            path, file = self._work
            self._work = None
            try:
                file.close()
            finally:
                path.unlink(missing_ok=True)


def _unwritten(meta: ArrayMeta, n_rows: int) -> NDArray[Any]:
    shape = (n_rows, *meta.shape[1:])
    return (
        np.full(shape, "", dtype=object)
        if meta.dtype == TEXT
        else np.full(shape, meta.fill, dtype=meta.dtype)
    )


def _same_layout(one: ArrayMeta, other: ArrayMeta) -> bool:
    """Whether an array of the one kind can be made into one of the other by writing."""
    return (one.shape, one.dtype, one.chunk_rows, one.dims, one.codec) == (
        other.shape,
        other.dtype,
        other.chunk_rows,
        other.dims,
        other.codec,
    )


class HDF5Fork:
    """Rows for another process to gather; the session that merges it writes them."""

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
