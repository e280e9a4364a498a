"""What a feature is: its axis, the shape and type of its rows, labels, units and companions."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema import spec_fields
from kpstore.schema.array import ArraySpec, Some, as_rows, check_axes, maybe_not_finite, squares
from kpstore.schema.fields import (
    Fits,
    fit_fields,
    json_values,
    sequence,
    shown,
    stored_json,
    text,
    whole,
)

Axis = Literal["frame", "video"]
Compression = Literal["raw", "lz4", "zstd"]
COMPRESSIONS: tuple[Compression, ...] = ("raw", "lz4", "zstd")
Provenance = Mapping[str, Any]
"""How a feature was made: JSON values only, with the same keys for the same extractor."""
MADE_BY = "made_by"
"""Key of a provenance: the recipe and its options, ``{"recipe": …, "options": {…}}``."""

CHUNK_BYTES = 2 * 2**20
"""Largest size of a decoded chunk; docs/decisions/003 has the measurement behind it."""
MAX_CHUNK_ROWS = 4096


def _arrays(value: object) -> tuple[ArraySpec, ...]:
    found = (value,) if isinstance(value, ArraySpec) else sequence(value, "ArraySpecs")
    odd = [each for each in found if not isinstance(each, ArraySpec)]
    if odd:
        raise InvalidError(f"{shown(odd[0])} is not an ArraySpec; give a sequence of them")
    return found


_FIT: Fits = {
    "axis": text,
    "labels": spec_fields.labels,
    "companions": _arrays,
    "chunk_rows": whole,
    "compression": text,
    "attrs": json_values,
}


class State(enum.IntEnum):
    """Progress of a video (for one feature), or of one of its frames.

    Unwritten storage reads as ``PENDING``, so that a row that was never written cannot pass for a
    result. A frame in which nothing was detected is ``DONE``: its values are NaN, its mask False.
    """

    PENDING = 0
    DONE = 1
    FAILED = 2


@dataclass(frozen=True)
class FeatureSpec(ArraySpec):
    """A feature: one array of values and the companions that say how to read it.

    Parameters
    ----------
    axis : what a row belongs to, a frame or a video.
    labels : names along an axis of a row, by dimension, e.g. ``{"space": ("x", "y", "z")}``.
    companions : arrays with the same rows, such as a presence mask (``detected``) or a confidence
        (``visibility``).
    chunk_rows : rows per chunk; 0 chooses the largest power of two within 2 MiB decoded and 4,096
        rows (chunks of a few numbers per frame would hold more frames than a small store has).
    compression : compression of the values. ``"raw"`` is uncompressed and reads fastest; ``"lz4"``
        saves 20 to 40 % of the space of keypoints, ``"zstd"`` a little more; neither saves any on
        features of networks.
    attrs : further facts about the layout, as JSON values, such as a list of mesh points.
    """

    axis: Axis = "frame"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    companions: tuple[ArraySpec, ...] = ()
    chunk_rows: int = 0
    compression: Compression = "raw"
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        fit_fields(self, _FIT, lambda field: f"feature {self.name!r}, {field}")
        for problem in self._problems():
            raise InvalidError(f"feature {self.name!r}: {problem}")
        if self.chunk_rows == 0:
            rows = max(1, CHUNK_BYTES // max(self.row_bytes, 1))
            object.__setattr__(
                self, "chunk_rows", min(1 << (rows.bit_length() - 1), MAX_CHUNK_ROWS)
            )

    def _problems(self) -> Iterator[str]:
        if self.axis not in ("frame", "video"):
            yield f"axis is 'frame' or 'video', found {self.axis!r}"
        lengths: dict[str, int] = {}
        for array in (self, *self.companions):
            for dim, length in zip(array.dims, array.shape, strict=True):
                if lengths.setdefault(dim, length) != length:
                    yield f"dimension {dim!r} has two lengths, {lengths[dim]} and {length}"
        for dim, names in self.labels.items():
            if lengths.get(dim) != len(names):
                yield f"{len(names)} labels for {dim!r} of length {lengths.get(dim)}"
        names_used = [c.name for c in self.companions]
        if len(set(names_used)) != len(names_used):
            yield f"two companions have one name, found {names_used}"
        if self.compression not in COMPRESSIONS:
            yield f"compression {self.compression!r}; use {', '.join(COMPRESSIONS)}"
        if self.chunk_rows < 0:
            yield f"chunk_rows is {self.chunk_rows}; use 0 or more"
        reserved = {"state", "status", "failure", "values"} & set(names_used)
        if reserved:
            yield f"companion name {reserved.pop()!r} is reserved for the store itself"

    @cached_property
    def arrays(self) -> Mapping[str, ArraySpec]:
        """All arrays of this feature by their stored names: the values first, then companions."""
        values = ArraySpec(
            self.name, self.shape, self.dims, self.dtype, self.units, self.description
        )
        companions = (replace(c, name=self.companion(c.name)) for c in self.companions)
        return {array.name: array for array in (values, *companions)}

    def companion(self, name: str) -> str:
        """Return the stored name of a companion."""
        return f"{self.name}_{name}"

    def empty_rows(self, n_rows: int) -> FeatureRows:
        """Return ``n_rows`` rows in which nothing was found: NaN values, False masks.

        ``FeatureRows(values)`` instead derives masks from the values.
        """
        return FeatureRows(self.empty(n_rows), {c.name: c.empty(n_rows) for c in self.companions})

    def to_json(self) -> dict[str, object]:
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
            "companions": [companion.to_json() for companion in self.companions],
            "chunk_rows": self.chunk_rows,
            "compression": self.compression,
            "attrs": dict(self.attrs),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FeatureSpec:
        """Build a spec from what :meth:`to_json` returned."""
        companions = tuple(ArraySpec(**_with_tuples(c)) for c in stored["companions"])
        labels = {dim: tuple(names) for dim, names in stored["labels"].items()}
        return cls(
            **{
                **_with_tuples(stored),
                "labels": labels,
                "companions": companions,
                "attrs": stored_json(stored["attrs"]),
            }
        )


def _with_tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {**stored, "shape": tuple(stored["shape"]), "dims": tuple(stored["dims"])}


@dataclass(frozen=True)
class FeatureRows:
    """Some rows of one feature.

    Parameters
    ----------
    values : (rows, *spec.shape) of ``spec.dtype``; NaN where missing.
    companions : (rows, *companion.shape) of the companion's dtype, by its name.
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
        """Return the number of rows; :class:`InvalidError` if ``values`` has no rows."""
        return len(as_rows(f"feature {spec.name!r}, values", self.values))

    def check(self, spec: FeatureSpec, done: NDArray[np.bool_] | None = None) -> FeatureRows:
        """Return the same rows as a store may hold them.

        Arrays get the spec's dtypes. A presence mask (``detected``) that is not given follows from
        the values (see :func:`presence`); other companions that are not given are missing. Bool
        arrays may be given as whole numbers 0 and 1.

        Parameters
        ----------
        done : (rows,) bool; other rows are returned as missing, whatever they hold. By default, all
            rows are done.

        Raises
        ------
        InvalidError
            If an array does not fit, or breaks a rule of the format (:func:`faults`); the message
            names the array and the first such row.
        """

        def where(name: str) -> str:
            return f"feature {spec.name!r}, {name}"

        check_axes(where("values"), self.values, (spec.axis, *spec.dims), spec.labels)
        values = as_rows(where("values"), self.values)
        n_rows = len(values)
        if not isinstance(self.companions, Mapping):
            raise InvalidError(
                f"{where('companions')}: {shown(self.companions)} given, arrays by name needed"
            )
        known = {c.name for c in spec.companions}
        unknown = [name for name in self.companions if name not in known]
        if unknown:
            raise InvalidError(f"feature {spec.name!r} has no companion {shown(unknown[0])}")
        gone = None if done is None or done.all() else ~done
        values = spec.fitted(where("values"), values, n_rows, gone)
        companions: dict[str, NDArray[Any]] = {}
        for wanted in spec.companions:
            given = self.companions.get(wanted.name)
            if given is not None:
                check_axes(where(wanted.name), given, (spec.axis, *wanted.dims), spec.labels)
                given = as_rows(where(wanted.name), given)
            elif wanted.name == MASK and wanted.dtype == "bool":
                given = presence(spec, values)
            else:
                given = wanted.empty(n_rows)
            companions[wanted.name] = wanted.fitted(where(wanted.name), given, n_rows, gone)
        for array, what, bad in faults(spec, values, companions):
            if bad.any():
                row = int(np.argmax(bad))
                told = _torn_point(spec, values[row], what) or f"{array} {what}"
                has_mask = self.companions.get(MASK) is not None
                if has_mask and told.startswith(f"{spec.companion(MASK)} "):
                    told += f"; leave {MASK!r} out and it follows from the values"
                raise InvalidError(
                    f"feature {spec.name!r}, row {row} ({int(bad.sum())} in all): {told}"
                )
        return FeatureRows(values, companions)

    @classmethod
    def concatenate(cls, blocks: list[FeatureRows]) -> FeatureRows:
        """Return all rows of ``blocks``, which are one or more, in order."""
        names = blocks[0].companions
        return cls(
            np.concatenate([b.values for b in blocks]),
            {name: np.concatenate([b.companions[name] for b in blocks]) for name in names},
        )


MASK = "detected"
"""Name of the companion that says which parts of a row were detected."""


def part_names(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the part of each column of a feature's presence mask; () without a mask."""
    mask = next((c for c in spec.companions if c.name == MASK and len(c.shape) == 1), None)
    if mask is None:
        return ()
    (dim,), (length,) = mask.dims, mask.shape
    return spec.labels.get(dim, tuple(f"{dim}_{n}" for n in range(length)))


def part_slices(spec: FeatureSpec) -> Mapping[str, slice | None]:
    """Return the slice of points of each part; ``{"": None}`` for a feature without parts."""
    parts = parts_of(spec.attrs.get("parts"), spec.shape[0] if spec.shape else 0)
    return {**parts} if parts else {"": None}


def parts_of(given: object, n_points: int) -> dict[str, slice]:
    """Return parts as anybody may have written them; {} unless all are runs of points."""
    try:
        runs = dict(given or {}).items()  # type: ignore[call-overload]
        parts = {str(name): slice(int(first), int(stop)) for name, (first, stop) in runs}
    except (AttributeError, TypeError, ValueError):
        return {}
    sound = all(0 <= part.start < part.stop <= n_points for part in parts.values())
    return parts if sound else {}


def edges_of(spec: FeatureSpec) -> tuple[tuple[int, int], ...]:
    """Return the edges of a feature's skeleton as pairs of points; () if it has none.

    Raises
    ------
    InvalidError
        If they are anything else, as in the store of a stranger.
    """
    n_points = spec.shape[0] if spec.shape else 0
    edges: tuple[tuple[int, int], ...] = ()
    try:
        edges = tuple((int(a), int(b)) for a, b in spec.attrs.get("edges") or ())
        sound = all(0 <= point < n_points for edge in edges for point in edge)
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise InvalidError(
            f"feature {spec.name!r}: its edges are not pairs of its {n_points} points; give a style"
        )
    return edges


def presence(spec: FeatureSpec, values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return the presence mask that follows from values: whatever is all NaN is absent.

    A column of the mask that stands for a part describes the points of that part; an axis that the
    mask shares with the values, each place along it; any other column, the whole row. In features
    of whole numbers, everything is present.

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
    of_row = any_in_row(there).reshape(-1, *(1 for _ in mask.shape))
    found = np.broadcast_to(of_row, (len(values), *mask.shape)).copy()
    slices = part_slices(spec)
    for column, part in enumerate(part_names(spec)):
        rows = slices.get(part)
        if rows is not None:
            found[:, column] = any_in_row(there[:, rows])
    return found


def faults(
    spec: FeatureSpec,
    values: NDArray[np.generic],
    companions: Mapping[str, NDArray[Any]],
    some: Some | None = None,
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield for each rule of done rows the array, the fault, and the faulty rows, (rows,) bool.

    Values are finite or NaN; a presence mask agrees with them; ``visibility`` is within 0 and 1.

    Parameters
    ----------
    some : what :func:`~kpstore.schema.array.maybe_not_finite` says of the rows, if it is known.
    """
    if values.dtype.kind != "f":
        return
    some = maybe_not_finite(squares(values)) if some is None else some
    odd = values[some]
    known = ~np.isnan(odd)

    def in_all(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found = np.zeros(len(values), dtype=np.bool_)
        found[some] = bad
        return found

    yield spec.name, "is infinite (missing values are NaN)", in_all(any_in_row(np.isinf(odd)))
    mask, detected = spec.companion(MASK), companions.get(MASK)
    slices = part_slices(spec)
    for column, part in enumerate(part_names(spec)):
        rows = slices.get(part)
        if detected is None or rows is None:
            continue
        here, there = known[:, rows], detected[some, column]
        lacking = np.flatnonzero(~_all_in_row(here))
        gone = np.zeros(len(here), dtype=np.bool_)
        gone[lacking] = ~any_in_row(here[lacking])
        wrong = there & gone
        partial = lacking[(there & ~gone)[lacking]]
        wrong[partial] = _torn(~here[partial]).any(axis=1)
        yield mask, _says_there(part), in_all(wrong)
        hidden = ~detected[:, column] & ~in_all(gone)
        yield mask, f"says {part} is missing, but values are there", hidden
    visibility = companions.get("visibility")
    if visibility is not None:
        outside = np.asarray((visibility < 0) | (visibility > 1), dtype=np.bool_)
        yield spec.companion("visibility"), "is outside 0 to 1", any_in_row(outside)


def any_in_row(block: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether anything in each row is true, (rows,) bool."""
    return np.asarray(_flat(block).any(axis=1), dtype=np.bool_)


def _all_in_row(block: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(_flat(block).all(axis=1), dtype=np.bool_)


def _flat(block: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return rows with one axis: numpy is many times slower on several short ones."""
    return block.reshape(len(block), math.prod(block.shape[1:]))


def _torn(missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which points lack a coordinate that others have, (rows, points) bool."""
    missing = missing.reshape(*missing.shape[:2], int(np.prod(missing.shape[2:])))
    of_none: NDArray[np.bool_] = np.all(missing, axis=1, keepdims=True)
    whole: NDArray[np.bool_] = np.all(missing | of_none, axis=2, keepdims=True)
    return np.asarray((missing & ~of_none & ~whole).any(axis=2), dtype=np.bool_)


def _says_there(part: str) -> str:
    return f"says {part} is there, but values are missing"


def _torn_point(spec: FeatureSpec, row: NDArray[np.generic], what: str) -> str | None:
    """Return a description of a row's first torn point; None if ``what`` is another fault."""
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
