"""Arguments and options that several commands share, and how lists of words are parsed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from kpstore.errors import InvalidError

if TYPE_CHECKING:
    from kpstore.api import Store

StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="The store: a directory, a file NAME.h5, or s3://bucket/name (gs://, az://).",
        show_default=False,
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="VERSION",
        help="A tag, branch, snapshot id or time instead of the newest version.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
LIST_OPTION = "--split"
FORMER_NAMES = {"--splits": LIST_OPTION, "--features": "--feature"}
"""Former names of options, which commands accept but do not show."""
Splits = Annotated[
    list[str] | None,
    typer.Option(
        LIST_OPTION,
        metavar="SPLIT...",
        help="Only these splits, as `train dev` or `train,dev`; all by default.",
    ),
]


def split_names(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the splits of all ``--split``, with commas resolved; None if none were given."""
    names = [name for text in given or () for name in (text.split(",") if text else [""])]
    return tuple(dict.fromkeys(names)) or None


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36_500)


def duration_of(option: str, text: str) -> timedelta:
    """Return the time that ``0``, ``30m``, ``12h``, ``7d`` or ``4w`` means.

    Raises
    ------
    InvalidError
        For any other text, and beyond a century.
    """
    found = re.fullmatch(r"(\d{1,12})([smhdw])|0", text.strip().lower(), re.ASCII)
    if found is None:
        raise InvalidError(f"{option} {text!r} is not an age; use 0, 30m, 12h, 7d or 4w")
    number, unit = found.groups()
    if number is None:
        return timedelta(0)
    if int(number) * timedelta(**{_UNITS[unit]: 1}).total_seconds() > _LONGEST.total_seconds():
        raise InvalidError(f"{option} {text!r} is more than a century; use a shorter age")
    return timedelta(**{_UNITS[unit]: int(number)})


def frame_features(store: Store) -> list[str]:
    """Return the names of a store's features of frames."""
    return [name for name, stored in store.features.items() if stored.spec.axis == "frame"]


class ListCommand(TyperCommand):
    """A command whose ``--split`` takes all words that follow it, as in argparse.

    It also accepts :data:`FORMER_NAMES` of options that take several values.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat ``--split`` before each of its words, as click needs it."""
        options = [param for param in self.params if isinstance(param, TyperOption)]
        several = {name for option in options if option.multiple for name in option.opts}
        args = renamed(args, several)
        if LIST_OPTION in several:
            with_value = {name for option in options if not option.is_flag for name in option.opts}
            args = spread_list(args, len(self.params) - len(options), with_value)
        return list(super().parse_args(ctx, args))


def renamed(args: Sequence[str], known: Collection[str]) -> list[str]:
    """Return words with former names of known options replaced, up to ``--``."""
    end = args.index("--") if "--" in args else len(args)
    words = []
    for word in args[:end]:
        name, sign, value = word.partition("=")
        now = FORMER_NAMES.get(name)
        words.append(f"{now}{sign}{value}" if now in known else word)
    return [*words, *args[end:]]


def spread_list(args: Sequence[str], n_arguments: int, with_value: set[str]) -> list[str]:
    """Return ``--split a b`` as ``--split a --split b``.

    Parameters
    ----------
    n_arguments : arguments that the command needs; those not found elsewhere are taken from the end
        of the list.
    with_value : options that take a value.
    """
    runs = list(_runs(args, with_value))
    missing = n_arguments - sum(len(words) for option, words in runs if option is None)
    spread: list[str] = []
    rest: list[str] = []
    for option, words in reversed(runs):
        if option != LIST_OPTION:
            spread[:0] = [*([option] if option else []), *words]
            continue
        n_taken = max(0, min(missing, len(words) - 1))
        missing -= n_taken
        listed = words[: len(words) - n_taken]
        rest[:0] = words[len(words) - n_taken :]
        spread[:0] = [part for word in listed for part in (LIST_OPTION, word)] or [LIST_OPTION]
    return [*spread, *rest]


def _runs(args: Sequence[str], with_value: set[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Yield (option, its words), with option None for an argument."""
    words = list(args)
    while words:
        word = words.pop(0)
        if word == "--":
            for left in words:
                yield None, [left]
            return
        if word == LIST_OPTION:
            count = next(
                (n for n, w in enumerate(words) if w.startswith("-") and len(w) > 1), len(words)
            )
            yield word, words[:count]
            del words[:count]
        elif word.startswith("-") and len(word) > 1:
            yield word, [words.pop(0)] if word in with_value and words else []
        else:
            yield None, [word]
