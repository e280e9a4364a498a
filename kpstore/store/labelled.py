"""A store as an xarray data set: labelled and lazy."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from kpstore.schema.fields import sequence
from kpstore.store import format as fmt

if TYPE_CHECKING:
    from kpstore.store.arrays import FeatureArray
    from kpstore.store.store import BaseStore


class _LazyArray(xr.backends.BackendArray):
    """One stored array for xarray's lazy indexing; it pickles, and several threads can read it."""

    def __init__(self, array: FeatureArray) -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return self._array.__dask_tokenize__()

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[np.generic]:
        # xarray takes the last item of a slice that runs backwards, also of one without items.
        parts = (
            slice(0, 0) if isinstance(part, slice) and not range(*part.indices(length)) else part
            for part, length in zip(key.tuple, self.shape, strict=True)
        )
        support = indexing.IndexingSupport.OUTER_1VECTOR
        values: NDArray[np.generic] = indexing.explicit_indexing_adapter(
            type(key)(tuple(parts)), self.shape, support, self._read
        )
        return values

    def _read(self, key: tuple[Any, ...]) -> NDArray[np.generic]:
        head, tail = key[0], key[1:]
        rows = np.asarray(self._array[head], dtype=self.dtype)
        # An int for the row removes the first axis.
        return rows[tail] if isinstance(head, int | np.integer) else rows[(slice(None), *tail)]


def to_xarray(
    store: BaseStore,
    *,
    split: str | Sequence[str] | None = None,
    features: str | Sequence[str] | None = None,
) -> xr.Dataset:
    """Return a lazy data set with the store's dimensions (``video``, ``frame``, ``keypoint``, …).

    If two features have an axis of the same name and different lengths, the second one's becomes
    ``<feature>_<axis>``, as a dimension has one length in xarray.

    Parameters
    ----------
    split : only videos of these splits, and their frames.
    features : only these features, with their companions.

    Returns
    -------
    xarray.Dataset
        ``video_id`` and the frames' ``frame_video`` are coordinates; values are read when they are
        used. Each variable's ``encoding["preferred_chunks"]`` holds its stored chunks.
    """
    given = tuple(store.features) if features is None else features
    wanted = [given] if isinstance(given, str) else sequence(given, "names of features")
    arrays = [
        name
        for feature in wanted
        for name in fmt.feature_arrays(store.feature(feature))
        if name != fmt.failure_name(feature)
    ]
    own = (name for name in fmt.VIDEO_ARRAYS if name != "video_id")  # this one is a coordinate
    columns = [*own, *store.annotation_names, fmt.IMAGE_PATH] if len(store.index) else []
    dims = _dims(store)
    variables = {name: _variable(store, name, dims) for name in (*columns, *arrays)}
    dataset = xr.Dataset(
        variables,
        attrs={"title": store.name, "kpstore_snapshot": store.snapshot, "Conventions": "CF-1.11"},
    )
    rows: dict[str, NDArray[np.int64]] = {}
    if split is not None:
        videos = store.index.select(split=split)
        rows = {"video": videos, "frame": store.index.rows_of(videos)}
        dataset = dataset.isel({dim: _as_slice(picked) for dim, picked in rows.items()})
    for name, variable in dataset.variables.items():
        variable.encoding["preferred_chunks"] = _preferred_chunks(store[str(name)], variable, rows)
    return dataset.assign_coords(
        _coordinates(store, wanted, rows.get("video", np.arange(len(store.index))))
    )


def _dims(store: BaseStore) -> dict[str, tuple[str, ...]]:
    """Return the names of the axes of every feature's arrays, each name with one length.

    All features count, so that an axis has the same name whatever features are asked for.
    """
    specs = [stored.spec for stored in store.features.values()]
    lengths = {dim: len(names) for spec in specs for dim, names in spec.labels.items()}
    taken = set(store.session.names()) - set(lengths) | fmt.RESERVED_NAMES
    dims: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        own = {
            d: n
            for array in spec.arrays.values()
            for d, n in zip(array.dims, array.shape, strict=True)
        }
        clashing = {d for d, n in own.items() if d in taken or lengths.setdefault(d, n) != n}
        for name, array in spec.arrays.items():
            dims[name] = (
                spec.axis,
                *(f"{spec.name}_{d}" if d in clashing else d for d in array.dims),
            )
    return dims


def _variable(store: BaseStore, name: str, dims: dict[str, tuple[str, ...]]) -> xr.Variable:
    array = store[name]
    lazy = indexing.LazilyIndexedArray(_LazyArray(array))
    return xr.Variable(dims.get(name, array.dims), lazy, dict(array.attrs))


def _coordinates(
    store: BaseStore, features: Iterable[str], videos: NDArray[np.int64]
) -> dict[str, xr.Variable]:
    labels = dict.fromkeys(dim for feature in features for dim in store.feature(feature).labels)
    numbers = np.repeat(np.arange(len(videos)), store.index.n_frames[videos])
    about = {"long_name": "position of the frame's video", "instance_dimension": "video"}
    attrs = dict(fmt.VIDEO_ARRAYS["video_id"].attrs)
    return {
        **{dim: xr.Variable(dim, np.asarray(store[dim]), dict(store[dim].attrs)) for dim in labels},
        "video_id": xr.Variable("video", store.index.ids[videos], attrs),
        fmt.FRAME_VIDEO: xr.Variable("frame", numbers, about),
    }


def _preferred_chunks(
    array: FeatureArray, variable: xr.Variable, rows: dict[str, NDArray[np.int64]]
) -> dict[Hashable, int | tuple[int, ...]]:
    """Return lengths along each axis such that no two Dask chunks need the same stored chunk."""
    first, *rest = zip(variable.dims, variable.shape, strict=True)
    dim, length = first
    sizes: int | tuple[int, ...] = max(1, min(array.chunk_rows, length))
    if dim in rows and length:
        ends = np.flatnonzero(np.diff(rows[dim] // array.chunk_rows, append=-1)) + 1
        sizes = tuple(np.diff(ends, prepend=0).tolist())
    return {dim: sizes, **dict(rest)}


def _as_slice(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return a slice if the rows are consecutive: it is read without a gather."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
