"""The ledger of a feature: what is kept of each video's failures, and whether it agrees with its frames' states."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import State
from kpstore.schema.index import VideoIndex


@dataclass(frozen=True)
class Entry:
    """A video's entry: whether all of it failed, and which of its frames did."""

    whole_video: bool = False
    frames: frozenset[int] = frozenset()

    @property
    def state(self) -> State:
        """The state that the ledger gives a finished video with this entry."""
        return State.FAILED if self.whole_video else State.DONE


def read_entry(text: str) -> Entry:
    """Read an entry as it is stored; :class:`InvalidError` if it is not JSON as the format has it."""
    try:
        found = json.loads(text) if text else {}
        frames = frozenset(int(frame) for frame in found.get("frames", {}))
    except (ValueError, AttributeError, TypeError):
        raise InvalidError(f"{text[:100]!r} is no entry of a ledger; see failure_text()") from None
    return Entry("video" in found, frames)


def is_whole_video(text: str) -> bool:
    """Whether an entry says that the whole video failed."""
    return read_entry(text).whole_video


def agrees(state: int, frames: frozenset[int], status: NDArray[np.uint8]) -> bool:
    """Whether the states of a video's frames, (frames,) uint8, say what its own state and its failed frames say."""
    if state == State.PENDING:
        return not status.any()
    if state == State.FAILED:
        return bool((status == State.FAILED).all())
    failed = np.flatnonzero(status == State.FAILED).tolist()
    return bool((status != State.PENDING).all()) and frames == frozenset(failed)


def failure_text(*, video: str | None = None, frames: Mapping[int, str] | None = None) -> str:
    """Return what the ledger keeps of a video's failures: JSON, or ``""`` if there are none.

    Parameters
    ----------
    video : why the whole video failed; None if it did not.
    frames : why some of its frames failed, by number.
    """
    if video is not None:
        return json.dumps({"video": _reason(video)}, ensure_ascii=False)
    if frames:
        return json.dumps({"frames": {str(n): _reason(frames[n]) for n in sorted(frames)}}, ensure_ascii=False)
    return ""


def _reason(given: object) -> str:
    """Return a reason that can be stored: names of files may hold halves of characters, which are written out."""
    return str(given).encode("utf-8", "backslashreplace").decode("utf-8") or "no reason was given"


def touched_videos(
    index: VideoIndex, axis: str, rows: Collection[tuple[int, int]], entered: Collection[int]
) -> NDArray[np.int64]:
    """Return the positions of videos that hold some of these rows, or whose entries changed; sorted, each once."""
    found = [np.array(sorted(entered), dtype=np.int64)]
    for start, stop in rows:
        if start == stop:
            continue
        ends = np.array([start, stop - 1], dtype=np.int64)
        first, last = (index.video_of(ends) if axis == "frame" else ends).tolist()
        found.append(np.arange(first, last + 1, dtype=np.int64))
    return np.unique(np.concatenate(found))


def runs(positions: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of ascending positions that follow each other."""
    for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1])


def pieces(rows: NDArray[np.bool_], chunk_rows: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rows, cut where chunks end: a chunk of which all rows are wanted comes in one piece."""
    wanted = np.flatnonzero(rows)
    if len(wanted):
        ends = np.flatnonzero((np.diff(wanted) > 1) | (wanted[1:] % chunk_rows == 0)) + 1
        for piece in np.split(wanted, ends):
            yield int(piece[0]), int(piece[-1]) + 1
