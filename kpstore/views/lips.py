"""Lip embeddings of whole utterances; those not there yet can be computed on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.lips import LIP_FEATURE
from kpstore.store.store import Store
from kpstore.views.base import MISSING, Missing, Selection, Transform, check_missing, runs_usable, usable_frames
from kpstore.views.whole_videos import VideoView

Compute = Callable[[str], NDArray[Any]]
"""Takes a video id, returns its embedding (T, D)."""


class LipView(VideoView):
    """Utterances: a sample is ``"embedding"`` (T, 512) float32, ``"video_id"`` and ``"n_frames"``, which is T.

    A batch is padded as :class:`kpstore.views.whole_videos.VideoView` does.

    Rows are frames; a model that takes (512, T), as IIANet does, transposes them in ``transform``. Utterances without
    frames are left out.

    Parameters
    ----------
    feature : an array on the frame axis, a vector per frame.
    split, videos, where : only these; see :func:`kpstore.views.base.select_videos`.
    missing : what becomes of utterances with a frame that failed or is not extracted yet. ``"error"`` refuses them;
        ``"skip"`` leaves them out; ``"nan"`` keeps them, with NaN; ``"compute"`` calls ``compute``.
    compute : for ``missing="compute"``: takes a video id and returns (T, 512), each time that utterance is asked for;
        nothing is stored. Worker processes need one that pickles.
    """

    def __init__(
        self,
        store: Store,
        *,
        feature: str = LIP_FEATURE,
        missing: Missing | Literal["compute"] = "error",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        check_missing(missing, (*MISSING, "compute"))
        if (compute is None) != (missing != "compute"):
            raise InvalidError(f"missing={missing!r}, compute={compute!r}: missing='compute' and compute= go together")
        stored: Missing = "nan" if missing == "compute" else missing
        super().__init__(store, feature, missing=stored, transform=transform, **selection)
        if len(store[feature].shape) != 2:
            raise InvalidError(f"{feature!r} has rows of {store[feature].shape[1:]}; embeddings are a vector per frame")
        self.feature, self.compute = feature, compute
        self.computed: NDArray[np.bool_] = np.zeros(len(store.index), dtype=bool)
        """(videos of the store,) bool: which ones are computed on the way."""
        if compute is not None:
            starts, n_frames = store.index.offsets[:-1], store.index.n_frames
            self.computed = ~runs_usable(usable_frames(store, self.features), starts, n_frames)

    def key(self, name: str) -> str:
        """Return what samples call the feature: ``"embedding"``, whatever encoder it is from."""
        return "embedding"

    def read_videos(self, name: str, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return all rows of some utterances, one after the other, (frames, 512): read, or computed."""
        missing = self.computed[positions]
        if not missing.any():
            return super().read_videos(name, positions)
        index, array = self.store.index, self.store[name]
        n_frames = index.n_frames[positions]
        read = np.repeat(~missing, n_frames)
        rows = np.empty((len(read), *array.shape[1:]), dtype=array.dtype)
        rows[read] = super().read_videos(name, positions[~missing])
        ends = np.cumsum(n_frames)
        for i in np.flatnonzero(missing):
            rows[ends[i] - n_frames[i] : ends[i]] = self._computed(str(index.ids[positions[i]]), int(n_frames[i]))
        return rows

    def _computed(self, video_id: str, n_frames: int) -> NDArray[Any]:
        assert self.compute is not None
        embedding = np.asarray(self.compute(video_id))
        wanted = (n_frames, *self.store[self.feature].shape[1:])
        if embedding.shape != wanted:
            raise InvalidError(f"compute({video_id!r}) returned {embedding.shape}, this utterance needs {wanted}")
        return embedding
