"""Single frames of some features, for ``torch.utils.data.DataLoader`` or any other loop; needs no torch itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import State
from kpstore.store.format import status_name
from kpstore.store.store import Store

Missing = Literal["nan", "skip"]
Sample = dict[str, Any]


class FrameView:
    """Frames as a map-style data set: ``view[i]`` is a dict of arrays, ``view.__getitems__([…])`` reads a whole batch.

    A DataLoader asks for a whole batch through ``__getitems__``, so that a batch costs one planned read and not one per
    frame. The view pickles as (location, snapshot, selection) and opens the store anew in every worker process.

    Parameters
    ----------
    store : the version to read from.
    features : arrays on the frame axis, such as ``"keypoints"`` or ``"keypoints_detected"``.
    split, videos : only frames of these; all by default.
    missing : ``"nan"`` keeps every frame, with NaN where a frame failed or is not extracted yet;
        ``"skip"`` leaves those frames out. A part that was looked for and not found is NaN in both.
    transform : applied to each sample.
    """

    def __init__(
        self,
        store: Store,
        features: str | Sequence[str],
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        missing: Missing = "nan",
        transform: Callable[[Sample], Any] | None = None,
    ) -> None:
        self.store, self.transform = store, transform
        self.features = [features] if isinstance(features, str) else list(features)
        if missing not in ("nan", "skip"):
            raise InvalidError(f"missing={missing!r}: use 'nan' or 'skip'")
        for name in self.features:
            if store[name].dims[0] != "frame":
                raise InvalidError(f"{name!r} lies on the axis {store[name].dims[0]!r}, a frame view needs 'frame'")
        self.rows: NDArray[np.int64] = store.index.rows_of(store.index.select(split=split, videos=videos))
        """(frames,) int64: the row of each sample on the store's frame axis."""
        if missing == "skip":
            for feature in {_feature_of(store, name) for name in self.features} - {None}:
                status = np.asarray(store[status_name(str(feature))])
                self.rows = self.rows[status[self.rows] == State.DONE]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<FrameView of {self.store.location}: {len(self)} frames, {self.features}>"

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} asked for; the view has {len(self)}")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return samples; each is a dict of one row per feature, and ``"row"``, its place on the frame axis."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        blocks = {name: self.store.read(name, rows) for name in self.features}
        samples = [
            {**{name: block[i] for name, block in blocks.items()}, "row": int(row)} for i, row in enumerate(rows)
        ]
        return samples if self.transform is None else [self.transform(sample) for sample in samples]


def _feature_of(store: Store, array: str) -> str | None:
    """Return the feature that an array is the values or a companion of."""
    return next((name for name, stored in store.features.items() if array in stored.spec.arrays), None)
