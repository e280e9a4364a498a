"""The normalised 68 face points of frames, as an auto-encoder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kpstore.errors import InvalidError
from kpstore.inspect.statistics import Statistics, statistics
from kpstore.schema.layout import N_FACE, N_POINTS, PART_SLICES
from kpstore.store.store import BaseStore
from kpstore.views.base import Batch, Selection, Transform, picked
from kpstore.views.missing import MISSING, Missing, check_missing, refuse_missing
from kpstore.views.points import PointView
from kpstore.views.ranges import Normalizer, Range, as_range, span, to_unit
from kpstore.views.runs import Runs

MissingFace = Missing | Literal["zeros"]
Normalize = (
    Literal["minmax", "frame", "train_minmax", "train_standard"]
    | Statistics
    | tuple[ArrayLike, ArrayLike]
    | None
)
_TRAIN = "train"
_WORDS = ("minmax", "frame", "train_minmax", "train_standard")


class FaceKeypointView(PointView):
    """Faces: a sample is ``"keypoints"`` (68, 3) float32, x, y and z, and ``"row"``, its frame.

    Parameters
    ----------
    feature : rows of (143, 3), of which the first 68 are the face, or of (68, 3).
    normalize : ``"minmax"`` maps each coordinate to [0, 1] by its lowest and highest value over all
        the view's frames, see :attr:`range`; ``(low, high)``, (3,) each, does so by values given,
        such as the range of the training frames, and what lies beyond them lands outside [0, 1];
        ``"frame"`` maps by each frame's own box, which samples then hold as ``"low"`` and
        ``"high"`` (3,) float32; None leaves the stored values. ``"train_minmax"`` is ``"minmax"``
        by the store's statistics of all detected faces of the split ``train``, whatever the view
        shows, and ``"train_standard"`` takes off their mean and divides by their deviation;
        :class:`Statistics` of other videos, ``store.statistics("keypoints", split=…)``, map their
        lowest and highest values to [0, 1].
    split, videos, where : only frames of these; see :func:`kpstore.views.base.select_videos`.
    missing : ``"skip"`` leaves out frames without a face, and those that failed or are not
        extracted yet; ``"nan"`` keeps them, all NaN, which never becomes a number; ``"error"``
        refuses them; ``"zeros"`` keeps them as points at 0, 0, 0, which count for the range, as in
        the scripts that users' face models were trained with.
    """

    points = PART_SLICES["face"]
    what = "face"

    def __init__(
        self,
        store: BaseStore,
        *,
        feature: str = "keypoints",
        normalize: Normalize = "minmax",
        missing: MissingFace = "skip",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        check_missing(missing, (*MISSING, "zeros"))
        stored: Missing = "nan" if missing == "zeros" else missing
        if isinstance(normalize, Statistics):
            normalize = _face_range(normalize)
        normalizer = Normalizer.of(normalize, _WORDS, "statistics of a store, (low, high)")
        fill = 0.0 if missing == "zeros" else np.nan
        super().__init__(
            store, feature, normalizer, fill, missing=stored, transform=transform, **selection
        )
        shape = store[feature].shape[1:]
        if shape not in ((N_POINTS, 3), (N_FACE, 3)):
            raise InvalidError(
                f"{feature!r} has rows of {shape}; face points need rows of (143, 3) or (68, 3)"
            )
        if stored != "nan":
            rows = self.row_runs.to_array()
            there = self._has_face(rows)
            if stored == "error":
                refuse_missing(store, rows, there, "have no face")
            self._runs = Runs.of(rows[there])

    def _has_face(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the view's rows have a face, by mask or else by values, (rows,) bool."""
        names = self.store.feature(self.feature).labels.get("part", ())
        mask = self.store.detected(self.feature)
        if mask is not None and "face" in names:
            # The whole mask is a few bytes a frame: one long read beats many rows.
            return np.asarray(mask)[:, names.index("face")][rows]
        blocks = [np.isfinite(faces).any(axis=(1, 2)) for faces in self._iter_points()]
        return np.concatenate([np.empty(0, dtype=bool), *blocks])

    def _measure(self) -> Range:
        if self.normalize == "minmax":
            return super()._measure()
        measured = statistics(self.store, self.feature, split=_TRAIN)
        return _face_range(measured, standard=self.normalize == "train_standard")

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            ``"keypoints"`` (frames, 68, 3) float32, NaN where there is no face; ``"row"`` (frames,)
            int64; with ``normalize="frame"`` also ``"low"`` and ``"high"`` (frames, 3) float32.
        """
        rows = picked(self.row_runs, indices)
        points = self.filled(self.read_points(rows))
        # Of no rows there is nothing to map, and perhaps nothing to measure.
        if self.normalize is None or (self.normalize != "frame" and len(rows) == 0):
            return {"keypoints": points, "row": rows}
        if self.normalize == "frame":
            low, high = np.fmin.reduce(points, axis=1), np.fmax.reduce(points, axis=1)
            return {"keypoints": to_unit(points, low, high), "row": rows, "low": low, "high": high}
        return {"keypoints": to_unit(points, *self.range), "row": rows}

    def denormalize(
        self,
        keypoints: NDArray[Any],
        *,
        low: NDArray[Any] | None = None,
        high: NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Return normalised points as they are in the store, (…, points, 3) float32.

        Parameters
        ----------
        keypoints : (…, points, 3), such as a model's output.
        low, high : (…, 3), a sample's or a batch's own; needed for ``normalize="frame"`` and only
            there.
        """
        points = np.asarray(keypoints, dtype=np.float32)
        if (low is None) != (self.normalize != "frame") or (high is None) != (low is None):
            raise InvalidError(
                "denormalize() needs low= and high= of the samples for normalize='frame', and only "
                "then"
            )
        if self.normalize is None:
            return points
        lowest, highest = self.range if low is None or high is None else (low, high)
        restored: NDArray[np.float32] = (
            points * span(lowest, highest)[..., None, :] + lowest[..., None, :]
        )
        return restored


def _face_range(measured: Statistics, *, standard: bool = False) -> Range:
    if len(measured.columns) != 3:
        raise InvalidError(
            f"{measured!r} has {len(measured.columns)} columns; face points need x, y and z"
        )
    part = None if len(measured.parts) == 1 else "face"
    if not standard:
        return as_range(measured.range(part))
    mean, deviation = measured.standard(part)
    return as_range((mean, mean + deviation))
