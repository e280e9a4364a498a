"""Rules of the format for the values of a feature, for some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.array import few_or_all, maybe_not_finite, squares
from kpstore.schema.feature import (
    MASK,
    FeatureSpec,
    State,
    any_in_row,
    faults,
    part_names,
    part_slices,
)

FAR = 100.0
"""Keypoints farther from the picture than this, in its widths or heights, are noted.

Real ones reach 84 (a leg below a close-up).
"""


@dataclass(frozen=True)
class Finding:
    """Rows that break a rule, or, if it is not a problem, are worth a look.

    Parameters
    ----------
    bad : (rows,) bool.
    """

    array: str
    what: str
    bad: NDArray[np.bool_]
    is_problem: bool = True


def look(
    spec: FeatureSpec, arrays: Mapping[str, NDArray[Any]], status: NDArray[np.uint8]
) -> list[Finding]:
    """Return what is found in some rows of a feature.

    Parameters
    ----------
    arrays : values and companions by name of the array, rows first.
    status : (rows,) uint8 of :class:`State`.
    """
    values = arrays[spec.name].reshape(len(arrays[spec.name]), *spec.shape)
    done = status == State.DONE
    of_rows = squares(values) if values.dtype.kind == "f" else None
    found = [*_broken(spec, arrays, values, status, done, of_rows)]
    if of_rows is not None:
        found += _odd(spec, arrays, values, done, of_rows)
    return [one for one in found if one.bad.any()]


def _broken(
    spec: FeatureSpec,
    arrays: Mapping[str, NDArray[Any]],
    values: NDArray[Any],
    status: NDArray[np.uint8],
    done: NDArray[np.bool_],
    of_rows: NDArray[np.floating] | None,
) -> Iterator[Finding]:
    yield Finding(spec.name, "has an unknown state", status > max(State))
    if not done.all():
        for name, array in spec.arrays.items():
            yield Finding(
                name, "has values, but is not done", ~array.are_empty(arrays[name]) & ~done
            )
    companions = {c.name: arrays[spec.companion(c.name)] for c in spec.companions}
    some = None if of_rows is None else maybe_not_finite(of_rows)
    for name, what, bad in faults(spec, values, companions, some):
        # That rows which are not done have no values at all is checked above.
        yield Finding(name, what, bad & (done | (name == spec.name)))


def _odd(
    spec: FeatureSpec,
    arrays: Mapping[str, NDArray[Any]],
    values: NDArray[np.floating],
    done: NDArray[np.bool_],
    of_rows: NDArray[np.floating],
) -> Iterator[Finding]:
    mask, odd = spec.companion(MASK), maybe_not_finite(of_rows)
    if mask in arrays:
        in_row = tuple(range(1, values.ndim))
        lacking = np.arange(len(values))[odd]
        lacking = lacking[done[odd] & np.isnan(values[odd]).any(axis=in_row)]
        missing, detected = np.isnan(values[lacking]), arrays[mask][lacking]
        slices = part_slices(spec)
        for column, part in enumerate(part_names(spec)):
            rows = slices.get(part)
            if rows is None:
                continue
            some = missing[:, rows]
            # Files of other tools may hold only some of a part's points, or no depth.
            fewer = np.zeros(len(values), dtype=np.bool_)
            fewer[lacking] = detected[:, column] & some.any(axis=in_row) & ~some.all(axis=in_row)
            what = f"lacks some points or coordinates of {part}"
            yield Finding(spec.name, what, fewer, is_problem=False)
    if spec.labels.get("space") and values.ndim == 3:
        far = np.zeros(len(values), dtype=np.bool_)
        maybe = few_or_all(~(of_rows <= FAR**2 / 2))  # half, as sums are rounded
        far[maybe] = any_in_row(np.abs(values[maybe][..., :2]) > FAR)
        yield Finding(spec.name, f"is more than {FAR:g} pictures away", far, is_problem=False)
