"""Labels of hands, made by eye (README.md), and how detections are counted against them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_name("labels.csv")
NOT, PARTLY, VISIBLE = range(3)
_NUMBERS = {"not": NOT, "partly": PARTLY, "visible": VISIBLE}


@dataclass(frozen=True)
class Labels:
    """Of one clip.

    Parameters
    ----------
    frames : (labelled,) numbers of frames.
    seen : (labelled, 2) int, left and right: :data:`NOT`, :data:`PARTLY` or :data:`VISIBLE`.
    """

    frames: NDArray[np.int64]
    seen: NDArray[np.int64]


def read_labels(path: Path = FILE) -> dict[str, Labels]:
    """Return the labels of each clip, by file name in order."""
    rows: dict[str, list[tuple[int, int, int]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = int(row["frame"]), _NUMBERS[row["left"]], _NUMBERS[row["right"]]
            rows.setdefault(row["clip"], []).append(numbers)
    arrays = {clip: np.array(rows[clip], dtype=np.int64) for clip in sorted(rows)}
    return {clip: Labels(array[:, 0], array[:, 1:]) for clip, array in arrays.items()}


def half_of(clips: list[str]) -> dict[str, str]:
    """Return "tuning" or "verdict" for each clip: in turn, in the order of names."""
    return {clip: ("tuning", "verdict")[number % 2] for number, clip in enumerate(sorted(clips))}


@dataclass(frozen=True)
class Count:
    """Hands that eyes see, and those that a detector finds.

    Parameters
    ----------
    seen : hands that eyes see.
    found : of them, those that were found.
    unseen : hands that eyes do not see.
    false : of them, those that were "found".
    """

    seen: int = 0
    found: int = 0
    unseen: int = 0
    false: int = 0

    @classmethod
    def of(cls, seen: NDArray[np.int64], found: NDArray[np.bool_], *, strict: bool) -> Count:
        """Count hands; if strict, those seen partly count neither as missed nor as false."""
        there = seen == VISIBLE if strict else seen != NOT
        absent = seen == NOT
        numbers = (there, there & found, absent, absent & found)
        return cls(*(int(number.sum()) for number in numbers))

    def __add__(self, other: Count) -> Count:
        return Count(
            self.seen + other.seen,
            self.found + other.found,
            self.unseen + other.unseen,
            self.false + other.false,
        )

    @property
    def missed(self) -> int:
        """Hands that eyes see and that were not found."""
        return self.seen - self.found

    @property
    def recall(self) -> float:
        """Share of hands that eyes see which were found; NaN of none."""
        return self.found / self.seen if self.seen else float("nan")

    @property
    def precision(self) -> float:
        """Share of what was found that eyes see; NaN of none."""
        every = self.found + self.false
        return self.found / every if every else float("nan")
