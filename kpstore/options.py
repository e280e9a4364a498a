"""Options: fields of dataclasses that the command line makes its own of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kpstore.errors import InvalidError


@dataclass(frozen=True)
class Option:
    """What the command line says of a field: ``Annotated[bool, Option("Help.")]``.

    Parameters
    ----------
    help : one line.
    metavar : what stands for the value.
    flag : what the option is called, ``--limit-frames``; by default as the field.
    kind : type of the values that can be given, where the field takes more than can be typed.
    least : the smallest number.
    """

    help: str
    metavar: str | None = None
    flag: str | None = None
    kind: Any = None
    least: float | None = None


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise :class:`InvalidError` for an option that is none of ``known``."""
    if value not in known:
        raise InvalidError(f"{name}={value!r}: use {' or '.join(map(repr, known))}")
