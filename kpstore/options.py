"""Options: annotations of dataclass fields that the command line turns into its own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from kpstore.errors import InvalidError

WHAT, WHERE, AGAIN = (
    "What to extract",
    "Where to run",
    "What to do again, and when to commit",
)
"""Headings of the options of an ingest."""


@dataclass(frozen=True)
class Option:
    """How the command line offers a field: ``Annotated[bool, Option("Help.")]``.

    Parameters
    ----------
    help : one line.
    metavar : placeholder for the value.
    flag : name of the option, ``--limit-frames``, or several; by default the field's name.
    kind : type of a value on the command line, where the field accepts more.
    least : smallest number that is allowed.
    above : the number must be greater than this.
    factor : the field is the number on the command line, times this factor: 60 for a field in
        seconds that is given in minutes.
    default : default on the command line, if it differs from the field's.
    panel : heading under which the help lists the option.
    argument : whether the value is a positional argument.
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


def check_limits(settings: object) -> None:
    """Raise :class:`InvalidError` unless the numbers of a dataclass are what its options allow."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        given = getattr(settings, name)
        for about in get_args(hint)[1:]:
            if not isinstance(about, Option) or given is None:
                continue
            if about.least is not None and not given >= about.least:
                raise InvalidError(f"{name} is {given}; it must be at least {about.least:g}")
            if about.above is not None and not given > about.above:
                raise InvalidError(f"{name} is {given}; it must be more than {about.above:g}")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise :class:`InvalidError` unless an option is one of ``known``."""
    if value not in known:
        raise InvalidError(f"{name}={value!r}: use {' or '.join(map(repr, known))}")
