"""Fields of records that users make: converted where that is safe, else refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

from kpstore.errors import InvalidError

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


def sequence(value: object, needed: str) -> tuple[Any, ...]:
    """Return the members of a sequence; text, one of letters to Python, and sets are errors.

    Parameters
    ----------
    needed : what to give, for the message.
    """
    try:
        if not isinstance(value, str | bytes | Mapping | Set):
            return tuple(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InvalidError(f"{shown(value)} is not a sequence; give {needed}")


def mapping(value: object, needed: str) -> Mapping[Any, Any]:
    """Return a mapping; anything else is an error."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"{shown(value)} is not a mapping; give {needed}")
    return value


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
