"""Versions of the libraries that compute, for the provenance."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from kpstore.errors import MissingExtraError


def library_versions(recipe: str, extra: str, *names: str) -> dict[str, str]:
    """Return versions of libraries by name without importing them; without builds (``+cpu``).

    Parameters
    ----------
    recipe, extra : for the message of :class:`MissingExtraError`.
    names : distributions; those that hold the same library are separated by ``|``, and the first is
        the name in the provenance.
    """
    found: dict[str, str] = {}
    for distributions in names:
        name, *_ = distributions.split("|")
        for distribution in reversed(distributions.split("|")):
            with suppress(PackageNotFoundError):
                found[name] = version(distribution).partition("+")[0]
        if name not in found:
            raise MissingExtraError(f"the recipe {recipe!r} ({name} is not installed)", extra=extra)
    return found
