"""What a look at a store found: broken rules and damaged chunks, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ReadSession, text_digest
from kpstore.errors import CorruptError, KpstoreError
from kpstore.schema.index import VideoIndex
from kpstore.store.damage import Damage, named, reason_of


@dataclass
class Problem:
    """A rule that is broken, or a chunk that is damaged.

    Parameters
    ----------
    array : where; empty for what is no array's.
    what : the rule, or the error that reading met.
    count : how many rows (or videos, or chunks) break it.
    first : the first of them.
    chunk, rows : of a damaged chunk, its number and the rows in it, first and last + 1; None for a
        rule.
    videos : ids of the videos concerned.
    frames : of a damaged chunk on the frame axis, which frames of each of these videos, first and
        last + 1.
    parts : of a damaged chunk, the parts (face, left_hand, …) of the feature that it belongs to.
    files : where it lies.
    versions : ids of the versions that have it, where several were looked at.
    """

    array: str
    what: str
    count: int = 1
    first: str = ""
    chunk: int | None = None
    rows: tuple[int, int] | None = None
    videos: list[str] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Where it is, for people: the first place, or all that a damaged chunk holds."""
        if self.chunk is None or self.rows is None:
            return self.first
        held = named(self.videos)
        if len(self.videos) == 1 and self.frames:
            held += f", frames {self.frames[0][0]} to {self.frames[0][1] - 1}"
        inside = "; ".join(["rows {}:{}".format(*self.rows), *self.files])
        parts = f" ({', '.join(self.parts)})" if self.parts else ""
        return f"chunk {self.chunk} ({inside})" + (f"; {held}{parts}" if held else parts)


@dataclass
class Verification:
    """What was checked and found.

    Parameters
    ----------
    location, snapshot : the version.
    arrays, rows, size_bytes : what was read, as it is decoded.
    problems : rules that are broken, and damage.
    notes : what is allowed, and may be worth a look.
    versions : how many versions were looked at.
    lacks : what a store of an earlier format cannot show; empty if it is of today's.
    """

    location: str
    snapshot: str
    arrays: int = 0
    rows: int = 0
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    versions: int = 1
    lacks: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {"sound": not self.problems, **asdict(self)}


ChunkKey = tuple[Any, ...]
"""Equal for two chunks only if they lie at one place and have to be the same."""


class ChunkReader:
    """Reads arrays of one version chunk by chunk, through the backend's own library, and notes what is damaged.

    Parameters
    ----------
    session : the version.
    found : where damage is noted.
    on_rows : told of rows each time some more were checked.
    known : chunks that other versions share, by key: None if they are sound, else their problem.
        Filled here.
    """

    def __init__(
        self,
        session: ReadSession,
        found: Verification,
        on_rows: Callable[[int], None],
        known: dict[ChunkKey, Problem | None] | None = None,
    ) -> None:
        self.session, self.found, self._on_rows = session, found, on_rows
        self._known: dict[ChunkKey, Problem | None] = {} if known is None else known
        self._sums: dict[str, NDArray[np.uint64] | None] = {}
        self.unchecked: set[str] = set()
        """Arrays whose checksums cannot be read, so that nothing can be told of their chunks: noted as one problem."""
        self.index: VideoIndex | None = None
        """Videos by row, for what damage concerns; None while, or where, it cannot be read."""
        self.parts_of: dict[str, list[str]] = {}
        """Parts of the feature that an array belongs to."""

    def chunks(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the rows of each chunk of an array, first and last + 1."""
        meta = self.session.meta(name)
        for start in range(0, meta.n_rows, max(1, meta.chunk_rows)):
            stop = min(start + meta.chunk_rows, meta.n_rows)
            yield start, stop
            self.found.rows += stop - start
            self._on_rows(stop - start)

    def read(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        """Return the rows of one chunk; None, and a problem is noted, if it is damaged."""
        if not self.can_check(name):
            return None
        meta = self.session.meta(name)
        chunk = start // meta.chunk_rows
        key = self._key(name, chunk)
        known = self._known.get(key)
        if known is not None:
            self._seen_again(known)
            return None
        try:
            values = self.session.read(name, start, stop)
        except CorruptError as error:
            self._known[key] = self._note(name, chunk, error)
            return None
        self._known[key] = None
        self.found.size_bytes += (stop - start) * meta.row_bytes
        return values

    def look_at(self, name: str) -> None:
        """Read what of an array no other version has shown to be sound, and note what is damaged."""
        if self.session.digest(name) is not None:
            self.whole(name)  # all of it has one digest
            return
        if not self.can_check(name):
            return
        for start, stop in self.chunks(name):
            key = self._key(name, start // self.session.meta(name).chunk_rows)
            if key not in self._known or self._known[key] is not None:
                self.read(name, start, stop)

    def whole(self, name: str) -> NDArray[Any] | None:
        """Return a whole array, chunk by chunk.

        None if it is not there, or any of it cannot be read.
        """
        if name not in self.session.names():
            return None
        self.found.arrays += 1
        blocks = [self.read(name, start, stop) for start, stop in self.chunks(name)]
        whole = [block for block in blocks if block is not None]
        if not whole or len(whole) != len(blocks):
            return None
        values = np.concatenate(whole)
        digest = self.session.digest(name)
        if digest is not None and digest != text_digest(values):
            self.found.problems.append(
                Problem(
                    name,
                    "is not the text that was committed",
                    first="the array",
                    versions=[self.session.snapshot],
                )
            )
        return values

    def can_check(self, name: str) -> bool:
        """Return whether the checksums of an array can be read; if not, a problem is noted."""
        if name not in self._sums and name not in self.unchecked:
            try:
                self._sums[name] = self.session.checksums(name)
            except CorruptError as error:
                self.unchecked.add(name)
                self._note_unchecked(name, f"its checksums cannot be read: {reason_of(error)}")
        return name in self._sums

    def _note_unchecked(self, name: str, what: str) -> None:
        for problem in self.found.problems:
            if (problem.array, problem.what) == (name, what):
                self._seen_again(problem)
                return
        parts = list(self.parts_of.get(name, ()))
        self.found.problems.append(
            Problem(name, what, first="the array", parts=parts, versions=[self.session.snapshot])
        )

    def _key(self, name: str, chunk: int) -> ChunkKey:
        sums, meta = self._sums[name], self.session.meta(name)
        # A checksum counts rows behind the array's end as fill, so it says the same of a chunk that
        # has grown since.
        n_rows = (
            None
            if sums is not None
            else min(meta.chunk_rows, meta.n_rows - chunk * meta.chunk_rows)
        )
        try:
            place = self.session.place(name, chunk)
        except KpstoreError:  # what says where chunks lie may be damaged as well
            place = self.session.snapshot
        return name, chunk, n_rows, place, None if sums is None else int(sums[chunk])

    def _note(self, name: str, chunk: int, error: CorruptError) -> Problem:
        damage = Damage.of(self.session, name, chunk, reason_of(error))
        problem = Problem(
            name,
            f"cannot be read: {damage.reason}",
            first=damage.rows,
            chunk=chunk,
            rows=(damage.start, damage.stop),
            parts=list(self.parts_of.get(name, ())),
            files=[damage.file] if damage.file else [],
            versions=[self.session.snapshot],
        )
        if self.index is not None:
            positions = damage.positions(self.index)
            problem.videos = self.index.ids[positions].tolist()
            if damage.axis == "frame":
                pieces = [damage.frames(self.index, position) for position in positions.tolist()]
                problem.frames = [(piece.start, piece.stop) for piece in pieces]
        self.found.problems.append(problem)
        return problem

    def _seen_again(self, problem: Problem) -> None:
        if self.session.snapshot not in problem.versions:
            problem.versions.append(self.session.snapshot)
