"""Extractors by name: kpstore's, those of other packages, and those registered in this process."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kpstore import plugins
from kpstore.errors import InvalidError
from kpstore.extractors.base import AnyExtractor
from kpstore.schema.feature import MADE_BY, FeatureSpec, Provenance
from kpstore.schema.layout import FaceList


def make_extractor(recipe: str, /, **options: Any) -> AnyExtractor:
    """Return a new extractor.

    Parameters
    ----------
    recipe : a name of the group ``kpstore.extractors``.
    options : keyword arguments of the recipe; for those that are None, it uses its defaults.

    Raises
    ------
    NotFoundError
        If the recipe is unknown; the message lists all recipes.
    InvalidError
        If the recipe has no such option, or does not accept its value.
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
    """Return the names of a recipe's options; None if it takes any keyword."""
    parameters = inspect.signature(plugins.load("kpstore.extractors", recipe)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in by_name]


def provenance_of(extractor: AnyExtractor) -> dict[str, Provenance]:
    """Return by feature how an extractor makes it, with the recipe and options that repeat it.

    There is a recipe if the extractor's class is registered. Neither weights, which are known by
    their hash, nor the number of frames at once, which is a parameter, are recorded as options. Of
    paths only the last name is kept.
    """
    recipe = plugins.name_of("kpstore.extractors", type(extractor))
    made: dict[str, object] = {}
    if recipe:
        known = (*_KNOWN_OTHERWISE, *getattr(extractor, "known_otherwise", ()))
        names = [name for name in option_names(recipe) or () if name not in known]
        values = {name: _plain(getattr(extractor, name, None)) for name in names}
        options = {name: value for name, value in values.items() if value is not None}
        made[MADE_BY] = {"recipe": recipe, "options": options}
    return {name: {**one, **made} for name, one in extractor.provenance.items()}


_KNOWN_OTHERWISE = ("weights", "batch_size", "batch_frames")


def _is_path(value: str) -> bool:
    return os.path.isabs(value) or (os.sep in value and os.path.exists(value))


def _plain(value: object) -> object:
    """Return an option as JSON values; None if that is not possible."""
    if isinstance(value, FaceList):
        return value.name
    if isinstance(value, os.PathLike) or (isinstance(value, str) and _is_path(value)):
        return Path(value).name
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


def recorded(
    specs: Mapping[str, FeatureSpec],
    provenance: Mapping[str, Provenance],
    recipe: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Return the recipe, and its options, that made some features.

    Parameters
    ----------
    specs, provenance : of the features.
    recipe : to take instead; the result then has those of its options that are on record.

    Raises
    ------
    InvalidError
        If they were not extracted by one recipe, for example because they were imported.
    """
    made = {
        name: one.get(MADE_BY) or _made_by(specs[name], one)
        for name, one in provenance.items()
        if one.get("extractor") != "imported"
    }
    names = {one["recipe"] for one in made.values()}
    if "faces" in names:
        names -= {"dinov2"}  # which is a part of it
    if recipe is None and len(names) != 1:
        what = ", ".join(provenance) or "the features asked for"
        raise InvalidError(
            f"{what} was not extracted by one recipe, so say which one to compute with: "
            "extractor='dinov2', for example"
        )
    chosen: str = recipe or str(names.pop())
    options: dict[str, Any] = {}
    # Options of other recipes may have the same names; those of DINOv2 are options of faces too.
    for part in (*(["dinov2"] if chosen == "faces" else []), chosen):
        for one in made.values():
            options |= one["options"] if one["recipe"] == part else {}
    known = option_names(chosen)
    return chosen, {key: value for key, value in options.items() if known is None or key in known}


def _made_by(spec: FeatureSpec, made: Provenance) -> dict[str, Any]:
    """Return recipe and options from a record without ``made_by``, as before December 2026."""
    extractor = made.get("extractor", "")
    options: dict[str, Any] = dict(made.get("parameters", {}))
    if side := {"insightface": "det_size", "lip_resnet18": "crop"}.get(extractor):
        options[side] = options[side][0]  # both sides, which are equal, are on record
    if extractor == "insightface":
        options["model_pack"] = made["model"]
    elif spec.axis == "frame":
        options |= {"model": made.get("model"), "dtype": spec.dtype}
    if "face_list" in made:
        options["face_list"] = made["face_list"]["name"]
    return {"recipe": "faces" if extractor == "insightface" else extractor, "options": options}
