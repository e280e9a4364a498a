"""Videos in processes of their own."""

from __future__ import annotations

import numpy as np

from kpstore.ingest.frames import extract_frames
from kpstore.ingest.isolated import extract_isolated
from kpstore.ingest.job import Job
from kpstore.schema.feature import State
from tests.fakes import FakeExtractor, FakeSource, record


def test_an_extractor_that_cannot_be_imported_is_sent_as_it_is() -> None:
    class OfANotebook(FakeExtractor):
        """Has no module that another process could import."""

    poisonous = FakeSource({"a": 4}, poisonous={"a": [2]})
    found = extract_isolated(Job("isolated", poisonous, OfANotebook()), record("a", 4))
    states = found.failures.frame_states(4).tolist()
    assert states == [State.DONE, State.DONE, State.FAILED, State.DONE]
    assert "died on this frame (SIGKILL)" in str(found.failures.frames)
    sound = extract_frames(Job("here", FakeSource({"a": 4}), FakeExtractor()), record("a", 4))
    np.testing.assert_array_equal(found.rows["points"].values[:2], sound.rows["points"].values[:2])
