"""Conversion of a video's columns from any table or library to the types that a store keeps.

Each function returns a value of one type, or raises :class:`InvalidError`, which says what was
given and what is needed.
"""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
import os
from pathlib import PurePath

import numpy as np

from kpstore.errors import InvalidError
from kpstore.schema.fields import is_storable, mapping, sequence, shown

MAX_FPS = 100_000.0
"""Highest plausible rate: anything above it is a time base, or a mistake."""
MAX_PIXELS = 2**31 - 1


def text_of(value: object) -> str:
    """Return a cell of a table as text; None, NaN, pandas' NA and NaT become ``""``.

    Raises
    ------
    InvalidError
        For anything but text, numbers and dates, such as bytes and lists.
    """
    if isinstance(value, str):
        return _storable(str(value))
    if _is_missing(value):
        return ""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, numbers.Number | np.bool_ | np.datetime64):
        return str(value)
    raise InvalidError(f"{shown(value)} is not text; give text, a number, a date, or nothing")


def id_of(value: object) -> str:
    """Return a video's id: text unchanged, or a whole number as text.

    Raises
    ------
    InvalidError
        For anything else, and for empty text.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not isinstance(value, str) and not whole:
        raise InvalidError(f"{shown(value)} is not an id; give text")
    found = _storable(str(value))
    if not found:
        raise InvalidError("a video needs an id; found an empty one")
    return found


def paths_of(value: object) -> tuple[str, ...]:
    """Return one path per frame, as text with forward slashes where ``pathlib`` made them.

    Raises
    ------
    InvalidError
        If it is a text instead of a sequence, or holds anything but text and paths.
    """
    found = sequence(value, "one path for each frame, such as ('clip.mp4#0', …)")
    if set(map(type, found)) - {str}:
        found = tuple(_path(number, path) for number, path in enumerate(found))
    if not (joined := "".join(found)).isascii() and not is_storable(joined):
        number, path = next((n, path) for n, path in enumerate(found) if not is_storable(path))
        raise InvalidError(f"frame {number}: {shown(path)} is not valid text; rename the file")
    return found


def fps_of(value: object) -> float:
    """Return frames per second; NaN (unknown) for None, NaN and pandas' NA.

    Raises
    ------
    InvalidError
        For anything but a number above 0 and up to :data:`MAX_FPS`.
    """
    if _is_missing(value):
        return math.nan
    number = _number(value)
    if not 0 < number <= MAX_FPS:
        raise InvalidError(
            f"{shown(value)} is not a rate; give frames per second, above 0 and up to "
            f"{MAX_FPS:,.0f}, or NaN if unknown"
        )
    return number


def known_fps(value: float) -> float:
    """Return a rate from another file or an older store; NaN if invalid, as 0 often is unknown."""
    return float(value) if 0 < value <= MAX_FPS else math.nan


def pixels_of(value: object) -> int:
    """Return a width or height; 0 (unknown) for None, NaN and pandas' NA.

    Raises
    ------
    InvalidError
        For anything but a whole number, or a whole float, from 0 to 2,147,483,647.
    """
    if _is_missing(value):
        return 0
    number = _number(value)
    if not 0 <= number <= MAX_PIXELS or number != int(number):
        raise InvalidError(
            f"{shown(value)} is not a size; give whole pixels up to {MAX_PIXELS:,}, or 0 if unknown"
        )
    return int(number)


def annotations_of(value: object) -> dict[str, str]:
    """Return text by column, each converted by :func:`text_of`.

    Raises
    ------
    InvalidError
        For anything but a mapping, for names that are not text, and for invalid cells; the message
        names the column.
    """
    if value is None:
        return {}
    found: dict[str, str] = {}
    for name, cell in mapping(value, "text by column, such as {'gloss': 'RAIN'}").items():
        if not isinstance(name, str):
            raise InvalidError(f"{shown(name)} is not a column's name; give text")
        try:
            found[str(name)] = text_of(cell)
        except InvalidError as error:
            raise InvalidError(f"{name!r}: {error}") from None
    return found


def _path(number: int, value: object) -> str:
    if isinstance(value, PurePath):
        return value.as_posix()
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise InvalidError(
            f"frame {number}: {shown(value)} is not a path; give text or a pathlib.Path"
        )
    return str(found)


def _number(value: object) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | decimal.Decimal):
        raise InvalidError(f"{shown(value)} is not a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_missing(value: object) -> bool:
    """Return whether a cell is None, NaN, NaT or pandas' NA."""
    if value is None or type(value).__name__ == "NAType":
        return True
    # NaN and NaT differ from themselves.
    kinds = numbers.Number | np.generic | datetime.date
    return isinstance(value, kinds) and bool(value != value)


def _storable(text: str) -> str:
    if not text.isascii() and not is_storable(text):
        raise InvalidError(f"{shown(text)} is not valid text")
    return text
