"""The xarray view: labelled, lazy, and equal to the store; and Zarr alone reads the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr

import kpstore
from kpstore.errors import NotFoundError
from kpstore.schema.feature import FeatureSpec
from tests.store.data import LENGTHS, fill, rows_of


def test_dimensions_coordinates_and_values(store: kpstore.Store) -> None:
    filled = fill(store)
    data = filled.to_xarray()
    assert dict(data.sizes) == {"video": 4, "frame": 34, "point": 5, "space": 3, "part": 2}
    assert data["points"].dims == ("frame", "point", "space")
    assert data["space"].values.tolist() == ["x", "y", "z"]
    assert data["video_id"].values.tolist() == list(LENGTHS)
    assert data["frame_video"].values.tolist() == [0] * 5 + [1] * 9 + [3] * 20
    for name in (
        "points",
        "points_detected",
        "points_status",
        "points_state",
        "image_path",
        "gloss",
        "n_frames",
    ):
        np.testing.assert_array_equal(data[name].values, filled[name][:])
    assert data.attrs["kpstore_snapshot"] == filled.snapshot


def test_nothing_is_read_before_it_is_used(
    disk_store: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = fill(disk_store)
    reads = list[str]()

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(name: str, *rest: Any) -> Any:
            reads.append(name)
            return original(name, *rest)

        return counted

    for method in ("read", "read_slice"):
        monkeypatch.setattr(filled.reader, method, counting(getattr(filled.reader, method)))
    part = filled.to_xarray(split="train")["points"].sel(space="y").isel(frame=slice(2, 4))
    assert not {"points", "points_detected", "image_path"} & set(reads)
    np.testing.assert_array_equal(part.values, rows_of("a", 5).values[2:4, :, 1])
    assert reads.count("points") == 1


@pytest.mark.parametrize("split", ["train", "dev", ["dev", "train"]])
def test_a_split_has_its_videos_and_frames(store: kpstore.Store, split: str | list[str]) -> None:
    filled = fill(store)
    data = filled.to_xarray(split=split)
    positions = filled.index.select(split=split)
    assert data["video_id"].values.tolist() == filled.index.ids[positions].tolist()
    np.testing.assert_array_equal(
        data["points"].values, filled["points"][filled.index.rows_of(positions)]
    )
    for number, video_id in enumerate(data["video_id"].values.tolist()):
        rows = data["points"].isel(frame=data["frame_video"].values == number)
        np.testing.assert_array_equal(rows.values, filled.video(video_id)["points"])


@pytest.mark.parametrize(
    "key",
    [
        {"frame": 3},
        {"frame": -1, "point": [0, 2]},
        {"frame": slice(3, 20, 4), "space": 1},
        {"frame": slice(None, None, -1)},
        {"frame": [9, 2, 2], "point": slice(1, 3)},
        {"frame": xr.DataArray([3, 1], dims="pick"), "point": xr.DataArray([0, 4], dims="pick")},
        {"frame": np.arange(34) % 5 == 0},
    ],
    ids=repr,
)
def test_lazy_indexing_equals_indexing_in_memory(
    memory_store: kpstore.Store, key: dict[str, Any]
) -> None:
    data = fill(memory_store).to_xarray()["points"]
    xr.testing.assert_identical(data.isel(key).compute(), data.compute().isel(key))


def test_features_can_be_left_out(memory_store: kpstore.Store) -> None:
    with fill(memory_store).transaction("add") as tx:
        tx.add_feature(FeatureSpec("pose"))
    assert "pose" in memory_store.at().to_xarray()
    assert "pose" not in memory_store.at().to_xarray(features=["points"])
    with pytest.raises(NotFoundError, match="feature 'face' not found"):
        memory_store.at().to_xarray(features=["face"])
    with pytest.raises(NotFoundError, match="split 'test' not found"):
        memory_store.at().to_xarray(split="test")


def test_an_empty_store_is_an_empty_data_set(store: kpstore.Store) -> None:
    assert store.to_xarray().sizes["video"] == 0
    with store.transaction("add") as tx:
        tx.add_feature(FeatureSpec("pose"))
    assert store.at().to_xarray()["pose"].shape == (0,)


def session_of(store: kpstore.Store) -> icechunk.Session:
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(store.location))
    return repository.readonly_session(snapshot_id=store.snapshot)


def test_zarr_alone_reads_the_arrays(disk_store: kpstore.Store) -> None:
    filled = fill(disk_store)
    group = zarr.open_group(session_of(filled).store, mode="r")
    assert sorted(group.array_keys()) == ["chunk_checksums", *filled.session.names()]
    for name in filled.session.names():
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.metadata.dimension_names == filled[name].dims  # type: ignore[union-attr]
        np.testing.assert_array_equal(
            np.asarray(array[:]).astype(filled[name].dtype), filled[name][:]
        )


def test_xarray_alone_opens_the_store(disk_store: kpstore.Store) -> None:
    filled = fill(disk_store)
    data = xr.open_zarr(session_of(filled).store, consolidated=False, chunks=None)
    assert data["points"].dims == ("frame", "point", "space")
    assert data["points"].sel(space="x").shape == (34, 5)
    np.testing.assert_array_equal(data["points"].values, filled["points"][:])
    assert data["video_id"].values.tolist() == list(LENGTHS)
    assert data.attrs["Conventions"] == "CF-1.11"
