"""Splits in the names of files, and blocks of rows."""

from __future__ import annotations

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError
from kpstore.interop import outputs
from kpstore.interop.splits import UNSPLIT, check_file_names, chosen_splits, split_rank
from tests.fakes import record


def test_splits_come_in_their_usual_order() -> None:
    names = ["zoo", "test", "val", "train", "dev", "", "all"]
    assert sorted(names, key=lambda s: (split_rank(s), s)) == [
        "train",
        "dev",
        "val",
        "test",
        "",
        "all",
        "zoo",
    ]


def test_videos_without_a_split_are_not_mixed_with_a_split(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("videos") as tx:
        tx.add_videos([record("a", 1, ""), record("b", 1, "train"), record("c", 1, UNSPLIT)])
    store = memory_store.at()
    assert chosen_splits(store, ["", "train", ""]) == ["", "train"]
    assert chosen_splits(store, [UNSPLIT, "train"]) == [UNSPLIT, "train"]
    with pytest.raises(InvalidError, match="a split named 'all' and videos without one"):
        chosen_splits(store, None)


@pytest.mark.parametrize("split", ["../evil", "a\\b", "/abs", ".hidden", "..", "c:", "x\n", "a\0"])
def test_names_that_files_cannot_have_are_refused(split: str) -> None:
    check_file_names(["train", "", "tést 1", "a.b"])
    with pytest.raises(InvalidError, match="cannot be part of a file name"):
        check_file_names(["train", split])


def test_blocks_are_all_rows_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "BLOCK_FRAMES", 3)
    rows = np.arange(7)[::-1]
    assert [block.tolist() for block in outputs.blocks(rows)] == [[6, 5, 4], [3, 2, 1], [0]]
    assert list(outputs.blocks(rows[:0])) == []
