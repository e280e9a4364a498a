"""Single frames of some features, for a PyTorch ``DataLoader`` or any other loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Unpack

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
from kpstore.views.missing import Missing, kept_rows
from kpstore.views.runs import Runs


class RowView(View):
    """A view in which each sample is one frame: a row of the store's frame axis."""

    _runs: Runs

    @property
    def row_runs(self) -> Runs:
        """The row of each sample on the store's frame axis, as runs that follow each other."""
        return self._runs

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(frames,) int64: the row of each sample on the store's frame axis; read-only.

        It is made when it is first asked for; :attr:`row_runs` takes less memory.
        """
        rows = self.row_runs.to_array()
        rows.flags.writeable = False
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "rows"}

    def __len__(self) -> int:
        return len(self.row_runs)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64: the row of each sample."""
        return self.rows

    def first_rows_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of some samples."""
        return self.row_runs[indices]

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
        positions = select_videos(store, **selection)
        first = store.index.offsets[positions]
        rows = Runs.between(first, first + store.index.n_frames[positions])
        self._runs = kept_rows(store, self.reads, rows, missing)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            By feature (frames, *row shape), NaN where missing; ``"row"`` (frames,) int64.
        """
        rows = picked(self.row_runs, indices)
        return {**{name: self.store.read(name, rows) for name in self.features}, "row": rows}
