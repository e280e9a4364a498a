"""What of a video failed, and the text that a store keeps of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.errors import InvalidError
from kpstore.schema.failures import NOTHING_FAILED, Failures
from kpstore.schema.feature import State

REASONS = st.text(min_size=1)
FRAMES = st.dictionaries(st.integers(0), REASONS)


@given(st.one_of(st.builds(Failures, REASONS), st.builds(Failures, st.none(), FRAMES)))
def test_what_is_stored_comes_back(failures: Failures) -> None:
    assert Failures.from_text(failures.to_text()) == failures


def test_only_a_failure_of_the_whole_video_makes_its_state_failed() -> None:
    assert (NOTHING_FAILED.state, bool(NOTHING_FAILED), NOTHING_FAILED.to_text()) == (
        State.DONE,
        False,
        "",
    )
    frames = Failures(frames={3: "torn", 1: "black"})
    assert (frames.state, bool(frames), list(frames.frames)) == (State.DONE, True, [1, 3])
    assert frames.of_video() == NOTHING_FAILED
    assert Failures("no film").state == State.FAILED
    assert Failures("no film").of_video() == Failures("no film")


def test_a_video_that_failed_keeps_no_frames() -> None:
    assert (
        Failures.from_text('{"video": "x", "frames": {"1": "y"}}')
        == Failures("x", {1: "y"})
        == Failures("x")
    )
    assert Failures.from_text('{"video": null}') == Failures("no reason was given")


def test_a_reason_can_always_be_stored() -> None:
    assert Failures("").video == "no reason was given"
    assert Failures(frames={0: "torn \ud800"}).frames == {0: "torn \\ud800"}


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', "3", '{"frames": {"one": "x"}}', '{"frames": 3}', "[" * 9999]
)
def test_other_text_is_told(text: str) -> None:
    with pytest.raises(InvalidError, match="given as failures of a video"):
        Failures.from_text(text)
