"""Converting plain Python values to JSON and back without loss, to keep them in a provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpstore.errors import InvalidError

_TAG = "$"
_DEEPEST = 32
_MOST_VALUES = 200_000
"""Most values of a document, which is read whenever its store is opened."""


def to_json(value: object, what: str) -> object:
    """Return ``value`` as JSON values; types that JSON lacks become ``{"$tuple": […]}`` and so on.

    Parameters
    ----------
    value : dicts, lists, tuples, sets, text, bytes, numbers, booleans, None, numpy numbers and
        arrays.
    what : its name in messages.

    Raises
    ------
    InvalidError
        If it holds anything else, is nested deeper than 32 levels (or in itself), or is too large.
    """
    return _encode(value, what, _DEEPEST, iter(range(_MOST_VALUES)))


def _encode(value: object, what: str, depth: int, budget: Iterator[int]) -> object:
    def inner(item: object) -> object:
        return _encode(item, what, depth - 1, budget)

    if depth == 0 or next(budget, None) is None:
        raise InvalidError(
            f"{what} is too deep or too large; at most {_DEEPEST} levels and {_MOST_VALUES} values "
            "can be kept"
        )
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, np.generic):
        return {f"{_TAG}number": inner(value.item()), "dtype": value.dtype.str}
    if isinstance(value, float):
        return value if math.isfinite(value) else {f"{_TAG}float": repr(value)}
    if isinstance(value, np.ndarray):
        if value.size > _MOST_VALUES:
            raise InvalidError(
                f"{what} holds an array of {value.shape}; at most {_MOST_VALUES} values can be kept"
            )
        listed = inner(value.tolist())
        return {f"{_TAG}array": listed, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (bytes, bytearray)):
        return {f"{_TAG}bytes": value.decode("latin1")}
    if isinstance(value, list):
        return [inner(item) for item in value]
    if isinstance(value, (tuple, set, frozenset)):
        items = value if isinstance(value, tuple) else sorted(value, key=repr)
        return {f"{_TAG}{type(value).__name__}": [inner(item) for item in items]}
    if isinstance(value, dict):
        return _encode_dict(value, inner)
    raise InvalidError(f"{what} holds a {type(value).__name__}, which is not a plain value")


def _encode_dict(
    value: dict[object, object], inner: Callable[[object], object]
) -> dict[str, object]:
    if all(isinstance(key, str) and not key.startswith(_TAG) for key in value):
        return {str(key): inner(item) for key, item in value.items()}
    return {f"{_TAG}dict": [[inner(part) for part in pair] for pair in value.items()]}


def from_json(value: object) -> Any:
    """Return what :func:`to_json` was given; dicts of every kind come back as dicts."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith(_TAG)), None)
    if tag is None:
        return {key: from_json(item) for key, item in value.items()}
    inner = from_json(value[tag])
    match tag[len(_TAG) :]:
        case "float":
            return float(inner)
        case "number":
            return np.dtype(value["dtype"]).type(inner)
        case "array":
            return np.array(inner, dtype=value["dtype"]).reshape(value["shape"])
        case "bytes":
            return inner.encode("latin1")
        case "dict":
            return dict(inner)
        case kind:
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](inner)
