"""What a process sees of a source: pixels of the first frame, and which frames it cannot read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Source


@dataclass(frozen=True)
class Look:
    """What one process saw of one video.

    Parameters
    ----------
    pixels : a hash of its first frame, and of its reference picture if it has one; ``""`` if either
        cannot be read.
    unread : which of the frames that were looked at cannot be read.
    reason : what the source said of the first that could not be read, if it said anything.
    """

    pixels: str
    unread: frozenset[int]
    reason: str = ""


def unreadable(record: VideoRecord, reason: str = "") -> Look:
    """Return what a process sees that can read nothing of a video."""
    return Look("", frozenset(range(record.n_frames)), reason)


def look(source: Source, record: VideoRecord, *, whole: bool) -> Look:
    """Read a video's first frame, or all of them, and its reference picture."""
    try:
        return _look(source, record, whole)
    except Exception as error:  # whatever a reader raises, that is what this process sees
        return unreadable(record, f"{type(error).__name__}: {error}")


def _look(source: Source, record: VideoRecord, whole: bool) -> Look:
    read_reference = getattr(source, "read_reference", None)
    reference: NDArray[np.uint8] | FrameError | None = (
        None if read_reference is None else read_reference(record)
    )
    if isinstance(reference, FrameError):
        return unreadable(record, reference.reason)
    seen = hashlib.blake2b(digest_size=16)
    pixels, reason = "", ""
    unread: set[int] = set()
    count = 0
    for number, frame in enumerate(source.read_frames(record)):
        count += 1
        if isinstance(frame, FrameError):
            unread.add(number)
            reason = reason or frame.reason
        elif number == 0:
            for picture in (frame, reference):
                if picture is not None:
                    seen.update(f"{picture.shape} {picture.dtype} ".encode())
                    seen.update(np.ascontiguousarray(picture).tobytes())
            pixels = seen.hexdigest()
        if not whole:
            break
    if whole and count != record.n_frames:
        return unreadable(
            record, f"the source gave {count} frames, it had announced {record.n_frames}"
        )
    return Look(pixels, frozenset(unread), reason)
