"""Damaged chunks in the words of people: which array, rows, videos and file, and what to do about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ReadSession
from kpstore.errors import CorruptError, KpstoreError
from kpstore.schema.index import VideoIndex
from kpstore.store import format as fmt

_NAMED = 2
"""Videos that a message names; it counts the others."""


@dataclass(frozen=True)
class Damage:
    """A chunk that cannot be read, or that is not what was committed.

    Parameters
    ----------
    array : name.
    chunk : number of the chunk in the array.
    start, stop : the rows that lie in it.
    file : where it lies, for people.
    reason : why it is called damaged.
    axis : ``"frame"``, ``"video"``, or the axis of labels.
    """

    array: str
    chunk: int
    start: int
    stop: int
    file: str
    reason: str
    axis: str = ""

    @classmethod
    def of(cls, session: ReadSession, name: str, chunk: int, reason: str) -> Damage:
        """Say where a chunk is."""
        meta = session.meta(name)
        start = chunk * meta.chunk_rows
        try:
            place = session.place(name, chunk)
        except KpstoreError:  # what says where chunks lie may be damaged too
            place = ""
        stop = min(start + meta.chunk_rows, meta.n_rows)
        return cls(name, chunk, start, stop, place, reason, (meta.dims or ("",))[0])

    @property
    def rows(self) -> str:
        """Which rows, and where they lie."""
        return f"rows {self.start}:{self.stop}" + (f"; {self.file}" if self.file else "")

    def positions(self, index: VideoIndex) -> NDArray[np.int64]:
        """Return the videos that have rows in the chunk, by position.

        None for axes of other things.
        """
        if self.axis == "video":
            return np.arange(self.start, min(self.stop, len(index)), dtype=np.int64)
        if self.axis != "frame" or self.start >= index.total_frames:
            return np.empty(0, dtype=np.int64)
        first, last = index.video_of(np.array([self.start, min(self.stop, index.total_frames) - 1]))
        # Videos without frames lie between others and have no rows.
        return np.flatnonzero((index.n_frames > 0) & _between(len(index), int(first), int(last)))

    def frames(self, index: VideoIndex, position: int) -> slice:
        """Return which frames of a video lie in the chunk."""
        rows = index.rows(position)
        return slice(
            max(self.start, rows.start) - rows.start, min(self.stop, rows.stop) - rows.start
        )


def _between(n: int, first: int, last: int) -> NDArray[np.bool_]:
    positions = np.arange(n)
    return np.asarray((first <= positions) & (positions <= last), dtype=np.bool_)


def named(ids: list[str], *, most: int = _NAMED) -> str:
    """Return ids for a message: the first few, and how many more there are."""
    if not ids:
        return ""
    if len(ids) == 1:
        return f"video {ids[0]!r}"
    shown = ", ".join(map(repr, ids[:most]))
    return f"videos {shown}" + (f" and {len(ids) - most} more" if len(ids) > most else "")


def reason_of(error: Exception) -> str:
    """Return what is wrong with a chunk, of an error that names its place as well."""
    text = " ".join(str(error).split())
    return text.partition(" cannot be read: ")[2] or text


def damaged(
    session: ReadSession, location: str, name: str, chunk: int, reason: str
) -> CorruptError:
    """Return the error of a read that met a damaged chunk: one line that names what is lost and what to do."""
    found = Damage.of(session, name, chunk, reason)
    store = location or "STORE"
    return CorruptError(
        f"{name!r} of {store} is damaged: rows "
        f"{found.start}:{found.stop}{_of_videos(session, found)}"
        f"{f', {found.file}' if found.file else ''}: {reason}; "
        f"'kpstore verify {store}' tells all of it, 'kpstore repair {store}' has such videos made "
        "again"
    )


def _of_videos(session: ReadSession, found: Damage) -> str:
    if found.axis not in ("frame", "video"):
        return ""
    try:
        index = fmt.read_index(session)
    except KpstoreError:  # the index may be what is damaged, or out of reach in a forked process
        return ""
    positions = found.positions(index)
    if len(positions) == 0:
        return ""
    frames = ""
    if found.axis == "frame" and len(positions) == 1:
        part = found.frames(index, int(positions[0]))
        frames = f", frames {part.start} to {part.stop - 1}"
    ids: list[Any] = index.ids[positions].tolist()
    return f" ({named(ids)}{frames})"
