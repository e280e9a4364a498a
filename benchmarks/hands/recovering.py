"""Hands that a candidate adds to those of Holistic, and thresholds chosen where that is allowed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.hands.candidates import CROPS, Found
from benchmarks.hands.labels import Count, Labels
from benchmarks.hands.looking import WRISTS, Points, present, same_hand, shoulder_width

SCORES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""From the least for which MediaPipe says that there is a hand."""
DISTANCES = (0.2, 0.3, 0.5, 0.75, 1.0, np.inf)
"""In widths of the shoulders."""
VISIBILITIES = (0.0, 0.1, 0.5, 0.8, 0.9, 0.95)
MOST_FALSE = 0.01
"""Share of added hands that eyes do not see."""

_CROPS = tuple(f"crops {factor}" for factor in CROPS)
ALONE = ("holistic", "parts", "backwards", "whole x 3", *_CROPS)
ADDED: dict[str, tuple[str, ...]] = {
    "both directions": ("backwards",),
    "+ parts": ("parts",),
    "+ whole x 3": ("whole x 3",),
    **{f"+ {name}": (name,) for name in _CROPS},
    "+ followed": ("followed",),
    "+ regions": ("regions",),
    "+ best, one rule": ("backwards", "parts", "whole x 3", *_CROPS, "followed", "regions"),
}
"""What is tried where Holistic has no hand; of several hands the one with the highest score."""
EACH = "+ best, each by its rule"


@dataclass(frozen=True)
class Rule:
    """When a hand is added.

    Parameters
    ----------
    sources : candidates.
    score : least, of the model of hands.
    distance : most, of its wrist from that of the pose, in widths of the shoulders.
    visibility : least, of that wrist of the pose. Without a pose it is 0 and the distance infinite.
    """

    sources: tuple[str, ...]
    score: float
    distance: float
    visibility: float

    def allows(self, found: Found, source: str, number: int, side: int) -> bool:
        """Return whether a hand of a candidate may be added."""
        if source not in self.sources or not found.scores[source][number, side] >= self.score:
            return False
        pose = found.pose[number]
        if not np.isfinite(pose[0, 0]):
            return self.distance == np.inf and self.visibility == 0
        apart = _distance(found.hands[source][number, side], pose, side, found.size)
        return apart <= self.distance and bool(pose[WRISTS[side], 3] >= self.visibility)


def recovered(found: Found, rules: Sequence[Rule]) -> Points:
    """Return Holistic's hands with those that any rule adds, (labelled, 2, 21, 3).

    Of several hands for one side the one with the highest score is added, and none that lies on the
    hand of the other side.
    """
    hands = found.hands["holistic"].copy()
    sources = {source for rule in rules for source in rule.sources}
    offered = [
        (float(found.scores[source][number, side]), int(number), int(side), source)
        for source in sorted(sources)
        for number, side in np.argwhere(present(found.hands[source]) & ~present(hands))
        if any(rule.allows(found, source, number, side) for rule in rules)
    ]
    for _, number, side, source in sorted(offered, reverse=True):
        hand = found.hands[source][number, side]
        if present(hands[number, side]):
            continue
        if not same_hand(hand, hands[number, 1 - side], found.size):
            hands[number, side] = hand
    return hands


def _distance(hand: Points, pose: Points, side: int, size: NDArray[np.float64]) -> float:
    apart = np.linalg.norm((hand[0, :2] - pose[WRISTS[side], :2]) * size)
    return float(apart / max(1.0, shoulder_width(pose, size)))


def count(hands: Points, labels: Labels, *, strict: bool) -> Count:
    """Count hands of one clip in one size."""
    return Count.of(labels.seen, present(hands), strict=strict)


def total(counts: Sequence[Count]) -> Count:
    """Return the sum."""
    return sum(counts, Count())


def choose(
    sources: tuple[str, ...], clips: Mapping[tuple[str, str], Found], labels: Mapping[str, Labels]
) -> Rule:
    """Return the rule that leaves the fewest hands missed, with hardly a false one among the added.

    Of equal rules it is the strictest. If there is none, the rule adds nothing.

    Parameters
    ----------
    clips : what was found, by clip and size; of the half on which choices may be made.
    """

    def counted(rule: Rule) -> Count:
        return total(
            [
                count(recovered(found, [rule]), labels[clip], strict=False)
                for (clip, _), found in clips.items()
            ]
        )

    nothing = Rule(sources, np.inf, 0.0, 1.0)
    before = counted(nothing)
    best, fewest = nothing, before.missed
    choices = itertools.product(reversed(SCORES), DISTANCES, reversed(VISIBILITIES))
    for score, distance, visibility in choices:
        rule = Rule(sources, score, distance, visibility)
        after = counted(rule)
        added = after.found + after.false - before.found - before.false
        if after.missed < fewest and after.false - before.false <= MOST_FALSE * added:
            best, fewest = rule, after.missed
    return best
