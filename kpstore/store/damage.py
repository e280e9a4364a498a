"""Describes damaged chunks: which array, rows, videos and file, and what to do about them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ReadSession
from kpstore.errors import CorruptError, KpstoreError
from kpstore.schema.index import VideoIndex
from kpstore.store import format as fmt

_NAMED = 2
"""Number of videos that a message names; it counts the others."""


@dataclass(frozen=True)
class Damage:
    """A chunk that cannot be read, or that is not what was committed.

    Parameters
    ----------
    array : name.
    chunk : number of the chunk in the array.
    start, stop : its rows.
    file : where it is stored, as text; ``""`` if unknown.
    reason : why it counts as damaged.
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
        """Return the description of a chunk."""
        meta, place = session.meta(name), ""
        with suppress(KpstoreError):  # the record of where chunks are stored may be damaged too
            place = session.place(name, chunk)
        return cls(name, chunk, *meta.rows_of(chunk), place, reason, (meta.dims or ("",))[0])

    @property
    def rows(self) -> str:
        """The rows, and where they are stored."""
        return f"rows {self.start}:{self.stop}" + (f"; {self.file}" if self.file else "")

    def positions(self, index: VideoIndex) -> NDArray[np.int64]:
        """Return the positions of videos with rows in the chunk; none for an axis of labels."""
        if self.axis == "video":
            return np.arange(self.start, min(self.stop, len(index)), dtype=np.int64)
        if self.axis != "frame" or self.start >= index.total_frames:
            return np.empty(0, dtype=np.int64)
        ends = np.array([self.start, min(self.stop, index.total_frames) - 1])
        first, last = index.video_of(ends).tolist()
        positions = np.arange(first, last + 1)
        return positions[index.n_frames[positions] > 0]  # videos between may have no frames

    def frames(self, index: VideoIndex, position: int) -> slice:
        """Return the frames of a video that are in the chunk."""
        rows = index.rows(position)
        return slice(
            max(self.start, rows.start) - rows.start, min(self.stop, rows.stop) - rows.start
        )


def named(ids: list[str], *, most: int = _NAMED) -> str:
    """Return ids for a message: the first few, and the number of others."""
    if not ids:
        return ""
    if len(ids) == 1:
        return f"video {ids[0]!r}"
    shown = ", ".join(map(repr, ids[:most]))
    return f"videos {shown}" + (f" and {len(ids) - most} more" if len(ids) > most else "")


def reason_of(error: Exception) -> str:
    """Return the reason in an error's message, without the place."""
    text = " ".join(str(error).split())
    return text.partition(" cannot be read: ")[2] or text


def damaged(
    session: ReadSession, location: str, name: str, chunk: int, reason: str
) -> CorruptError:
    """Return the error for a read of a damaged chunk: what is lost and what to do, in one line."""
    found = Damage.of(session, name, chunk, reason)
    store = location or "STORE"
    return CorruptError(
        f"{name!r} of {store} is damaged: rows "
        f"{found.start}:{found.stop}{_of_videos(session, location, found)}"
        f"{f', {found.file}' if found.file else ''}: {reason}; "
        f"'kpstore verify {store}' lists all damage, 'kpstore repair {store}' makes damaged videos "
        "pending again"
    )


def _of_videos(session: ReadSession, location: str, found: Damage) -> str:
    try:
        index = fmt.read_index(session, location)
    except KpstoreError:  # the index may be damaged too, or out of reach in a forked process
        return ""
    positions = found.positions(index)
    if len(positions) == 0:
        return ""
    frames = ""
    if found.axis == "frame" and len(positions) == 1:
        part = found.frames(index, int(positions[0]))
        frames = f", frames {part.start} to {part.stop - 1}"
    return f" ({named(index.ids[positions].tolist())}{frames})"
