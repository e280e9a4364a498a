"""Keypoints of some frames of a store, drawn on the frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.render.skeleton import contact_sheet, draw_keypoints
from kpstore.schema.feature import State, edges_of
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Source
from kpstore.store.format import status_name
from kpstore.store.store import BaseStore

_FEATURE = "keypoints"
_FRAMES, _COLUMNS = 8, 4


def keypoint_sheet(store: BaseStore, source: Source) -> NDArray[np.uint8]:
    """Return a sheet of eight frames, spread evenly over all done frames, with their keypoints.

    Parameters
    ----------
    source : the data set that the store was extracted from.

    Returns
    -------
    NDArray[np.uint8]
        (height, width, 3) uint8 RGB.
    """
    done = np.flatnonzero(np.asarray(store[status_name(_FEATURE)]) == State.DONE)
    if len(done) == 0:
        raise InvalidError(
            f"no frame of {_FEATURE!r} in {store.location} is done yet; nothing to draw"
        )
    rows = done[np.unique(np.linspace(0, len(done) - 1, _FRAMES).round().astype(np.int64))]
    edges = edges_of(store.feature(_FEATURE)) or None
    pictures: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for row, keypoints in zip(rows.tolist(), store.read(_FEATURE, rows), strict=True):
        picture, caption = _picture(store, source, row)
        pictures.append(draw_keypoints(picture, keypoints, edges=edges, legend=not pictures))
        captions.append(caption)
    return contact_sheet(pictures, _COLUMNS, captions)


def _picture(store: BaseStore, source: Source, row: int) -> tuple[NDArray[np.uint8], str]:
    position = int(store.index.video_of(np.array([row]))[0])
    video = store.video(store.index.ids[position])
    number = row - video.rows.start
    record = VideoRecord(video.id, video.split, tuple(video.image_paths))
    skip = frozenset(range(video.n_frames)) - {number}
    frame = next(
        item for n, item in enumerate(source.read_frames(record, skip=skip)) if n == number
    )
    if isinstance(frame, FrameError):
        raise InvalidError(
            f"the picture of frame {number} of {video.id!r} cannot be read any more: {frame.reason}"
        )
    return frame, f"{video.split} {number} of {video.id}"
