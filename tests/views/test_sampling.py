"""Batches and shares of ranks have every sample once, with any ranks and interruptions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.backends.base import ArrayMeta
from kpstore.views.order import Listed
from kpstore.views.pool import plan_pool
from kpstore.views.runs import Ints, Runs
from kpstore.views.sampling import (
    Done,
    EvenBatches,
    batches_by_length,
    largest,
    left_to_do,
    padding_share,
    share_out,
)


def batches_of(samples: Ints, size: int, *, drop_last: bool = False) -> EvenBatches:
    return EvenBatches(Listed(samples), Runs.up_to(len(samples)), size, drop_last=drop_last)


@given(st.integers(0, 50), st.integers(1, 9), st.booleans())
def test_batches_hold_all_samples_in_order(n: int, size: int, drop: bool) -> None:
    samples = np.random.default_rng(0).permutation(n)
    batches = batches_of(samples, size, drop_last=drop)
    joined = np.concatenate([np.empty(0, dtype=int), *batches])
    np.testing.assert_array_equal(joined, samples[: n // size * size] if drop else samples)
    assert all(len(batch) == size for batch in list(batches)[:-1])
    assert len(batches) == (n // size if drop else -(-n // size))
    assert batches.n_samples == len(joined)


@given(st.integers(0, 40), st.integers(1, 7), st.booleans(), st.booleans())
def test_ranks_do_everything_once_but_for_the_padding(
    n: int, world_size: int, pad: bool, drop: bool
) -> None:
    units = Runs.of(np.random.default_rng(0).permutation(n))
    shares = [share_out(units, rank, world_size, pad=pad, drop=drop) for rank in range(world_size)]
    done = np.concatenate([part.to_array() for part, _ in shares]).tolist()
    sizes = {len(part) for part, _ in shares}
    if drop:
        assert done == units.to_array()[: n // world_size * world_size].tolist()
        assert len(sizes) == 1
    elif pad and n:
        assert len(sizes) == 1
        assert sorted(set(done)) == list(range(n))
        assert {padding for _, padding in shares} == {len(done) - n}
        assert len(done) - n < world_size
    else:
        assert sorted(done) == list(range(n))
        assert max(sizes) - min(sizes) <= 1
        assert {padding for _, padding in shares} == {0}


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 8)), max_size=3),
    st.integers(1, 5),
)
def test_nothing_is_lost_or_repeated_over_interruptions(
    n: int, stops: list[tuple[int, int]], world_size: int
) -> None:
    units = Runs.of(np.random.default_rng(0).permutation(n))
    done: list[int] = []
    before = [Done(ranks, n_done, drop=(ranks + n_done) % 2 == 0) for ranks, n_done in stops]
    for i, part in enumerate(before):
        left = left_to_do(units, before[:i])
        shares = [
            share_out(left, r, part.world_size, pad=False, drop=part.drop)
            for r in range(part.world_size)
        ]
        done += [unit for mine, _ in shares for unit in mine.to_array()[: part.n_units].tolist()]
    left = left_to_do(units, before)
    done += [
        unit
        for rank in range(world_size)
        for unit in share_out(left, rank, world_size, pad=False)[0].to_array().tolist()
    ]
    assert sorted(done) == list(range(n))


lengths_of_videos = st.lists(st.integers(1, 40), min_size=1, max_size=120)


@given(
    lengths_of_videos, st.integers(10, 200), st.one_of(st.none(), st.integers(1, 6)), st.booleans()
)
def test_batches_by_length_hold_each_video_once_and_stay_within_the_limits(
    lengths: list[int], max_frames: int, max_samples: int | None, shuffled: bool
) -> None:
    frames = np.array(lengths)
    samples = np.random.default_rng(1).permutation(len(frames))
    rng = np.random.default_rng(2) if shuffled else None
    batches = batches_by_length(samples, frames, max_frames, max_samples, rng)
    assert sorted(np.concatenate(list(batches)).tolist()) == list(range(len(frames)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * frames[batch].max() <= max_frames
        assert max_samples is None or len(batch) <= max_samples
    padded = sum(len(batch) * int(frames[batch].max()) for batch in batches)
    assert padding_share(batches, frames) == pytest.approx(1 - frames.sum() / padded)


def test_the_batch_of_most_frames_is_found() -> None:
    lengths = np.array([3, 1, 9, 2, 4, 4, 4, 8])
    batches = batches_of(np.arange(8), 3)
    assert largest(batches, lengths) == 0, "three samples, padded to nine frames"
    assert largest(batches_of(np.arange(8)[::-1], 3), lengths) == 1
    assert largest(batches, np.full(8, 5)) == 0


def test_batches_by_length_pad_little() -> None:
    rng = np.random.default_rng(0)
    frames = np.maximum(16, rng.gamma(4.5, 26, size=3000)).astype(int)
    order = rng.permutation(3000)
    by_length = batches_by_length(order, frames, 4096, None, rng)
    assert padding_share(by_length, frames) < 0.05
    assert padding_share(batches_of(order, 32), frames) > 0.4
    # And they are still shuffled: neighbours in the epoch are of unlike lengths.
    longest = np.array([frames[batch].max() for batch in by_length])
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.3


def meta(n_rows: int, row_floats: int, chunk_rows: int) -> ArrayMeta:
    return ArrayMeta((n_rows, row_floats), "float32", chunk_rows, ("frame", "x"))


def test_memory_is_shared_out_by_width() -> None:
    arrays = {
        "wide": meta(10**6, 300, 1024),
        "half": meta(10**6, 150, 2048),
        "narrow": meta(10**6, 1, 65536),
    }
    pool = plan_pool(arrays, 2**28, long_samples=False)
    assert pool.n_bytes["narrow"] == 4 * 10**6
    assert pool.n_bytes["wide"] == pytest.approx(2 * pool.n_bytes["half"], rel=1e-6)
    assert 0.99 * 2**28 < sum(pool.n_bytes.values()) <= 2**28
    assert pool.block_rows == 2048
    assert 0.8 * 2**28 < pool.window * pool.block_rows * 450 * 4 + 4 * 10**6 < 2**28


def test_samples_that_cross_borders_get_longer_blocks() -> None:
    arrays = {"wide": meta(10**6, 429, 1024)}
    one = plan_pool(arrays, 2**28, long_samples=False)
    more = plan_pool(arrays, 2**28, long_samples=True)
    assert (one.block_rows, more.block_rows) == (1024, 8192)
    assert more.window * (more.block_rows + 1024) * 429 * 4 < 2**28
    assert plan_pool(arrays, 2**20, long_samples=True).window == 1


def test_what_fits_in_memory_is_one_block() -> None:
    pool = plan_pool({"wide": meta(1000, 300, 128)}, 2**28, long_samples=False)
    assert (pool.block_rows, pool.window) == (1000, 1)
