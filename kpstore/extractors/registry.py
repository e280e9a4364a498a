"""Extractors by name: ours, those of installed packages, and those registered in this process."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from kpstore import plugins
from kpstore.errors import InvalidError
from kpstore.extractors.base import AnyExtractor
from kpstore.schema.feature import FeatureSpec, Provenance


def make_extractor(recipe: str, /, **options: Any) -> AnyExtractor:
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
            f"recipe {recipe!r} has no option {unknown[0]!r}; it has "
            f"{', '.join(known or ()) or 'no options'}"
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


_RECIPE_OF = {"insightface": "faces", "lip_resnet18": "lip_resnet18"}
"""Recipes that call themselves otherwise in what they leave on record."""
_PARTS_OF = {"faces": ("faces", "dinov2")}
"""Recipes in what a recipe leaves on record, where that is not just itself."""
_SIDES = {"insightface": "det_size", "lip_resnet18": "crop"}
"""Options of which both sides, which are equal, are on record."""


def recorded(
    specs: Mapping[str, FeatureSpec],
    provenance: Mapping[str, Provenance],
    recipe: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Return a recipe and its options that make some features as they were made.

    Weights are known by their hash alone, so they are no option here.

    Parameters
    ----------
    specs, provenance : of the features.
    recipe : if it is known already; options are then those of it that are on record.

    Raises
    ------
    InvalidError
        If they were not extracted, but imported, say, or by several recipes.
    """
    recipes = {
        name: _RECIPE_OF.get(made.get("extractor", ""), made.get("extractor", ""))
        for name, made in provenance.items()
        if made.get("extractor") != "imported"
    }
    names = set(recipes.values())
    if "faces" in names:
        names -= {"dinov2"}  # which is a part of it
    if recipe is None and len(names) != 1:
        what = f"{', '.join(provenance) or 'what is asked for'} was not extracted by one recipe"
        raise InvalidError(
            f"{what}, so say which one to compute with: extractor='dinov2', for example"
        )
    chosen: str = recipe or str(names.pop())
    options: dict[str, Any] = {}
    for name, made_by in recipes.items():
        if made_by in _PARTS_OF.get(
            chosen, (chosen,)
        ):  # options of another recipe may be called alike
            options |= _options(specs[name], provenance[name])
    known = option_names(chosen)
    return chosen, {key: value for key, value in options.items() if known is None or key in known}


def _options(spec: FeatureSpec, made: Provenance) -> dict[str, Any]:
    """Return what a feature has on record of how it was made, as a recipe's options are called."""
    options: dict[str, Any] = dict(made.get("parameters", {}))
    if side := _SIDES.get(made.get("extractor", "")):
        options[side] = options[side][0]
    if made.get("extractor") == "insightface":
        options["model_pack"] = made["model"]
    elif spec.axis == "frame":
        options |= {"model": made.get("model"), "dtype": spec.dtype}
    if "face_list" in made:
        options["face_list"] = made["face_list"]["name"]
    return options
