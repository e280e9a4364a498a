"""One array on the frame or video axis: what its rows are, and how given rows are made to fit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, one_line
from kpstore.schema import spec_fields
from kpstore.schema.fields import Fits, fit_fields, text
from kpstore.schema.video_fields import text_of

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

_FIT: Fits = {
    "name": text,
    "shape": spec_fields.lengths,
    "dims": spec_fields.names,
    "dtype": spec_fields.dtype_name,
    "units": text_of,
    "description": text_of,
}


@dataclass(frozen=True)
class ArraySpec:
    """One array on the frame or video axis.

    Parameters
    ----------
    name : name of the array; companions are stored as ``<feature>_<name>``.
    shape : shape of one row, without the frame or video axis; ``()`` for one number per row.
    dims : name of each axis in ``shape``.
    dtype : name of a numpy dtype (``"float32"``, ``"bool"``, …), or the dtype.
    units : CF units; ``"1"`` for dimensionless numbers.
    description : one line that describes the array (CF ``long_name``).
    """

    name: str
    shape: tuple[int, ...] = ()
    dims: tuple[str, ...] = ()
    dtype: str = "float32"
    units: str = "1"
    description: str = ""

    def __post_init__(self) -> None:
        fit_fields(
            self, _FIT, lambda field: "name" if field == "name" else f"{self.name!r}, {field}"
        )
        if not _NAME.match(self.name):
            raise InvalidError(
                f"array name {self.name!r}: use lower-case letters, digits and underscores, "
                "starting with a letter"
            )
        for problem in self._problems_of_rows():
            raise InvalidError(f"{self.name!r}: {problem}")

    def _problems_of_rows(self) -> Iterator[str]:
        if len(self.shape) != len(self.dims):
            yield f"shape {self.shape} needs {len(self.shape)} dims, found {self.dims}"
        if {"frame", "video"} & set(self.dims):
            yield "'frame' and 'video' are axes of the store; give the row's axes other names"
        if any(length < 1 for length in self.shape):
            yield f"every axis of a row needs a length of at least 1, found {self.shape}"

    @property
    def fill(self) -> float | int | bool:
        """Missing value, which rows that were never written have: NaN, 0 or False."""
        kind = np.dtype(self.dtype).kind
        return math.nan if kind == "f" else False if kind == "b" else 0

    @property
    def row_bytes(self) -> int:
        """Size of one decoded row in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def empty(self, n_rows: int) -> NDArray[np.generic]:
        """Return ``n_rows`` rows of the missing value, (n_rows, *shape)."""
        return np.full((n_rows, *self.shape), self.fill, dtype=self.dtype)

    def are_empty(self, rows: NDArray[np.generic]) -> NDArray[np.bool_]:
        """Return which rows hold nothing but the missing value, (rows,) bool."""
        # One axis per row, because numpy is many times slower on several short ones.
        flat = rows.reshape(len(rows), math.prod(self.shape))
        if rows.dtype.kind != "f":
            return np.asarray((flat == self.fill).all(axis=1), dtype=np.bool_)
        some, empty = maybe_not_finite(squares(flat)), np.zeros(len(rows), dtype=np.bool_)
        empty[some] = np.isnan(flat[some]).all(axis=1)
        return empty

    def to_json(self) -> dict[str, object]:
        """Return this spec as JSON values."""
        return {**asdict(self), "shape": list(self.shape), "dims": list(self.dims)}

    def fitted(
        self, where: str, array: NDArray[Any], n_rows: int, gone: NDArray[np.bool_] | None
    ) -> NDArray[Any]:
        """Return ``n_rows`` rows in this spec's dtype.

        Parameters
        ----------
        where : beginning of error messages.
        gone : (rows,) bool; these rows are returned as missing, whatever they hold.

        Raises
        ------
        InvalidError
            If the shape, dtype or values do not fit.
        """
        if array.shape != (n_rows, *self.shape):
            raise InvalidError(
                f"{where}: shape {array.shape} given, {(n_rows, *self.shape)} needed"
            )
        if self.dtype == "bool" and array.dtype.kind in "iu":
            kept = array if gone is None else array[~gone]
            if kept.size and (kept.min() < 0 or kept.max() > 1):
                raise InvalidError(
                    f"{where}: {kept.min()} to {kept.max()} given, bool (or 0 and 1) needed"
                )
            array = array.astype(np.bool_)
        if not np.can_cast(array.dtype, self.dtype, casting="same_kind"):
            raise InvalidError(f"{where}: dtype {array.dtype} given, {self.dtype} needed")
        if np.dtype(self.dtype).kind in "iu" and not np.can_cast(array.dtype, self.dtype):
            limits, kept = np.iinfo(self.dtype), array if gone is None else array[~gone]
            if kept.size and (kept.min() < limits.min or kept.max() > limits.max):
                raise InvalidError(
                    f"{where}: {kept.min()} to {kept.max()} given, {self.dtype} holds "
                    f"{limits.min} to {limits.max}"
                )
        with np.errstate(over="ignore"):  # what becomes infinite has an error of its own
            fitted = array.astype(self.dtype, copy=gone is not None)
        if gone is not None:
            fitted[gone] = self.fill
        if fitted.dtype.kind == "f" and not np.can_cast(array.dtype, self.dtype):
            grown = np.isinf(fitted) & np.isfinite(array)
            if grown.any():
                raise InvalidError(
                    f"{where}: {array[grown][0]:g} is infinite as {self.dtype}, which holds "
                    f"{-np.finfo(self.dtype).max:g} to {np.finfo(self.dtype).max:g}"
                )
        return fitted


def check_axes(
    where: str, given: object, dims: tuple[str, ...], labels: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse an array that says itself (xarray, pandas) that its axes or labels differ in order.

    Parameters
    ----------
    where : beginning of the error message.
    dims : names of the axes that are needed; arrays with other names say nothing.
    labels : by dimension.
    """
    named, coordinates = getattr(given, "dims", None), getattr(given, "coords", {})
    table, series = hasattr(given, "columns"), hasattr(given, "to_frame")  # of pandas
    if (table and len(dims) == 2) or (series and len(dims) == 1):
        coordinates = {dims[-1]: getattr(given, "columns" if table else "index", ())}
    elif isinstance(named, tuple) and named != dims and set(named) == set(dims):
        raise InvalidError(f"{where}: axes {named} given, {dims} needed; transpose it")
    if not isinstance(coordinates, Mapping):  # of another library, in which it is another thing
        return
    for dim, wanted in labels.items():
        if dim not in dims or dim not in coordinates:
            continue
        found = tuple(np.asarray(coordinates[dim]).tolist())
        if found != wanted and len(found) == len(wanted) and all(name in found for name in wanted):
            raise InvalidError(
                f"{where}: its {dim!r} are in another order than the feature's; reindex it"
            )


def as_rows(where: str, given: object) -> NDArray[Any]:
    """Return rows as an array, with masked values as missing values.

    Parameters
    ----------
    where : beginning of error messages.

    Raises
    ------
    InvalidError
        If they cannot be made an array of rows.
    """
    try:
        array = np.asarray(_unmasked(where, given))
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError: torch, of gradients
        if isinstance(error, InvalidError):
            raise
        reason = one_line(str(error))
        raise InvalidError(f"{where}: cannot be made an array of numbers ({reason})") from None
    if not array.ndim:
        raise InvalidError(f"{where}: one {array.dtype} was given, an array of rows is needed")
    return array


def _unmasked(where: str, given: object) -> object:
    """Return values without masks, which ``np.asarray`` would forget: NaN where they hide.

    Masks also come in lists of rows, and out of what makes arrays when asked (Dask, netCDF).
    """
    if isinstance(given, list | tuple):
        return [_unmasked(where, value) for value in given]
    graph = getattr(given, "__dask_graph__", None)
    if graph is not None and graph() is not None:  # an xarray object without Dask has no graph
        given = given.compute()  # type: ignore[attr-defined]  # Dask's own way to numpy drops masks
    if not hasattr(given, "__array__") or isinstance(given, np.generic):
        return given
    array = np.asanyarray(given)
    if not isinstance(array, np.ma.MaskedArray):
        return array
    if array.dtype.kind == "f":
        return array.filled(np.nan)
    if np.ma.getmaskarray(array).any():
        raise InvalidError(f"{where}: a masked array of {array.dtype} hides numbers; fill them in")
    return array.data


Some = NDArray[np.int64] | slice
"""Some rows, to index with."""


def squares(rows: NDArray[np.generic]) -> NDArray[np.floating]:
    """Return the sum of the squares of each row, (rows,), in float32 at least.

    Neither NaN nor a large value can hide in it, and it costs little beside all else that is asked
    about values.
    """
    flat: NDArray[Any] = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    flat = flat.astype(np.result_type(flat.dtype, np.float32), copy=False)
    with np.errstate(all="ignore"):
        return np.asarray(np.vecdot(flat, flat))


def maybe_not_finite(of_rows: NDArray[np.floating]) -> Some:
    """Return which rows may hold NaN or infinity, by their squares; no others hold any."""
    return few_or_all(~np.isfinite(of_rows))


def few_or_all(rows: NDArray[np.bool_]) -> Some:
    """Return the rows that are true; all, if they are many: that is faster than to copy those."""
    some = np.flatnonzero(rows)
    return slice(None) if len(some) > len(rows) // 8 else some
