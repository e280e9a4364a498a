"""Commands out of dataclasses: each field of one becomes an option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from kpstore.options import Option

SPLITS = "splits"


def takes(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of a dataclass as options, beside parameters of its own.

    The command gets them as an object in its parameter ``settings``, if it has one, and else as keywords.

    Parameters
    ----------
    kind : a dataclass, whose fields are annotated with :class:`kpstore.options.Option` or with Typer's own options.
    """
    hints, keyword = get_type_hints(kind, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=_option(field, hints[field.name]))
        for field in fields(kind)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        given = inspect.signature(command, eval_str=True).parameters
        own = [p.replace(kind=keyword) for p in given.values() if p.kind is not p.VAR_KEYWORD and p.name != "settings"]

        def wrapper(**values: Any) -> None:
            options = {field.name: values.pop(field.name) for field in fields(kind)}
            command(**values, **({"settings": kind(**options)} if "settings" in given else options))

        parameters = [*own, *shared]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate


def _option(field: Field[Any], hint: Any) -> Any:
    """Return a field's type with what Typer makes an option of."""
    if any(type(about).__name__ == "OptionInfo" for about in getattr(hint, "__metadata__", ())):
        return hint
    about = next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Option)), Option(""))
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if field.name == SPLITS:
        plain = list[str] | None
    # A switch that is off needs no opposite; one that is on has --no-NAME.
    flags = (f"--{field.name.replace('_', '-')}",) if plain is bool and field.default is False else ()
    return Annotated[plain, typer.Option(*flags, help=about.help, metavar=about.metavar)]
