"""Single frames of some features, for ``torch.utils.data.DataLoader`` or any other loop.

Needs no torch itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.store.store import BaseStore
from kpstore.views.base import (
    Batch,
    Missing,
    Transform,
    View,
    as_indices,
    feature_names,
    select_frames,
    select_videos,
)


class FrameView(View):
    """Frames: a sample is one row of each feature, and ``"row"``, its place on the frame axis.

    Parameters
    ----------
    features : arrays on the frame axis, such as ``"keypoints"`` or ``"keypoints_detected"``.
    split, videos, where : only frames of these; see :func:`kpstore.views.base.select_videos`.
    missing : ``"nan"`` keeps every frame, with NaN where a frame failed or is not extracted yet;
        ``"skip"`` leaves those frames out; ``"error"`` refuses them. A part that was looked for and
        not found is NaN in all three.
    """

    def __init__(
        self,
        store: BaseStore,
        features: str | Sequence[str],
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        where: str | Mapping[str, Any] | None = None,
        missing: Missing = "nan",
        transform: Transform | None = None,
    ) -> None:
        super().__init__(store, transform)
        self.features = feature_names(store, features)
        rows = store.index.rows_of(select_videos(store, split=split, videos=videos, where=where))
        self.rows: NDArray[np.int64] = select_frames(store, self.features, rows, missing)
        """(frames,) int64: the row of each sample on the store's frame axis."""

    @property
    def reads(self) -> list[str]:
        """Names of the arrays that batches are made from."""
        return self.features

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.store.location}: {len(self)} frames, {self.features}>"
        )

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64: the row of each sample."""
        return self.rows

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(samples,) int64: one frame each."""
        return np.ones(len(self), dtype=np.int64)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked: by feature (len(indices), *row shape), and ``"row"`` (len(indices),) int64."""
        rows = self.rows[as_indices(indices, len(self))]
        return {**{name: self.store.read(name, rows) for name in self.features}, "row": rows}
