"""A state that an earlier kpstore saved goes on where it was, in the order of its time."""

from __future__ import annotations

import json
from typing import Any

import pytest

import kpstore
from kpstore.errors import MismatchError
from tests.conftest import memory_location
from tests.views.test_loader import POOL, flat, long_store, rows_of

DONE = {"world_size": 1, "n_units": 40, "drop": False}
STATE = {"epoch": 1, "done": [DONE], "samples": 125, "frames": "94992d46cb11d907", "seed": 2}
"""A state in the middle of an epoch, as an earlier kpstore saved it."""
LEFT = {
    "block": """
    24 111 108 101 26 103 21 25 83 80 23 27 20 82 89 22 91 81 58 88 2 90 57 59 117 1 56 119 3 10
    116 0 118 5 9 99 7 11 96 8 98 6 4 41 105 97 43 107 40 104 42 106 85 87 53 39 84 36 55 86 52 38
    65 67 54 37 64 124 66 61 63 49 60 51 62 34 48 72 33 50 74 75 35 32 73
    """,
    "full": """
    1 124 60 9 74 91 116 58 68 61 35 28 77 22 73 88 123 0 14 115 89 113 103 13 6 41 76 49 15 65 23
    112 8 5 59 18 32 64 53 38 119 114 54 70 111 106 109 20 67 69 33 83 51 72 85 100 63 34 26 120
    107 44 52 86 110 84 81 66 45 2 50 30 25 21 97 90 43 39 4 108 7 117 95 57 87
    """,
}
"""What it went on with."""


@pytest.fixture(scope="module")
def filled() -> kpstore.Store:
    return long_store(kpstore.create(memory_location()))


def loader_of(store: kpstore.Store, shuffle: Any, **how: Any) -> kpstore.Loader:
    return kpstore.loader(store.frames("points"), 8, shuffle=shuffle, seed=2, pool_mib=POOL, **how)


def state_of(shuffle: Any) -> dict[str, Any]:
    return {**STATE, "shuffle": shuffle} | ({"pool_mib": POOL} if shuffle == "block" else {})


@pytest.mark.parametrize("shuffle", LEFT)
def test_an_epoch_ends_in_the_order_in_which_it_began(filled: kpstore.Store, shuffle: Any) -> None:
    left = list(map(int, LEFT[shuffle].split()))
    loader = loader_of(filled, shuffle)
    loader.load_state_dict(state_of(shuffle))
    assert len(loader) == 11
    assert flat(rows_of(loader)) == left
    second = loader_of(filled, shuffle, epoch=2)
    assert loader.state_dict() == {**second.state_dict(), "order": 2}
    assert rows_of(loader) == rows_of(second), "the next epoch is in the present order"


@pytest.mark.parametrize("shuffle", LEFT)
def test_an_old_epoch_is_interrupted_again_and_shared_by_others(
    filled: kpstore.Store, shuffle: Any
) -> None:
    loader = loader_of(filled, shuffle)
    loader.load_state_dict(state_of(shuffle))
    batches = iter(loader)
    seen = [row for _ in range(3) for row in next(batches)["row"].tolist()]
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["order"], state["frames"]) == (1, STATE["frames"])
    for rank in range(2):
        again = loader_of(filled, shuffle, rank=rank, world_size=2, pad=False)
        again.load_state_dict(state)
        seen += flat(rows_of(again))
    assert seen == list(map(int, LEFT[shuffle].split()))


def test_videos_by_length_go_on_in_the_old_order(filled: kpstore.Store) -> None:
    def loader() -> kpstore.Loader:
        return kpstore.loader(filled.whole_videos("points"), batch_frames=60)

    again = loader()
    again.load_state_dict(
        {
            **{"epoch": 0, "done": [{"world_size": 1, "n_units": 1, "drop": False}]},
            **{"samples": 6, "frames": "037172909798540c", "shuffle": "block", "seed": 0},
            **{"pool_mib": 256, "batch_frames": 60, "batch_size": None},
        }
    )
    assert [batch["video_id"] for batch in again] == [["v3"], ["v4"], ["v0", "v1", "v5"]]


def test_between_epochs_there_is_no_old_order(filled: kpstore.Store) -> None:
    loader = loader_of(filled, "block")
    loader.load_state_dict({**state_of("block"), "epoch": 3, "done": []})
    assert loader.state_dict()["order"] == 2
    assert rows_of(loader) == rows_of(loader_of(filled, "block", epoch=3))


@pytest.mark.parametrize("order", [3, 0, "2", None])
def test_a_state_of_an_order_that_is_not_known_is_refused(
    filled: kpstore.Store, order: Any
) -> None:
    loader = loader_of(filled, "block")
    state = {**loader.state_dict(), "order": order}
    with pytest.raises(MismatchError, match="this kpstore knows orders up to 2; use the"):
        loader.load_state_dict(state)
