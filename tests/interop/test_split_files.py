"""Splits from files: one commit that touches no frame, or one clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.errors import BusyError, InvalidError, NotFoundError
from kpstore.interop.split_files import read_splits, set_splits
from tests.store.data import SPLITS, fill

NEW = {"a": "test", "b": "train", "c": "train", "d": ""}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.csv", 'video_id,split\n"a",test\nb,train\n\nc,train\nd,\n'),
        ("s.tsv", 'Name\tnote\tSplit\r\na\tsaid "so\ttest\r\nb\t\ttrain\nc\t\ttrain\nd\t\t\r\n'),
        ("s", "name|video|split\na|a/1/*.png|test\nb|b/1/*.png|train\nc|c|train\nd|d|\n"),
        ("s.csv", "\ufeffid;subset\na;test\nb;train\nc;train\nd;\n"),
        ("s.json", json.dumps(NEW)),
        ("s.txt", ' {"test": ["a"], "train": ["b", "c"], "": ["d"]}'),
    ],
)  # fmt: skip
def test_tables_and_json_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_splits(tmp_path / name) == NEW


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a header with video_id and split, found ''"),
        ("a,test\nb,dev\n", "needs a header with video_id and split, found 'a, test'"),
        ("video_id,split\n", "names no videos"),
        ("{}", "names no videos"),
        ("video_id,split\na,test,x\n", "line 2 has 3 cells, the header has 2"),
        ('video_id,split\n"a,test\n', "line 2 is not a row of a table"),
        ("video_id,split\na,x\nb,x\na,y\n", "video 'a' is named twice"),
        ('{"a": "x", "a": "y"}', "video 'a' is named twice"),
        (
            '{"x": ["a"], "y": ["a", "b", "b"]}',
            "video 'a' is named twice\n  video 'b' is named twice",
        ),
        ('{"a": 3}', r"JSON of splits is \{video: split\} or"),
        ('["a"]', "JSON of splits is"),
        ('{"a": "x"', "is not JSON"),
        ('{"a": " x"}', "video 'a' has no id, or a split that is not printable text"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidError, match=message):
        read_splits(tmp_path / "s")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"video_id,split\n\xff\xfe,train\n")
    with pytest.raises(InvalidError, match="is not text in UTF-8"):
        read_splits(tmp_path / "s")


def write(folder: Path, splits: dict[str, str]) -> Path:
    path = folder / "new.json"
    path.write_text(json.dumps(splits), encoding="utf-8")
    return path


def test_splits_change_in_one_commit_and_nothing_else_does(
    store: kpstore.Store, tmp_path: Path
) -> None:
    before = fill(store)
    planned = set_splits(before, write(tmp_path, NEW), dry_run=True)
    assert (planned.changed, planned.after) == (3, {"test": 1, "train": 2, "": 1})
    assert store.at().snapshot == before.snapshot
    change = set_splits(store, write(tmp_path, NEW))
    after = store.at()
    assert (change.changed, change.snapshot) == (3, after.snapshot)
    assert dict(zip(after.index.ids, after.index.splits, strict=True)) == NEW
    newest, parent = after.history()[:2]
    assert (newest.message, parent.id) == (
        "splits set from new.json: 3 of 4 videos changed",
        before.snapshot,
    )
    assert newest.metadata["splits"]["before"] == {"train": 3, "dev": 1}
    difference = kpstore.diff(before, after)  # type: ignore[arg-type]
    assert (difference.videos_changed, difference.features_changed) == (("a", "b", "d"), {})
    assert after.provenance("points") == before.provenance("points")
    np.testing.assert_array_equal(after["points"][:], before["points"][:])
    assert (before.own_splits, after.own_splits) == (False, True)
    assert set_splits(after, write(tmp_path, NEW)).changed == 0
    assert store.at().snapshot == after.snapshot


def test_videos_must_be_the_same_unless_others_may_stay(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    filled = fill(memory_store)
    with pytest.raises(
        InvalidError, match=r"video 'x' is not in the store\n  video 'd' is in the store and not in"
    ):
        set_splits(filled, write(tmp_path, {"a": "t", "b": "t", "c": "t", "x": "t"}))
    with pytest.raises(InvalidError, match="video 'x' is not in the store; no split was changed"):
        set_splits(filled, write(tmp_path, {"x": "t"}), keep_others=True)
    with pytest.raises(InvalidError, match="… and 5 more like it"):
        set_splits(
            filled, write(tmp_path, dict.fromkeys(map(str, range(25)), "t")), keep_others=True
        )
    assert memory_store.at().snapshot == filled.snapshot
    change = set_splits(memory_store, write(tmp_path, {"b": "test"}), keep_others=True)
    assert (change.changed, change.kept) == (1, 3)
    assert memory_store.at().index.splits.tolist() == ["train", "test", "train", "train"]


def test_ids_may_be_spelled_otherwise_than_in_the_store(
    memory_store: kpstore.Store, tmp_path: Path
) -> None:
    with memory_store.transaction("videos") as tx:
        tx.add_videos([kpstore.VideoRecord("u\u0308", "train", ("1.png",))])
    assert set_splits(memory_store, write(tmp_path, {"ü": "dev"})).changed == 1
    assert memory_store.at().index.splits.tolist() == ["dev"]
    with pytest.raises(InvalidError, match="is named twice"):
        set_splits(memory_store, write(tmp_path, {"ü": "dev", "u\u0308": "test"}))


def test_another_writer_is_not_disturbed(disk_store: kpstore.Store, tmp_path: Path) -> None:
    filled = fill(disk_store)
    path = write(tmp_path, NEW)
    with filled.backend.exclusive("an ingest"), pytest.raises(BusyError):
        set_splits(disk_store, path)
    assert disk_store.at().index.splits.tolist() == list(SPLITS.values())


def test_a_transaction_sets_splits(memory_store: kpstore.Store) -> None:
    fill(memory_store)
    with memory_store.transaction("resplit") as tx:
        assert tx.set_splits({"b": "test", "a": "train"}) == 1
    assert memory_store.at().index.splits.tolist() == ["train", "test", "train", "train"]
    for splits, error, message in (
        ({"nope": "x"}, NotFoundError, "video 'nope' not found"),
        ({"a": " x"}, InvalidError, "split ' x' of video 'a': use printable text"),
        ({"a": 3}, InvalidError, "split 3 of video 'a'"),
    ):
        with pytest.raises(error, match=message), memory_store.transaction("wrong") as tx:
            tx.set_splits(splits)  # type: ignore[arg-type]


def test_a_row_without_its_split_is_an_error_and_not_no_split(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("video_id,split,note\na,train\nb\n")
    with pytest.raises(InvalidError, match=r"line 3 has 1 cells, the header has 3; it may have"):
        read_splits(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("video_id,split,note\na,train\nb,\n")
    assert read_splits(tmp_path / "s.csv") == {"a": "train", "b": ""}
