"""What users give to a transaction: made to fit, or refused in one line before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import State
from kpstore.schema.fields import mapping, sequence, shown, whole_number
from kpstore.schema.index import VideoRecord

T = TypeVar("T")


def fitted(what: str, fit: Callable[[object], T], value: object) -> T:
    """Return a value as a store keeps it; an error says what it was given as."""
    try:
        return fit(value)
    except InvalidError as error:
        raise InvalidError(f"{what}: {error}") from None


def instance(value: object, kind: type[T]) -> T:
    """Return a value of a class of kpstore's; :class:`InvalidError` for anything else."""
    if not isinstance(value, kind):
        raise InvalidError(f"{shown(value)} is no {kind.__name__}; give a kpstore.{kind.__name__}")
    return value


def video_records(videos: object) -> tuple[VideoRecord, ...]:
    """Return a sequence of videos."""
    return tuple(instance(video, VideoRecord) for video in sequence(videos, "videos"))


def splits_by_id(splits: object) -> Mapping[str, str]:
    """Return splits by video id, whose names can be typed again."""
    given = mapping(splits, "splits by video id")
    for video_id, split in given.items():
        if not isinstance(split, str) or split != split.strip() or not split.isprintable():
            raise InvalidError(
                f"split {shown(split)} of video {shown(video_id)}: use printable text without "
                "spaces around it"
            )
    return given


def one_row(values: Any) -> Any:
    """Return one row as rows; arrays and tensors keep their type, masked arrays their masks."""
    # What has no such method, as pandas' Series, takes None for a label.
    return values[None] if hasattr(values, "reshape") else [values]


def failed_frames(failed: object, video_id: str, n_frames: int) -> dict[int, str]:
    """Return reasons by number of the frames of a video that failed."""
    given = {} if failed is None else mapping(failed, "reasons by frame number")
    for frame in given:
        if whole_number(frame) is None or not 0 <= frame < n_frames:
            raise InvalidError(
                f"failed frame {shown(frame)} of video {video_id!r}: it has frames 0 to "
                f"{n_frames - 1}"
            )
    return {int(frame): reason for frame, reason in given.items()}


def first_row(feature: str, start: object, n_rows: int, n_all: int) -> int:
    """Return the row of a feature on which a run of rows begins."""
    first = whole_number(start)
    if first is None or not 0 <= first <= n_all - n_rows:
        raise InvalidError(
            f"feature {feature!r} has rows 0 to {n_all}, {n_rows} were given for row "
            f"{shown(start)} on"
        )
    return first


def row_states(feature: str, states: object, n_rows: int) -> NDArray[np.uint8]:
    """Return a :class:`State` for each row, (rows,) uint8."""
    given = np.asarray(states)
    is_whole = given.shape == (n_rows,) and given.dtype.kind in "iu"
    if not is_whole or not np.isin(given, list(State)).all():
        known = [int(state) for state in State]
        raise InvalidError(f"feature {feature!r}: one state of {known} is needed for each row")
    return given.astype(np.uint8)
