"""Findings of a check of a store: broken rules and damaged chunks, each with its place."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ReadSession
from kpstore.backends.checksums import UNWRITTEN, text_digest
from kpstore.errors import CorruptError, KpstoreError, UnreachableError
from kpstore.schema.feature import State
from kpstore.schema.index import VideoIndex
from kpstore.store.damage import Damage, named, reason_of
from kpstore.store.in_order import in_order


@dataclass
class Problem:
    """A broken rule, or a damaged chunk.

    Parameters
    ----------
    array : name; ``""`` for a problem of no array.
    what : the rule, or the error of the read.
    count : number of rows (or videos, or chunks) that break it.
    first : the first of them.
    chunk, rows : number and rows (first and last + 1) of a damaged chunk; None for a rule.
    videos : ids of the videos concerned.
    frames : of a damaged chunk on the frame axis, the frames of each of these videos, first and
        last + 1.
    parts : of a damaged chunk, the parts (face, left_hand, …) of its feature.
    files : where the damaged chunk is stored.
    versions : ids of the checked versions that have the problem.
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
        """The place as text: the first one, or all that a damaged chunk holds."""
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
    """Result of a check.

    Parameters
    ----------
    location, snapshot : the version.
    arrays, rows : amount of data checked.
    size_bytes : amount of data read, decoded.
    problems : broken rules, and damage.
    notes : findings that are allowed, and may be worth a look.
    versions : number of versions checked.
    lacks : what a store of an older format lacks; empty for the newest format.
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
"""Equal for two chunks only if they are stored in one place and must hold the same values."""


Rows = range | NDArray[np.int64]
"""Numbers of some rows, ascending."""

Seen = TypeVar("Seen")

_TOGETHER_BYTES = 2**23
"""Neighbouring chunks of so many bytes are looked at together: threads wait for each other less."""

_Fetched = NDArray[Any] | Problem | CorruptError | None
"""Rows that were read, why they could not be, or None if they cannot be checked."""


@dataclass(frozen=True)
class Span:
    """Rows that are checked together: one chunk, or a run of chunks that nobody wrote.

    A store may claim millions of chunks and hold none of them, so such a run is never read: all its
    rows are fill, and one of them stands for all.

    Parameters
    ----------
    start, stop : first row, and last + 1.
    is_written : whether some array may have been written there.
    """

    start: int
    stop: int
    is_written: bool

    def where(self, bad: NDArray[np.bool_]) -> Rows:
        """Return the numbers of the rows for which ``bad`` is true.

        Parameters
        ----------
        bad : (rows,), or (1,) for all of them.
        """
        if len(bad) == self.stop - self.start:
            return self.start + np.flatnonzero(bad)
        return range(self.start, self.stop if bad[0] else self.start)


def _runs(spans: Iterator[Span], most: int) -> Iterator[list[Span]]:
    """Put neighbouring chunks together, up to a number of them; runs of unwritten ones stay."""
    run: list[Span] = []
    for span in spans:
        if run and (len(run) == most or not span.is_written or not run[-1].is_written):
            yield run
            run = []
        run.append(span)
    if run:
        yield run


class Statuses:
    """States of the frames of a feature, but for runs that nobody wrote, which are pending."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: list[NDArray[np.uint8]] = []
        self._n_odd = [0]
        """Number of blocks before each that hold anything but done frames."""

    def add(self, span: Span, status: NDArray[np.uint8]) -> None:
        """Add the states of the next rows, (rows,) uint8."""
        if span.is_written:
            self._starts.append(span.start)
            self._blocks.append(status)
            self._n_odd.append(self._n_odd[-1] + int((status != State.DONE).any()))

    def _within(self, rows: slice) -> tuple[int, int]:
        """Return the first block of some rows, and the last + 1."""
        first = max(0, bisect_right(self._starts, rows.start) - 1)
        return first, max(first, bisect_left(self._starts, rows.stop))

    def are_surely_done(self, rows: slice) -> bool:
        """Whether all of a video's frames are done, as is all that is stored beside them.

        Without looking at the frames: of nearly all videos this is true.
        """
        first, end = self._within(rows)
        if self._n_odd[end] != self._n_odd[first]:
            return False
        starts, blocks = self._starts[first:end], self._blocks[first:end]
        stops = [start + len(block) for start, block in zip(starts, blocks, strict=True)]
        return (
            bool(starts)
            and starts[0] <= rows.start
            and stops[-1] >= rows.stop
            and starts[1:] == stops[:-1]  # no run between them that nobody wrote
        )

    def of(self, rows: slice) -> NDArray[np.uint8]:
        """Return the states of a video's frames, of which one stands for all that nobody wrote."""
        first, end = self._within(rows)
        found = [
            block[max(0, rows.start - start) : rows.stop - start]
            for start, block in zip(self._starts[first:end], self._blocks[first:end], strict=True)
        ]
        states = np.concatenate([np.empty(0, dtype=np.uint8), *found])
        if len(states) == rows.stop - rows.start:
            return states
        return np.append(states, np.uint8(State.PENDING))


class ChunkReader:
    """Reads arrays of one version chunk by chunk, and records damage.

    Parameters
    ----------
    session : the version.
    found : where damage is recorded.
    on_rows : called with the number of rows just checked.
    known : chunks that versions share, by key: None if they are sound, else their problem. Filled
        here.
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
        self._shared = known is not None
        self._sums: dict[str, NDArray[np.uint64] | None] = {}
        self.unchecked: set[str] = set()
        """Arrays whose checksums cannot be read, so that their chunks cannot be checked."""
        self.read_index: Callable[[], VideoIndex] | None = None
        """Returns the index, to name the videos with damage: most versions have none."""
        self.parts_of: dict[str, list[str]] = {}
        """Parts of the feature that an array belongs to."""

    def blocks(
        self, names: Sequence[str], look: Callable[[Span, Sequence[NDArray[Any]]], Seen]
    ) -> Iterator[tuple[Span, list[NDArray[Any] | None], Seen | None]]:
        """Yield the rows of some arrays of one length, span by span, and what is seen in them.

        Parameters
        ----------
        look : called in threads with the arrays of a span, unless one of them is damaged.
        """

        def read(spans: list[Span]) -> list[tuple[Span, list[_Fetched], Seen | None]]:
            span = Span(spans[0].start, spans[-1].stop, spans[0].is_written)
            found = [self._fetch(name, span) for name in names]
            sound = [one for one in found if isinstance(one, np.ndarray)]
            if len(sound) == len(found):
                return [(span, found, look(span, sound))]
            return [(span, found, None)] if len(spans) == 1 else [read([one])[0] for one in spans]

        metas = [self.session.meta(name) for name in names]
        n_bytes = max(meta.chunk_rows for meta in metas) * sum(meta.row_bytes for meta in metas)
        # Versions know chunks from one another one by one.
        n_together = 1 if self._shared else max(1, _TOGETHER_BYTES // max(1, n_bytes))
        together = _runs(self._spans(*names), n_together)
        for found in in_order(read, together, item_bytes=n_together * n_bytes):
            for span, fetched, seen in found:
                pairs = zip(names, fetched, strict=True)
                yield span, [self._settle(name, span, one) for name, one in pairs], seen
                self._count(span)

    def spans(self, name: str) -> Iterator[Span]:
        """Yield all rows of an array: its chunks, and the runs between them."""
        for span in self._spans(name):
            yield span
            self._count(span)

    def _count(self, span: Span) -> None:
        self.found.rows += span.stop - span.start
        self._on_rows(span.stop - span.start)

    def _spans(self, name: str, *others: str) -> Iterator[Span]:
        meta = self.session.meta(name)
        written = np.zeros(meta.n_chunks, dtype=np.bool_)
        for one in (name, *others):
            found, other = self._written(one), self.session.meta(one)
            if other.chunk_rows == meta.chunk_rows:
                written |= found
                continue
            for start, stop in map(other.rows_of, np.flatnonzero(found).tolist()):
                chunks = meta.chunks_of(start, stop)
                written[chunks.start : chunks.stop] = True
        cuts = np.flatnonzero(written[1:] | written[:-1]) + 1
        for first, end in pairwise([0, *cuts.tolist(), meta.n_chunks]):
            if first == end:
                continue  # an array without rows
            yield Span(meta.rows_of(first)[0], meta.rows_of(end - 1)[1], bool(written[first]))

    def _written(self, name: str) -> NDArray[np.bool_]:
        """Return which chunks of an array are stored, or should be."""
        if not self.can_check(name):
            return np.zeros(self.session.meta(name).n_chunks, dtype=np.bool_)
        stored, sums = self.session.stored(name), self._sums[name]
        return stored if sums is None else stored | (sums != UNWRITTEN)

    def read(self, name: str, span: Span) -> NDArray[Any] | None:
        """Return the rows of one chunk, or one row for a run that nobody wrote.

        None, and a recorded problem, if the chunk is damaged.
        """
        return self._settle(name, span, self._fetch(name, span))

    def _fetch(self, name: str, span: Span) -> _Fetched:
        """Read, and record nothing, so that threads may."""
        if name in self.unchecked:
            return None
        if not span.is_written:
            return self.session.meta(name).unwritten(1)
        known = self._known.get(self._key(name, span)) if self._known else None
        if known is not None:
            return known
        try:
            return self.session.read(name, span.start, span.stop)
        except CorruptError as error:
            return error

    def _settle(self, name: str, span: Span, found: _Fetched) -> NDArray[Any] | None:
        """Record what was read; return it if it is sound."""
        if isinstance(found, CorruptError):
            number = span.start // self.session.meta(name).chunk_rows
            # Another span may lie in the same chunk, and be read before this one is settled.
            known = self._known.get(self._key(name, span))
            if known is None:
                self._known[self._key(name, span)] = self._note(name, number, found)
            else:
                self._seen_again(known)
        elif isinstance(found, Problem):
            self._seen_again(found)
        elif found is not None:
            if span.is_written:
                if self._shared:
                    self._known[self._key(name, span)] = None
                self.found.size_bytes += len(found) * self.session.meta(name).row_bytes
            return found
        return None

    def look_at(self, name: str) -> None:
        """Check the chunks of an array that are not known to be sound from other versions."""
        if self.session.digest(name) is not None:
            self.whole(name)  # all of it has one digest
        elif self.can_check(name):
            for span in self.spans(name):
                key = self._key(name, span) if span.is_written else None
                if key is not None and (key not in self._known or self._known[key] is not None):
                    self.read(name, span)

    def whole(self, name: str) -> NDArray[Any] | None:
        """Return a whole array; None if it does not exist, or cannot be read completely."""
        if name not in self.session.names():
            return None
        self.found.arrays += 1
        blocks = []
        for span in self.spans(name):
            block = self.read(name, span)
            n_alike = 1 if span.is_written else span.stop - span.start
            blocks.append(block if block is None else np.repeat(block, n_alike, axis=0))
        whole = [block for block in blocks if block is not None]
        if not whole or len(whole) != len(blocks):
            return None
        values = np.concatenate(whole)
        digest = self.session.digest(name)
        if digest is not None and digest != text_digest(values):
            self._note_array(name, "is not the text that was committed")
        return values

    def can_check(self, name: str) -> bool:
        """Return whether the checksums of an array can be read; if not, record a problem."""
        if name not in self._sums and name not in self.unchecked:
            try:
                self._sums[name] = self.session.checksums(name)
            except CorruptError as error:
                self.unchecked.add(name)
                self._note_array(name, f"its checksums cannot be read: {reason_of(error)}")
        return name in self._sums

    def _note_array(self, name: str, what: str) -> None:
        for problem in self.found.problems:
            if (problem.array, problem.what) == (name, what):
                self._seen_again(problem)
                return
        parts = list(self.parts_of.get(name, ()))
        self.found.problems.append(
            Problem(name, what, first="the array", parts=parts, versions=[self.session.snapshot])
        )

    def _key(self, name: str, span: Span) -> ChunkKey:
        sums, meta = self._sums[name], self.session.meta(name)
        chunk = span.start // meta.chunk_rows
        try:
            place = self.session.place(name, chunk)
        except UnreachableError:
            raise
        except KpstoreError:  # the record of where chunks are stored may be damaged as well
            place = self.session.snapshot
        # A checksum counts rows beyond the array's end as fill, so it stays the same when the array
        # grows. Without one the chunk's length tells the versions apart.
        content = meta.rows_of(chunk) if sums is None else int(sums[chunk])
        return name, chunk, place, content

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
        index = self._index()
        if index is not None:
            positions = damage.positions(index)
            problem.videos = index.ids[positions].tolist()
            if damage.axis == "frame":
                pieces = [damage.frames(index, position) for position in positions.tolist()]
                problem.frames = [(piece.start, piece.stop) for piece in pieces]
        self.found.problems.append(problem)
        return problem

    def _index(self) -> VideoIndex | None:
        """Return the index of the version; None if it is not known, or damaged itself."""
        try:
            return None if self.read_index is None else self.read_index()
        except UnreachableError:
            raise
        except KpstoreError:  # its damage is noted when its arrays are read
            self.read_index = None  # not again for each damaged chunk
            return None

    def _seen_again(self, problem: Problem) -> None:
        if self.session.snapshot not in problem.versions:
            problem.versions.append(self.session.snapshot)
