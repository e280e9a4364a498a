"""Any rows, in any order, however stored and cached, on every backend: what numpy gives."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpstore
from kpstore.schema.feature import FeatureRows
from tests.conftest import location_of
from tests.fakes import fake_spec, record

N_ROWS = 150


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def make(location: str, codec: Any, chunk_rows: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(chunk_rows).standard_normal((N_ROWS, 5, 3)).astype(np.float32)
    values[::7] = np.nan
    with kpstore.create(location).transaction("fill") as tx:
        tx.add_videos([record("a", 60), record("b", N_ROWS - 60)])
        tx.add_feature(replace(fake_spec(chunk_rows), compression=codec), {"extractor": "fake"})
        for video, rows in (("a", values[:60]), ("b", values[60:])):
            tx.write(
                "points",
                video,
                FeatureRows(rows, {"detected": np.ones((len(rows), 2), dtype=bool)}),
            )
    return values


@pytest.mark.slow
@settings(max_examples=20)
@given(
    where=st.sampled_from(["memory", "icechunk", "hdf5"]),
    codec=st.sampled_from(["raw", "lz4", "zstd"]),
    chunk_rows=st.sampled_from([1, 2, 8, 64, 256]),
    cache=st.sampled_from(["off", "cold", "built", "torn"]),
    reads=st.lists(st.lists(st.integers(0, N_ROWS - 1), max_size=80), min_size=1, max_size=4),
)
def test_rows_equal_numpys(
    folder: Path, where: str, codec: Any, chunk_rows: int, cache: str, reads: list[list[int]]
) -> None:
    work = Path(tempfile.mkdtemp(dir=folder))
    location = location_of(where, work)
    values = make(location, codec, chunk_rows)
    store = kpstore.open(location, cache="off" if cache == "off" else work / "cache")
    if cache in ("built", "torn") and store.reader.cache("points") and cache == "torn":
        for path in (work / "cache").glob("*/*.npy"):
            path.write_bytes(path.read_bytes()[:-40])
        store = kpstore.open(location, cache=work / "cache")
    view = store.frames("points")
    for rows in reads:
        index = np.array(rows, dtype=np.int64)
        np.testing.assert_array_equal(store.read("points", index), values[index])
        np.testing.assert_array_equal(store["points"][rows], values[index])
        np.testing.assert_array_equal(view.batch(index)["points"], values[index])
    shutil.rmtree(work)
