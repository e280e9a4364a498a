"""Extractors by name: ours, those of installed packages, and those registered in this process."""

from __future__ import annotations

import inspect
from typing import Any

from kpstore import plugins
from kpstore.errors import InvalidError
from kpstore.extractors.base import AnyExtractor


def make_extractor(recipe: str, **options: Any) -> AnyExtractor:
    """Return a new extractor.

    Parameters
    ----------
    recipe : a name of the group ``kpstore.extractors``.
    options : keyword arguments of the recipe; those that are None are left to the recipe.

    Raises
    ------
    NotFoundError
        If there is no such recipe; the message lists what there is.
    InvalidError
        If the recipe has no such option, or refuses its value.
    """
    factory = plugins.load("kpstore.extractors", recipe)
    given = {name: value for name, value in options.items() if value is not None}
    known = option_names(recipe)
    unknown = [] if known is None else [name for name in given if name not in known]
    if unknown:
        raise InvalidError(
            f"recipe {recipe!r} has no option {unknown[0]!r}; it has {', '.join(known or ()) or 'no options'}"
        )
    try:
        extractor: AnyExtractor = factory(**given)
    except TypeError as error:
        raise InvalidError(f"recipe {recipe!r} does not take {given}: {error}") from error
    return extractor


def option_names(recipe: str) -> list[str] | None:
    """Return what a recipe can be told by keyword; None if it takes anything."""
    parameters = inspect.signature(plugins.load("kpstore.extractors", recipe)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in by_name]
