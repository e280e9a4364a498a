"""A store as an xarray data set: labelled, lazy, nothing read before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from kpstore.store import format as fmt

if TYPE_CHECKING:
    from kpstore.store.store import FeatureArray, Store


class _LazyArray(xr.backends.BackendArray):
    """Rows of one stored array, behind xarray's lazy indexing."""

    def __init__(self, array: FeatureArray) -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        support = indexing.IndexingSupport.OUTER_1VECTOR
        values: NDArray[Any] = indexing.explicit_indexing_adapter(key, self.shape, support, self._read)
        return values

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        head, tail = key[0], key[1:]
        rows = np.asarray(self._array[head])
        # An int for the row took the first axis away; the rest of the key fits what is left of the axes.
        return rows[tail] if isinstance(head, int | np.integer) else rows[(slice(None), *tail)]


def to_xarray(
    store: Store, *, split: str | Sequence[str] | None = None, features: Sequence[str] | None = None
) -> xr.Dataset:
    """Return a lazy data set with the dimensions of the store (``video``, ``frame``, ``keypoint``, ``space``, …).

    Parameters
    ----------
    split : only videos of these splits, and their frames.
    features : only these features, with their companions.

    Returns
    -------
    xarray.Dataset
        ``video_id`` and the frames' ``video`` number are coordinates; values are read when they are used.
    """
    wanted = list(store.features) if features is None else list(features)
    arrays = [name for feature in wanted for name in _feature_arrays(store, feature)]
    columns = ["split", "n_frames", "fps", "width", "height", *store.annotation_names, fmt.IMAGE_PATH]
    labels = [dim for feature in wanted for dim in store.feature(feature).labels]
    if len(store.index) == 0:
        columns = []
    variables = {name: _variable(store, name) for name in [*columns, *arrays]}
    dataset = xr.Dataset(
        variables, attrs={"title": store.name, "kpstore_snapshot": store.snapshot, "Conventions": "CF-1.11"}
    )
    coordinates: dict[str, Any] = {dim: (dim, np.asarray(store[dim])) for dim in dict.fromkeys(labels)}
    coordinates["video_id"] = ("video", store.index.ids)
    coordinates["frame_video"] = ("frame", np.repeat(np.arange(len(store.index)), store.index.n_frames))
    dataset = dataset.assign_coords(coordinates)
    if split is None:
        return dataset
    positions = store.index.select(split=split)
    chosen = dataset.isel(video=_as_slice(positions), frame=_as_slice(store.index.rows_of(positions)))
    return chosen.assign_coords(
        frame_video=("frame", np.repeat(np.arange(len(positions)), store.index.n_frames[positions]))
    )


def _feature_arrays(store: Store, feature: str) -> list[str]:
    spec = store.feature(feature)
    return [name for name in fmt.feature_metas(spec, n_videos=0, n_frames=0) if name != fmt.failure_name(feature)]


def _variable(store: Store, name: str) -> xr.Variable:
    array = store[name]
    return xr.Variable(array.dims, indexing.LazilyIndexedArray(_LazyArray(array)), dict(array.attrs))


def _as_slice(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return a slice where the rows are one run, which reads without a gather."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
