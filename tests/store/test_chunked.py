"""Stored arrays as Dask arrays: equal, lazy, in whole stored chunks.

And what is said where Dask is absent.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from tests.conftest import location_of
from tests.store.data import fill, rows_of


@pytest.fixture(scope="module", params=["memory", "icechunk", "hdf5"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> kpstore.Store:
    return fill(kpstore.create(location_of(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (None, (4,) * 8 + (2,)),
        (8, (8, 8, 8, 8, 2)),
        (-1, (34,)),
        ("auto", (34,)),
        ("480 B", (8, 8, 8, 8, 2)),
        ((30, 4), (30, 4)),
        ({"frame": 16, "point": 2}, (16, 16, 2)),
        ({"point": 5}, (4,) * 8 + (2,)),
    ],
    ids=repr,
)
def test_pieces_are_as_asked_and_values_as_stored(
    filled: kpstore.Store, chunks: Any, expected: tuple[int, ...]
) -> None:
    array = filled.to_dask("points", chunks)
    assert array.chunks[0] == expected
    assert (array.dtype, array.shape) == (np.float32, (34, 5, 3))
    np.testing.assert_array_equal(array.compute(scheduler="sync"), filled["points"][:])


ROWS = st.one_of(
    st.integers(-34, 33),
    st.slices(34),
    st.lists(st.integers(-34, 33), max_size=6),
    st.lists(st.booleans(), min_size=34, max_size=34).map(np.array),
)


@given(
    rows=ROWS,
    space=st.one_of(st.integers(0, 2), st.slices(3)),
    chunks=st.sampled_from([None, 3, {"point": 2}]),
)
def test_any_selection_equals_numpy(
    filled: kpstore.Store, rows: Any, space: Any, chunks: Any
) -> None:
    with dask.config.set(scheduler="sync"):
        found = filled.to_dask("points", chunks)[rows][..., space].compute()
    np.testing.assert_array_equal(found, np.asarray(filled["points"])[rows][..., space])


def test_text_companions_and_columns(filled: kpstore.Store) -> None:
    assert (
        filled.to_dask("image_path", "auto").compute().tolist() == filled["image_path"][:].tolist()
    )
    assert filled.to_dask("points_detected").numblocks == (9, 1)
    assert filled.to_dask("n_frames").sum().compute() == 34


def test_a_graph_is_small_pickles_and_has_a_name_of_its_own_for_each_version(
    disk_store: kpstore.Store,
) -> None:
    old = fill(disk_store)
    with old.transaction("more") as tx:
        tx.write("points", "d", rows_of("d", 20))
    array, again, newer = old.to_dask("points"), old.to_dask("points"), old.at().to_dask("points")
    assert array.name == again.name != newer.name
    assert len(pickle.dumps(array)) < 20_000
    assert (
        pickle.loads(pickle.dumps(array))[14:].sum().compute(scheduler="sync")
        != newer[14:].sum().compute()
    )


@pytest.mark.parametrize(
    ("chunks", "match"),
    [
        ({"row": 3}, "chunks name the dimension 'row'; 'points' has frame, point, space"),
        (0, "chunks of 0 rows of 'points' asked for; use 1 or more, or -1 for all"),
        ((3, 4), r"chunks \(3, 4\) do not fit <points"),
        ("lots", "chunks 'lots' do not fit <points"),
    ],
)
def test_sizes_that_do_not_fit_are_named(filled: kpstore.Store, chunks: Any, match: str) -> None:
    with pytest.raises(InvalidError, match=match):
        filled.to_dask("points", chunks)


def test_unknown_arrays_and_a_missing_dask(
    filled: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError, match="feature 'face' not found"):
        filled.to_dask("face")
    for name in [name for name in sys.modules if name.partition(".")[0] == "dask"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r'to_dask\(\) needs .*"kpstore\[dask\]"'):
        filled.to_dask("points")


def test_an_empty_store_has_empty_arrays(store: kpstore.Store) -> None:
    with store.transaction("a feature") as tx:
        tx.add_feature("keypoints")
    assert store.at().to_dask("keypoints").compute().shape == (0, 143, 3)
    assert store.at().to_dask("keypoints", "auto").compute().shape == (0, 143, 3)
