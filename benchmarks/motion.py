"""Keypoints that benchmarks make up: they move smoothly, tremble, and hands come and go.

No two videos have the same values, so codecs find as little to save as in real ones: shuffled lz4
keeps 0.79 of them. (Points that start alike in every video shrink to 0.55, and decode faster.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.feature import FeatureRows
from kpstore.schema.layout import N_POINTS, PART_SLICES, PARTS, keypoints_spec

_HANDS = ("left_hand", "right_hand")
_STEP, _HAND_STEP = 0.0005, 0.003
"""Typical way of a point, and of one of a hand, from frame to frame: widths of the picture."""
_TREMBLE = 0.0015
"""Standard deviation of the model's errors."""
_SLOWEST, _FASTEST = 60, 10
"""Movements take between so many frames."""
_SEEN, _GONE = 40, 10
"""Mean numbers of frames for which a hand is seen, and then not."""


class Motion:
    """Movements to draw videos from, which costs one addition per number.

    Each video adds a piece of a smooth path to a piece of noise and hides hands in a third piece,
    from places of its own. The pieces come from rings of different length.

    Parameters
    ----------
    seed : equal motions draw equal videos, in their order.
    """

    _RINGS = (4099, 4093, 4091)
    """Frames after which path, noise and hands begin again."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = np.random.default_rng(seed)
        path, noise, seen = self._RINGS
        self._path = self._paths(path)
        self._noise = self._rng.normal(0, _TREMBLE, (noise, N_POINTS, 3)).astype(np.float32)
        self._seen = np.stack([self._visits(seen) for _ in _HANDS], axis=1)
        self._spec = keypoints_spec()
        self.start_video()

    def _paths(self, n_frames: int) -> NDArray[np.float32]:
        """Return points around the middle, (frames, points, 3), whose end meets their start."""
        spectrum = np.zeros((n_frames // 2 + 1, N_POINTS, 3), dtype=np.complex128)
        shape = (n_frames // _FASTEST - n_frames // _SLOWEST, N_POINTS, 3)
        spectrum[n_frames // _SLOWEST : n_frames // _FASTEST] = self._rng.normal(
            size=shape
        ) + 1j * self._rng.normal(size=shape)
        paths = np.fft.irfft(spectrum, n_frames, axis=0)
        step = np.full(N_POINTS, _STEP)
        for hand in _HANDS:
            step[PART_SLICES[hand]] = _HAND_STEP
        paths *= step[:, None] / np.diff(paths, axis=0).std(axis=0)
        places = self._rng.normal(0.5, 0.1, (N_POINTS, 3))
        return np.asarray(paths + places, dtype=np.float32)

    def _visits(self, n_frames: int) -> NDArray[np.bool_]:
        """Return in which frames a hand is seen, (frames,)."""
        lengths = self._rng.geometric(1 / np.array([_SEEN, _GONE]), size=(n_frames, 2)).ravel()
        return np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)[:n_frames]

    def start_video(self) -> None:
        """Go to another place of each ring."""
        self._at = self._rng.integers(self._RINGS)

    def rows(self, n_frames: int) -> FeatureRows:
        """Return the next frames of a video, as keypoints with their companions."""
        path, noise, seen = (
            (at + np.arange(n_frames)) % ring
            for at, ring in zip(self._at.tolist(), self._RINGS, strict=True)
        )
        self._at += n_frames
        rows = self._spec.empty_rows(n_frames)
        np.add(self._path[path], self._noise[noise], out=rows.values)
        rows.companions["detected"][:] = True
        rows.companions["visibility"][:] = 0.9
        for hand, is_seen in zip(_HANDS, self._seen[seen].T, strict=True):
            rows.values[~is_seen, PART_SLICES[hand]] = np.nan
            rows.companions["detected"][:, PARTS.index(hand)] = is_seen
        return rows
