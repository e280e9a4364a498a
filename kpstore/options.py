"""Options: annotations of dataclass fields that the command line turns into its own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kpstore.errors import InvalidError

WHAT, WHERE, AGAIN = (
    "What to extract",
    "Where to run",
    "What to do again, and when to commit",
)
"""Headings under which the options of an ingest are listed."""


@dataclass(frozen=True)
class Option:
    """How the command line offers a field: ``Annotated[bool, Option("Help.")]``.

    Parameters
    ----------
    help : one line.
    metavar : placeholder for the value.
    flag : name of the option, ``--limit-frames``, or several; by default the field's name.
    kind : type of a value on the command line, where the field accepts more.
    least : smallest number.
    above : the number must be greater than this.
    factor : a number on the command line, times this, is the field's: minutes for seconds.
    default : default on the command line, where it is not the field's.
    panel : heading under which the help lists the option.
    argument : whether the value is an argument, named by its place and not by a flag.
    """

    help: str
    metavar: str | None = None
    flag: str | tuple[str, ...] = ()
    kind: Any = None
    least: float | None = None
    above: float | None = None
    factor: float | None = None
    default: Any = ...
    panel: str | None = None
    argument: bool = False

    def value(self, given: Any, flag: str) -> Any:
        """Return what a field gets for a value of the command line."""
        if self.above is not None and given is not None and given <= self.above:
            raise InvalidError(f"{flag} is {given}; it must be more than {self.above:g}")
        return given if self.factor is None or given is None else given * self.factor


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise :class:`InvalidError` unless an option is one of ``known``."""
    if value not in known:
        raise InvalidError(f"{name}={value!r}: use {' or '.join(map(repr, known))}")
