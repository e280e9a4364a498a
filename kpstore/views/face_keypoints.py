"""The 68 face points of frames, normalised: input and target of an auto-encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.statistics import Statistics, statistics
from kpstore.schema.layout import N_FACE, N_POINTS, PART_SLICES
from kpstore.store.store import BaseStore
from kpstore.views.base import (
    MISSING,
    Batch,
    Missing,
    Selection,
    Transform,
    as_indices,
    check_missing,
)
from kpstore.views.frames import FrameView
from kpstore.views.ranges import Range, as_range, extremes, span, to_unit

MissingFace = Missing | Literal["zeros"]
Normalize = (
    Literal["minmax", "frame", "train_minmax", "train_standard"]
    | Statistics
    | tuple[ArrayLike, ArrayLike]
    | None
)
_TRAIN = "train"

_MEASURED = ("minmax", "train_minmax", "train_standard")
_BLOCK_CHUNKS = 16


class FaceKeypointView(FrameView):
    """Faces: a sample is ``"keypoints"`` (68, 3) float32, x, y and z, and ``"row"``, the frame's place.

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
        refuses them; ``"zeros"`` keeps them as points at 0, 0, 0, which count for the range: so did
        the scripts that users' face models were trained with.
    """

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
        super().__init__(store, feature, missing=stored, transform=transform, **selection)
        self.fill = 0.0 if missing == "zeros" else None
        shape = store[feature].shape[1:]
        if shape not in ((N_POINTS, 3), (N_FACE, 3)):
            raise InvalidError(
                f"{feature!r} has rows of {shape}; face points need rows of (143, 3) or (68, 3)"
            )
        self.feature = feature
        self.normalize = normalize if normalize is None or isinstance(normalize, str) else "given"
        if isinstance(normalize, Statistics):
            normalize = _face_range(normalize)
        self._range: Range | None = as_range(normalize) if self.normalize == "given" else None
        if self.normalize not in (*_MEASURED, "frame", "given", None):
            raise InvalidError(
                f"normalize={normalize!r}: use 'minmax', 'frame', 'train_minmax', "
                "'train_standard', statistics of a store, (low, high) or None"
            )
        if stored != "nan":
            self._leave_out_faceless(stored)

    def _leave_out_faceless(self, missing: Missing) -> None:
        there = self._has_face()
        if missing == "error" and not there.all():
            row = self.rows[np.argmin(there)]
            video = self.store.index.ids[int(self.store.index.video_of(row))]
            raise NotFoundError(
                f"{int((~there).sum())} of {len(there)} frames have no face, the first in video "
                f"{video!r}; use missing='skip' to leave them out or missing='nan' to keep them"
            )
        self.rows = self.rows[there]

    def _has_face(self) -> NDArray[np.bool_]:
        """Return whether each of the view's frames has a face, (frames,) bool: by its mask, or else by its values."""
        names = self.store.feature(self.feature).labels.get("part", ())
        mask = self.store.detected(self.feature)
        if mask is not None and "face" in names:
            # The whole mask is a few bytes a frame: one long read beats many rows.
            return np.asarray(mask)[:, names.index("face")][self.rows]
        blocks = [np.isfinite(faces).any(axis=(1, 2)) for faces in self._iter_faces()]
        return np.concatenate([np.empty(0, dtype=bool), *blocks])

    def _iter_faces(self) -> Iterator[NDArray[np.float32]]:
        step = self.store[self.feature].chunk_rows * _BLOCK_CHUNKS
        for start in range(0, len(self.rows), step):
            yield self._read_faces(self.rows[start : start + step])

    def _read_faces(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        points = self.store.read(self.feature, rows)[:, PART_SLICES["face"]]
        faces = points.astype(
            np.float32
        )  # a copy without the other parts, which would be kept alive otherwise
        return faces if self.fill is None else np.nan_to_num(faces, copy=False, nan=self.fill)

    @property
    def range(self) -> Range:
        """What is mapped to 0 and to 1, of x, y and z, (3,) float32 each: the lowest and highest values.

        With ``"train_standard"`` they are the mean, and the mean and one deviation. For
        ``"minmax"`` the first use reads all the view's frames once; the result is kept, and pickled
        with the view.
        """
        if self._range is None:
            if self.normalize not in _MEASURED:
                raise InvalidError(
                    f"a view with normalize={self.normalize!r} has no range over all frames"
                )
            self._range = self._measure()
        return self._range

    def _measure(self) -> Range:
        if self.normalize != "minmax":
            return _face_range(
                statistics(self.store, self.feature, split=_TRAIN),
                standard=self.normalize == "train_standard",
            )
        return extremes(self._iter_faces(), f"none of the {len(self)} frames has a face to measure")

    def __getstate__(self) -> dict[str, Any]:
        # Measured before it travels: otherwise each worker process would read everything for
        # itself.
        if self.normalize in _MEASURED and len(self):
            self.range  # noqa: B018
        return dict(self.__dict__)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            ``"keypoints"`` (frames, 68, 3) float32, NaN where there is no face; ``"row"`` (frames,)
            int64; with ``normalize="frame"`` also ``"low"`` and ``"high"`` (frames, 3) float32.
        """
        rows = self.rows[as_indices(indices, len(self))]
        points = self._read_faces(rows)
        if self.normalize is None:
            return {"keypoints": points, "row": rows}
        if self.normalize == "frame":
            low, high = np.fmin.reduce(points, axis=1), np.fmax.reduce(points, axis=1)
            return {"keypoints": to_unit(points, low, high), "row": rows, "low": low, "high": high}
        if len(rows) == 0:
            return {
                "keypoints": points,
                "row": rows,
            }  # not worth measuring, and there may be nothing to measure
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
