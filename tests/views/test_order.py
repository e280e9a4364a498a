"""An epoch has every sample once, near storage order, and any part of it without the rest."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc
from itertools import permutations
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.schema.index import VideoIndex
from kpstore.views import order
from kpstore.views.base import Batch, View
from kpstore.views.batch_sampler import BatchSampler
from kpstore.views.frames import RowView
from kpstore.views.order import Blocks, FullShuffle, Order, Stored, block_shuffle
from kpstore.views.permutation import Permutation
from kpstore.views.pool import Pool
from kpstore.views.runs import Ints, Runs

ragged = st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(
    lambda lengths: sum(lengths) > 0
)


def shuffle_of(
    lengths: list[int], block_rows: int, window: int, seed: int = 0, rows: Ints | None = None
) -> Order:
    """Return the order of all rows of videos, or of some rows."""
    borders = np.cumsum([0, *lengths])
    runs = Runs.up_to(int(borders[-1])) if rows is None else Runs.of(rows)
    return block_shuffle(Blocks(runs, block_rows, borders), window, (seed, 0, 0))


def samples_of(found: Order) -> Ints:
    return found.at(0, len(found))


def rows_of(kind: str, n_rows: int) -> Ints:
    """Return rows of a view."""
    rng = np.random.default_rng(n_rows)
    return {
        "all": np.arange(n_rows),
        "with gaps": np.flatnonzero(rng.random(n_rows) < 0.4),
        "some twice": np.sort(rng.integers(0, n_rows, n_rows)),
        "in another order": rng.integers(0, n_rows, n_rows),
        "two parts": np.roll(np.arange(n_rows), n_rows // 3),
    }[kind]


kinds = st.sampled_from(["all", "with gaps", "some twice", "in another order", "two parts"])


@given(ragged, st.integers(1, 20), st.integers(1, 12), kinds, st.integers(0, 5), st.data())
def test_a_block_shuffle_visits_each_sample_once_and_any_part_is_a_part_of_the_whole(
    lengths: list[int], block_rows: int, window: int, kind: str, seed: int, data: Any
) -> None:
    rows = rows_of(kind, sum(lengths))
    whole = samples_of(shuffle_of(lengths, block_rows, window, seed, rows))
    assert sorted(whole.tolist()) == list(range(len(rows)))
    # Of few samples in a piece, to have many pieces.
    with mock.patch.multiple(order, _PIECE=5, _RANKED=7):
        again = shuffle_of(lengths, block_rows, window, seed, rows)
        np.testing.assert_array_equal(samples_of(again), whole)
        for _ in range(3):
            first, stop = sorted(data.draw(st.integers(0, len(rows))) for _ in range(2))
            np.testing.assert_array_equal(again.at(first, stop), whole[first:stop])


@given(ragged, st.integers(1, 20), st.integers(1, 12), kinds, st.integers(0, 5))
def test_no_more_blocks_are_in_use_than_the_window_holds(
    lengths: list[int], block_rows: int, window: int, kind: str, seed: int
) -> None:
    rows = rows_of(kind, sum(lengths))
    samples = samples_of(shuffle_of(lengths, block_rows, window, seed, rows))
    blocks = np.unique(rows // block_rows, return_inverse=True)[1][samples]
    n_blocks, positions = int(blocks.max(initial=-1)) + 1, np.arange(len(blocks))
    first, last = np.full(n_blocks, len(blocks)), np.zeros(n_blocks, dtype=int)
    np.minimum.at(first, blocks, positions)
    np.maximum.at(last, blocks, positions)
    in_use = [int(((first <= now) & (last >= now)).sum()) for now in positions]
    assert max(in_use, default=0) <= window


@pytest.mark.parametrize(
    ("n_videos", "step", "window", "digest"),
    [
        (100, 1, 5, "099f25da0807e6e4"),
        (3_000, 1, 5, "00267987257934bc"),
        (3_000, 1, 40, "98c37b8b4a76813f"),
        (100, 7, 5, "462e8d602ac69719"),
        (100, 1, 99, "d2dcd5212d0825fb"),
    ],
)
def test_an_order_stays_what_it_was_when_its_state_was_saved(
    n_videos: int, step: int, window: int, digest: str
) -> None:
    rows = np.arange(n_videos * 30) * step % (n_videos * 30)  # sorted, or in another order
    samples = samples_of(shuffle_of([30] * n_videos, 64, window, 3, rows))
    assert hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16] == digest


@given(st.integers(0, 3000), st.integers(0, 5), st.data())
def test_a_full_shuffle_visits_each_sample_once(n: int, seed: int, data: Any) -> None:
    whole = samples_of(FullShuffle(n, (seed, 0, 0)))
    assert sorted(whole.tolist()) == list(range(n))
    first, stop = sorted(data.draw(st.integers(0, n)) for _ in range(2))
    with mock.patch.object(order, "_PIECE", 100):
        part = FullShuffle(n, (seed, 0, 0)).at(first, stop)
    np.testing.assert_array_equal(part, whole[first:stop])
    np.testing.assert_array_equal(Stored(n).at(first, stop), np.arange(first, stop))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_few_numbers_are_equally_likely(n: int) -> None:
    orders = list(permutations(range(n)))
    found = [tuple(Permutation(n, (seed,)).at(0, n).tolist()) for seed in range(50 * len(orders))]
    counts = np.array([found.count(one) for one in orders])
    # Chi squared, whose mean is the number of orders and whose deviation the root of twice that.
    assert ((counts - 50) ** 2 / 50).sum() < len(orders) + 4 * (2 * len(orders)) ** 0.5


def test_neighbours_of_a_full_shuffle_have_nothing_in_common() -> None:
    samples = FullShuffle(100_000, (1, 0, 0)).at(0, 100_000)
    for far in (1, 2, 256, 317):  # 317: the width of the table
        assert abs(np.corrcoef(samples[far:], samples[:-far])[0, 1]) < 0.02
    other = FullShuffle(100_000, (1, 1, 0)).at(0, 100_000)
    assert abs(np.corrcoef(samples, other)[0, 1]) < 0.02


def test_samples_of_a_video_keep_apart() -> None:
    lengths, window, batch = [100] * 600, 40, 256
    shuffle = shuffle_of(lengths, 1000, window)

    def distinct(order: Any) -> float:
        videos = np.sort((order // 100)[: len(order) // batch * batch].reshape(-1, batch), axis=1)
        return float(((np.diff(videos, axis=1) > 0).sum(axis=1) + 1).mean())

    full = distinct(np.random.default_rng(0).permutation(60_000))
    blockwise = distinct(samples_of(shuffle))
    assert blockwise > 0.95 * full
    # The same pool, drawn from at random, would not do: 400 videos give 400 (1 - exp(-256 / 400)) =
    # 189 of 256.
    assert full > 205


def test_every_stretch_of_an_epoch_mixes_many_blocks() -> None:
    shuffle = shuffle_of([50] * 400, 100, 40)
    blocks = samples_of(shuffle).reshape(-1, 200) // 100
    n_distinct = [len(np.unique(stretch)) for stretch in blocks]
    assert min(n_distinct) >= 18
    assert np.median(n_distinct) >= 36


def test_a_pool_that_holds_everything_shuffles_fully() -> None:
    first = {int(shuffle_of([10] * 10, 20, 5, seed).at(0, 1)[0]) for seed in range(300)}
    assert len(first) > 80


def test_an_order_takes_little_to_another_process() -> None:
    shuffle = shuffle_of([50] * 400, 100, 40)
    small = len(pickle.dumps(shuffle))
    samples = samples_of(shuffle)
    again = pickle.loads(pickle.dumps(shuffle))
    np.testing.assert_array_equal(samples_of(again), samples)
    assert len(pickle.dumps(shuffle)) < small + 10_000 < len(pickle.dumps(samples))


# -- memory ----------------------------------------------------------------------------------------


class ManyFrames(RowView):
    """A view of videos of 10,000,000 frames each, which has no store."""

    def __init__(self, n_videos: int) -> None:
        names = np.array([f"v{i}" for i in range(n_videos)], dtype=object)
        index = VideoIndex(names, names, np.full(n_videos, 10_000_000))
        super().__init__(SimpleNamespace(index=index), [])  # type: ignore[arg-type]
        self._runs = Runs.up_to(index.total_frames)

    def batch(self, indices: Any) -> Batch:
        """Return nothing but the rows."""
        return {"row": np.asarray(indices)}

    def plan_pool(self, n_bytes: int) -> Pool:
        """Return blocks so long that they are few."""
        return Pool(2**14, 16, {})


def peak_mib(view: View, shuffle: Any, **more: Any) -> float:
    """Return the most memory that it takes to begin an epoch and go on in its middle."""
    tracemalloc.start()
    sampler = BatchSampler(view, 256, shuffle=shuffle, **more)
    batches = iter(sampler)
    taken = [next(batches) for _ in range(200)]
    state = sampler.state_dict()
    again = BatchSampler(view, 100, shuffle=shuffle, rank=1, world_size=2)
    again.load_state_dict(state)
    assert len(again) == -(-(len(view) - 200 * 256) // 2 // 100)
    taken.append(next(iter(again)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(np.concatenate(taken))) == 200 * 256 + 100
    return peak / 2**20


@pytest.mark.parametrize("shuffle", ["block", "full", None])
def test_memory_does_not_grow_with_the_samples(shuffle: Any) -> None:
    few, many = (peak_mib(ManyFrames(n_videos), shuffle) for n_videos in (1, 100))
    # Of 1,000,000,000 frames: 61,036 blocks, of some numbers each. As a list they took 8 GB.
    assert many < few + 12
