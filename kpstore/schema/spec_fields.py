"""Conversion of a specification's fields from what users give to the types that a store keeps.

Each function returns a value of one type, or raises :class:`InvalidError`, which says what was
given and what is needed.
"""

from __future__ import annotations

import numpy as np

from kpstore.errors import InvalidError
from kpstore.schema.fields import mapping, sequence, shown, text, whole


def lengths(value: object) -> tuple[int, ...]:
    """Return the lengths of axes, from a sequence of whole numbers."""
    return tuple(whole(length) for length in sequence(value, "whole numbers, such as (143, 3)"))


def names(value: object) -> tuple[str, ...]:
    """Return names, from a sequence of text."""
    return tuple(text(name) for name in sequence(value, "names, such as ('point', 'space')"))


def dtype_name(value: object) -> str:
    """Return numpy's name of a dtype of bool, or of numbers of up to 64 bits."""
    try:
        found = np.dtype(value) if value is not None else None  # type: ignore[call-overload]
    except (TypeError, ValueError, SyntaxError):
        found = None
    if found is not None and found.kind == "f" and found.itemsize > 8:
        raise InvalidError(
            f"{shown(value)} has more than 64 bits, which differ between machines; use float64"
        )
    if found is None or found.kind not in "fbiu":
        raise InvalidError(f"{shown(value)} is not a number or bool")
    return str(found.name)


def labels(value: object) -> dict[str, tuple[str, ...]]:
    """Return names by dimension."""
    found = {}
    given_names = mapping(value, "names by dimension, such as {'space': ('x', 'y', 'z')}")
    for dim, given in given_names.items():
        try:
            found[text(dim)] = names(given)
        except InvalidError as error:
            raise InvalidError(f"{shown(dim)}: {error}") from None
    return found
