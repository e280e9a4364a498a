"""What one feature is: its axis, the shape and type of a row, labels, units, companions."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError

Axis = Literal["frame", "video"]
Compression = Literal["raw", "lz4", "zstd"]
COMPRESSIONS: tuple[Compression, ...] = ("raw", "lz4", "zstd")
Provenance = Mapping[str, Any]
"""How a feature was made: JSON values only, the same keys for the same extractor."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
CHUNK_BYTES = 2 * 2**20
"""Upper bound of one decoded chunk; docs/decisions/003 has the measurement behind it."""
MAX_CHUNK_ROWS = 4096


class State(enum.IntEnum):
    """How far a video (for one feature), or one of its frames, has come.

    ``PENDING`` is also what unwritten storage reads as, so that a row nobody wrote can never pass
    for a result. A frame that was looked at and in which nothing was found is ``DONE``: its values
    are NaN and its mask is False.
    """

    PENDING = 0
    DONE = 1
    FAILED = 2


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "fbiu"
    except TypeError:
        return False


@dataclass(frozen=True)
class ArraySpec:
    """One array that hangs on the frame or video axis.

    Parameters
    ----------
    name : the array's name; companions are stored as ``<feature>_<name>``.
    shape : shape of one row, without the frame or video axis; ``()`` for one number a row.
    dims : a name for every axis of ``shape``.
    dtype : a numpy dtype name (``"float32"``, ``"bool"``, …).
    units : CF units; ``"1"`` for dimensionless numbers.
    description : one line for people (CF ``long_name``).
    """

    name: str
    shape: tuple[int, ...] = ()
    dims: tuple[str, ...] = ()
    dtype: str = "float32"
    units: str = "1"
    description: str = ""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise InvalidError(
                f"array name {self.name!r}: use lower-case letters, digits and underscores, "
                "starting with a letter"
            )
        if len(self.shape) != len(self.dims):
            raise InvalidError(
                f"{self.name!r}: shape {self.shape} needs {len(self.shape)} dims, found {self.dims}"
            )
        if {"frame", "video"} & set(self.dims):
            raise InvalidError(
                f"{self.name!r}: 'frame' and 'video' are axes of the store; call the row's axes "
                "otherwise"
            )
        if any(length < 1 for length in self.shape):
            raise InvalidError(
                f"{self.name!r}: every axis of a row needs a length of at least 1, found "
                f"{self.shape}"
            )
        if not _is_number(self.dtype):
            raise InvalidError(f"{self.name!r}: dtype {self.dtype!r} is not a number or bool")

    @property
    def fill(self) -> float | int | bool:
        """Value of a row that nobody wrote: NaN, 0 or False."""
        kind = np.dtype(self.dtype).kind
        return math.nan if kind == "f" else False if kind == "b" else 0

    @property
    def row_bytes(self) -> int:
        """Size of one decoded row in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def empty(self, n_rows: int) -> NDArray[Any]:
        """Return ``n_rows`` rows filled with the missing value, shape (n_rows, *shape)."""
        return np.full((n_rows, *self.shape), self.fill, dtype=self.dtype)

    def are_empty(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which rows hold nothing but the missing value, (rows,) bool."""
        return _all_in_row(np.isnan(rows) if rows.dtype.kind == "f" else rows == self.fill)


@dataclass(frozen=True)
class FeatureSpec(ArraySpec):
    """A feature: one array of values and the companions that say how to read it.

    Parameters
    ----------
    axis : what a row belongs to, a frame or a video.
    labels : names along an axis of a row, by dimension, e.g. ``{"space": ("x", "y", "z")}``.
    companions : arrays with the same rows, such as a presence mask (``detected``) or a confidence
        (``visibility``).
    chunk_rows : rows per chunk; 0 picks the largest power of two that stays within 2 MiB decoded,
        and within 4,096 rows: a chunk of a few numbers a frame would hold more frames than a small
        store has.
    compression : of the values: ``"raw"`` is none, and reads fastest; ``"lz4"`` saves a fifth to
        two fifths of the space of keypoints, ``"zstd"`` a little more; neither saves anything on
        network features.
    attrs : further facts about the layout (JSON), such as a list of mesh points.
    """

    axis: Axis = "frame"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    companions: tuple[ArraySpec, ...] = ()
    chunk_rows: int = 0
    compression: Compression = "raw"
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("frame", "video"):
            raise InvalidError(
                f"feature {self.name!r}: axis is 'frame' or 'video', found {self.axis!r}"
            )
        lengths: dict[str, int] = {}
        for array in (self, *self.companions):
            for dim, length in zip(array.dims, array.shape, strict=True):
                if lengths.setdefault(dim, length) != length:
                    raise InvalidError(
                        f"feature {self.name!r}: dimension {dim!r} has two lengths, {lengths[dim]} "
                        f"and {length}"
                    )
        for dim, names in self.labels.items():
            if lengths.get(dim) != len(names):
                raise InvalidError(
                    f"feature {self.name!r}: {len(names)} labels for {dim!r} of length "
                    f"{lengths.get(dim)}"
                )
        names_used = [c.name for c in self.companions]
        if len(set(names_used)) != len(names_used):
            raise InvalidError(
                f"feature {self.name!r}: two companions have one name, found {names_used}"
            )
        if self.compression not in COMPRESSIONS:
            raise InvalidError(
                f"feature {self.name!r}: compression {self.compression!r}; use "
                f"{', '.join(COMPRESSIONS)}"
            )
        if self.chunk_rows < 0:
            raise InvalidError(
                f"feature {self.name!r}: chunk_rows is {self.chunk_rows}; use 0 or more"
            )
        try:
            # As it will come back from a store: a tuple that returns as a list would make the same
            # spec another one.
            object.__setattr__(self, "attrs", json.loads(json.dumps(dict(self.attrs))))
        except TypeError as error:
            raise InvalidError(
                f"feature {self.name!r}: attrs must be JSON values ({error})"
            ) from None
        reserved = {"state", "status", "failure", "values"} & set(names_used)
        if reserved:
            raise InvalidError(
                f"feature {self.name!r}: companion name {reserved.pop()!r} is kept for the store "
                "itself"
            )
        if self.chunk_rows == 0:
            rows = max(1, CHUNK_BYTES // max(self.row_bytes, 1))
            object.__setattr__(
                self, "chunk_rows", min(1 << (rows.bit_length() - 1), MAX_CHUNK_ROWS)
            )

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Every array of this feature by its stored name: the values first, then the companions."""
        stored = {
            self.name: ArraySpec(
                self.name, self.shape, self.dims, self.dtype, self.units, self.description
            )
        }
        for companion in self.companions:
            name = self.companion(companion.name)
            stored[name] = replace(companion, name=name)
        return stored

    def companion(self, name: str) -> str:
        """Return the stored name of a companion."""
        return f"{self.name}_{name}"

    def empty_rows(self, n_rows: int) -> FeatureRows:
        """Return ``n_rows`` rows in which nothing was found: NaN values, False masks.

        To fill in values alone, make ``FeatureRows(values)`` instead: masks then follow from the
        values.
        """
        return FeatureRows(self.empty(n_rows), {c.name: c.empty(n_rows) for c in self.companions})

    def to_json(self) -> dict[str, Any]:
        """Return this spec as JSON values; :meth:`from_json` is the inverse."""
        return {
            "name": self.name,
            "axis": self.axis,
            "shape": list(self.shape),
            "dims": list(self.dims),
            "dtype": self.dtype,
            "units": self.units,
            "description": self.description,
            "labels": {dim: list(names) for dim, names in self.labels.items()},
            "companions": [
                {
                    "name": c.name,
                    "shape": list(c.shape),
                    "dims": list(c.dims),
                    "dtype": c.dtype,
                    "units": c.units,
                    "description": c.description,
                }
                for c in self.companions
            ],
            "chunk_rows": self.chunk_rows,
            "compression": self.compression,
            "attrs": dict(self.attrs),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FeatureSpec:
        """Build a spec from what :meth:`to_json` returned."""
        values = dict(stored)
        companions = tuple(
            ArraySpec(**{**c, "shape": tuple(c["shape"]), "dims": tuple(c["dims"])})
            for c in values.pop("companions")
        )
        values["labels"] = {dim: tuple(names) for dim, names in values["labels"].items()}
        return cls(
            **{
                **values,
                "shape": tuple(values["shape"]),
                "dims": tuple(values["dims"]),
                "companions": companions,
            }
        )


@dataclass(frozen=True)
class FeatureRows:
    """Some rows of one feature.

    Parameters
    ----------
    values : (rows, *spec.shape) of ``spec.dtype``; NaN where missing.
    companions : by companion name, (rows, *companion.shape) of the companion's dtype.
    """

    values: NDArray[Any]
    companions: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self.companions.items())
        return (
            f"FeatureRows({self.values.shape} {self.values.dtype}{', ' + shapes if shapes else ''})"
        )

    def __getitem__(self, rows: slice) -> FeatureRows:
        return FeatureRows(
            self.values[rows], {name: array[rows] for name, array in self.companions.items()}
        )

    def n_given(self, spec: FeatureSpec) -> int:
        """Return how many rows were given; :class:`InvalidError` if they are no array of rows."""
        return len(_array(spec, "values", self.values))

    def check(self, spec: FeatureSpec, done: NDArray[np.bool_] | None = None) -> FeatureRows:
        """Return the same rows as a store may hold them.

        Arrays get the spec's dtypes. A presence mask (``detected``) that is not given follows from
        the values, see :func:`presence`; other companions that are not given read as missing. For
        bool arrays, whole numbers 0 and 1 will do.

        Parameters
        ----------
        done : (rows,) bool; other rows come back as missing, whatever they hold. All are done by
            default.

        Raises
        ------
        InvalidError
            If an array does not fit, or breaks a rule of the format (:func:`faults`); one line that
            names it and the first row.
        """
        values = _array(spec, "values", self.values)
        n_rows = len(values)
        unknown = set(self.companions) - {c.name for c in spec.companions}
        if unknown:
            raise InvalidError(f"feature {spec.name!r} has no companion {sorted(unknown)[0]!r}")
        gone = None if done is None or done.all() else ~done
        values = _fitted(spec, "values", values, spec, n_rows, gone)
        companions: dict[str, NDArray[Any]] = {}
        for wanted in spec.companions:
            given = self.companions.get(wanted.name)
            if given is not None:
                given = _array(spec, wanted.name, given)
            elif wanted.name == MASK and wanted.dtype == "bool":
                given = presence(spec, values)
            else:
                given = wanted.empty(n_rows)
            companions[wanted.name] = _fitted(spec, wanted.name, given, wanted, n_rows, gone)
        for array, what, bad in faults(spec, values, companions):
            if bad.any():
                row = int(np.argmax(bad))
                told = _torn_point(spec, values[row], what) or f"{array} {what}"
                if (
                    told.startswith(f"{spec.companion(MASK)} ")
                    and self.companions.get(MASK) is not None
                ):
                    told += f"; leave {MASK!r} out and it follows from the values"
                raise InvalidError(
                    f"feature {spec.name!r}, row {row} ({int(bad.sum())} in all): {told}"
                )
        return FeatureRows(values, companions)

    @classmethod
    def concatenate(cls, blocks: list[FeatureRows]) -> FeatureRows:
        """Return all rows of ``blocks``, in order; at least one block."""
        names = blocks[0].companions
        return cls(
            np.concatenate([b.values for b in blocks]),
            {name: np.concatenate([b.companions[name] for b in blocks]) for name in names},
        )


MASK = "detected"
"""Name of the companion that says which parts of a row are there."""


def part_names(spec: FeatureSpec) -> tuple[str, ...]:
    """Return what the columns of a feature's presence mask stand for; empty if it has none."""
    mask = next((c for c in spec.companions if c.name == MASK and len(c.shape) == 1), None)
    if mask is None:
        return ()
    (dim,), (length,) = mask.dims, mask.shape
    return spec.labels.get(dim, tuple(f"{dim}_{n}" for n in range(length)))


def part_slices(spec: FeatureSpec) -> Mapping[str, slice | None]:
    """Return which points of a row belong to which part.

    ``{"": None}`` for a feature without parts.
    """
    parts = spec.attrs.get("parts")
    if not parts or not spec.shape:
        return {"": None}
    return {name: slice(first, last) for name, (first, last) in parts.items()}


def presence(spec: FeatureSpec, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the presence mask that follows from values: what is NaN as a whole is not there, everything else is.

    A column of the mask that stands for a part looks at the points of that part; an axis that mask
    and values share, at each place along it; any other column at the whole row. In features of
    whole numbers all is there.

    Parameters
    ----------
    values : (rows, *spec.shape).

    Returns
    -------
    NDArray[np.bool_]
        (rows, *mask shape).
    """
    (mask,) = (c for c in spec.companions if c.name == MASK)
    there = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=np.bool_)
    if mask.dims and set(mask.dims) <= set(spec.dims):
        other = tuple(axis for axis, dim in enumerate(spec.dims, start=1) if dim not in mask.dims)
        kept = [dim for dim in spec.dims if dim in mask.dims]
        order = (0, *(1 + kept.index(dim) for dim in mask.dims))
        return np.asarray(there.any(axis=other), dtype=np.bool_).transpose(order)
    of_row = _any_in_row(there)
    found = np.broadcast_to(
        of_row.reshape(-1, *(1 for _ in mask.shape)), (len(values), *mask.shape)
    ).copy()
    slices = part_slices(spec)
    for column, part in enumerate(part_names(spec)):
        rows = slices.get(part)
        if rows is not None:
            found[:, column] = _any_in_row(there[:, rows])
    return found


def faults(
    spec: FeatureSpec, values: NDArray[Any], companions: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield each rule that done rows of a feature have to keep: the array, what is wrong, and (rows,) bool, where.

    Values are finite or NaN; a presence mask says what the values say; ``visibility`` lies between
    0 and 1.
    """
    if values.dtype.kind != "f":
        return
    yield spec.name, "is infinite (NaN is what is missing)", _any_in_row(np.isinf(values))
    known = ~np.isnan(values)
    mask = spec.companion(MASK)
    detected = companions.get(MASK)
    slices = part_slices(spec)
    for column, part in enumerate(part_names(spec)):
        rows = slices.get(part)
        if detected is None or rows is None:
            continue
        here, there = known[:, rows], detected[:, column]
        gone = ~_any_in_row(here)
        wrong = there & gone
        partial = np.flatnonzero(there & ~gone & ~_all_in_row(here))  # few, and slow to look at
        wrong[partial] = _torn(~here[partial]).any(axis=1)
        yield mask, _says_there(part), wrong
        yield mask, f"says {part} is missing, but values are there", ~there & ~gone
    visibility = companions.get("visibility")
    if visibility is not None:
        outside = np.asarray((visibility < 0) | (visibility > 1), dtype=np.bool_)
        yield spec.companion("visibility"), "is outside 0 to 1", _any_in_row(outside)


def _any_in_row(block: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(_flat(block).any(axis=1), dtype=np.bool_)


def _all_in_row(block: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(_flat(block).all(axis=1), dtype=np.bool_)


def _flat(block: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return rows as one axis: numpy goes over several short ones many times slower."""
    return block.reshape(len(block), math.prod(block.shape[1:]))


def _torn(missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(rows, points) bool of (rows, points, …): which points lack a coordinate that another point has."""
    missing = missing.reshape(*missing.shape[:2], int(np.prod(missing.shape[2:])))
    of_none: NDArray[np.bool_] = np.all(missing, axis=1, keepdims=True)
    whole: NDArray[np.bool_] = np.all(missing | of_none, axis=2, keepdims=True)
    return np.asarray((missing & ~of_none & ~whole).any(axis=2), dtype=np.bool_)


def _says_there(part: str) -> str:
    return f"says {part} is there, but values are missing"


def _torn_point(spec: FeatureSpec, row: NDArray[Any], what: str) -> str | None:
    """Return a line about the first torn point of one row if that is what is wrong with it, else None."""
    for part, points in part_slices(spec).items():
        if points is None or what != _says_there(part):
            continue
        torn = np.flatnonzero(_torn(np.isnan(row[None, points]))[0])
        if len(torn):
            point = range(len(row))[points][torn[0]]
            names = spec.labels.get(spec.dims[0])
            label = f"point {point}" if names is None else f"point {point} ({names[point]})"
            return (
                f"{spec.name}, {label} of {part}: some of its coordinates are missing; the "
                "coordinates of a point are missing together (NaN in all of them)"
            )
    return None


def _array(spec: FeatureSpec, name: str, given: Any) -> NDArray[Any]:
    """Return rows as an array; what a masked array hides is missing."""
    try:
        masked = isinstance(given, np.ma.MaskedArray)
        array = np.asarray(given.filled(np.nan) if masked and given.dtype.kind == "f" else given)
    except (TypeError, ValueError) as error:
        raise InvalidError(
            f"feature {spec.name!r}, {name}: no array of numbers can be made of it ({error})"
        ) from None
    if masked and given.dtype.kind != "f" and np.ma.getmaskarray(given).any():
        raise InvalidError(
            f"feature {spec.name!r}, {name}: a masked array of {given.dtype} hides numbers; fill "
            "them in"
        )
    if not array.ndim:
        raise InvalidError(
            f"feature {spec.name!r}, {name}: one {array.dtype} was given, an array of rows is "
            "needed"
        )
    return array


def _fitted(
    spec: FeatureSpec,
    name: str,
    array: NDArray[Any],
    wanted: ArraySpec,
    n_rows: int,
    gone: NDArray[np.bool_] | None,
) -> NDArray[Any]:
    """Return an array in the spec's dtype, its rows ``gone`` missing.

    :class:`InvalidError` if it does not fit.
    """
    if array.shape != (n_rows, *wanted.shape):
        raise InvalidError(
            f"feature {spec.name!r}, {name}: shape {array.shape} given, ({n_rows}, "
            f"*{wanted.shape}) needed"
        )
    if wanted.dtype == "bool" and array.dtype.kind in "iu":
        kept = array if gone is None else array[~gone]
        if kept.size and (kept.min() < 0 or kept.max() > 1):
            raise InvalidError(
                f"feature {spec.name!r}, {name}: {kept.min()} to {kept.max()} given, bool (or 0 "
                "and 1) needed"
            )
        array = array.astype(np.bool_)
    if not np.can_cast(array.dtype, wanted.dtype, casting="same_kind"):
        raise InvalidError(
            f"feature {spec.name!r}, {name}: dtype {array.dtype} given, {wanted.dtype} needed"
        )
    if np.dtype(wanted.dtype).kind in "iu" and not np.can_cast(array.dtype, wanted.dtype):
        limits, kept = np.iinfo(wanted.dtype), array if gone is None else array[~gone]
        if kept.size and (kept.min() < limits.min or kept.max() > limits.max):
            raise InvalidError(
                f"feature {spec.name!r}, {name}: {kept.min()} to {kept.max()} given, "
                f"{wanted.dtype} holds {limits.min} to {limits.max}"
            )
    with np.errstate(
        over="ignore"
    ):  # too large a number becomes infinite, which is told of as such
        fitted = array.astype(wanted.dtype, copy=gone is not None)
    if gone is not None:
        fitted[gone] = wanted.fill
    return fitted
