"""``xr.open_dataset(store, engine="kpstore")``: equal to the store, lazy, in stored chunks."""

from __future__ import annotations

import configparser
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import h5py
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import kpstore
from kpstore import plugins
from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.feature import FeatureSpec
from kpstore.store.xarray_backend import KpstoreBackendEntrypoint
from tests.conftest import location_of
from tests.fakes import record
from tests.processes import finish
from tests.store.data import fill, rows_of


def open_dataset(store: Any, **options: Any) -> xr.Dataset:
    place = store.location if isinstance(store, kpstore.Store) else store
    return xr.open_dataset(place, engine=KpstoreBackendEntrypoint, **options)


@pytest.fixture(scope="module", params=["icechunk", "hdf5"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> kpstore.Store:
    folder = tmp_path_factory.mktemp(request.param)
    return fill(kpstore.create(location_of(request.param, folder)), compression="zstd")


def starts(sizes: tuple[int, ...]) -> set[int]:
    return {0, *np.cumsum(sizes).tolist()[:-1]}


def test_everything_is_there_and_equal(filled: kpstore.Store) -> None:
    data = open_dataset(filled)
    xr.testing.assert_identical(data.compute(), filled.to_xarray().compute())
    assert data["points"].attrs == {**filled["points"].attrs}
    assert data["points"].attrs["units"] == "1"
    assert data["video_id"].attrs["cf_role"] == "timeseries_id"
    assert data["frame_video"].attrs["instance_dimension"] == "video"
    assert data["points"].sel(space="y").dims == ("frame", "point")


INDEXERS = st.fixed_dictionaries(
    {},
    optional={
        "frame": st.one_of(
            st.integers(-34, 33),
            st.lists(st.integers(-34, 33), max_size=8),
            st.slices(34),
            st.lists(st.booleans(), min_size=34, max_size=34).map(np.array),
        ),
        "point": st.one_of(
            st.integers(0, 4), st.lists(st.integers(0, 4), max_size=4), st.slices(5)
        ),
        "space": st.one_of(st.integers(0, 2), st.slices(3)),
    },
)


@settings(max_examples=20)
@given(key=INDEXERS, again=st.slices(3), chunks=st.sampled_from([None, {}, "auto", {"frame": 8}]))
def test_any_selection_equals_numpy(
    filled: kpstore.Store, key: dict[str, Any], again: slice, chunks: Any
) -> None:
    data = open_dataset(filled, chunks=chunks)["points"]
    whole = xr.DataArray(np.asarray(filled["points"]), dims=data.dims)
    found, expected = data.isel(key), whole.isel(key)
    if found.ndim:
        found, expected = found.isel({found.dims[0]: again}), expected.isel({found.dims[0]: again})
    with dask.config.set(scheduler="sync"):
        np.testing.assert_array_equal(found.values, expected.values)
    assert found.dtype == np.float32


@pytest.mark.parametrize("split", [None, "train", "dev"])
@pytest.mark.parametrize("chunks", [{}, "auto", {"frame": -1}])
def test_no_stored_chunk_is_read_by_two_pieces(
    filled: kpstore.Store, split: str | None, chunks: Any
) -> None:
    data = open_dataset(filled, split=split, chunks=chunks)
    rows = filled.index.rows_of(filled.index.select(split=split))
    for name in ("points", "points_detected", "points_status"):
        sizes = data[name].chunksizes["frame"]
        stored = np.split(rows // 4, sorted(starts(sizes) - {0}))
        assert sum(len(set(piece)) for piece in stored) == len(set(np.concatenate(stored)))
        assert len(sizes) == (len(set(rows // 4)) if chunks == {} else 1)
        np.testing.assert_array_equal(data[name].values, filled[name][:][rows])


def test_text_and_coordinates_stay_out_of_dask(filled: kpstore.Store) -> None:
    data = open_dataset(filled, chunks="auto")
    for name in ("image_path", "gloss", "video_id", "frame_video", "space"):
        assert data[name].chunks is None
    assert data["image_path"].isel(frame=7).item() == "b/0002.png"
    assert data["image_path"].dtype == object


def test_split_features_and_dropped_variables(filled: kpstore.Store) -> None:
    data = open_dataset(
        filled,
        split=["dev"],
        features="points",
        drop_variables=["points_detected", "gloss", "none"],
    )
    assert data.sizes["frame"] == 9
    assert "points" in data
    assert not {"points_detected", "gloss"} & set(data.variables)
    assert "image_path" not in open_dataset(filled, drop_variables="image_path")
    assert "points" not in open_dataset(filled, features=[])
    with pytest.raises(NotFoundError, match="feature 'face' not found"):
        open_dataset(filled, features="face")


def test_options_of_xarray_that_mean_nothing_here_change_nothing(filled: kpstore.Store) -> None:
    plain = open_dataset(filled).compute()
    options: dict[str, Any]
    for options in (
        {"mask_and_scale": False, "concat_characters": False},
        {"decode_cf": False},
        {"decode_coords": "all"},
        {"cache": False},
    ):
        xr.testing.assert_identical(open_dataset(filled, **options).compute(), plain)
    assert not open_dataset(filled, create_default_indexes=False).xindexes


def test_times_are_decoded_as_cf_says(memory_store: kpstore.Store) -> None:
    fill(memory_store)
    with memory_store.at().transaction("times") as tx:
        tx.add_feature(FeatureSpec("seen", dtype="float64", units="seconds since 2020-01-01"))
        tx.add_feature(FeatureSpec("lasted", dtype="float64", units="seconds", axis="video"))
        tx.write("seen", "a", np.arange(5.0))
        tx.write_video_feature("lasted", "a", np.float64(7))
    data = open_dataset(memory_store)
    assert data["seen"].values[4] == np.datetime64("2020-01-01T00:00:04")
    assert np.isnat(data["seen"].values[5])
    assert data["lasted"].values[0] == 7.0
    assert open_dataset(memory_store, decode_timedelta=True)["lasted"].values[0] == np.timedelta64(
        7, "s"
    )
    assert open_dataset(memory_store, decode_times=False)["seen"].values[4] == 4.0


def test_a_version_stays_and_dask_never_takes_one_for_another(store: kpstore.Store) -> None:
    fill(store)
    pinned, newest = store.at().snapshot, open_dataset(store, chunks={})["points"]
    with store.at().transaction("more") as tx:
        tx.write("points", "d", rows_of("d", 20))
    later = open_dataset(store, chunks={})["points"]
    assert np.isnan(newest.values[14:]).all()
    assert np.isfinite(later.values[14:]).all()
    assert (later - newest).isnull().sum() == 20 * 15
    assert later.data.name == open_dataset(store, chunks={})["points"].data.name
    assert np.isnan(open_dataset(store, at=pinned)["points"].values[14:]).all()
    with pytest.raises(NotFoundError, match="version 'v9'"):
        open_dataset(store, at="v9")


def test_lazy_data_sets_pickle_small_and_open_the_store_once(filled: kpstore.Store) -> None:
    for chunks in (None, {}):
        data = open_dataset(filled, chunks=chunks)
        payload = pickle.dumps(data)
        assert len(payload) < 30_000
        again = pickle.loads(payload)
        xr.testing.assert_identical(again.compute(), data.compute())
    first, second = (
        pickle.loads(pickle.dumps(filled[name])) for name in ("points", "points_status")
    )
    assert first._store is second._store
    assert type(pickle.loads(pickle.dumps(data["points"].variable))) is xr.Variable


def test_a_process_started_anew_reads_by_location_and_version(tmp_path: Path) -> None:
    stores = [fill(kpstore.create(location_of(kind, tmp_path))) for kind in ("icechunk", "hdf5")]
    lazy = [open_dataset(store, chunks={})["points"].data[3:9] for store in stores]
    payload = tmp_path / "lazy.pickle"
    payload.write_bytes(pickle.dumps(lazy))
    code = (
        f"import pickle\nfor lazy in pickle.load(open({str(payload)!r}, 'rb')): "
        "print(lazy.compute(scheduler='sync').sum())"
    )
    done = finish([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    for store, said in zip(stores, done.stdout.split(), strict=True):
        assert float(said) == pytest.approx(float(np.nansum(store["points"][3:9])), rel=1e-5)


def test_threads_read_one_data_set_at_once(filled: kpstore.Store) -> None:
    data = open_dataset(filled, chunks={})
    whole = np.asarray(filled["points"])
    np.testing.assert_array_equal(
        data["points"].data.compute(scheduler="threads", num_workers=8), whole
    )
    lazy = open_dataset(filled, cache=False)["points"]
    with ThreadPoolExecutor(8) as pool:
        for start, values in enumerate(
            pool.map(lambda n: lazy.isel(frame=slice(n % 30, n % 30 + 4)).values, range(60))
        ):
            np.testing.assert_array_equal(values, whole[start % 30 : start % 30 + 4])


@pytest.mark.parametrize("chunks", [None, {}, "auto"])
def test_empty_pending_and_video_features(store: kpstore.Store, chunks: Any) -> None:
    assert dict(open_dataset(store, chunks=chunks).sizes) == {"video": 0, "frame": 0}
    with store.transaction("features") as tx:
        tx.add_feature(FeatureSpec("pose", (3,), ("space",)))
        tx.add_feature(FeatureSpec("signer", (2,), ("embedding",), axis="video"))
    assert open_dataset(store, chunks=chunks).compute()["pose"].shape == (0, 3)
    with store.at().transaction("videos") as tx:
        tx.add_videos([record("a", 5), record("b", 3)])
        tx.write_video_feature("signer", "b", np.ones(2, dtype=np.float32))
    data = open_dataset(store, chunks=chunks).compute()
    assert np.isnan(data["pose"].values).all()
    assert data["pose_status"].values.tolist() == [0] * 8
    np.testing.assert_array_equal(data["signer"].values, [[np.nan] * 2, [1, 1]])


def test_axes_of_one_name_and_two_lengths_are_told_apart(memory_store: kpstore.Store) -> None:
    with fill(memory_store).transaction("another") as tx:
        tx.add_feature(FeatureSpec("body", (25,), ("point",)))
        tx.add_feature(FeatureSpec("pose", (4,), ("pose",)))
    data = open_dataset(memory_store)
    assert data["points"].dims == ("frame", "point", "space")
    assert (
        data["body"].dims
        == open_dataset(memory_store, features="body")["body"].dims
        == ("frame", "body_point")
    )
    assert data["pose"].dims == ("frame", "pose_pose")


def test_it_can_be_saved_by_xarray(filled: kpstore.Store, tmp_path: Path) -> None:
    data = open_dataset(filled, chunks={}, drop_variables=["image_path", "gloss", "split"])
    data = data.drop_vars(
        ["video_id", "space"]
    )  # how Zarr stores text is not settled, and it says so
    data.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "copy.zarr", consolidated=False) as copy:
        xr.testing.assert_equal(copy.compute(), data.compute())


def test_it_knows_stores_from_everything_else(filled: kpstore.Store, tmp_path: Path) -> None:
    guess = KpstoreBackendEntrypoint().guess_can_open
    assert guess(filled.location)
    assert guess(Path(filled.location))
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["points"] = np.zeros(3)
    (tmp_path / "text.h5").write_text("no HDF5")
    icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "other")))
    ours_not = icechunk.Repository.create(
        icechunk.local_filesystem_storage(str(tmp_path / "group"))
    )
    session = ours_not.writable_session("main")
    zarr.create_group(session.store)
    session.commit("a group of somebody else's")
    for name in ("foreign.h5", "text.h5", "other", "group", "nothing.kps", "nothing.h5", "."):
        assert not guess(tmp_path / name), name
    for other in ("https://example.org/a.h5", "s3://bucket/a.zarr", b"bytes", 3, ""):
        assert not guess(other), other
    assert guess("s3://bucket/a.kps")  # by its name alone
    assert not (tmp_path / "nothing.kps").exists()


def test_a_look_at_other_files_loads_no_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.nc").write_bytes(b"CDF")
    monkeypatch.setattr(plugins, "load", lambda *_: pytest.fail("a backend was loaded"))
    assert not KpstoreBackendEntrypoint().guess_can_open(tmp_path / "other.nc")


def test_xarray_finds_it_without_a_name(
    filled: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {**xr.backends.list_engines(), "kpstore": KpstoreBackendEntrypoint()}
    monkeypatch.setattr("xarray.backends.plugins.list_engines", lambda: engines)
    if filled.location.endswith(
        ".kps"
    ):  # HDF5 goes to netCDF4 and h5netcdf first, where they are installed
        assert xr.open_dataset(filled.location).sizes["frame"] == 34
    assert xr.open_dataset(filled.location, engine="kpstore", split="dev").sizes["frame"] == 9


def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.kps does not exist"):
        open_dataset(str(tmp_path / "none.kps"))
    with pytest.raises(InvalidError, match="a store is opened by its path, found bytes"):
        open_dataset(b"CDF\x01")


def test_setup_names_the_entry_point() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    named = setup["options.entry_points"]["xarray.backends"].strip()
    assert (
        named
        == f"kpstore = {KpstoreBackendEntrypoint.__module__}:{KpstoreBackendEntrypoint.__name__}"
    )
