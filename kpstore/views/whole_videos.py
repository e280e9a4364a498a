"""Whole videos of any length; batches are padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from kpstore.store.store import BaseStore
from kpstore.views.base import (
    Batch,
    Sample,
    Selection,
    Transform,
    View,
    feature_names,
    picked,
    select_videos,
)
from kpstore.views.missing import Missing, keeps_runs


class VideoView(View):
    """Videos: a sample is all T rows of each feature, ``"video_id"``, and ``"n_frames"``, T.

    Videos without frames are left out.

    Parameters
    ----------
    features : arrays on the frame axis.
    split, videos, where : only these; see :func:`kpstore.views.base.select_videos`.
    missing : ``"nan"`` keeps every video; ``"skip"`` leaves out those with a frame that failed or
        is not extracted yet; ``"error"`` refuses them.
    """

    samples_are = "videos"

    def __init__(
        self,
        store: BaseStore,
        features: str | Sequence[str],
        *,
        missing: Missing = "nan",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        super().__init__(store, feature_names(store, features), transform)
        self.features = self.reads
        chosen = select_videos(store, **selection)
        self.positions: NDArray[np.int64] = chosen[store.index.n_frames[chosen] > 0]
        """(videos,) int64: the place of each sample among the store's videos."""
        kept = keeps_runs(store, self.reads, self.first_rows, self.lengths, missing)
        self.positions = self.positions[kept]

    def batches(self, parts: Sequence[NDArray[np.int64]]) -> list[Batch]:
        """Return several batches, each padded to its own longest video."""
        return [self.batch(part) for part in parts]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64: the row of each video's first frame."""
        return self.store.index.offsets[self.positions]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(samples,) int64: frames of each video."""
        return self.store.index.n_frames[self.positions]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return videos stacked, padded to the longest of them.

        Returns
        -------
        dict
            By feature (videos, frames, *row shape), with NaN (0, False or ``""`` where the type has
            no NaN) after a video's end; ``"valid"`` (videos, frames) bool, False there;
            ``"n_frames"`` (videos,) int64; ``"video_id"`` (videos,) object, of str.
        """
        positions = picked(self.positions, indices)
        n_frames = self.store.index.n_frames[positions]
        valid = np.arange(n_frames.max(initial=0)) < n_frames[:, None]
        padded = {
            self.key(name): pad(self.read_videos(name, positions), valid) for name in self.features
        }
        return {
            **padded,
            "valid": valid,
            "n_frames": n_frames,
            "video_id": self.store.index.ids[positions],
        }

    def key(self, name: str) -> str:
        """Return the key of an array in samples."""
        return name

    def read_videos(self, name: str, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return all rows of some videos, video after video, (frames, *row shape)."""
        return self.store.read(name, self.store.index.rows_of(positions))

    def samples(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return videos one by one, without padding and ``"valid"``."""
        positions = picked(self.positions, indices)
        n_frames = self.store.index.n_frames[positions]
        ends = np.cumsum(n_frames)[:-1]
        rows = {
            self.key(name): np.split(self.read_videos(name, positions), ends)
            for name in self.features
        }
        ids = self.store.index.ids[positions]
        return [
            {
                **{name: parts[i] for name, parts in rows.items()},
                "n_frames": n,
                "video_id": video_id,
            }
            for i, (n, video_id) in enumerate(zip(n_frames, ids, strict=True))
        ]


def pad(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """Return runs of rows of different lengths as one array, (runs, longest, *row shape).

    Parameters
    ----------
    values : (rows, …), run after run.
    valid : (runs, longest) bool, True for as many as each run is long.
    """
    fill = {"f": np.nan, "O": ""}.get(values.dtype.kind, 0)
    padded = np.full((*valid.shape, *values.shape[1:]), fill, dtype=values.dtype)
    padded[valid] = values
    return padded
