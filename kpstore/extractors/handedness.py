"""Which of the hands that MediaPipe's Hands finds is the left one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Handedness = Literal["subject", "legacy"]


@dataclass(frozen=True)
class Hand:
    """One hand that MediaPipe found.

    Parameters
    ----------
    label : ``"Left"`` or ``"Right"``, which MediaPipe means for a mirrored picture.
    score : MediaPipe's confidence in the label, 0.5 to 1.
    landmarks : list of 21 landmarks.
    """

    label: str
    score: float
    landmarks: Any


def assign_hands(hands: Sequence[Hand], handedness: Handedness) -> tuple[Any, Any]:
    """Return the landmarks of the left and the right hand; None if a hand was not found.

    Parameters
    ----------
    hands : at most two, in the order in which MediaPipe returns them.
    handedness : ``"subject"`` swaps MediaPipe's labels, which are for a mirrored picture: its
        'Right' is the subject's left hand in a photograph. Of two hands with the same label, the
        one with the higher score (the first of equals) keeps the side, and the other gets the free
        side. ``"legacy"`` is the rule of users' existing files: the first hand is the right one,
        the second the left one, whatever the labels.
    """
    if handedness == "legacy":
        landmarks = [hand.landmarks for hand in hands] + [None, None]
        return landmarks[1], landmarks[0]
    sides: dict[str, Any] = {}
    for hand in sorted(hands, key=lambda hand: -hand.score):
        side, other = ("left", "right") if hand.label == "Right" else ("right", "left")
        sides.setdefault(side if side not in sides else other, hand.landmarks)
    return sides.get("left"), sides.get("right")
