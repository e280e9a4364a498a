"""The videos that two stores have in common, and their columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.store.store import BaseStore


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
