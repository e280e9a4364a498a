"""Batches for training: the same whoever reads them, each sample once, from where it was left."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import kpstore
from kpstore.errors import CorruptError, InvalidError, MismatchError, UnsupportedError
from kpstore.schema.feature import FeatureRows
from kpstore.views import handed
from kpstore.views.loader import BatchDataset
from kpstore.views.skeletons import SkeletonView
from tests.conftest import memory_location
from tests.fakes import fake_spec, record
from tests.processes import finish
from tests.store.data import fill

POOL = 0.001
"""1,048 bytes in MiB: seven eighths hold 15 rows of 60 bytes, a window of 3 chunks of 4 rows."""


def long_store(
    store: kpstore.Store, lengths: tuple[int, ...] = (5, 9, 0, 20, 33, 17, 41)
) -> kpstore.Store:
    """Fill a store with videos whose values say which row they are: row * 100 + point."""
    with store.transaction("fill") as tx:
        tx.add_videos(
            [record(f"v{i}", n, "train" if i % 2 else "dev") for i, n in enumerate(lengths)]
        )
        tx.add_feature(fake_spec(4), {"extractor": "fake"})
        first = 0
        for i, n in enumerate(lengths):
            rows = np.arange(first, first + n, dtype=np.float32)[:, None, None] * 100
            points = np.arange(5, dtype=np.float32)[:, None]
            values = np.broadcast_to(rows + points, (n, 5, 3)).copy()
            tx.write(
                "points", f"v{i}", FeatureRows(values, {"detected": np.ones((n, 2), dtype=bool)})
            )
            first += n
    return store.at()


@pytest.fixture(scope="module")
def filled() -> kpstore.Store:
    return long_store(kpstore.create(memory_location()))


def rows_of(batches: Any) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def flat(lists: Any) -> list[Any]:
    return list(chain.from_iterable(lists))


def check_values(batch: Any) -> None:
    """Every value says which row it is."""
    expected = batch["row"][:, None] * 100 + torch.arange(5)
    assert torch.equal(batch["points"][..., 0], expected.float())


@pytest.mark.parametrize("shuffle", ["block", "full", None])
def test_an_epoch_holds_every_sample_once_with_its_values(
    filled: kpstore.Store, shuffle: Any
) -> None:
    loader = kpstore.loader(filled.frames("points"), 8, shuffle=shuffle, pool_mib=POOL)
    assert len(loader) == 16
    seen = []
    for batch in loader:
        check_values(batch)
        seen += batch["row"].tolist()
    assert sorted(seen) == list(range(125))
    assert (seen == list(range(125))) == (shuffle is None)


@pytest.mark.parametrize("shuffle", ["block", "full", None])
@pytest.mark.parametrize(
    "how", [{"threads": 0}, {"threads": 1}, {"threads": 3, "prefetch": 5}, {"prefetch": 1}]
)
def test_the_order_is_the_same_for_any_number_of_threads(
    filled: kpstore.Store, shuffle: Any, how: Any
) -> None:
    def make(**how: int) -> kpstore.Loader:
        return kpstore.loader(
            filled.frames("points"), 8, shuffle=shuffle, seed=3, pool_mib=POOL, **how
        )

    assert rows_of(make(**how)) == rows_of(make(threads=2))


def test_every_iteration_is_the_next_epoch(filled: kpstore.Store) -> None:
    loader = kpstore.loader(filled.frames("points"), 8, pool_mib=POOL)
    first, second = rows_of(loader), rows_of(loader)
    assert first != second
    assert loader.epoch == 1
    next(iter(loader))
    assert loader.epoch == 2
    loader.set_epoch(0)
    assert rows_of(loader) == first
    assert rows_of(kpstore.loader(filled.frames("points"), 8, epoch=1, pool_mib=POOL)) == second
    assert rows_of(kpstore.loader(filled.frames("points"), 8, seed=1, pool_mib=POOL)) != first


def test_the_order_does_not_depend_on_what_is_cached(tmp_path: Path) -> None:
    made = long_store(kpstore.create(tmp_path / "a.kps"))
    orders = []
    for cache in ("off", str(tmp_path / "cache")):
        store = kpstore.open(made.location, cache=cache)
        store.reader.cache("points")
        orders.append(rows_of(kpstore.loader(store.frames("points"), 8, pool_mib=POOL)))
    assert orders[0] == orders[1]


views: dict[str, Callable[[kpstore.Store], Any]] = {
    "frames": lambda store: store.frames(["points", "points_detected"]),
    "clips": lambda store: store.clips("points", 4, 2),
    "padded clips": lambda store: store.clips("points", 8, short="pad"),
    "videos": lambda store: store.whole_videos("points"),
    "subset": lambda store: store.frames("points").subset(np.arange(3, 90, 2)),
    "subset of videos": lambda store: store.whole_videos("points").subset([4, 1, 2]),
}


@pytest.mark.parametrize("kind", views)
def test_batches_of_any_view_are_its_samples(filled: kpstore.Store, kind: str) -> None:
    view = views[kind](filled)
    loader = kpstore.loader(view, 3, seed=1, pool_mib=POOL)
    seen = []
    for indices, batch in zip(loader.sampler.plan(0)[0], loader, strict=True):
        expected = view.batch(indices)
        assert set(batch) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(np.asarray(batch[name]), array, err_msg=name)
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(view)))


@pytest.mark.parametrize("kind", views)
def test_a_view_is_told_from_others_as_in_earlier_states(filled: kpstore.Store, kind: str) -> None:
    view = views[kind](filled)
    tables = [view.first_rows, *([] if view.are_frames else [view.lengths])]
    content = b"".join(table.astype("<i8").tobytes() for table in tables)
    assert view.digest == hashlib.blake2b(content, digest_size=8).hexdigest()
    others = {other(filled).run_digest for name, other in views.items() if name != kind}
    assert view.run_digest == views[kind](filled).run_digest
    assert view.run_digest not in others


def test_an_epoch_needs_no_list_of_all_frames(filled: kpstore.Store) -> None:
    view = filled.frames("points", missing="skip")
    loader = kpstore.loader(view, 8, pool_mib=POOL)
    assert len(rows_of(loader)) == len(loader) == 16
    loader.load_state_dict(loader.state_dict())
    assert len(view.row_runs.starts) == 1
    assert "rows" not in vars(view)
    assert len(view.rows) == 125
    assert not view.rows.flags.writeable
    assert "rows" not in vars(pickle.loads(pickle.dumps(view)))


def test_text_is_a_list_and_numbers_are_tensors(filled: kpstore.Store) -> None:
    batch = next(iter(kpstore.loader(filled.whole_videos("points"), 2, shuffle=None)))
    assert batch["video_id"] == ["v0", "v1"]
    assert batch["points"].dtype == torch.float32
    assert batch["valid"].tolist() == [[True] * 5 + [False] * 4, [True] * 9]
    arrays = next(
        iter(kpstore.loader(filled.whole_videos("points"), 2, shuffle=None, tensors=False))
    )
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_batches_do_not_share_memory_with_later_ones(filled: kpstore.Store) -> None:
    batches = list(kpstore.loader(filled.frames("points"), 8, pool_mib=POOL))
    for batch in batches:
        check_values(batch)
    batches[0]["points"][:] = -1
    check_values(batches[1])


def test_transforms_and_collation(filled: kpstore.Store) -> None:
    view = filled.frames(
        "points", transform=lambda sample: {"sum": sample["points"].sum(), "row": sample["row"]}
    )
    batch = next(iter(kpstore.loader(view, 4, shuffle=None)))
    assert batch["row"].tolist() == [0, 1, 2, 3]
    assert batch["sum"].tolist() == filled["points"][:4].sum(axis=(1, 2)).tolist()
    assert next(iter(kpstore.loader(view, 4, shuffle=None, collate=len))) == 4


# -- ranks and resuming ----------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from(["block", "full", None]),
    st.lists(st.integers(0, 6), max_size=2),
    st.booleans(),
)
def test_each_sample_comes_once_over_ranks_and_interruptions(
    filled: kpstore.Store,
    world_size: int,
    batch_size: int,
    shuffle: Any,
    stops: list[int],
    change: bool,
) -> None:
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for stop in [*stops, None]:
        states = []
        for rank in range(world_size):
            loader = kpstore.loader(
                filled.frames("points"),
                batch_size,
                shuffle=shuffle,
                rank=rank,
                world_size=world_size,
                pad=False,
                threads=0,
                pool_mib=POOL,
                seed=5,
            )
            if state is not None:
                loader.load_state_dict(state)
            batches = iter(loader)
            for _ in range(len(loader) if stop is None else min(stop, len(loader))):
                seen += next(batches)["row"].tolist()
            states.append(loader.state_dict())
        if stop is not None and any(s["epoch"] != 0 for s in states):
            break  # all was done before the stop
        state = json.loads(json.dumps(states[0]))
        world_size = world_size + 1 if change else world_size
    assert sorted(seen) == list(range(125))


@settings(max_examples=40)
@given(
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    stop=st.integers(0, 8),
    how=st.sampled_from([{"drop_last": True}, {"pad": True}, {"pad": False}]),
    shuffle=st.sampled_from(["block", None]),
)
def test_every_rank_goes_on_exactly_as_if_it_had_not_stopped(
    filled: kpstore.Store, world_size: int, batch_size: int, stop: int, how: Any, shuffle: Any
) -> None:
    for rank in range(world_size):

        def make(rank: int = rank) -> kpstore.Loader:
            shared = {"world_size": world_size, "threads": 0, "pool_mib": POOL, "shuffle": shuffle}
            return kpstore.loader(filled.frames("points"), batch_size, rank=rank, **shared, **how)

        whole = [row for rows in rows_of(make()) for row in rows]
        first = make()
        batches = iter(first)
        seen = [
            row for _ in range(min(stop, len(first) - 1)) for row in next(batches)["row"].tolist()
        ]
        again = make()
        again.load_state_dict(first.state_dict())
        assert seen + [row for rows in rows_of(again) for row in rows] == whole


def test_trainers_that_set_the_epoch_of_a_loaded_state_keep_its_place(
    filled: kpstore.Store,
) -> None:
    def make() -> kpstore.Loader:
        return kpstore.loader(filled.frames("points"), 8, pool_mib=POOL)

    first = make()
    first.set_epoch(3)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    again = make()
    again.load_state_dict(first.state_dict())
    again.set_epoch(3)
    assert len(again) == 11
    assert rows_of(again) == rows_of(batches)
    assert len(again) == 16, "of the next epoch"
    again.set_epoch(4)
    assert len(rows_of(again)) == 16
    again.load_state_dict(first.state_dict())
    again.set_epoch(0)
    assert len(rows_of(again)) == 16


@pytest.mark.parametrize("state", [{}, {"epoch": 1, "done": [3]}, {"epoch": "x", "done": []}])
def test_what_is_no_state_is_refused(filled: kpstore.Store, state: Any) -> None:
    loader = kpstore.loader(filled.frames("points"), 8, pool_mib=POOL)
    settings = {
        name: value for name, value in loader.state_dict().items() if name not in ("epoch", "done")
    }
    with pytest.raises(MismatchError, match="not a state of a loader"):
        loader.load_state_dict({**settings, **state})


def test_batches_ahead_are_bounded_in_number_and_in_bytes(
    filled: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    read = BatchDataset.batches

    def counted(self: BatchDataset, parts: Any) -> Any:
        made.append(len(parts))
        return read(self, parts)

    monkeypatch.setattr(BatchDataset, "batches", counted)
    for prefetch in (0, 1, 3, 50):
        made.clear()
        batches = iter(
            kpstore.loader(filled.frames("points"), 2, pool_mib=POOL, prefetch=prefetch, threads=4)
        )
        for n_given in range(1, 9):
            next(batches)
            time.sleep(0.005)
            assert sum(made) <= n_given + max(prefetch, 1)
        batches.close()
    monkeypatch.setattr("kpstore.views.loader._RUN_BYTES", 1)
    made.clear()
    list(kpstore.loader(filled.frames("points"), 2, pool_mib=POOL, prefetch=50))
    assert set(made) == {1}


def test_videos_of_very_different_lengths_are_not_padded_one_by_one(
    memory_store: kpstore.Store,
) -> None:
    store = long_store(memory_store, (2000, *[1] * 63))
    store.video("v0")
    tracemalloc.start()
    lengths = [len(video["points"]) for video in store.whole_videos("points")]
    loaded = [
        batch["n_frames"].tolist()
        for batch in kpstore.loader(store.whole_videos("points"), 64, collate=collate)
    ]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(lengths) == sorted(loaded[0]) == [1] * 63 + [2000]
    assert peak < 2_000_000, "padded they would take 64 * 2000 * 60 bytes"


def collate(videos: Any) -> Any:
    return {"n_frames": np.array([video["n_frames"] for video in videos])}


def test_text_of_clips_can_be_collated_by_pytorch(filled: kpstore.Store) -> None:
    batch = next(iter(DataLoader(filled.clips(["points", "image_path"], 4), batch_size=3)))
    assert batch["points"].shape == (3, 4, 5, 3)
    assert len(batch["image_path"]) == 4


def test_padding_makes_ranks_equal_and_is_stated(filled: kpstore.Store) -> None:
    def of_rank(rank: int, **how: Any) -> kpstore.Loader:
        return kpstore.loader(
            filled.frames("points"), 8, rank=rank, world_size=4, pool_mib=POOL, **how
        )

    loaders = [of_rank(rank) for rank in range(4)]
    seen = [flat(rows_of(loader)) for loader in loaders]
    assert [len(rows) for rows in seen] == [32] * 4
    assert {loader.padding for loader in loaders} == {3}
    assert sorted(set(flat(seen))) == list(range(125))
    assert of_rank(0, pad=False).padding == 0
    dropped = [rows_of(of_rank(rank, drop_last=True)) for rank in range(4)]
    assert {len(batch) for rows in dropped for batch in rows} == {8}
    assert {len(rows) for rows in dropped} == {3}


def test_ranks_are_those_of_the_launcher(
    filled: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = kpstore.loader(filled.frames("points"), 8)
    assert loader.sampler.ranks == (1, 3)
    with pytest.raises(InvalidError, match="rank=3, world_size=3"):
        kpstore.loader(filled.frames("points"), 8, rank=3, world_size=3)
    with pytest.raises(InvalidError, match="rank=1, world_size=None: give both"):
        kpstore.loader(filled.frames("points"), 8, rank=1)


@pytest.mark.parametrize("shuffle", ["block", None])
def test_a_run_goes_on_in_mid_epoch_as_if_nothing_had_happened(
    filled: kpstore.Store, shuffle: Any
) -> None:
    def make() -> kpstore.Loader:
        return kpstore.loader(filled.frames("points"), 8, shuffle=shuffle, seed=2, pool_mib=POOL)

    undisturbed = make()
    expected = rows_of(undisturbed) + rows_of(undisturbed)
    loader, seen = make(), []
    for batch in loader:
        seen.append(batch["row"].tolist())
        if len(seen) == 5:
            break
    again = make()
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert len(again) == 11
    assert seen + rows_of(again) + rows_of(again) == expected


def test_a_state_at_the_end_of_an_epoch_is_the_beginning_of_the_next(filled: kpstore.Store) -> None:
    loader = kpstore.loader(filled.frames("points"), 8, pool_mib=POOL)
    rows_of(loader)
    state, second = loader.state_dict(), rows_of(loader)
    again = kpstore.loader(filled.frames("points"), 8, pool_mib=POOL)
    again.load_state_dict(state)
    assert rows_of(again) == second


def test_a_state_of_another_order_is_refused(filled: kpstore.Store) -> None:
    state = kpstore.loader(filled.frames("points"), 8, seed=1).state_dict()
    with pytest.raises(MismatchError, match="taken with seed=1, this loader has seed=2"):
        kpstore.loader(filled.frames("points"), 8, seed=2).load_state_dict(state)
    with pytest.raises(MismatchError, match="taken with samples=125, this loader has samples=46"):
        kpstore.loader(filled.frames("points", split="train"), 8, seed=1).load_state_dict(state)
    as_many = filled.frames("points").subset(range(124, -1, -1))
    with pytest.raises(MismatchError, match="taken with frames="):
        kpstore.loader(as_many, 8, seed=1).load_state_dict(state)
    longest = [str(filled.index.ids[np.argmax(filled.index.n_frames)])]
    both = [filled.clips("points", n, stride=8, videos=longest).subset([0, 1]) for n in (4, 8)]
    np.testing.assert_array_equal(*(clips.first_rows for clips in both))
    shorter, longer = (kpstore.loader(clips, 1, seed=1) for clips in both)
    with pytest.raises(MismatchError, match="taken with frames="):
        longer.load_state_dict(shorter.state_dict())
    del state["frames"]  # as earlier builds took states
    kpstore.loader(filled.frames("points"), 8, seed=1).load_state_dict(state)


# -- by length -------------------------------------------------------------------------------------


def test_videos_are_put_together_by_length(filled: kpstore.Store) -> None:
    loader = kpstore.loader(filled.whole_videos("points"), batch_frames=60, seed=0)
    videos = []
    for batch in loader:
        assert batch["valid"].numel() <= 60
        videos += batch["video_id"]
    assert sorted(videos) == ["v0", "v1", "v3", "v4", "v5", "v6"]
    assert 0 < loader.padding_share < 0.2
    half = kpstore.loader(filled.whole_videos("points"), batch_frames=60, seed=0)
    running = iter(half)
    first = next(running)["video_id"]
    again = kpstore.loader(filled.whole_videos("points"), batch_frames=60, seed=0)
    again.load_state_dict(half.state_dict())
    assert first + flat(batch["video_id"] for batch in again) == videos


def test_ranks_get_equally_many_batches_by_length(filled: kpstore.Store) -> None:
    loaders = [
        kpstore.loader(filled.whole_videos("points"), batch_frames=45, rank=rank, world_size=3)
        for rank in range(3)
    ]
    seen = [[tuple(batch["video_id"]) for batch in loader] for loader in loaders]
    assert len({len(batches) for batches in seen}) == 1
    assert {video for batches in seen for batch in batches for video in batch} == {
        "v0",
        "v1",
        "v3",
        "v4",
        "v5",
        "v6",
    }


# -- threads, processes, errors --------------------------------------------------------------------


def loader_threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("kpstore-loader")
    ]


def test_no_thread_outlives_its_epoch(filled: kpstore.Store) -> None:
    for batch in kpstore.loader(filled.frames("points"), 8):
        assert loader_threads()
        del batch
        break
    assert not loader_threads()
    rows_of(kpstore.loader(filled.frames("points"), 8))
    assert not loader_threads()


def test_threads_instead_of_workers_copy_rows_that_are_mapped(tmp_path: Path) -> None:
    made = long_store(kpstore.create(tmp_path / "s.kps"))
    loader = kpstore.loader(made.frames("points"), 8, pool_mib=POOL, workers=5, prefetch=50)
    batches = iter(loader)
    found = [next(batches)]
    assert loader_threads()
    assert not multiprocessing.active_children()
    found += batches
    assert rows_of(found) == rows_of(kpstore.loader(made.frames("points"), 8, pool_mib=POOL))


def test_processes_do_what_takes_more_than_copying(tmp_path: Path) -> None:
    raw = long_store(kpstore.create(tmp_path / "s.kps"))
    fill(kpstore.create(tmp_path / "z.kps"), compression="lz4")
    cached = kpstore.open(tmp_path / "z.kps", cache=str(tmp_path / "cache")).frames("points")
    decoded = kpstore.open(tmp_path / "z.kps", cache="off").frames("points")
    drawn = raw.frames("points").subset([3, 1])
    drawn.draws = True
    copied = {
        "rows": (raw.frames("points"), None),
        "clips": (raw.clips("points", 4), None),
        "videos": (raw.whole_videos("points"), None),
        "a subset": (raw.frames("points").subset([3, 1]), None),
        "decoded to the disk": (cached, None),
        "a transform": (raw.frames("points", transform=len), None),
        "its subset": (raw.frames("points", transform=len).subset([3]), None),
        "a collate": (raw.frames("points"), len),
        "text": (raw.frames(["points", "image_path"]), None),
        "pictures": (drawn.subset([0]), None),
        "decoded each time": (decoded, None),
    }
    found = [
        name
        for name, how in copied.items()
        if kpstore.loader(how[0], 2, collate=how[1]).dataset.is_copied()
    ]
    assert found == ["rows", "clips", "videos", "a subset", "decoded to the disk"]
    assert SkeletonView.draws


def test_an_error_arrives_where_it_happened(filled: kpstore.Store) -> None:
    def refuse(sample: Any) -> Any:
        if sample["row"] == 17:
            raise CorruptError("row 17 is bad")
        return sample

    with pytest.raises(CorruptError, match="row 17 is bad"):
        rows_of(kpstore.loader(filled.frames("points", transform=refuse), 8, shuffle=None))
    assert not loader_threads()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "needs batch_size="),
        ({"batch_size": 0}, "batch_size=0: use a whole number, 1 or more"),
        ({"batch_size": 8, "shuffle": "pool"}, "shuffle='pool': use 'block', 'full' or None"),
        ({"batch_size": 8, "threads": -1}, "threads=-1: use a whole number, 0 or more"),
        ({"batch_frames": -5}, "batch_frames=-5"),
        ({"batch_size": 8, "pool_mib": 0}, "pool_mib=0"),
        ({"batch_size": 8, "pool_mib": float("inf")}, "pool_mib=inf"),
        ({"batch_size": 2.5}, "batch_size=2.5: use a whole number"),
        ({"batch_size": "4"}, "batch_size='4': use a whole number"),
        ({"batch_size": 4, "seed": -1}, "seed=-1: use a whole number"),
        ({"batch_size": 4, "seed": None}, "seed=None: use a whole number"),
        ({"batch_size": 4, "threads": 1.5}, r"threads=1\.5: use a whole number"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    filled: kpstore.Store, how: Any, message: str
) -> None:
    with pytest.raises(InvalidError, match=message):
        kpstore.loader(filled.frames("points"), **how)


def test_an_empty_view_has_no_batches(memory_store: kpstore.Store) -> None:
    view = fill(memory_store, done=()).frames("points", missing="skip")
    assert list(kpstore.loader(view, 8)) == []
    assert list(kpstore.loader(view, 8, rank=1, world_size=2)) == []
    assert list(kpstore.loader(fill_videos(view), batch_frames=8)) == []


def fill_videos(view: Any) -> Any:
    return view.store.whole_videos("points", missing="skip")


def test_pytorchs_own_loader_gives_the_same(filled: kpstore.Store) -> None:
    loader = kpstore.loader(filled.frames("points"), 8, pool_mib=POOL)
    same = DataLoader(loader.dataset, sampler=loader.sampler, batch_size=None)
    assert rows_of(same) == rows_of(kpstore.loader(filled.frames("points"), 8, pool_mib=POOL))


SCRIPT = """
import multiprocessing, sys, threading, kpstore
from torch.utils.data import DataLoader

def make(store, **how):
    return kpstore.loader(store.frames("points"), 8, pool_mib=0.001, seed=4, **how)

def rows(batches):
    return [batch["row"].tolist() for batch in batches]

def check_own(store):
    plain = make(store)
    expected = [rows(plain), rows(plain)]
    loader = make(store, workers=2)
    assert rows(loader) == expected[0]
    for batch in loader:
        break  # and the workers go on with the next epoch
    loader.set_epoch(1)
    assert rows(loader) == expected[1]
    loader.close()
    transformed = kpstore.loader(
        store.frames("points", transform=same), 8, pool_mib=0.001, seed=4, workers=2
    )
    assert [rows(transformed), rows(transformed)] == expected
    transformed.close()
    print("own")

def check(store, method):
    own = make(store)
    # Other workers than forks import torch, each for itself
    n_workers = 2 if method == "fork" else 1
    own = DataLoader(own.dataset, sampler=own.sampler, batch_size=None, num_workers=n_workers,
                     multiprocessing_context=method)
    assert rows(own) == rows(make(store))

def same(sample):
    return sample

def check_functions(store):
    doubled = store.frames("points", transform=lambda sample: 2 * sample["row"])
    twice = kpstore.loader(doubled, 8, shuffle=None, workers=1)
    assert [n for batch in twice for n in batch.tolist()] == [2 * n for n in range(len(doubled))]
    twice.close()
    lock = threading.Lock()
    locked = store.frames("points", transform=lambda sample: lock and sample)
    try:
        next(iter(kpstore.loader(locked, 8, workers=1)))
    except kpstore.KpstoreError as error:
        assert "cannot be sent to other processes" in str(error), error
        print("functions")

class Counted:
    def __init__(self, count):
        self.count = count

    def __call__(self, sample):
        with self.count.get_lock():
            self.count.value += 1
        return sample["row"]

def check_shared_values(store):
    count = multiprocessing.get_context("forkserver").Value("i", 0)
    counted = kpstore.loader(store.frames("points", transform=Counted(count)), 8, workers=1)
    n_batches = len(list(counted))
    counted.close()
    assert count.value >= 8 * (n_batches - 1), count.value
    print("values")

def main():
    store = kpstore.open(sys.argv[1], cache=sys.argv[2])
    check_functions(store)
    check_shared_values(store)
    check_own(store)
    for method in ("spawn", "forkserver", "fork"):
        check(store, method)
        print(method, flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(tmp_path: Path) -> None:
    made = long_store(kpstore.create(tmp_path / "a.kps"))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(script), made.location, str(tmp_path / "cache")]
    done = finish(command)
    said = ["functions", "values", "own", "spawn", "forkserver", "fork"]
    assert (done.stdout.split(), done.returncode) == (said, 0), done.stderr


TWO_AT_ONCE = """
import os, signal, sys, kpstore

def same(sample):
    return sample

def main():
    store = kpstore.open(sys.argv[1])
    view = store.frames("points", transform=same)
    loader = kpstore.loader(view, 8, pool_mib=0.001, workers=2)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    try:
        next(first)
        print("went on")
    except kpstore.KpstoreError as error:
        print("refused" if "one at a time" in str(error) else error)
    print(len(list(second)) + 1)
    third = iter(loader)
    next(third)
    for worker in third.gi_frame.f_locals["batches"].gi_frame.f_locals["batches"]._workers:
        os.kill(worker.pid, signal.SIGKILL)
    try:
        list(third)
    except Exception:  # as PyTorch notices it
        pass
    print(len(list(loader)))
    for method in ("_reset", "_next_data"):  # of PyTorch's, which an interrupt leaves half done
        setattr(loader._processes[0]._iterator, method, interrupt)
        try:
            list(loader)
        except KeyboardInterrupt:
            print(len(list(loader)))

def interrupt(*args):
    raise KeyboardInterrupt

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_serve_one_iteration_and_are_replaced_when_they_die(
    tmp_path: Path,
) -> None:
    made = long_store(kpstore.create(tmp_path / "a.kps"))
    script = tmp_path / "script.py"
    script.write_text(TWO_AT_ONCE)
    command = [sys.executable, "-W", "ignore", str(script), made.location]
    done = finish(command)
    assert (done.stdout.split(), done.returncode) == (["refused", *["16"] * 4], 0), done.stderr


STATEFUL = """
import multiprocessing, sys, kpstore
from torchdata.stateful_dataloader import StatefulDataLoader

def make(workers):
    loader = kpstore.loader(kpstore.open(sys.argv[1]).frames("points"), 8, pool_mib=0.001)
    return StatefulDataLoader(
        loader.dataset,
        sampler=loader.sampler,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )

def rows(batches):
    return [batch["row"].tolist() for batch in batches]

def main():
    # Imported once, and not by each of eight workers.
    multiprocessing.set_forkserver_preload(["kpstore", "torchdata.stateful_dataloader"])
    for workers in (0, 2):
        whole = rows(make(workers))
        first = make(workers)
        batches = iter(first)
        seen = [next(batches)["row"].tolist() for _ in range(5)]
        again = make(workers)
        again.load_state_dict(first.state_dict())
        assert seen + rows(again) == whole
        assert rows(again) != whole  # the next epoch
    print("equal")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_torchdatas_stateful_loader_goes_on_where_it_was(tmp_path: Path) -> None:
    made = long_store(kpstore.create(tmp_path / "a.kps"))
    script = tmp_path / "script.py"
    script.write_text(STATEFUL)
    command = [sys.executable, "-W", "ignore", str(script), made.location]
    done = finish(command)
    assert (done.stdout, done.returncode) == ("equal\n", 0), done.stderr


# -- ranks that are known only later ---------------------------------------------------------------


@pytest.mark.parametrize("peeked", [False, True])
def test_a_loader_takes_its_rank_when_an_epoch_begins(
    filled: kpstore.Store, monkeypatch: pytest.MonkeyPatch, peeked: bool
) -> None:
    view = filled.frames("points")

    def as_rank(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")

    monkeypatch.delenv("RANK", raising=False)
    loaders = [kpstore.loader(view, 8, threads=0, pool_mib=POOL) for _ in range(2)]
    assert [len(loader) for loader in loaders] == [16, 16]
    if peeked:
        assert [len(next(iter(loader))["row"]) for loader in loaders] == [8, 8]
    loaders = pickle.loads(pickle.dumps(loaders)) if not peeked else loaders
    seen = []
    for rank, loader in enumerate(loaders):
        as_rank(rank)
        assert (len(loader), loader.padding) == (8, 1)
        seen.append(flat(rows_of(loader)))
        assert len(loader) == 8
    assert [len(rows) for rows in seen] == [63, 63]
    assert sorted(set(flat(seen))) == list(range(125))
    given_ranks = kpstore.loader(view, 8, threads=0, rank=0, world_size=1, pool_mib=POOL)
    assert len(rows_of(given_ranks)) == 16


def test_a_state_taken_by_ranks_that_came_later_is_theirs(
    filled: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, seen, states = filled.frames("points"), [], []
    monkeypatch.delenv("RANK", raising=False)
    loaders = [kpstore.loader(view, 8, threads=0, pool_mib=POOL) for _ in range(2)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, loader in enumerate(loaders):
        monkeypatch.setenv("RANK", str(rank))
        batches = iter(loader)
        seen += [next(batches)["row"].tolist() for _ in range(3)]
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert states[0]["done"] == [{"world_size": 2, "n_units": 24, "drop": False}]
    monkeypatch.delenv("RANK")
    alone = kpstore.loader(view, 8, threads=0, pool_mib=POOL)
    alone.load_state_dict(states[0])
    assert sorted(flat(seen) + flat(rows_of(alone))) == list(range(125))


TWO_PROCESSES = """
import multiprocessing, sys
import torch.distributed as distributed
import kpstore

def train(loader, rank, meeting, found):
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found.put((len(loader), [row for batch in loader for row in batch["row"].tolist()]))
    distributed.barrier()
    distributed.destroy_process_group()

loader = kpstore.loader(kpstore.open(sys.argv[1]).frames("points"), 7, threads=0)
assert len(loader) == 5
context = multiprocessing.get_context("fork")
found = context.SimpleQueue()
given = [(loader, rank, sys.argv[2], found) for rank in range(2)]
ranks = [context.Process(target=train, args=one) for one in given]
for process in ranks:
    process.start()
(n, first), (m, second) = found.get(), found.get()
for process in ranks:
    process.join()
assert [process.exitcode for process in ranks] == [0, 0]
assert (n, m, len(first), len(second)) == (3, 3, 17, 17), (n, m, len(first), len(second))
assert sorted({*first, *second}) == list(range(34))
"""


def test_two_processes_share_a_loader_that_was_made_before_their_group(tmp_path: Path) -> None:
    long_store(kpstore.create(tmp_path / "s.h5"), (5, 9, 20))
    script = [
        sys.executable,
        "-c",
        TWO_PROCESSES,
        str(tmp_path / "s.h5"),
        str(tmp_path / "meeting"),
    ]
    done = finish(script)
    assert done.returncode == 0, done.stderr


class Shared:
    """A transform under which the worker finds shared memory full at a certain sample."""

    def __init__(self, full_at: int) -> None:
        self.full_at = full_at

    def __call__(self, sample: Any) -> Any:
        if sample["points"][0, 0] == self.full_at * 100:
            handed.free_bytes = lambda: 100  # type: ignore[assignment]
        return sample


def as_it_is(batch: Any) -> Any:
    return batch


def test_a_worker_of_pytorchs_that_cannot_hand_over_its_batch_ends_the_loop_in_one_line(
    tmp_path: Path,
) -> None:
    store = long_store(kpstore.create(tmp_path / "s.kps"))
    view = store.frames("points", transform=Shared(full_at=20))
    loader = kpstore.loader(view, 8, shuffle=None)
    how = {"num_workers": 1, "prefetch_factor": 1, "multiprocessing_context": "forkserver"}
    plan = {"dataset": loader.dataset, "sampler": loader.sampler, "batch_size": None}
    batches = iter(DataLoader(**plan, **how, collate_fn=as_it_is))
    assert len([next(batches) for _ in range(2)]) == 2
    with pytest.raises(UnsupportedError, match="workers hand over batches in /dev/shm"):
        list(batches)
    assert len(list(kpstore.loader(view, 8, workers=1))) == 16, "which hands them over itself"
