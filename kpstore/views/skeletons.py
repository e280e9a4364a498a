"""Skeletons: keypoints and the picture that they draw, made on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.render.raster import PAPER, SkeletonStyle, StyleName, as_style, draw_skeletons, kpstore_style
from kpstore.schema.layout import N_POINTS
from kpstore.store.store import Store
from kpstore.views.base import Batch, Missing, Selection, Transform, as_indices
from kpstore.views.frames import FrameView

Pixels = Literal["uint8", "float32"]


class SkeletonView(FrameView):
    """Skeletons: a sample is ``"keypoints"`` (143, 3) float32, ``"image"`` (1, size, size), and ``"row"``.

    Pictures are drawn for a whole batch at once and never stored.

    Parameters
    ----------
    feature : rows of (143, 3); x and y as fractions of width and height.
    size : of the pictures, in pixels.
    style : ``"kpstore"``, ``"phoenix"`` (as the script drew them that users' pictures come from), or your own; see
        :mod:`kpstore.render.raster`. ``"kpstore"`` joins the points of the face as the feature's own edges say.
    pixels : ``"float32"`` is 1 for paper and -1 for ink, as the trainers take them; ``"uint8"`` is 255 and 0.
    fill : what missing points are in ``"keypoints"``; they are never drawn. 0 by default, as in users' present files;
        NaN keeps them apart from points at the corner.
    split, videos, where, missing : only frames of these; see :class:`kpstore.views.frames.FrameView`.
    """

    def __init__(
        self,
        store: Store,
        *,
        feature: str = "keypoints",
        size: int = 256,
        style: StyleName | SkeletonStyle = "kpstore",
        pixels: Pixels = "float32",
        fill: float = 0.0,
        missing: Missing = "skip",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        super().__init__(store, feature, missing=missing, transform=transform, **selection)
        if store[feature].shape[1:] != (N_POINTS, 3):
            raise InvalidError(f"{feature!r} has rows of {store[feature].shape[1:]}; skeletons need ({N_POINTS}, 3)")
        if pixels not in ("uint8", "float32"):
            raise InvalidError(f"pixels={pixels!r}: use 'float32' or 'uint8'")
        self.feature, self.size, self.pixels, self.fill = feature, size, pixels, fill
        edges = tuple((int(a), int(b)) for a, b in store.feature(feature).attrs.get("edges", ())) or None
        self.style = kpstore_style(size, edges) if style == "kpstore" else as_style(style, size)
        draw_skeletons(np.empty((0, N_POINTS, 3), dtype=np.float32), size, style=self.style)  # says now if it cannot

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            ``"keypoints"`` (frames, 143, 3) float32, ``"image"`` (frames, 1, size, size) of ``pixels``, ``"row"``
            (frames,) int64.
        """
        rows = self.rows[as_indices(indices, len(self))]
        keypoints = self.store.read(self.feature, rows).astype(np.float32, copy=False)
        image: NDArray[Any] = draw_skeletons(keypoints, self.size, style=self.style)[:, None]
        if self.pixels == "float32":
            image = image * np.float32(2 / PAPER)
            image -= 1  # in place: a second new array of this size would take longer than the sums
        if not np.isnan(self.fill):
            np.nan_to_num(keypoints, copy=False, nan=self.fill)
        return {"keypoints": keypoints, "image": image, "row": rows}
