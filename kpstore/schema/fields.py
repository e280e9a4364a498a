"""Fields of records that users make: converted where that is safe, else refused in one line."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kpstore.errors import InvalidError, one_line

_HALVES = re.compile("[\ud800-\udfff]")
_MOST = 2**63 - 1
"""Largest number that numpy counts with."""

Fits = Mapping[str, Callable[[object], object]]
"""By field, a function that returns what it is to hold, or raises :class:`InvalidError`."""


def fit_fields(record: object, fits: Fits, where: Callable[[str], str]) -> None:
    """Convert the fields of a frozen record in place.

    Parameters
    ----------
    where : gives the beginning of an error's message for a field.
    """
    for name, fit in fits.items():
        try:
            object.__setattr__(record, name, fit(getattr(record, name)))
        except InvalidError as error:
            raise InvalidError(f"{where(name)}: {error}") from None


def text(value: object) -> str:
    """Return text; anything else is an error."""
    if not isinstance(value, str) or not is_storable(value):
        raise InvalidError(f"{shown(value)} is not text")
    return str(value)


def sequence(value: object, needed: str) -> tuple[Any, ...]:
    """Return the members of a sequence; text, one of letters to Python, and sets are errors.

    Parameters
    ----------
    needed : what to give, for the message.
    """
    members = None
    with suppress(TypeError):
        if not isinstance(value, str | bytes | Mapping | set | frozenset):
            members = iter(value)  # type: ignore[call-overload]
    if members is None:
        raise InvalidError(f"{shown(value)} is not a sequence; give {needed}")
    return tuple(members)  # whatever a user's generator raises is the user's to see


def mapping(value: object, needed: str) -> Mapping[Any, Any]:
    """Return a mapping; anything else is an error."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"{shown(value)} is not a mapping; give {needed}")
    return value


def json_values(value: object) -> dict[str, Any]:
    """Return a mapping of JSON values as a store returns it.

    A tuple that comes back as a list would make records unequal, and so would NaN.
    """
    given = dict(mapping(value, "JSON values by name"))
    try:
        return dict(_storable(json.dumps(given, allow_nan=False, ensure_ascii=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"give JSON values only ({one_line(str(error))})") from None


def metadata_values(value: object) -> dict[str, Any]:
    """Return a mapping of JSON values that a commit can keep: its integers have 64 bits at most."""
    found = json_values(value)
    try:
        json.loads(json.dumps(found), parse_int=_of_64_bits)
    except OverflowError as error:
        raise InvalidError(str(error)) from None
    return found


def _of_64_bits(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise OverflowError(f"{shown(number)} is an integer of more than 64 bits; give it as text")
    return number


def storable_json(value: object) -> Any:
    """Return JSON values whose text UTF-8 can hold: halves of characters are escaped.

    Names of files that are not text in UTF-8 hold such halves.
    """
    return _storable(json.dumps(value, ensure_ascii=False))


def _storable(text: str) -> Any:
    return json.loads(_HALVES.sub(lambda half: f"\\\\u{ord(half[0]):04x}", text))


def stored_json(value: object) -> Any:
    """Return JSON values of a store, in which NaN and infinite numbers become None.

    Earlier versions wrote these into HDF5; None, unlike NaN, equals itself and may be written.
    """
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def whole(value: object) -> int:
    """Return a whole number; anything else is an error."""
    number = whole_number(value)
    if number is None:
        raise InvalidError(f"{shown(value)} is not a whole number")
    return number


def whole_number(value: object) -> int | None:
    """Return a whole number of any type (int, numpy, torch) as int; None for anything else."""
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if is_bool or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_whole(name: str, number: object, least: int = 0) -> int:
    """Return a parameter as int; :class:`InvalidError` if it is not whole or below ``least``."""
    found = whole_number(number)
    if found is None or not least <= found <= _MOST:
        raise InvalidError(f"{name}={shown(number)}: use a whole number, {least} or more")
    return found


def is_storable(text: str) -> bool:
    """Return whether text can be encoded in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Return a value as one line of at most 100 characters, for messages."""
    text = ascii(value) if isinstance(value, str) and not is_storable(value) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:99] + "…"
