from __future__ import annotations

import math

import numpy as np
import pytest

from kpstore.sources.rates import rate_of


@pytest.mark.parametrize(
    ("header", "times", "tick", "fps", "note"),
    [
        (25.0, np.arange(10) / 25, 0.001, 25.0, ""),
        (30000 / 1001, np.round(np.arange(10) * 1001 / 30) / 1000, 0.001, 30000 / 1001, ""),
        (1000.0, np.arange(10) * 0.033, 0.001, 1 / 0.033, "header says 1000"),
        (math.nan, np.arange(10) / 24, 1e-5, 24.0, ""),
        (0.0, np.arange(10)[::-1] / 24, 1e-5, 24.0, ""),
        (
            25.0,
            np.cumsum([0, 0.01, 0.07] + [0.01, 0.07] * 8),
            0.001,
            25.0,
            "uneven times, 10 to 70 ms apart",
        ),
        (25.0, np.array([0, 0.04, 0.08, 5.0, 5.04]), 0.001, math.nan, "irregular times"),
        (25.0, np.delete(np.arange(54), 2) / 25, 1e-5, 25.0, "but for a gap"),
        (25.0, np.delete(np.arange(54), [2, 3]) / 25, 1e-5, math.nan, "irregular times"),
        (30.0, np.arange(3) / 60, 1e-5, 60.0, "header says 30"),
        (1000.0, np.array([0.5]), 0.001, math.nan, ""),
        (25.0, np.array([0.5]), 0.001, 25.0, ""),
        (25.0, None, 0.0, 25.0, ""),
        (90000.0, None, 0.0, math.nan, ""),
        (math.inf, None, 0.0, math.nan, ""),
        (-1.0, None, 0.0, math.nan, ""),
        (25.0, np.zeros(4), 0.001, math.nan, "no times that tell a rate"),
        (25.0, np.arange(4) * 1e-9, 0.0, math.nan, "no times that tell a rate"),
    ],
)
def test_the_times_of_frames_come_before_the_header(
    header: float, times: np.ndarray | None, tick: float, fps: float, note: str
) -> None:
    found = rate_of(header, times, tick)
    assert found.fps == pytest.approx(fps, nan_ok=True)
    assert note in found.note
    assert bool(found.note) == bool(note)
