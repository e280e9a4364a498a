"""The order in which earlier states were saved stays what it was, as long as one may be loaded."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.views.first_order import BlockShuffle, numbered

ragged = st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(
    lambda lengths: sum(lengths) > 0
)


@pytest.mark.parametrize(
    ("n_videos", "step", "digest"),
    [(100, 1, "5c1d56971f0a9399"), (3_000, 1, "a4463e18a5882774"), (100, 7, "22b083871eaa4323")],
)
def test_an_order_stays_what_it_was_when_its_state_was_saved(
    n_videos: int, step: int, digest: str
) -> None:
    rows = np.arange(n_videos * 30) * step % (n_videos * 30)  # sorted, or in another order
    order = BlockShuffle(rows // 64, rows // 30, 5).order(np.random.default_rng(3))
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == digest


@given(ragged, st.integers(1, 20), st.integers(1, 8), st.sampled_from(["all", "some", "any"]))
def test_the_order_of_stored_rows_is_that_of_their_blocks_and_videos(
    lengths: list[int], block_rows: int, window: int, kind: str
) -> None:
    borders = np.cumsum([0, *lengths])
    rng = np.random.default_rng(sum(lengths))
    n_rows = sum(lengths)
    rows = {
        "all": np.arange(n_rows),
        "some": np.sort(rng.integers(0, n_rows, n_rows)),  # gaps, and rows that come twice
        "any": rng.integers(0, n_rows, n_rows),
    }[kind]
    videos = np.searchsorted(borders, rows, side="right") - 1
    plain = BlockShuffle(numbered(rows // block_rows), videos, window)
    by_rows = BlockShuffle.of_rows(rows, block_rows, borders, window)
    np.testing.assert_array_equal(
        by_rows.order(np.random.default_rng(0)), plain.order(np.random.default_rng(0))
    )
