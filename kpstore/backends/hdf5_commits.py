"""How a changed copy of an HDF5 store's file becomes its next version, or an earlier one again."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import h5py
import numpy as np

from kpstore.backends import hdf5_layout as layout
from kpstore.backends import refusals
from kpstore.backends.base import TEXT, ArrayMeta, Commit
from kpstore.backends.checksums import text_digest
from kpstore.backends.gathered import GatheredRows, collide
from kpstore.backends.hdf5_changes import Changes
from kpstore.backends.hdf5_file import Session
from kpstore.backends.hdf5_items import has_item, item_of
from kpstore.backends.hdf5_records import (
    HOME,
    damage_told,
    read_record,
    write_delta,
    write_names,
    write_record,
)
from kpstore.backends.hdf5_tree import StoredArray, read_tree, write_tree
from kpstore.errors import CorruptError


def new_id() -> str:
    """Return an id for a version."""
    return uuid.uuid4().hex[:20].upper()


class HDF5WriteSession(Changes):
    """Changes that become the store's next version."""

    def fork(self) -> GatheredRows:
        """Return a writer for another process."""
        if self._steps:
            raise refusals.not_forkable()
        return GatheredRows({name: array.meta for name, array in self._tree.arrays.items()})

    def merge(self, forks: Sequence[GatheredRows]) -> None:
        """Write the rows that forks have gathered."""
        self._copy()
        for fork in forks:
            for name, start, values in fork.rows(self.meta):
                self.write(name, start, values)

    # -- commit ------------------------------------------------------------------------------------

    def commit(self, message: str, metadata: Mapping[str, object] | None = None) -> str:
        """Replace the file by the copy, as the next version.

        Commits of other writers to other data since then are kept.
        """
        if not self._steps and not self._spent:
            self.discard()
            return self._snapshot
        self._copy()
        try:
            with self._home.commit_lock():
                file = self._home.file()
                head = self._home.names(file).head
                if head == self._snapshot:
                    return self._commit(file, message, metadata)
                rebased = self._rebased(file, head, message)
                try:
                    return rebased._commit(file, message, metadata)
                finally:
                    rebased.discard()
        finally:
            self.discard()

    def _commit(self, file: h5py.File, message: str, metadata: Mapping[str, object] | None) -> str:
        """Commit on top of the present ``file``, whose newest version is this session's."""
        commit = Commit.now(new_id(), self._snapshot, message, metadata)
        described = self._describe() if self._has_tables else {"text": self._text_digests(file)}
        about = {"touched": sorted(self._touched, key=str), **described}
        with self._writing():
            write_record(self._copy(), commit, about)
        self._become(commit.id)
        return commit.id

    def _describe(self) -> dict[str, object]:
        """Write the description of all arrays and their checksums; return their digests."""
        for name in list(self._part_written):
            self._sum_up(name)
        with self._writing():
            # First, because the tables of the version before are overwritten next.
            self._kept_checksums = self._delta.checksums(
                lambda name: self._before[name].stored_table()
            )
            return write_tree(self._copy(), self._tree)

    def _text_digests(self, file: h5py.File) -> dict[str, str]:
        """Return the digests of all text (format 1); text that was not written keeps its digest."""
        with damage_told(self._home.location, f"version {self._snapshot}"):
            known = read_record(file, self._snapshot).get("text", {})
            before = read_tree(file, self._snapshot).arrays
        touched = {name for name, _ in self._touched}
        for name in known.keys() & touched:
            # Text that is damaged already must not get a new digest.
            old = self._told("", name, partial(before[name].read, 0, before[name].meta.n_rows))
            if text_digest(old) != known[name]:
                raise CorruptError(
                    f"{name!r} in {self._home.location} is not the text that was committed: the "
                    "file is damaged, and nothing is added to it; restore it from a copy"
                )
        texts = {name for name, array in self._tree.arrays.items() if array.meta.dtype == TEXT}
        found = {name: known[name] for name in texts & known.keys() - touched}
        for name in texts - found.keys():
            found[name] = text_digest(self.read(name, 0, self.meta(name).n_rows))
        return found

    def _become(self, snapshot: str) -> None:
        """Replace the file by the copy, with ``snapshot`` as its newest version, under the lock."""
        assert self._work is not None
        path, file = self._work
        names = self._home.names(self._home.file())
        with self._writing():
            kept = self._kept()
            self._delta.base = snapshot
            write_delta(kept, self._delta)
            if self._kept_checksums is not None:
                numbers = self._kept_checksums.astype("<u8").view(np.uint8)
                kept.create_dataset("checksums", data=numbers)
            newest = item_of(file, f"{HOME}/versions/{snapshot}")
            if has_item(newest, "delta"):  # of a version that is the newest again
                del newest["delta"]
            write_names(file, replace(names, head=snapshot))
            file.close()
        self._home.replace_by(path)

    def _rebased(self, file: h5py.File, head: str, message: str) -> HDF5WriteSession:
        """Return the same changes in a copy of a newer version.

        Raises
        ------
        ConflictError
            If one of the versions since has changed the same data.
        """
        since = list(
            itertools.takewhile(lambda c: c.id != self._snapshot, self._home.history(head))
        )
        with damage_told(self._home.location):
            theirs = {
                (name, what)
                for commit in since
                for name, what in read_record(file, commit.id)["touched"]
            }
        followed = since and since[-1].parent == self._snapshot
        if not followed or collide(self._touched, theirs):
            raise refusals.changed_meanwhile(self._home.location, message)
        again = HDF5WriteSession(self._home, file, head)
        try:
            for repeat in self._steps:
                repeat(self, again)
        except BaseException:
            again.discard()
            raise
        return again

    # -- going back --------------------------------------------------------------------------------

    def restore(self, session: Session) -> None:
        """Make the version of a session the newest one, under the commit lock."""
        tree = session._tree
        for name in set(self._tree.arrays) - set(tree.arrays):
            self.delete(name)
        self.set_attrs(tree.attrs)
        for name, wanted in tree.arrays.items():
            self._restore_array(name, wanted)
        if self._has_tables:
            self._describe()
        self._become(session.snapshot)

    def _restore_array(self, name: str, wanted: StoredArray) -> None:
        meta, there = wanted.meta, self._tree.arrays.get(name)
        if there is not None and _without_attrs(there.meta) != _without_attrs(meta):
            self.delete(name)
            there = None
        if there is None:
            self.create(name, meta)
        elif dict(there.meta.attrs) != dict(meta.attrs):
            self.set_array_attrs(name, meta.attrs)
        # An array may have been removed and made anew: then no chunk of it is in its old place.
        shared = there is not None and there.source.place == wanted.source.place
        changed = sorted(wanted.elsewhere) if shared else range(meta.n_chunks)
        for chunk in changed:
            self._restore_chunk(name, wanted, chunk)
        if changed and self._has_tables:
            # The checksums of that version: they differ for chunks that it never wrote and that
            # are fill now.
            table, before = self._table(name), wanted.table
            assert table is not None
            assert before is not None
            table[:] = before

    def _restore_chunk(self, name: str, wanted: StoredArray, chunk: int) -> None:
        what = f"chunk {chunk} of "
        try:
            rows = self._told(what, name, lambda: wanted.read_chunk(chunk))
        except CorruptError as error:
            raise CorruptError(
                f"{error}; so that version cannot become the newest one again"
            ) from error
        start, stop = wanted.meta.rows_of(chunk)
        if rows is None:
            if self._told(what, name, self._array(name).piece(chunk).byte) is None:
                return
            rows = wanted.meta.unwritten(stop - start)
        self.write(name, start, rows)


def _without_attrs(meta: ArrayMeta) -> dict[str, object]:
    # As JSON, because a fill of NaN does not equal itself.
    return {**layout.meta_to_json(meta), "attrs": {}}
