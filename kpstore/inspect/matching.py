"""The videos and frames that two stores have in common, and columns of videos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

_BLOCK_VIDEOS = 256
"""Videos whose paths are compared at once."""


def common_videos(a: BaseStore, b: BaseStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions, in A and in B, of the videos that both have, in the order of A."""
    ids = [video_id for video_id in a.index.ids.tolist() if video_id in b.index]
    return a.index.select(videos=ids), b.index.select(videos=ids)


def only_in(a: BaseStore, b: BaseStore) -> tuple[str, ...]:
    """Return the ids of the videos that B lacks, in the order of A."""
    return tuple(video_id for video_id in a.index.ids.tolist() if video_id not in b.index)


def column_names(a: BaseStore, b: BaseStore) -> list[str]:
    """Return the names of columns about videos: those that every store has, then annotations."""
    annotations = dict.fromkeys((*a.annotation_names, *b.annotation_names))
    return ["n_frames", "fps", "width", "height", "split", *annotations]


def column(store: BaseStore, name: str, videos: NDArray[np.int64]) -> NDArray[Any]:
    """Return a column for some videos, (videos,); ``""`` for an annotation that is missing."""
    if name in store:
        return np.asarray(store[name])[videos]
    return np.full(len(videos), "", dtype=object)


def matched_frames(a: BaseStore, b: BaseStore) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the rows of common frames in A and in B, and the number of videos matched by number.

    The rows are in the order of A. Frames are matched within videos of one id first, as frames of
    several videos may have the same path; then anywhere.
    """
    of_b = np.full(a.index.total_frames, -1, dtype=np.int64)
    here, there = common_videos(a, b)
    for first in range(0, len(here), _BLOCK_VIDEOS):
        block = slice(first, first + _BLOCK_VIDEOS)
        _match_in_videos(a, b, here[block], there[block], of_b)
    taken = np.zeros(b.index.total_frames, dtype=bool)
    taken[of_b[of_b >= 0]] = True
    left, free = np.flatnonzero(of_b < 0), np.flatnonzero(~taken)
    if len(left) and len(free):
        of_b[left] = _matches(_names(a, left), _names(b, free), free)
        taken[of_b[of_b >= 0]] = True
    n_by_number = 0
    for position, other in zip(here.tolist(), there.tolist(), strict=True):
        rows, others = a.index.rows(position), b.index.rows(other)
        if rows.start == rows.stop or (of_b[rows] >= 0).any():
            continue
        if others.stop - others.start == rows.stop - rows.start and not taken[others].any():
            of_b[rows] = np.arange(others.start, others.stop)
            n_by_number += 1
    rows_a = np.flatnonzero(of_b >= 0)
    return rows_a, of_b[rows_a], n_by_number


def _match_in_videos(
    a: BaseStore,
    b: BaseStore,
    here: NDArray[np.int64],
    there: NDArray[np.int64],
    of_b: NDArray[np.int64],
) -> None:
    """Enter in ``of_b`` which rows of B have the paths of the rows of A, video by video."""
    rows_a, rows_b = a.index.rows_of(here), b.index.rows_of(there)
    if np.array_equal(a.index.n_frames[here], b.index.n_frames[there]) and np.array_equal(
        a.read(fmt.IMAGE_PATH, rows_a), b.read(fmt.IMAGE_PATH, rows_b)
    ):
        of_b[rows_a] = rows_b
        return
    for video, other in zip(here, there, strict=True):
        rows_a, rows_b = a.index.rows_of(video[None]), b.index.rows_of(other[None])
        of_b[rows_a] = _matches(_names(a, rows_a), _names(b, rows_b), rows_b)


def _names(store: BaseStore, rows: NDArray[np.int64]) -> list[str]:
    """Return the path of each frame, or its video and number if it has none."""
    videos = store.index.video_of(rows)
    ids, numbers = store.index.ids[videos].tolist(), (rows - store.index.offsets[videos]).tolist()
    paths = store.read(fmt.IMAGE_PATH, rows).tolist()
    return [
        path.replace("\\", "/") or f"{video_id}#{number}"
        for path, video_id, number in zip(paths, ids, numbers, strict=True)
    ]


def _matches(names: list[str], others: list[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each name the row of the same among the others, -1 if there is none.

    Of a name that occurs several times, the first belongs to the first, and so on.
    """
    places = dict(zip(_counted(others), rows.tolist(), strict=True))
    found = (places.get(name, -1) for name in _counted(names))
    return np.fromiter(found, dtype=np.int64, count=len(names))


def _counted(names: list[str]) -> Iterator[tuple[str, int]]:
    """Yield each name, and how often it came before."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        yield name, seen[name]


def unequal_rows(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return which rows of two arrays of one shape are not the same to the bit, (rows,) bool.

    Of different types, no rows are the same.
    """
    if one.dtype != other.dtype:
        return np.ones(len(one), dtype=np.bool_)
    # As whole numbers, equal NaN are equal, and it takes one pass.
    bits = "O" if one.dtype == object else f"u{one.dtype.itemsize}"
    rows, others = (
        array.reshape(len(array), math.prod(array.shape[1:])).view(bits) for array in (one, other)
    )
    return np.asarray((rows != others).any(axis=1), dtype=np.bool_)
