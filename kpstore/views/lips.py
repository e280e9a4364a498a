"""Lip embeddings of whole utterances."""

from __future__ import annotations

from typing import Unpack

from kpstore.errors import InvalidError
from kpstore.schema.lips import LIP_FEATURE
from kpstore.store.store import BaseStore
from kpstore.views.base import Selection, Transform
from kpstore.views.missing import Missing
from kpstore.views.whole_videos import VideoView


class LipView(VideoView):
    """Utterances: a sample is ``"embedding"`` (T, 512) float32, ``"video_id"``, ``"n_frames"``, T.

    Batches are padded as in :class:`kpstore.views.whole_videos.VideoView`. Rows are frames; for a
    model that takes (512, T), such as IIANet, transpose them in ``transform``. Utterances without
    frames are left out.

    Parameters
    ----------
    feature : an array on the frame axis, a vector per frame.
    split, videos, where : only these; see :func:`kpstore.views.base.select_videos`.
    missing : what to do with utterances with a frame that failed or is not extracted yet.
        ``"error"`` refuses them; ``"skip"`` leaves them out; ``"nan"`` keeps them, with NaN.
    """

    def __init__(
        self,
        store: BaseStore,
        *,
        feature: str = LIP_FEATURE,
        missing: Missing = "error",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        super().__init__(store, feature, missing=missing, transform=transform, **selection)
        if len(store[feature].shape) != 2:
            raise InvalidError(
                f"{feature!r} has rows of {store[feature].shape[1:]}; embeddings need a vector per "
                "frame"
            )
        self.feature = feature

    def key(self, name: str) -> str:
        """Return ``"embedding"``, the key of every encoder's feature in samples."""
        return "embedding"
