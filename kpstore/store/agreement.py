"""Whether the state and the failures of videos agree with the states of their frames, and which rows those are."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.failures import Failures
from kpstore.schema.feature import State
from kpstore.schema.index import VideoIndex


def agrees(state: int, failures: Failures, status: NDArray[np.uint8]) -> bool:
    """Whether the states of a video's frames, (frames,) uint8, say what its own state and its failures say."""
    if state == State.PENDING:
        return not status.any()
    if state == State.FAILED:
        return bool((status == State.FAILED).all())
    failed = np.flatnonzero(status == State.FAILED).tolist()
    return bool((status != State.PENDING).all()) and list(failures.frames) == failed


def touched_videos(
    index: VideoIndex, axis: str, rows: Collection[tuple[int, int]], entered: Collection[int]
) -> NDArray[np.int64]:
    """Return the positions of videos that hold some of these rows, or whose entries changed.

    Sorted, each once.
    """
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
