"""Skeletons: keypoints and pictures of them, which are drawn when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kpstore.errors import InvalidError
from kpstore.render.raster import (
    PAPER,
    SkeletonStyle,
    StyleName,
    as_style,
    draw_skeletons,
    kpstore_style,
)
from kpstore.schema.feature import edges_of
from kpstore.schema.layout import N_POINTS
from kpstore.store.store import BaseStore
from kpstore.views.base import Batch, Selection, Transform, picked
from kpstore.views.missing import Missing
from kpstore.views.points import PointView
from kpstore.views.ranges import Normalizer, to_unit

Pixels = Literal["uint8", "float32"]


class SkeletonView(PointView):
    """Skeletons: a sample is ``"keypoints"`` (143, 3) float32, ``"image"`` and ``"row"``.

    The image is (1, size, size). Pictures are drawn for a whole batch at once and never stored.

    Parameters
    ----------
    feature : rows of (143, 3); x and y as fractions of width and height.
    size : of the pictures, in pixels.
    style : ``"kpstore"``, ``"phoenix"`` (as in the script that users' pictures come from), or your
        own; see :mod:`kpstore.render.raster`. ``"kpstore"`` joins points by the feature's edges.
    pixels : ``"float32"`` is 1 for paper and -1 for ink, as the trainers take them; ``"uint8"`` is
        255 and 0.
    fill : what missing points are in ``"keypoints"``; they are never drawn. 0 by default, as in
        users' present files; NaN keeps them apart from points at the corner.
    normalize : what becomes of ``"keypoints"``, never of pictures: None leaves fractions of the
        picture; ``"minmax"`` maps each coordinate to [0, 1] by its lowest and highest value over
        all points of the view's frames, missing ones counted as ``fill``, as in the scripts that
        users' models were trained with; ``(low, high)``, (3,) each, maps by values given.
    split, videos, where, missing : only frames of these; see
        :class:`kpstore.views.frames.FrameView`.
    """

    draws = True

    def __init__(
        self,
        store: BaseStore,
        *,
        feature: str = "keypoints",
        size: int = 256,
        style: StyleName | SkeletonStyle = "kpstore",
        pixels: Pixels = "float32",
        fill: float = 0.0,
        normalize: Literal["minmax"] | tuple[ArrayLike, ArrayLike] | None = None,
        missing: Missing = "skip",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        normalizer = Normalizer.of(normalize, ("minmax",), "(low, high)")
        super().__init__(
            store, feature, normalizer, fill, missing=missing, transform=transform, **selection
        )
        if store[feature].shape[1:] != (N_POINTS, 3):
            raise InvalidError(
                f"{feature!r} has rows of {store[feature].shape[1:]}; skeletons need rows of "
                f"({N_POINTS}, 3)"
            )
        if pixels not in ("uint8", "float32"):
            raise InvalidError(f"pixels={pixels!r}: use 'float32' or 'uint8'")
        self.size, self.pixels = size, pixels
        edges = edges_of(store.feature(feature))
        own = style == "kpstore"
        self.style = kpstore_style(size, edges or None) if own else as_style(style, size)
        # Refuses an impossible size or style now instead of in a worker.
        draw_skeletons(np.empty((0, N_POINTS, 3), dtype=np.float32), size, style=self.style)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            ``"keypoints"`` (frames, 143, 3) float32, ``"image"`` (frames, 1, size, size) of
            ``pixels``, ``"row"`` (frames,) int64.
        """
        rows = picked(self.row_runs, indices)
        keypoints = self.read_points(rows)
        image: NDArray[Any] = draw_skeletons(keypoints, self.size, style=self.style)[:, None]
        if self.pixels == "float32":
            image = image * np.float32(2 / PAPER)
            image -= 1  # in place: a second new array of this size would take longer than the sums
        keypoints = self.filled(keypoints)
        if self.normalize is not None and len(rows):
            keypoints = to_unit(keypoints, *self.range)
        return {"keypoints": keypoints, "image": image, "row": rows}
