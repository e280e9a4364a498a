"""Commands out of dataclasses: their fields become options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from kpstore.errors import MissingExtraError
from kpstore.options import Option

from .arguments import LIST_OPTION, ListCommand

SPLITS = "splits"


def takes(
    kind: type[Any] | None = None, *, without: Collection[str] = (), **kinds: type[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of dataclasses as options, beside parameters of its own.

    Parameters
    ----------
    kind : a dataclass whose options the command gets as keywords (it has ``**options``).
    without : fields that are no options of this command.
    **kinds : dataclasses by the name of the command's parameter that gets an object of each. Fields
        are annotated with :class:`kpstore.options.Option` or with Typer's own; others are no
        options, and keep their defaults.
    """
    options = {
        name: _options(found, without)
        for name, found in {"": kind, **kinds}.items()
        if found is not None
    }
    shared = [parameter for parameters in options.values() for parameter in parameters]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        # A command within a function may speak of dataclasses that only this function has imported.
        local = {found.__name__: found for found in kinds.values()}
        given = inspect.signature(command, eval_str=True, locals=local).parameters.values()
        own = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in given
            if p.kind is not p.VAR_KEYWORD and p.name not in kinds
        ]

        def wrapper(**values: Any) -> None:
            chosen = {
                name: {p.name: values.pop(p.name) for p in parameters}
                for name, parameters in options.items()
            }
            plain = chosen.pop("", {})
            command(
                **values, **plain, **{name: kinds[name](**found) for name, found in chosen.items()}
            )

        # How a command prints is the last thing to read of it.
        parameters = [
            *(p for p in own if p.name != "json"),
            *shared,
            *(p for p in own if p.name == "json"),
        ]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate


def _options(kind: type[Any], without: Collection[str]) -> list[inspect.Parameter]:
    """Return a parameter for Typer of each field of a dataclass that is an option."""
    hints, keyword = get_type_hints(kind, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    annotations = {field: _annotation(field, hints[field.name]) for field in fields(kind)}
    return [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=annotation)
        for field, annotation in annotations.items()
        if annotation is not None and field.name not in without
    ]


def _annotation(field: Field[Any], hint: Any) -> Any:
    """Return a field's type with what Typer makes an option of; None if it is no option."""
    if get_origin(hint) is not Annotated:
        return None
    plain, *notes = get_args(hint)
    about = next((note for note in notes if isinstance(note, Option)), None)
    if about is None:
        return hint
    plain = about.kind or (list[str] | None if field.name == SPLITS else plain)
    named = LIST_OPTION if field.name == SPLITS else f"--{field.name.replace('_', '-')}"
    flag = about.flag or named
    # A switch that is off needs no opposite; one that is on has --no-NAME, which Typer adds where
    # no name is given.
    shown = about.flag or field.name == SPLITS or (plain is bool and field.default is False)
    flags = (flag,) if shown else ()
    return Annotated[
        plain, typer.Option(*flags, help=about.help, metavar=about.metavar, min=about.least)
    ]


def one_command(name: str, run: Callable[..., None], summary: str, examples: Sequence[str]) -> Any:
    """Return a command by itself, for groups that make theirs when they are asked for."""
    app = typer.Typer(
        add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    epilog = (
        "\n\n".join(["Examples:" if len(examples) > 1 else "Example:", *examples])
        if examples
        else None
    )
    app.command(name, cls=ListCommand, help=inspect.cleandoc(summary), epilog=epilog)(run)
    return typer.main.get_command(app)


class LazyCommand(ListCommand):
    """A command that is made when it runs or shows its help: a list of commands needs the summary alone.

    Parameters
    ----------
    make : returns the command; :class:`MissingExtraError` if an optional dependency is not
        installed.
    """

    def __init__(self, name: str, summary: str, make: Callable[[], Any]) -> None:
        super().__init__(name=name, help=summary)
        self._make = make

    def make_context(
        self, info_name: Any, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Return the context of the command itself."""
        return self._make().make_context(info_name, args, parent, **extra)


def refusing_command(name: str, error: MissingExtraError) -> Any:
    """Return a command that says which optional dependency it lacks."""

    def refuse() -> Any:
        raise error

    return LazyCommand(name, str(error).replace("[", r"\["), refuse)
