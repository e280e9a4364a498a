"""Reads videos to compare processes: pixels of the first frame, and frames that are unreadable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Source


@dataclass(frozen=True)
class Look:
    """What one process can read of one video.

    Parameters
    ----------
    pixels : a hash of its first frame, and of its reference picture if it has one; ``""`` if either
        cannot be read.
    unread : frames that were tried and cannot be read.
    reason : the source's message about the first of them; ``""`` if it gave none.
    """

    pixels: str
    unread: frozenset[int]
    reason: str = ""


def unreadable(record: VideoRecord, reason: str = "") -> Look:
    """Return the look of a process that can read nothing of a video."""
    return Look("", frozenset(range(record.n_frames)), reason)


def look(source: Source, record: VideoRecord, *, whole: bool) -> Look:
    """Read a video's first frame, or all of them, and its reference picture."""
    try:
        return _look(source, record, whole)
    except Exception as error:  # whatever a reader raises
        return unreadable(record, f"{type(error).__name__}: {error}")


def _look(source: Source, record: VideoRecord, whole: bool) -> Look:
    read_reference = getattr(source, "read_reference", None)
    reference = None if read_reference is None else read_reference(record)
    if isinstance(reference, FrameError):
        return unreadable(record, reference.reason)
    pixels, reason = "", ""
    unread: set[int] = set()
    count = 0
    for frame in source.read_frames(record):
        if isinstance(frame, FrameError):
            unread.add(count)
            reason = reason or frame.reason
        elif count == 0:
            pixels = _hash(frame, reference)
        count += 1
        if not whole:
            break
    if whole and count != record.n_frames:
        return unreadable(
            record, f"the source gave {count} frames, it had announced {record.n_frames}"
        )
    return Look(pixels, frozenset(unread), reason)


def _hash(*pictures: NDArray[np.uint8] | None) -> str:
    seen = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        if picture is not None:
            seen.update(f"{picture.shape} {picture.dtype} ".encode())
            seen.update(np.ascontiguousarray(picture).tobytes())
    return seen.hexdigest()
