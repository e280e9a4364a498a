"""Plain Python values as JSON and back, without loss, to keep them in a provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kpstore.errors import InvalidError

_TAG = "$"
_DEEPEST = 32
_MOST_VALUES = 200_000
"""A document is read whenever its store is opened; lists of frames do not belong in it."""


def to_json(value: Any, what: str) -> Any:
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


def _encode(value: Any, what: str, depth: int, budget: Iterator[int]) -> Any:
    if depth == 0 or next(budget, None) is None:
        raise InvalidError(
            f"{what} lies too deep or is too much; {_DEEPEST} levels and {_MOST_VALUES} values are "
            "kept"
        )
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, np.generic):
        return {
            f"{_TAG}number": _encode(value.item(), what, depth - 1, budget),
            "dtype": value.dtype.str,
        }
    if isinstance(value, float):
        return value if math.isfinite(value) else {f"{_TAG}float": repr(value)}
    if isinstance(value, np.ndarray):
        if value.size > _MOST_VALUES:
            raise InvalidError(
                f"{what} holds an array of {value.shape}; {_MOST_VALUES} values are kept"
            )
        listed = _encode(value.tolist(), what, depth - 1, budget)
        return {f"{_TAG}array": listed, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, (bytes, bytearray)):
        return {f"{_TAG}bytes": value.decode("latin1")}
    if isinstance(value, list):
        return [_encode(item, what, depth - 1, budget) for item in value]
    if isinstance(value, (tuple, set, frozenset)):
        kind = type(value).__name__
        items = value if isinstance(value, tuple) else sorted(value, key=repr)
        return {f"{_TAG}{kind}": [_encode(item, what, depth - 1, budget) for item in items]}
    if isinstance(value, dict):
        return _encode_dict(value, what, depth, budget)
    raise InvalidError(f"{what} holds a {type(value).__name__}, which is not a plain value")


def _encode_dict(value: dict[Any, Any], what: str, depth: int, budget: Iterator[int]) -> Any:
    if all(isinstance(key, str) and not key.startswith(_TAG) for key in value):
        return {key: _encode(item, what, depth - 1, budget) for key, item in value.items()}
    pairs = [[_encode(part, what, depth - 1, budget) for part in pair] for pair in value.items()]
    return {f"{_TAG}dict": pairs}


def from_json(value: Any) -> Any:
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
            return {_hashable(key): item for key, item in inner}
        case kind:
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](inner)


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
