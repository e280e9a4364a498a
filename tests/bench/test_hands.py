from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks.hands.candidates import Found
from benchmarks.hands.labels import NOT, PARTLY, VISIBLE, Count, Labels, half_of, read_labels
from benchmarks.hands.looking import Points, Spotted, by_body, no_hands, present
from benchmarks.hands.recovering import Rule, choose, recovered

SIZE = np.array([100.0, 100.0])
LEFT, RIGHT = (0.7, 0.5), (0.3, 0.5)


def hand_at(wrist: tuple[float, float]) -> Points:
    """Return 21 points, the first of them the wrist, within a tenth of the frame."""
    points = np.zeros((21, 3), dtype=np.float32)
    points[:, 0] = wrist[0] + np.linspace(0, 0.1, 21)
    points[:, 1] = wrist[1] + np.linspace(0, 0.1, 21)
    return points


def body() -> Points:
    """Return a pose with shoulders 0.4 apart and the wrists below them."""
    pose = np.zeros((33, 4), dtype=np.float32)
    pose[:, 3] = 1
    pose[[11, 15], :2] = (0.7, 0.2), LEFT
    pose[[12, 16], :2] = (0.3, 0.2), RIGHT
    return pose


def found_with(hand: Points, score: float) -> Found:
    """Return one frame in which Holistic has the right hand, and a candidate a left one."""
    holistic, other = no_hands(1), no_hands(1)
    holistic[0, 1] = hand_at(RIGHT)
    other[0, 0] = hand
    scores = np.array([[score, np.nan]])
    return Found(SIZE, body()[None], {"holistic": holistic, "other": other}, {"other": scores})


def test_forty_frames_of_each_clip_are_labelled_evenly() -> None:
    labels = read_labels()
    assert len(labels) == 7
    for clip in labels.values():
        last = clip.frames[-1]
        assert clip.frames.tolist() == np.linspace(0, last, 40).round().tolist()


def test_clips_belong_to_tuning_and_verdict_in_turn() -> None:
    assert half_of(["b", "a", "c"]) == {"a": "tuning", "b": "verdict", "c": "tuning"}


def test_hands_seen_in_part_do_not_count_if_strict() -> None:
    seen = np.array([[VISIBLE, PARTLY], [PARTLY, NOT], [NOT, VISIBLE]])
    found = np.array([[True, False], [True, True], [False, False]])
    assert Count.of(seen, found, strict=False) == Count(seen=4, found=2, unseen=2, false=1)
    assert Count.of(seen, found, strict=True) == Count(seen=2, found=1, unseen=2, false=1)


def test_hands_go_to_the_nearest_wrist_whatever_they_look_like() -> None:
    hands = [Spotted(hand_at(LEFT), 1), Spotted(hand_at(RIGHT), 1)]
    left, right = by_body(hands, body(), SIZE, 1.0)
    np.testing.assert_array_equal(left, hands[0].points)
    np.testing.assert_array_equal(right, hands[1].points)


def test_one_hand_that_was_found_twice_is_no_second_hand() -> None:
    hands = [Spotted(hand_at(LEFT), 0), Spotted(hand_at((0.69, 0.5)), 0)]
    assert present(by_body(hands, body(), SIZE, 9.0)).tolist() == [True, False]


@pytest.mark.parametrize(
    ("hand", "score", "is_added"),
    [
        (hand_at(LEFT), 0.9, True),
        (hand_at(LEFT), 0.7, False),
        (hand_at((0.9, 0.9)), 0.9, False),
        (hand_at(RIGHT), 0.9, False),
    ],
    ids=["as asked", "low score", "far from the wrist", "on the other hand"],
)
def test_a_hand_is_added_if_a_rule_allows_it(hand: Points, score: float, is_added: bool) -> None:
    found = found_with(hand, score)
    hands = recovered(found, [Rule(("other",), score=0.8, distance=1.1, visibility=0.5)])
    assert present(hands).tolist() == [[is_added, True]]


def test_the_strictest_of_the_best_rules_without_false_hands_is_chosen() -> None:
    clips = {("a", "native"): found_with(hand_at(LEFT), 0.96)}
    seen = Labels(np.array([0]), np.array([[VISIBLE, VISIBLE]]))
    unseen = Labels(np.array([0]), np.array([[NOT, VISIBLE]]))
    assert choose(("other",), clips, {"a": seen}).score == 0.95
    assert choose(("other",), clips, {"a": unseen}).score == np.inf
