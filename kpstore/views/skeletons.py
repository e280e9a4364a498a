"""Skeletons: keypoints and the picture that they draw, made on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from kpstore.schema.layout import N_POINTS
from kpstore.store.store import BaseStore
from kpstore.views.base import Batch, Missing, Selection, Transform, as_indices
from kpstore.views.frames import FrameView
from kpstore.views.ranges import Range, as_range, extremes, to_unit

Pixels = Literal["uint8", "float32"]


class SkeletonView(FrameView):
    """Skeletons: a sample is ``"keypoints"`` (143, 3) float32, ``"image"`` (1, size, size), and ``"row"``.

    Pictures are drawn for a whole batch at once and never stored.

    Parameters
    ----------
    feature : rows of (143, 3); x and y as fractions of width and height.
    size : of the pictures, in pixels.
    style : ``"kpstore"``, ``"phoenix"`` (as the script drew them that users' pictures come from),
        or your own; see :mod:`kpstore.render.raster`. ``"kpstore"`` joins the points of the face as
        the feature's own edges say.
    pixels : ``"float32"`` is 1 for paper and -1 for ink, as the trainers take them; ``"uint8"`` is
        255 and 0.
    fill : what missing points are in ``"keypoints"``; they are never drawn. 0 by default, as in
        users' present files; NaN keeps them apart from points at the corner.
    normalize : what becomes of ``"keypoints"``, never of pictures: None leaves fractions of the
        picture; ``"minmax"`` maps each coordinate to [0, 1] by its lowest and highest value over
        all points of the view's frames, missing ones as ``fill`` has them: so did the scripts that
        users' models were trained with; ``(low, high)``, (3,) each, does so by values given.
    split, videos, where, missing : only frames of these; see
        :class:`kpstore.views.frames.FrameView`.
    """

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
        super().__init__(store, feature, missing=missing, transform=transform, **selection)
        if store[feature].shape[1:] != (N_POINTS, 3):
            raise InvalidError(
                f"{feature!r} has rows of {store[feature].shape[1:]}; skeletons need ({N_POINTS}, "
                "3)"
            )
        if pixels not in ("uint8", "float32"):
            raise InvalidError(f"pixels={pixels!r}: use 'float32' or 'uint8'")
        self.feature, self.size, self.pixels, self.fill = feature, size, pixels, fill
        if isinstance(normalize, str) and normalize != "minmax":
            raise InvalidError(f"normalize={normalize!r}: use 'minmax', (low, high) or None")
        self.normalize: Literal["minmax", "given"] | None = (
            "minmax" if isinstance(normalize, str) else None
        )
        self._range: Range | None = None
        if normalize is not None and self.normalize is None:
            self.normalize, self._range = "given", as_range(normalize)
        edges = (
            tuple((int(a), int(b)) for a, b in store.feature(feature).attrs.get("edges", ()))
            or None
        )
        self.style = kpstore_style(size, edges) if style == "kpstore" else as_style(style, size)
        draw_skeletons(
            np.empty((0, N_POINTS, 3), dtype=np.float32), size, style=self.style
        )  # says now if it cannot

    @property
    def range(self) -> Range:
        """What is mapped to 0 and to 1, of x, y and z, (3,) float32 each.

        ``"minmax"`` reads all frames once.
        """
        if self._range is None:
            if self.normalize is None:
                raise InvalidError("a view with normalize=None has no range")
            self._range = extremes(
                self._iter_points(), f"none of the {len(self)} frames has a point to measure"
            )
        return self._range

    def _iter_points(self) -> Iterator[NDArray[np.float32]]:
        step = self.store[self.feature].chunk_rows
        for start in range(0, len(self.rows), step):
            yield self._filled(self.store.read(self.feature, self.rows[start : start + step]))

    def _filled(self, keypoints: NDArray[Any]) -> NDArray[np.float32]:
        points: NDArray[np.float32] = keypoints.astype(np.float32, copy=False)
        return points if np.isnan(self.fill) else np.nan_to_num(points, copy=False, nan=self.fill)

    def __getstate__(self) -> dict[str, Any]:
        # Measured before it travels: otherwise each worker process would read everything for
        # itself.
        if self.normalize is not None and len(self):
            self.range  # noqa: B018
        return dict(self.__dict__)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            ``"keypoints"`` (frames, 143, 3) float32, ``"image"`` (frames, 1, size, size) of
            ``pixels``, ``"row"`` (frames,) int64.
        """
        rows = self.rows[as_indices(indices, len(self))]
        keypoints = self.store.read(self.feature, rows).astype(np.float32, copy=False)
        image: NDArray[Any] = draw_skeletons(keypoints, self.size, style=self.style)[:, None]
        if self.pixels == "float32":
            image = image * np.float32(2 / PAPER)
            image -= 1  # in place: a second new array of this size would take longer than the sums
        keypoints = self._filled(keypoints)
        if self.normalize is not None and len(rows):
            keypoints = to_unit(keypoints, *self.range)
        return {"keypoints": keypoints, "image": image, "row": rows}
