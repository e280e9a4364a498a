"""Frame rates of videos: the header's value, checked against the frames' times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.video_fields import MAX_FPS, known_fps

_TIME_BASE = 1000.0
"""Clock units that headers without a rate repeat; not believed without times."""
_SLACK_FRAMES = 1.0
"""How far a frame may be from its place at an even rate, in frames."""


@dataclass(frozen=True)
class Rate:
    """Frames per second of a video.

    Parameters
    ----------
    fps : NaN if no single number is right.
    note : a remark on the rate for users; ``""`` if there is none to make.
    """

    fps: float
    note: str = ""


def rate_of(header: float, times_s: NDArray[np.float64] | None, tick_s: float = 0.0) -> Rate:
    """Return the rate of a video whose header gives one and whose frames have times.

    The header counts where the frames' times agree with it, as it is exact, and where they do but
    for a gap (a recording that was cut lacks frames at its beginning). Where they do not, the rate
    is ``(n - 1) / (last - first)``. Frames at irregular times (a camera that slows down in the
    dark, a recording with gaps) have no rate.

    Parameters
    ----------
    header : the file's rate; NaN or 0 if it has none.
    times_s : (frames,) float64, seconds, in any order; None for a file without times.
    tick_s : seconds, the unit in which times are kept: they are right within one.
    """
    said = known_fps(header)
    if times_s is None or len(times_s) < 2:
        return Rate(said if said < _TIME_BASE else math.nan)
    shown = np.sort(times_s)
    span = float(shown[-1] - shown[0])
    mean = (len(shown) - 1) / span if span > 0 else math.inf
    if mean > MAX_FPS:
        return Rate(
            math.nan, f"its {len(shown)} frames have no times that tell a rate; none is stored"
        )
    even = shown[0] + np.arange(len(shown)) / mean
    off_s = float(np.abs(shown - even).max())
    if off_s > _SLACK_FRAMES / mean + tick_s:
        return Rate(
            math.nan,
            f"its frames come at irregular times, {mean:.4g} a second on average and up to "
            f"{off_s:.3g} s from where an even rate would put them; no rate is stored",
        )
    if abs(span - (len(shown) - 1) / said) <= tick_s + 0.0005 * span:
        return Rate(said, _unevenness(shown, mean, tick_s))
    if not header > 0:
        return Rate(mean, _unevenness(shown, mean, tick_s))
    if _agrees_but_for_a_gap(shown, said, tick_s):
        return Rate(
            said,
            f"its frames come {said:.6g} times a second, as its header says, but for a gap; the "
            "header's rate is stored",
        )
    return Rate(
        mean,
        f"its header says {header:g} frames a second, its frames' times {mean:.6g}, which is "
        "stored",
    )


def _agrees_but_for_a_gap(shown: NDArray[np.float64], said: float, tick_s: float) -> bool:
    """Return whether most frames come at the header's rate, and none is a frame from its place."""
    apart = np.diff(shown)
    even = apart[np.abs(apart - 1 / said) <= 0.25 / said + tick_s]
    span = float(even.sum())
    off_s = float(np.abs(shown - shown[0] - np.arange(len(shown)) / said).max())
    return (
        len(apart) / 2 < len(even) < len(apart)
        and abs(span - len(even) / said) <= tick_s + 0.0005 * span
        and off_s <= _SLACK_FRAMES / said + tick_s
    )


def _unevenness(shown: NDArray[np.float64], mean: float, tick_s: float) -> str:
    """Return a note if frames are spaced unevenly although none is far from its place."""
    apart = np.diff(shown)
    if np.abs(apart - 1 / mean).max() <= 0.5 / mean + tick_s:
        return ""
    return (
        f"its frames come at uneven times, {1000 * apart.min():.3g} to {1000 * apart.max():.3g} ms "
        "apart; its rate is their mean"
    )
