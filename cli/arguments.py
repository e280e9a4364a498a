"""Arguments and options that several commands share, and how lists are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="Directory of the store.", show_default=False)
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
Splits = Annotated[
    list[str] | None,
    typer.Option(
        "--splits",
        metavar="SPLIT...",
        help="Only these, as `train dev` or `train,dev`; all by default.",
    ),
]

LIST_OPTION = "--splits"


def split_names(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the splits of all ``--splits``, commas resolved; None if there were none."""
    names = [name for text in given or () for name in (text.split(",") if text else [""])]
    return tuple(dict.fromkeys(names)) or None


class ListCommand(TyperCommand):
    """A command whose ``--splits`` takes all words that follow it, as argparse users know it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat ``--splits`` before each of its words, which is how click wants it."""
        n_arguments = sum(param.param_type_name == "argument" for param in self.params)
        with_value = {
            name
            for param in self.params
            if not getattr(param, "is_flag", True)
            for name in param.opts
        }
        return list(super().parse_args(ctx, spread_list(args, n_arguments, with_value)))


def spread_list(args: Sequence[str], n_arguments: int, with_value: set[str]) -> list[str]:
    """Return ``--splits a b`` as ``--splits a --splits b``.

    Parameters
    ----------
    n_arguments : arguments that the command needs; those that stand nowhere else are taken from the
        end of the list.
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
