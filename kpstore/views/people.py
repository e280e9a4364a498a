"""Frames of a person paired with that person's frontal face, for training a face model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MismatchError, NotFoundError
from kpstore.schema.feature import State
from kpstore.store.format import state_name
from kpstore.store.store import BaseStore
from kpstore.views.base import Batch, Selection, Transform, feature_of, picked, select_videos
from kpstore.views.frames import RowView
from kpstore.views.missing import Missing, check_missing, refuse_missing, usable_frames
from kpstore.views.runs import Runs

ANGLES = "spherical_angles"
MEAN_ANGLE = "avg_angle"


class FaceView(RowView):
    """Faces of persons, one video per person: a sample is one frame and its target.

    A sample holds ``"input_features"`` (D,), the frame's DINOv2; ``"position_encoding"`` (5,), its
    signed angles in degrees from the frontal face; ``"target_features"`` (D,), the person's frontal
    face; ``"row"`` and ``"video"``.

    Parameters
    ----------
    expect_model : the frames' feature, such as ``"dinov2_vitb14"``; the only ``dinov2_*`` of the
        store by default.
    target : the array to learn: a feature of videos, or of frames. ``"face_"`` and the frames'
        feature by default, or else ``"face_features"``.
    min_angle, max_angle : only frames whose ``avg_angle`` is, by its size, within these, in
        degrees, both included.
    split, videos, where : only frames of these; see :func:`kpstore.views.base.select_videos`.
    missing : ``"skip"`` leaves out frames, and all frames of persons, that failed or are not
        extracted yet, and frames without angles; ``"nan"`` keeps them; ``"error"`` refuses them.

    Raises
    ------
    MismatchError
        If the store holds other features than ``expect_model``, or input and target were made by
        different models.
    """

    def __init__(
        self,
        store: BaseStore,
        *,
        expect_model: str | None = None,
        target: str | None = None,
        min_angle: float | None = None,
        max_angle: float | None = None,
        missing: Missing = "skip",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> None:
        check_missing(missing)
        self.input = find_model(store, expect_model)
        self.target = find_target(store, self.input, target)
        super().__init__(store, [self.input, ANGLES, self.target], transform)
        self.samples_are = f"frames, {self.input} to {self.target}"
        store.reader.prepare(self.reads)
        rows = store.index.rows_of(select_videos(store, **selection))
        if missing != "nan":
            usable = self._usable(rows)
            if missing == "error":
                refuse_missing(store, rows, usable)
            rows = rows[usable]
        self._runs = Runs.of(self._within(rows, min_angle, max_angle))

    def _usable(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each row has input, angles and target, (rows,) bool."""
        framewise = [self.input, ANGLES] + [self.target] * self._target_is_framewise
        usable = usable_frames(self.store, framewise)[rows]
        usable &= np.isfinite(self.store.read(ANGLES, rows)).all(axis=1)
        owner = feature_of(self.store, self.target)
        if owner is not None and not self._target_is_framewise:
            done = np.asarray(self.store[state_name(owner)]) == State.DONE
            usable &= done[self.store.index.video_of(rows)]
        return usable

    @property
    def _target_is_framewise(self) -> bool:
        return self.store[self.target].dims[0] == "frame"

    def _within(
        self, rows: NDArray[np.int64], lowest: float | None, highest: float | None
    ) -> NDArray[np.int64]:
        if lowest is None and highest is None:
            return rows
        # The stored mean, not one computed from the five angles: users filter by imported values.
        size = np.abs(self.store.read(MEAN_ANGLE, rows))
        above = size >= (0.0 if lowest is None else lowest)
        kept: NDArray[np.int64] = rows[above & (size <= (np.inf if highest is None else highest))]
        return kept

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return frames stacked.

        Returns
        -------
        dict
            ``"input_features"`` and ``"target_features"`` (frames, D) of the stored dtype,
            ``"position_encoding"`` (frames, 5) in degrees, NaN where missing; ``"row"`` and
            ``"video"`` (frames,) int64.
        """
        rows = picked(self.row_runs, indices)
        videos = self.store.index.video_of(rows)
        return {
            "input_features": self.store.read(self.input, rows),
            "position_encoding": self.store.read(ANGLES, rows),
            "target_features": self.store.read(
                self.target, rows if self._target_is_framewise else videos
            ),
            "row": rows,
            "video": videos,
        }


def find_model(store: BaseStore, expected: str | None = None) -> str:
    """Return the name of the frames' DINOv2 feature.

    Raises
    ------
    MismatchError
        If it is not the one expected; the message names both.
    NotFoundError
        If the store has no such feature.
    InvalidError
        If it has several and ``expected`` is None.
    """
    held = [
        n for n, f in store.features.items() if n.startswith("dinov2_") and f.spec.axis == "frame"
    ]
    if expected in held:
        return str(expected)
    if not held:
        raise NotFoundError(
            f"no feature 'dinov2_*' of frames in {store.location}; it has {sorted(store.features)}"
        )
    if expected is not None:
        raise MismatchError(
            f"{expected!r} expected, but {store.location} holds "
            f"{' and '.join(map(repr, sorted(held)))}; train with that model, or extract again"
        )
    if len(held) > 1:
        raise InvalidError(f"{store.location} holds {sorted(held)}; choose one with expect_model=")
    return held[0]


def find_target(store: BaseStore, model: str, target: str | None = None) -> str:
    """Return the name of the array to learn; its model and row shape are those of the input.

    Raises
    ------
    MismatchError
        If the two were made by different models, or have rows of different shapes.
    NotFoundError
        If the target is not in the store.
    """
    names = [f"face_{model}", "face_features"] if target is None else [target]
    found = next((name for name in names if name in store.session.names()), None)
    if found is None:
        have = sorted(store.features)
        raise NotFoundError(
            f"no {' or '.join(map(repr, names))} in {store.location} to learn; it has {have}"
        )
    if store[found].shape[1:] != store[model].shape[1:]:
        raise MismatchError(
            f"input {model!r} has rows of {store[model].shape[1:]}, target {found!r} of "
            f"{store[found].shape[1:]}; both must come from one model"
        )
    owner = feature_of(store, found)
    models = [
        None if name is None else store.provenance(name).get("model") for name in (model, owner)
    ]
    if None not in models and models[0] != models[1]:
        raise MismatchError(
            f"input {model!r} was made by {models[0]!r}, target {found!r} by {models[1]!r}; both "
            "must be one model"
        )
    return found
