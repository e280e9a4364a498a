"""Checks that states and failures of videos agree with the states of their frames."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.failures import Failures
from kpstore.schema.feature import State
from kpstore.schema.index import VideoIndex


def agrees(state: int, failures: Failures, status: NDArray[np.uint8]) -> bool:
    """Whether a video's state and failures agree with the states of its frames, (frames,) uint8."""
    if state == State.PENDING:
        return not status.any()
    if state == State.FAILED:
        return bool((status == State.FAILED).all())
    if (status == State.DONE).all():  # of nearly every video
        return not failures.frames
    failed = np.flatnonzero(status == State.FAILED).tolist()
    return bool((status != State.PENDING).all()) and list(failures.frames) == failed


def touched_videos(
    index: VideoIndex, axis: str, rows: Collection[tuple[int, int]], entered: Collection[int]
) -> NDArray[np.int64]:
    """Return the positions of videos that hold some of these rows, or were entered; sorted."""
    found = [np.array(sorted(entered), dtype=np.int64)]
    for start, stop in rows:
        if start < stop:
            ends = np.array([start, stop - 1], dtype=np.int64)
            first, last = (index.video_of(ends) if axis == "frame" else ends).tolist()
            found.append(np.arange(first, last + 1, dtype=np.int64))
    return np.unique(np.concatenate(found))


def runs(positions: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of consecutive positions."""
    for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1])


def pieces(rows: NDArray[np.bool_], chunk_rows: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rows, first and last + 1, that are cut where chunks end."""
    wanted = np.flatnonzero(rows)
    if len(wanted):
        ends = np.flatnonzero((np.diff(wanted) > 1) | (wanted[1:] % chunk_rows == 0)) + 1
        for piece in np.split(wanted, ends):
            yield int(piece[0]), int(piece[-1]) + 1
