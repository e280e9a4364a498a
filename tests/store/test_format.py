"""What a store says of its format: versions and parts, and what older ones do without."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.errors import CorruptError, ExistsError, InvalidError
from kpstore.interop.convert import convert
from kpstore.interop.merge import merge
from tests.conftest import location_of
from tests.fakes import fake_spec, record
from tests.store.data import format_1, rows_of

OLD = pytest.mark.parametrize("ending", [".kps", ".h5"])


def about(store: kpstore.Store) -> dict[str, Any]:
    return dict(store.session.attrs()["kpstore"])


def set_about(store: kpstore.Store, new: dict[str, Any]) -> None:
    view = store.backend.begin()
    view.set_attrs({**view.attrs(), "kpstore": new})
    view.commit("changed")


def test_a_new_store_is_of_format_2_and_names_its_parts(store: kpstore.Store) -> None:
    assert (about(store)["format_version"], about(store)["parts"]) == (2, ["checksums"])
    assert store.lacks == ""


@pytest.mark.parametrize("parts", [["checksums", "shards"], ["shards"]])
def test_a_part_that_is_not_known_is_refused_by_name(
    store: kpstore.Store, parts: list[str], tmp_path: Path
) -> None:
    set_about(store, {**about(store), "parts": parts})
    for call in (
        lambda: kpstore.open(store.location),
        lambda: store.transaction("write"),
        lambda: convert(store.location, str(tmp_path / "copy.kps")),
    ):
        with pytest.raises(
            InvalidError,
            match=r"is written with 'shards', a part of the format that .* or upgrade$",
        ):
            call()
    assert not (tmp_path / "copy.kps").exists()


def test_a_store_of_format_2_without_a_list_of_parts_is_damaged(store: kpstore.Store) -> None:
    set_about(store, {key: value for key, value in about(store).items() if key != "parts"})
    with pytest.raises(CorruptError, match="lacks parts"):
        kpstore.open(store.location)


def test_nan_in_what_an_earlier_store_says_of_a_feature_is_read_as_null(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.h5")
    with store.transaction("a feature") as tx:
        tx.add_videos([record("a", 2)])
        tx.add_feature(kpstore.FeatureSpec("mood"), {"rate": 1})
    said = about(store.at())
    said["features"]["mood"]["spec"]["attrs"] = {"mean": math.nan}
    said["features"]["mood"]["provenance"] = {"rate": -math.inf}
    set_about(store.at(), said)
    other = kpstore.create(tmp_path / "other.h5")
    with other.transaction("a video") as tx:
        tx.add_videos([record("b", 2)])
    for sources in ([store.location], [store.location, other.location]):
        location = str(tmp_path / f"{len(sources)}.h5")
        merge(sources, location) if sources[1:] else convert(sources[0], location)
        read = kpstore.open(location).features["mood"]
        assert (read.spec.attrs, read.provenance) == ({"mean": None}, {"rate": None})


@OLD
def test_a_store_of_format_1_is_read_and_says_what_it_lacks(tmp_path: Path, ending: str) -> None:
    location = format_1(tmp_path, ending)
    store = kpstore.open(location)
    np.testing.assert_array_equal(store.video("a")["points"], rows_of("a", 5, seed=7).values)
    np.testing.assert_array_equal(store.at("first").video("a")["points"], rows_of("a", 5).values)
    if ending == ".kps":
        assert store.session.checksums("points") is None
    assert store.lacks.startswith("format 1: no checksums by place")


@OLD
def test_a_store_of_format_1_stays_one_when_it_is_written(tmp_path: Path, ending: str) -> None:
    store = kpstore.open(format_1(tmp_path, ending), mode="a")
    with store.transaction("more") as tx:
        tx.write("points", "b", rows_of("b", 9, seed=3))
        tx.add_videos([kpstore.VideoRecord("new", "dev", ("new/0.png",) * 20)])
        tx.write("points", "new", rows_of("new", 20))
    with store.transaction("less") as tx:
        tx.remove_feature("points")
    written = store.at().at(store.at().history()[1].id)
    assert about(written)["format_version"] == 1
    assert "parts" not in about(written)
    if ending == ".kps":
        assert written.session.checksums("points") is None
    np.testing.assert_array_equal(written.video("b")["points"], rows_of("b", 9, seed=3).values)
    np.testing.assert_array_equal(written.video("new")["points"], rows_of("new", 20).values)


@pytest.mark.parametrize(
    ("ending", "kind", "with_history"),
    [
        (".kps", "hdf5", True),
        (".h5", "icechunk", True),
        (".kps", "icechunk", False),
        (".h5", "hdf5", False),
    ],
)
def test_convert_makes_the_newest_format_of_a_store_of_format_1(
    tmp_path: Path, ending: str, kind: str, with_history: bool
) -> None:
    old = kpstore.open(format_1(tmp_path, ending))
    target = location_of(kind, tmp_path / "new")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    convert(old.location, target, with_history=with_history)
    new = kpstore.open(target)
    assert len(new.history()) >= (4 if with_history else 1)
    assert set(new.tags) == ({"first", "版本1"} if with_history else set())
    for version in new.history() if with_history else new.history()[:1]:
        here = new.at(version.id)
        before = old.at(version.metadata["converted_from"]["id"]) if version.metadata else old.at()
        assert (about(here)["format_version"], here.lacks) == (2, "")
        for name in here.session.names():
            rows = here.session.meta(name).n_rows
            np.testing.assert_array_equal(
                here.session.read(name, 0, rows), before.session.read(name, 0, rows)
            )


def test_no_feature_may_be_called_as_the_table_of_checksums_is(store: kpstore.Store) -> None:
    video = kpstore.VideoRecord("x", "", ("p",), annotations={"chunk_checksums": "1"})
    with store.transaction("add") as tx:
        with pytest.raises(InvalidError, match="'chunk_checksums'"):
            tx.add_videos([video])
        with pytest.raises(ExistsError, match="'chunk_checksums'"):
            tx.add_feature(replace(fake_spec(4), name="chunk_checksums"))


def test_a_feature_of_numbers_that_are_stored_no_more_is_named_with_the_way_out(
    store: kpstore.Store,
) -> None:
    before = store.snapshot
    with store.transaction("as earlier commits made them") as tx:
        tx.add_feature(fake_spec(4), {"extractor": "made up"})
    new = about(store.at())
    new["features"]["points"]["spec"]["dtype"] = "float128"
    set_about(store, new)
    for call in (
        lambda: dict(kpstore.open(store.location).features),
        lambda: kpstore.open(store.location, mode="a").transaction("write"),
    ):
        with pytest.raises(
            CorruptError,
            match=r"of feature 'points' .*'float128' has more than 64 bits.* 'kpstore rollback'",
        ):
            call()
    kpstore.open(store.location, mode="a").rollback(before)
    assert list(kpstore.open(store.location).features) == []
