"""Commands out of dataclasses: their fields become options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from kpstore import plugins
from kpstore.errors import InvalidError, KpstoreError, one_line
from kpstore.options import Option
from kpstore.plugins import Group

from .arguments import LIST_OPTION, ListCommand, split_names

SPLITS = "splits"


def takes(
    kind: type[Any] | Sequence[inspect.Parameter] | None = None,
    *,
    without: Collection[str] = (),
    **kinds: type[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of dataclasses as options, beside parameters of its own.

    Parameters
    ----------
    kind : a dataclass whose options the command gets as keywords (it has ``**options``), or such
        options themselves.
    without : fields that are not options of this command.
    **kinds : dataclasses by the name of the command's parameter that gets an object of each. Fields
        are annotated with :class:`kpstore.options.Option` or with Typer's own; others are not
        options and keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        # A command within a function may use dataclasses that only this function has imported.
        local = {found.__name__: found for found in kinds.values()}
        given = inspect.signature(command, eval_str=True, locals=local).parameters.values()
        own = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in given
            if p.kind is not p.VAR_KEYWORD and p.name not in kinds
        ]
        taken = {p.name for p in own}
        options: dict[str, list[inspect.Parameter]] = {}
        for name, found in {**kinds, "": kind}.items():
            parameters = option_parameters(found, without) if isinstance(found, type) else found
            options[name] = [p for p in parameters or () if p.name not in taken]
            taken |= {p.name for p in options[name]}

        def wrapper(**values: Any) -> None:
            chosen = {
                name: {p.name: _value(p, values.pop(p.name)) for p in parameters}
                for name, parameters in options.items()
            }
            plain = chosen.pop("")
            command(
                **values, **plain, **{name: kinds[name](**found) for name, found in chosen.items()}
            )

        shared = [parameter for parameters in options.values() for parameter in parameters]
        # Arguments come in the order in which users give them; the way to print is the last option.
        parameters = sorted(
            [*own, *shared], key=lambda p: (not _is_leading(p), p.name == "json", p in shared)
        )
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate


def option_parameters(kind: type[Any], without: Collection[str] = ()) -> list[inspect.Parameter]:
    """Return a parameter for Typer of each field of a dataclass that is an option."""
    if not is_dataclass(kind):
        return []
    hints, found = get_type_hints(kind, include_extras=True), []
    for field in fields(kind):
        about = _about(hints[field.name])
        annotation = _annotation(field, hints[field.name], about)
        if annotation is None or field.name in without:
            continue
        default: Any = inspect.Parameter.empty if field.default is MISSING else field.default
        if about is not None and about.default is not ...:
            default = about.default
        elif about is not None and about.factor is not None:
            default /= about.factor
        found.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    return found


def optional(parameter: inspect.Parameter, prefix: str) -> inspect.Parameter:
    """Return an option that is None unless given, with ``prefix`` before its help."""
    plain, about, *notes = get_args(parameter.annotation)
    about.help = f"{prefix}{about.help}"
    return parameter.replace(default=None, annotation=Annotated[plain | None, about, *notes])


def _about(hint: object) -> Option | None:
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((note for note in notes if isinstance(note, Option)), None)


def _value(parameter: inspect.Parameter, given: Any) -> Any:
    """Return what a field gets of what was given on the command line."""
    if parameter.name == SPLITS:
        return split_names(given)
    about = _about(parameter.annotation)
    return given if about is None else about.value(given, _flags(parameter.name, about)[0])


def _is_leading(parameter: inspect.Parameter) -> bool:
    about = _about(parameter.annotation)
    return about is not None and about.argument


def _flags(name: str, about: Option) -> tuple[str, ...]:
    if name == SPLITS:
        return (LIST_OPTION,)
    flags = (about.flag,) if isinstance(about.flag, str) else about.flag
    return flags or (f"--{name.replace('_', '-')}",)


def _annotation(field: Field[Any], hint: Any, about: Option | None) -> Any:
    """Return a field's type with what Typer makes an option of; None if it is not an option."""
    if get_origin(hint) is not Annotated or about is None:
        return hint if get_origin(hint) is Annotated else None
    plain = about.kind or (list[str] | None if field.name == SPLITS else get_args(hint)[0])
    if about.argument:
        return Annotated[
            plain, typer.Argument(metavar=about.metavar, help=about.help, show_default=False), about
        ]
    # A switch that is off needs no opposite; for one that is on, Typer adds --no-NAME where no name
    # is given.
    named = about.flag or field.name == SPLITS or (plain is bool and field.default is False)
    option = typer.Option(
        *(_flags(field.name, about) if named else ()),
        help=about.help,
        metavar=about.metavar,
        min=about.least,
        rich_help_panel=about.panel,
    )
    return Annotated[plain, option, about]


def one_command(name: str, run: Callable[..., None], summary: str, examples: Sequence[str]) -> Any:
    """Return a single command, for groups that make their commands on request."""
    app = typer.Typer(
        add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    heading = "Examples:" if len(examples) > 1 else "Example:"
    epilog = "\n\n".join([heading, *examples]) if examples else None
    app.command(name, cls=ListCommand, help=inspect.cleandoc(summary), epilog=epilog)(run)
    return typer.main.get_command(app)


class LazyCommand(ListCommand):
    """A command that is made when it runs or shows its help; to list it, its summary is enough.

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


def loaded(group: Group, name: str) -> tuple[Any, Any]:
    """Return what a plug-in's name stands for, or None and a command that says what is wrong."""
    try:
        return plugins.load(group, name), None
    except KpstoreError as error:
        return None, refusing_command(name, error)
    except Exception as error:  # one broken plug-in must not stop everything else
        broken = f"{name!r} of {group} cannot be imported ({one_line(error)}); repair its package"
        return None, refusing_command(name, InvalidError(broken))


def refusing_command(name: str, error: KpstoreError) -> Any:
    """Return a command that says why it cannot run, such as an optional dependency it lacks."""

    def refuse() -> Any:
        raise error

    return LazyCommand(name, str(error).replace("[", r"\["), refuse)
