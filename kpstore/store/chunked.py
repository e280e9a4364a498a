"""Stored arrays as Dask arrays, whose chunks are made of whole stored chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kpstore.errors import InvalidError, MissingExtraError, one_line

if TYPE_CHECKING:
    import dask.array as da

    from kpstore.store.arrays import FeatureArray
    from kpstore.store.store import BaseStore

Rows = int | str | tuple[int, ...]
"""Rows of a Dask chunk: a number, -1 for all, sizes in order, ``"auto"``, or ``"64 MiB"``."""


def to_dask(
    store: BaseStore, name: str, chunks: Rows | Mapping[str, Rows] | None = None
) -> da.Array:
    """Return an array of a store as a Dask array; nothing is read before it is computed.

    It pickles as (location, snapshot, name), and workers open the same version.

    Parameters
    ----------
    name : a feature, a companion such as ``"keypoints_detected"``, or a column of the index.
    chunks : rows of a Dask chunk. None takes the stored chunks (1,024 frames of keypoints, 2 MiB);
        ``"auto"`` combines them to Dask's preferred size (128 MiB); other sizes should be multiples
        of :attr:`FeatureArray.chunk_rows`. A mapping gives sizes by dimension, ``{"frame": 4096,
        "keypoint": 11}``; other dimensions are not divided.

    Returns
    -------
    dask.array.Array
        Of the stored array's shape and type; text is object (of str). NaN where missing, as stored.

    Raises
    ------
    NotFoundError
        If the store has no such array.
    InvalidError
        If the sizes do not fit.
    MissingExtraError
        If Dask is not installed.
    """
    try:
        import dask.array as da
    except ImportError:
        raise MissingExtraError("to_dask()", extra="dask") from None
    from dask.tokenize import tokenize

    array = store[name]
    pieces = _pieces(array, chunks)
    # A graph holds the array once per chunk, in a few hundred bytes, so that a worker needs no
    # other task's result.
    token = f"kpstore-{name}-{tokenize(array, pieces)}"
    from_array: Callable[..., da.Array] = da.from_array
    return from_array(array, chunks=pieces, name=token, inline_array=True, asarray=True)


def _pieces(
    array: FeatureArray, chunks: Rows | Mapping[str, Rows] | None
) -> tuple[tuple[int, ...], ...]:
    from dask.array import core

    stored = (max(1, min(array.chunk_rows, len(array))), *array.shape[1:])
    first = {} if chunks is None else {array.dims[0]: chunks}
    by_dim = chunks if isinstance(chunks, Mapping) else first
    unknown = [dim for dim in by_dim if dim not in array.dims]
    if unknown:
        raise InvalidError(
            f"chunks name the dimension {unknown[0]!r}; {array.name!r} has {', '.join(array.dims)}"
        )
    none = [rows for rows in by_dim.values() if isinstance(rows, int) and rows < 1 and rows != -1]
    if none:
        raise InvalidError(
            f"chunks of {none[0]} rows of {array.name!r} asked for; use 1 or more, or -1 for all"
        )
    wanted = [by_dim.get(dim, size) for dim, size in zip(array.dims, stored, strict=True)]
    if array.dtype == object:
        # Dask cannot tell the size of text, so stored chunks take the place of its own choice.
        pairs = zip(wanted, stored, strict=True)
        wanted = [size if isinstance(asked, str) else asked for asked, size in pairs]
    split: Callable[..., tuple[tuple[int, ...], ...]] = core.normalize_chunks
    try:
        return split(tuple(wanted), array.shape, dtype=array.dtype, previous_chunks=stored)
    except (ValueError, TypeError) as error:
        raise InvalidError(
            f"chunks {chunks!r} do not fit {array!r}: {one_line(str(error))}"
        ) from None
