"""The videos of a store and the rows of their frames: a CF contiguous ragged array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import CorruptError, InvalidError, NotFoundError
from kpstore.schema import video_fields
from kpstore.schema.fields import Fits, fit_fields, sequence, shown

_FIT: Fits = {
    "id": video_fields.id_of,
    "split": video_fields.text_of,
    "frame_paths": video_fields.paths_of,
    "fps": video_fields.fps_of,
    "width": video_fields.pixels_of,
    "height": video_fields.pixels_of,
    "annotations": video_fields.annotations_of,
}


@dataclass(frozen=True)
class VideoRecord:
    """One video as a source lists it and a store's index keeps it.

    Cells of a table may be given unchanged. In columns of text, numbers and dates become text, and
    None, NaN and pandas' NA become ``""``. In other columns, these mean unknown.

    Parameters
    ----------
    id : text that is unique in the data set, stored exactly as given. Ids from sources contain
        forward slashes only.
    split : ``"train"``, ``"dev"``, …; ``""`` if the data set has no splits.
    frame_paths : one path per frame, relative to the data set's root, with forward slashes; frames
        of a video file are ``"clip.mp4#0"``, ``"clip.mp4#1"``, ….
    fps : frames per second, above 0 and up to 100,000; NaN if unknown.
    width, height : size of an upright frame in pixels; 0 if unknown.
    annotations : text by column, such as speaker, gloss or text.

    Raises
    ------
    InvalidError
        For any other value; the message names the video and the column.
    """

    id: str
    split: str
    frame_paths: tuple[str, ...]
    fps: float = float("nan")
    width: int = 0
    height: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fit_fields(
            self,
            _FIT,
            lambda column: "video id" if column == "id" else f"video {self.id!r}, {column}",
        )

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.frame_paths)


@dataclass(frozen=True)
class VideoIndex:
    """Videos in storage order, and the rows of the frame axis that each one holds.

    Parameters
    ----------
    ids : (videos,) object array of str, unique.
    splits : (videos,) object array of str.
    n_frames : (videos,) int64, frames per video; the rows of a video follow those of the video
        before it.
    """

    ids: NDArray[np.object_]
    splits: NDArray[np.object_]
    n_frames: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.splits) == len(self.n_frames):
            raise CorruptError(
                f"the video index has {len(self.ids)} ids, {len(self.splits)} splits and "
                f"{len(self.n_frames)} lengths"
            )
        if len(self.n_frames) and self.n_frames.min() < 0:
            raise CorruptError("the video index holds a negative number of frames")
        if len(self._positions) != len(self.ids):
            raise CorruptError("the video index holds the same id twice")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"VideoIndex({len(self)} videos, {self.total_frames} frames)"

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {video_id: position for position, video_id in enumerate(self.ids.tolist())}

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(videos + 1,) int64: video ``i`` holds rows ``offsets[i]`` to ``offsets[i + 1]``."""
        return np.concatenate([[0], np.cumsum(self.n_frames)]).astype(np.int64)

    @property
    def total_frames(self) -> int:
        """Length of the frame axis."""
        return int(self.offsets[-1])

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._positions

    def with_videos(self, videos: Sequence[VideoRecord]) -> VideoIndex:
        """Return the list with some videos after its last."""
        ids = np.array([video.id for video in videos], dtype=object)
        splits = np.array([video.split for video in videos], dtype=object)
        n_frames = np.array([video.n_frames for video in videos], dtype=np.int64)
        return VideoIndex(
            np.concatenate([self.ids, ids]),
            np.concatenate([self.splits, splits]),
            np.concatenate([self.n_frames, n_frames]),
        )

    def position(self, video_id: str) -> int:
        """Return a video's position in storage order; :class:`NotFoundError` names similar ids."""
        try:
            return self._positions[video_id]
        except (KeyError, TypeError):  # what is no text may not even be hashable
            hint = nearest(video_id, self._positions) or f"there are {len(self)} videos"
            raise NotFoundError(f"video {shown(video_id)} not found; {hint}") from None

    def rows(self, position: int) -> slice:
        """Return the rows of the video at ``position``."""
        return slice(int(self.offsets[position]), int(self.offsets[position + 1]))

    def video_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of the video that holds each row, in the shape of ``rows``."""
        found = np.searchsorted(self.offsets, rows, side="right")
        found -= 1
        return found.astype(np.int64, copy=False)

    def split_names(self) -> list[str]:
        """Return the splits in order of first appearance."""
        return list(dict.fromkeys(self.splits.tolist()))

    def select(
        self, *, split: str | Sequence[str] | None = None, videos: Iterable[str] | None = None
    ) -> NDArray[np.int64]:
        """Return positions of videos, in storage order, or in the given order of ``videos``.

        Raises
        ------
        NotFoundError
            If a split or a video does not exist; the message lists the splits or similar ids.
        InvalidError
            If a video is named twice: its frames would count twice.
        """
        chosen = np.arange(len(self))
        if videos is not None:
            ids = sequence(videos, "ids")
            chosen = np.array([self.position(video_id) for video_id in ids], dtype=np.int64)
            named, counts = np.unique(chosen, return_counts=True)
            if (counts > 1).any():
                twice = self.ids[named[np.argmax(counts > 1)]]
                raise InvalidError(f"videos= names {twice!r} twice; name each video once")
        if split is not None:
            # Of videos the order counts, which a set has not; of splits it does not.
            several = list(split) if isinstance(split, set | frozenset) else split
            wanted = [split] if isinstance(split, str) else sequence(several, "names of splits")
            known = self.split_names()
            unknown = [name for name in wanted if not isinstance(name, str) or name not in known]
            if unknown:
                raise NotFoundError(f"split {shown(unknown[0])} not found; there are {known}")
            chosen = chosen[np.isin(self.splits[chosen].astype(str), wanted)]
        return chosen.astype(np.int64)

    def rows_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all rows of the videos at ``positions``, in that order, (frames,) int64."""
        if len(positions) and _follow(positions):  # as in a view of everything
            return np.arange(self.offsets[positions[0]], self.offsets[positions[-1] + 1])
        lengths = self.n_frames[positions]
        # How far the rows of each video lie from their places in the result.
        rows = np.repeat(self.offsets[positions] - (np.cumsum(lengths) - lengths), lengths)
        rows += np.arange(len(rows))
        return rows.astype(np.int64, copy=False)


def nearest(name: object, names: Iterable[str]) -> str:
    """Return a question that suggests similar names; ``""`` if no name is similar.

    Of more than 100,000 names none is suggested, as comparing them would take seconds.
    """
    known = list(names)
    near = get_close_matches(str(name), known, n=3) if len(known) <= 100_000 else []
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each number once, in ascending order.

    As ``numpy.unique``, whose first call in a process takes 15 ms, as it imports ``numpy.ma``.
    """
    ordered = np.sort(numbers)
    is_first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return ordered[is_first]


def _follow(numbers: NDArray[np.int64]) -> bool:
    """Return whether each number is one more than the number before it."""
    return bool((np.diff(numbers) == 1).all())


def all_within(numbers: NDArray[np.int64], length: int) -> bool:
    """Return whether all numbers, (numbers,) int64, are from 0 to ``length - 1``."""
    # As unsigned numbers, negative ones are the greatest, so one pass is enough.
    return numbers.size == 0 or int(np.maximum.reduce(numbers.view(np.uint64))) < length
