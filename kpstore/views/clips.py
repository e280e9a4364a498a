"""Clips: windows of consecutive frames that never leave their video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.fields import shown, whole_number
from kpstore.store.store import BaseStore
from kpstore.views.base import (
    Batch,
    Selection,
    Transform,
    View,
    feature_names,
    picked,
    select_videos,
)
from kpstore.views.missing import Missing, keeps_runs

Short = Literal["skip", "pad"]


class ClipView(View):
    """Clips: a sample is ``length`` consecutive rows of each feature.

    It also holds ``"row"``, the first of them, and ``"video"``, the position of its video.

    Parameters
    ----------
    features : arrays on the frame axis.
    length : frames per clip.
    stride : frames from the start of one clip to the start of the next in the same video;
        ``length`` by default, so that clips follow each other.
    short : what to do with frames at the end of a video that do not fill a clip, and with videos
        shorter than a clip. ``"skip"`` leaves them out; ``"pad"`` repeats the last frame, and every
        sample has ``"valid"`` (length,) bool, False for repeated frames.
    split, videos, where : only clips of these; see :func:`kpstore.views.base.select_videos`.
    missing : ``"nan"`` keeps every clip; ``"skip"`` leaves out those with a frame that failed or is
        not extracted yet; ``"error"`` refuses them.
    """

    def __init__(
        self,
        store: BaseStore,
        features: str | Sequence[str],
        length: int,
        stride: int | None = None,
        *,
        short: Short = "skip",
        missing: Missing = "nan",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        super().__init__(store, feature_names(store, features), transform)
        self.features = self.reads
        self.length, self.stride = _check_frames(length, length if stride is None else stride)
        self.short = short
        self.samples_are = f"clips of {self.length} frames every {self.stride}"
        positions = select_videos(store, **selection)
        first, n_frames = store.index.offsets[positions], store.index.n_frames[positions]
        starts = plan_clips(first, n_frames, self.length, self.stride, short)
        kept = keeps_runs(store, self.reads, starts, self._valid_lengths(starts), missing)
        self.starts: NDArray[np.int64] = starts[kept]
        """(clips,) int64: the row of each clip's first frame."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64: the row of each clip's first frame."""
        return self.starts

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(samples,) int64: frames of each clip without the padding."""
        return self._valid_lengths(self.starts)

    def _valid_lengths(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        index = self.store.index
        n_valid: NDArray[np.int64] = np.minimum(
            self.length, index.offsets[index.video_of(starts) + 1] - starts
        )
        return n_valid

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return clips stacked.

        Returns
        -------
        dict
            By feature (clips, length, *row shape), NaN where missing; ``"row"`` and ``"video"``
            (clips,) int64; with ``short="pad"`` also ``"valid"`` (clips, length) bool, False where
            the last frame is repeated.
        """
        starts = picked(self.starts, indices)
        n_valid = self._valid_lengths(starts)
        rows = clip_rows(starts, n_valid, self.length)
        batch: Batch = {}
        for name in self.features:
            values = self.store.read(name, rows.ravel())
            batch[name] = values.reshape(*rows.shape, *values.shape[1:])
        if self.short == "pad":
            batch["valid"] = np.arange(self.length) < n_valid[:, None]
        return {**batch, "row": starts, "video": self.store.index.video_of(starts)}


def plan_clips(
    first: NDArray[np.int64], n_frames: NDArray[np.int64], length: int, stride: int, short: Short
) -> NDArray[np.int64]:
    """Return the first row of every clip, video after video, (clips,) int64.

    Parameters
    ----------
    first, n_frames : (videos,) int64, the first row of each video and how many it has.
    length, stride, short : see :class:`ClipView`. With ``"pad"`` a video gets clips until its last
        frame is in one, or, where ``stride`` is greater than ``length``, until the next would start
        beyond it.

    Raises
    ------
    InvalidError
        If ``length`` or ``stride`` is not a positive int, or ``short`` is another word.
    """
    length, stride = _check_frames(length, stride)
    if short not in ("skip", "pad"):
        raise InvalidError(f"short={short!r}: use 'skip' or 'pad'")
    if short == "skip":
        n_clips = np.maximum(0, (n_frames - length) // stride + 1)
    else:
        until_covered = -(-np.maximum(0, n_frames - length) // stride) + 1
        n_clips = np.minimum(until_covered, -(-n_frames // stride))
    number = np.arange(int(n_clips.sum())) - np.repeat(np.cumsum(n_clips) - n_clips, n_clips)
    starts: NDArray[np.int64] = np.repeat(first, n_clips) + number * stride
    return starts


def _check_frames(length: object, stride: object) -> tuple[int, int]:
    """Return length and stride as int; :class:`InvalidError` unless both are positive."""
    given = {"length": length, "stride": stride}
    found = {what: whole_number(number) or 0 for what, number in given.items()}
    problems = [f"{what}={shown(given[what])}" for what, n in found.items() if not 1 <= n < 2**31]
    if problems:
        raise InvalidError(
            f"clips of {' and '.join(problems)}: use whole numbers of frames, at least 1"
        )
    return found["length"], found["stride"]


def clip_rows(
    starts: NDArray[np.int64], n_valid: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """Return the rows of clips, (clips, length) int64; the last valid row fills a short clip."""
    rows: NDArray[np.int64] = starts[:, None] + np.minimum(np.arange(length), n_valid[:, None] - 1)
    return rows
