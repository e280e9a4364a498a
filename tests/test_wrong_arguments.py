"""What is given to a public function by mistake is one line, and never another library's error."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.errors import InvalidError, KpstoreError
from kpstore.schema.feature import FeatureRows
from tests.fakes import record
from tests.store.data import fill

Call = Callable[[kpstore.Store, Any], object]

ODD = [
    True,
    -1,
    2.5,
    b"x",
    ["nope"],
    [[None]],
    {"a": object()},
    np.ones((2, 2)),
    object(),
    "\ud800",
]
"""What is neither a name, a path, a number of things, rows, a record nor a mapping of them."""

CALLS: dict[str, Call] = {
    "open at": lambda store, odd: store.at(odd),
    "create name": lambda store, odd: kpstore.create("memory://named", name=odd),
    "diff": lambda store, odd: kpstore.diff(store, odd),
    "array": lambda store, odd: store[odd],
    "feature": lambda store, odd: store.feature(odd),
    "states": lambda store, odd: store.states(odd),
    "failures": lambda store, odd: store.failures(odd),
    "video": lambda store, odd: store.video(odd),
    "image path": lambda store, odd: store.video("a").image_path([odd]),
    "read": lambda store, odd: store.read(odd, [0]),
    "read into": lambda store, odd: store.read("points", [0], odd),
    "tag": lambda store, odd: store.tag(odd),
    "delete tag": lambda store, odd: store.delete_tag(odd),
    "branch": lambda store, odd: store.branch(odd),
    "rollback": lambda store, odd: store.rollback(odd),
    "garbage keep": lambda store, odd: store.collect_garbage(keep=odd),
    "garbage age": lambda store, odd: store.collect_garbage(older_than=odd),
    "frames": lambda store, odd: store.frames(odd),
    "split": lambda store, odd: store.frames("points", split=odd),
    "videos": lambda store, odd: store.frames("points", videos=odd),
    "where": lambda store, odd: store.frames("points", where=odd),
    "missing": lambda store, odd: store.frames("points", missing=str(odd)),
    "transform": lambda store, odd: store.frames("points", transform=odd),
    "clip length": lambda store, odd: store.clips("points", odd),
    "clip stride": lambda store, odd: store.clips("points", 2, odd),
    "whole videos": lambda store, odd: store.whole_videos(odd),
    "face keypoints": lambda store, odd: store.face_keypoints(feature=odd),
    "skeletons": lambda store, odd: store.skeletons(feature=odd),
    "lips": lambda store, odd: store.lips(feature=odd),
    "computed": lambda store, odd: store.computed(odd),
    "computed features": lambda store, odd: store.computed(features=odd),
    "xarray": lambda store, odd: store.to_xarray(features=odd),
    "statistics": lambda store, odd: store.statistics(odd),
    "statistics workers": lambda store, odd: store.statistics("points", workers=odd),
    "loader": lambda store, odd: kpstore.loader(store.frames("points"), odd),
    "loader collate": lambda store, odd: kpstore.loader(store.frames("points"), 2, collate=odd),
    "loader state": lambda store, odd: kpstore.loader(store.frames("points"), 2).load_state_dict(
        odd
    ),
}
WRITES: dict[str, Callable[[Any, Any], object]] = {
    "add videos": lambda tx, odd: tx.add_videos(odd),
    "set splits": lambda tx, odd: tx.set_splits(odd),
    "set a split": lambda tx, odd: tx.set_splits({"a": odd}),
    "add feature": lambda tx, odd: tx.add_feature(odd),
    "provenance": lambda tx, odd: tx.add_feature(kpstore.FeatureSpec("new"), odd),
    "write": lambda tx, odd: tx.write("points", "a", odd),
    "write feature": lambda tx, odd: tx.write(odd, "a", np.ones((5, 5, 3))),
    "write video": lambda tx, odd: tx.write("points", odd, np.ones((5, 5, 3))),
    "failed frames": lambda tx, odd: tx.write("points", "a", np.ones((5, 5, 3)), failed_frames=odd),
    "companions": lambda tx, odd: tx.write("points", "a", FeatureRows(np.ones((5, 5, 3)), odd)),
    "write rows": lambda tx, odd: tx.write_rows("points", 0, odd, np.ones(1)),
    "first row": lambda tx, odd: tx.write_rows(
        "points", odd if odd is not True else -1, FeatureRows(np.ones((1, 5, 3))), np.ones(1, "u1")
    ),
    "states": lambda tx, odd: tx.set_states("points", odd),
    "reset": lambda tx, odd: tx.reset_states("points", odd if np.iterable(odd) else [odd]),
}


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KpstoreError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400
    return said


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
@pytest.mark.parametrize("name", CALLS)
def test_whatever_is_asked_for(memory_store: kpstore.Store, name: str, odd: Any) -> None:
    refused(lambda: CALLS[name](fill(memory_store), odd))


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
@pytest.mark.parametrize("name", WRITES)
def test_whatever_is_written(memory_store: kpstore.Store, name: str, odd: Any) -> None:
    store = fill(memory_store)

    def write() -> None:
        with store.transaction("odd") as tx:
            WRITES[name](tx, odd)

    refused(write)
    assert store.at().snapshot == store.snapshot


@pytest.mark.parametrize("given", [{"message": b"x"}, {"metadata": [1]}, {"branch": 3}])
def test_what_describes_a_commit_is_text_and_json(
    memory_store: kpstore.Store, given: dict[str, Any]
) -> None:
    refused(lambda: memory_store.transaction(**{"message": "x", **given}))


def test_metadata_that_is_no_json_stops_the_commit(memory_store: kpstore.Store) -> None:
    tx = memory_store.transaction("odd")
    tx.add_videos([record("a", 2)])
    tx.metadata["when"] = datetime.date(2026, 1, 31)
    assert "metadata of a commit: give JSON values only" in refused(tx.commit)
    assert len(memory_store.at().index) == 0


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**4000], ids=["above", "below", "long"])
def test_metadata_of_more_than_64_bits_is_refused(memory_store: kpstore.Store, number: int) -> None:
    said = refused(lambda: memory_store.transaction("odd", metadata={"a": [number]}))
    assert "is an integer of more than 64 bits; give it as text" in said


def test_metadata_and_provenance_escape_halves_of_characters(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("a", metadata={"file": "\udcff", "number": 2**64 - 1}) as tx:
        tx.add_feature(kpstore.FeatureSpec("new"), {"weights": {"\udcff": "a"}})
    store = memory_store.at()
    assert store.history()[0].metadata == {"file": "\\udcff", "number": 2**64 - 1}
    assert store.provenance("new") == {"weights": {"\\udcff": "a"}}


def test_exports_need_an_open_store_a_format_and_a_path(memory_store: kpstore.Store) -> None:
    said = refused(lambda: kpstore.export_file("s.kps", "s.h5", "hdf5"))  # type: ignore[arg-type]
    assert "'s.kps' is not an open store; see kpstore.open" in said
    refused(lambda: kpstore.export_file(memory_store, "a\0b", "hdf5"))
    refused(lambda: kpstore.export_file(memory_store, "s.h5", ["hdf5"]))  # type: ignore[arg-type]
    refused(lambda: kpstore.import_file("a\0b", "s.kps"))


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    for name in ("a\0b", "\ud800"):
        assert "no file can have such a name" in refused(lambda name=name: kpstore.open(name))  # type: ignore[misc]
        refused(lambda name=name: kpstore.create(name))  # type: ignore[misc]
    for call in (kpstore.open, kpstore.create):
        assert "the path is empty; name a file" in refused(lambda call=call: call(""))  # type: ignore[misc]
    assert kpstore.create(bytes(tmp_path / "s.kps")).name == "s.kps"  # type: ignore[arg-type]
    assert kpstore.open(bytes(tmp_path / "s.kps")).splits == []  # type: ignore[arg-type]


def test_several_ways_to_name_splits_and_videos(memory_store: kpstore.Store) -> None:
    store = fill(memory_store)
    assert len(store.frames("points", split={"train", "dev"})) == 34  # type: ignore[arg-type]
    assert len(store.frames("points", videos={"a": 1, "b": 2}.keys())) == 14  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="is not a sequence; give ids"):
        store.frames("points", videos={"a", "b"})  # type: ignore[arg-type]


def test_what_a_generator_of_the_user_raises_is_not_hidden(memory_store: kpstore.Store) -> None:
    with pytest.raises(ZeroDivisionError), memory_store.transaction("bad") as tx:
        tx.add_videos(record("a", 1 // number) for number in [0])  # type: ignore[arg-type]


def test_numbers_and_rows_of_other_libraries(memory_store: kpstore.Store) -> None:
    torch, pandas = pytest.importorskip("torch"), pytest.importorskip("pandas")
    store = fill(memory_store)
    two = torch.tensor(2)
    assert len(store.clips("points", two)) == len(store.clips("points", 2))
    assert len(kpstore.loader(store.frames("points"), two, threads=two, seed=two)) == 17
    with store.transaction("rows") as tx:
        tx.add_feature(kpstore.FeatureSpec("mood", (3,), ("part",), axis="video"))
        tx.write_video_feature("mood", "a", pandas.DataFrame(np.ones((2, 3))).iloc[0])
        said = refused(lambda: tx.write("points", "a", torch.ones(5, 5, 3, requires_grad=True)))
    assert "requires grad" in said
    assert store.at()["mood"][0].tolist() == [1, 1, 1]
