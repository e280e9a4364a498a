"""One version of a store: its table, its videos, its failures, its errors."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import kpstore
from kpstore import plugins
from kpstore.backends.memory import MemoryBackend
from kpstore.errors import (
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
)
from kpstore.schema.feature import FeatureSpec, State
from tests.fakes import record
from tests.processes import finish
from tests.store.data import LENGTHS, SPLITS, fill, rows_of


def test_a_new_store_is_empty_and_named_after_its_path(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "phoenix.kps")
    assert (store.name, store.mode, store.splits, len(store.videos)) == ("phoenix.kps", "a", [], 0)
    assert kpstore.create(tmp_path / "other.kps", name="PHOENIX").name == "PHOENIX"
    with pytest.raises(ExistsError, match="already exists"):
        kpstore.create(tmp_path / "phoenix.kps")


def test_the_table_of_videos(store: kpstore.Store) -> None:
    with fill(store).transaction("fail") as tx:
        tx.fail("points", "b", "no")
    table = store.at().videos
    assert table.index.tolist() == list(LENGTHS)
    assert table["split"].tolist() == list(SPLITS.values())
    assert table["n_frames"].tolist() == list(LENGTHS.values())
    assert table["fps"].tolist() == [25.0] * 4
    assert table[["width", "height"]].to_numpy().tolist() == [[8, 6]] * 4
    assert table["gloss"].tolist() == ["A", "B", "C", "D"]
    assert table["points_state"].tolist() == ["done", "failed", "pending", "pending"]


def test_a_video_knows_itself(store: kpstore.Store) -> None:
    video = fill(store).video("b")
    assert (video.id, video.split, len(video), video.rows) == ("b", "dev", 9, slice(5, 14))
    assert (video.fps, video.width, video.height, video.annotations) == (25.0, 8, 6, {"gloss": "B"})
    assert video.image_paths == [f"b/{n:04d}.png" for n in range(9)]
    assert video["gloss"] == "B"
    np.testing.assert_array_equal(video["points"], rows_of("b", 9).values)
    assert fill_empty_video(store).shape == (0, 5, 3)


def fill_empty_video(store: kpstore.Store) -> np.ndarray:
    return store.at().video("c")["points"]


def test_arrays_index_as_numpy_does(store: kpstore.Store) -> None:
    filled = fill(store)
    values = np.asarray(filled["points"])
    of_points = np.arange(15).reshape(5, 3) % 2 == 0
    keys = (3, slice(2, 30, 5), [5, 2, 2], (slice(1, 9), slice(None), 0), values[:, 0, 0] > 0)
    masks = ((..., of_points), (3, ..., of_points), (..., of_points.tolist()), (..., True))
    for key in (*keys, *masks):
        np.testing.assert_array_equal(filled["points"][key], values[key])
    assert repr(filled["points"]) == "<points (frame: 34, point: 5, space: 3) float32>"
    assert (len(filled["points"]), filled["points"].ndim, filled["points"].chunk_rows) == (34, 3, 4)
    assert sum(1 for _ in filled["points"]) == 34


def test_rows_are_picked_by_whole_numbers_of_any_kind(store: kpstore.Store) -> None:
    filled = fill(store)
    for three in (np.int8(3), np.array(3), torch.tensor(3)):
        np.testing.assert_array_equal(filled["points"][three], filled["points"][3])
        assert filled.frames("points")[three]["row"] == 3
    for odd in (True, np.True_, torch.tensor(True), 3.0, "3", None):
        with pytest.raises(InvalidError):
            filled["points"][odd]
        with pytest.raises(InvalidError):
            filled.frames("points")[odd]


def test_a_store_is_a_mapping_of_arrays_that_can_be_closed(store: kpstore.Store) -> None:
    assert (store.keys(), len(store), bool(store), "points" in store) == ([], 0, True, False)
    filled = fill(store)
    assert {"points", "points_state", "video_id", "image_path"} <= set(filled)
    assert (len(filled), "points" in filled, "pose" in filled) == (len(list(filled)), True, False)
    with kpstore.open(filled.location) as opened:
        array = opened["points"]
        expected = array[:]
    assert repr(opened) == f"<closed Store {filled.location}>"
    assert opened._repr_html_() is None
    for closed in (lambda: array[0], lambda: opened["points"]):
        with pytest.raises(InvalidError, match="was closed; open it again"):
            closed()
    np.testing.assert_array_equal(filled["points"][:], expected)
    np.testing.assert_array_equal(kpstore.open(filled.location)["points"][:], expected)


def test_a_video_has_no_rows_of_other_axes(store: kpstore.Store) -> None:
    filled = fill(store)
    with filled.transaction("keypoints") as tx:
        tx.add_feature("keypoints")
    video = filled.at().video("a")
    with pytest.raises(
        NotFoundError, match=r"'keypoint' has a row for each keypoint, .* did you mean 'keypoints'"
    ):
        video["keypoint"]
    with pytest.raises(NotFoundError, match="feature 'keypoins' not found"):
        video["keypoins"]


def test_unknown_names_list_what_there_is(store: kpstore.Store) -> None:
    filled = fill(store)
    for call in (
        lambda: filled["pose"],
        lambda: filled.feature("pose"),
        lambda: filled.failures("pose"),
    ):
        with pytest.raises(
            NotFoundError, match=r"feature 'pose' not found; this store has \['points'\]"
        ):
            call()
    with pytest.raises(NotFoundError, match=r"feature 'pose' not found; this store has none yet"):
        store["pose"]
    with pytest.raises(NotFoundError, match="video 'e' not found; there are 4 videos"):
        filled.video("e")


def test_a_store_opened_for_reading_writes_nothing(disk_store: kpstore.Store) -> None:
    fill(disk_store)
    store = kpstore.open(disk_store.location)
    for call in (
        lambda: store.transaction("x"),
        lambda: store.tag("v1"),
        lambda: store.delete_tag("v1"),
        lambda: store.branch("b"),
        lambda: store.rollback("main"),
    ):
        with pytest.raises(
            ReadOnlyError, match=r'was opened for reading; use kpstore.open.*mode="a"'
        ):
            call()
    with pytest.raises(InvalidError, match="mode 'w': use 'r' to read or 'a' to add"):
        kpstore.open(disk_store.location, mode="w")  # type: ignore[arg-type]


def test_a_store_pickles_as_its_place_and_version(store: kpstore.Store) -> None:
    filled = fill(store)
    np.asarray(filled["points"])
    payload = pickle.dumps(filled)
    with filled.transaction("more") as tx:
        tx.fail("points", "a", "no")
    again = pickle.loads(payload)
    assert len(payload) < 500
    assert (type(again), again.snapshot, again.mode) == (kpstore.Store, filled.snapshot, "a")
    np.testing.assert_array_equal(again["points"][:], filled["points"][:])


@pytest.mark.parametrize("suffix", [".kps", ".h5"])
def test_a_store_is_never_made_in_another_one(tmp_path: Path, suffix: str) -> None:
    kpstore.create(tmp_path / f"s{suffix}")
    inside = tmp_path / f"s{suffix}" / "folder"
    for place in (inside / "x.kps", inside / "x.h5"):
        with pytest.raises(ExistsError, match="folder is a store, or lies in one"):
            kpstore.create(place)
    assert not inside.exists()


def test_a_slash_behind_a_file_leads_to_the_same_store(tmp_path: Path) -> None:
    assert kpstore.create(f"{tmp_path}/s.h5/").name == "s.h5"
    assert (tmp_path / "s.h5").is_file()
    assert kpstore.open(f"{tmp_path}/s.h5/.").name == kpstore.open(tmp_path / "s.h5").name


def test_open_at_and_a_relative_path(
    disk_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_store.tag("empty")
    fill(disk_store)
    monkeypatch.chdir(Path(disk_store.location).parent)
    assert len(kpstore.open("disk.kps").index) == 4
    assert len(kpstore.open("disk.kps", at="empty").index) == 0
    assert "disk.kps at " in repr(kpstore.open("disk.kps"))


def test_a_newer_format_says_what_to_do(memory_store: kpstore.Store) -> None:
    changes = memory_store.backend.begin()
    changes.set_attrs({"kpstore": {"format_version": 99}})
    changes.commit("from the future")
    with pytest.raises(
        InvalidError, match="has format version 99, this kpstore reads 1 and 2; open it"
    ):
        kpstore.open(memory_store.location)


class CountingBackend(MemoryBackend):
    """Somebody else's: any location that ends with ``.counted``."""

    asked: ClassVar[list[str]] = []

    @classmethod
    def claims(cls, location: str) -> bool:
        cls.asked.append(location)
        return location.endswith(".counted")


def test_a_backend_of_somebody_else_gets_the_locations_that_it_claims(tmp_path: Path) -> None:
    plugins.register("kpstore.backends", "counting", CountingBackend)
    plugins.register("kpstore.backends", "counting", CountingBackend)
    store = fill(kpstore.create(tmp_path / "s.counted"))
    assert type(store.backend) is CountingBackend
    assert type(kpstore.open(tmp_path / "s.counted").backend) is CountingBackend
    assert type(kpstore.create(tmp_path / "s.kps").backend) is not CountingBackend
    assert str(tmp_path / "s.kps") in CountingBackend.asked, "it is asked before kpstore's own"
    for taken in ("counting", "icechunk"):
        with pytest.raises(ExistsError, match="already registered"):
            plugins.register("kpstore.backends", taken, object)
    with pytest.raises(NotFoundError, match=r"backend 'nothing' not found; there are: .*icechunk"):
        plugins.load("kpstore.backends", "nothing")


def test_only_the_backend_of_a_location_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, kpstore; kpstore.open(sys.argv[1]); "
        "print([m for m in ('h5py', 'icechunk') if m in sys.modules])"
    )
    for name, expected in (("s.kps", ["icechunk"]), ("s.h5", ["h5py"])):
        kpstore.create(tmp_path / name)
        run = finish([sys.executable, "-c", code, tmp_path / name])
        assert run.stdout.strip() == str(expected), run.stderr


def test_a_record_of_failures_that_is_damaged_is_said_with_its_place(store: kpstore.Store) -> None:
    changes = fill(store).backend.begin()
    changes.write("points_failure", 1, np.array(["{"], dtype=object))
    changes.commit("by other software")
    with pytest.raises(
        CorruptError, match=r"points_failure\[1\] in .* is damaged: '\{' given as failures"
    ):
        store.at().failures("points")


def test_a_video_opens_the_arrays_of_the_feature_that_is_read_alone(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", 3)])
        for name in ("one", "other"):
            tx.add_feature(FeatureSpec(name, (2,), ("x",)), {"extractor": "made up"})
    opened = kpstore.open(store.location)
    opened.video("a", missing="skip")["one"]
    assert opened.video("a").state("one") is State.PENDING
    names = set(opened.session._opened)
    assert {"one", "one_status"} <= names
    assert not {"other", "other_status", "other_state"} & names
