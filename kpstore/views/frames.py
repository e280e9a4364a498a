"""Single frames of some features, for a PyTorch ``DataLoader`` or any other loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

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


class RowView(View):
    """A view in which each sample is one frame: a row of the store's frame axis."""

    rows: NDArray[np.int64]
    """(frames,) int64: the row of each sample on the store's frame axis."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64: the row of each sample."""
        return self.rows

    @property
    def are_frames(self) -> bool:
        """True: each sample is a single frame."""
        return True


class FrameView(RowView):
    """Frames: a sample is one row of each feature, and ``"row"``, its place on the frame axis.

    Parameters
    ----------
    features : arrays on the frame axis, such as ``"keypoints"`` or ``"keypoints_detected"``.
    split, videos, where : only frames of these; see :func:`kpstore.views.base.select_videos`.
    missing : ``"nan"`` keeps every frame, with NaN where a frame failed or is not extracted yet (of
        a feature whose type has no NaN, only together with its status); ``"skip"`` leaves those
        frames out; ``"error"`` refuses them. A part that was looked for and not found is NaN in all
        three.
    """

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
        rows = store.index.rows_of(select_videos(store, **selection))
        kept = keeps_runs(store, self.reads, rows, np.broadcast_to(np.int64(1), len(rows)), missing)
        self.rows = rows if kept.all() else rows[kept]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            By feature (frames, *row shape), NaN where missing; ``"row"`` (frames,) int64.
        """
        rows = picked(self.rows, indices)
        return {**{name: self.store.read(name, rows) for name in self.features}, "row": rows}
