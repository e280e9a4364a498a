"""The registry of plug-ins: what others add to kpstore, and what kpstore brings itself.

Groups are backends, extractors, features, formats, sources and trainings.

A name is looked up first among what was registered in this process, then among the entry points of
installed packages; nothing is imported before it is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from kpstore.errors import ExistsError, MissingExtraError, NotFoundError
from kpstore.visible import visible

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# importlib.metadata is imported where it is used: it takes as long to import as all commands.

Group = Literal[
    "kpstore.backends",
    "kpstore.extractors",
    "kpstore.features",
    "kpstore.formats",
    "kpstore.sources",
    "kpstore.trainings",
]

_EXTRAS = {
    "av": "video",
    "distributed": "dask",
    "h5py": "hdf5",
    "ijson": "json",
    "pose_format": "pose",
}
"""Extras that install a module of another name."""

_registered: dict[tuple[str, str], object] = {}


@cache
def _all_entry_points() -> dict[tuple[str, str], EntryPoint]:
    """Return the entry points of installed packages that name kpstore, by group and name.

    ``importlib.metadata.entry_points`` parses those of every package for each question, which takes
    longer than opening a store.
    """
    from importlib.metadata import distributions

    packages = [
        package
        for package in distributions()
        if "kpstore." in (package.read_text("entry_points.txt") or "")
    ]
    if len(packages) > 1:  # kpstore alone need not be asked for its name, which is parsed as mail
        # The first of a name hides the others.
        packages = list({package.name: package for package in reversed(packages)}.values())[::-1]
    found: dict[tuple[str, str], EntryPoint] = {}
    for package in packages:
        for point in package.entry_points:
            found.setdefault((point.group, point.name), point)
    return found


def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {name: point for (kind, name), point in _all_entry_points().items() if kind == group}


def names(group: Group) -> list[str]:
    """Return the known names of a group, sorted; imports none of them."""
    return sorted({name for kind, name in _registered if kind == group} | set(_entry_points(group)))


def register(group: Group, name: str, item: object) -> None:
    """Make ``item`` known under ``name`` in this process.

    Raises
    ------
    ExistsError
        If the name already stands for something else.
    """
    if name in _entry_points(group) or _registered.setdefault((group, name), item) is not item:
        raise ExistsError(f"{name!r} is already registered in {group}; choose another name")


def load(group: Group, name: str) -> Any:
    """Return what ``name`` stands for.

    Raises
    ------
    NotFoundError
        If nothing has that name; the message lists what there is.
    MissingExtraError
        If an optional dependency of it is not installed.
    """
    is_name = isinstance(name, str)  # what is no text may not even be hashable
    if is_name and (group, name) in _registered:
        return _registered[group, name]
    point = _entry_points(group).get(name) if is_name else None
    if point is None:
        kind = group.rpartition(".")[2].removesuffix("s")
        raise NotFoundError(
            f"{kind} {name!r} not found; there are: {', '.join(names(group)) or 'none'}"
        )
    return _loaded(point)


def name_of(group: Group, item: type[object]) -> str:
    """Return the name of a registered class, ``""`` if it has none; nothing is imported."""
    home = f"{item.__module__}:{item.__qualname__}"
    found = [name for (kind, name), known in _registered.items() if kind == group and known is item]
    found += [name for name, point in _entry_points(group).items() if point.value == home]
    return found[0] if found else ""


def of_others(group: Group) -> Iterator[Any]:
    """Yield the items registered in this process and those of other installed packages.

    What cannot be imported is left out with a warning: one broken plug-in must not stop everything
    else.
    """
    yield from [item for (kind, _), item in _registered.items() if kind == group]
    for point in _entry_points(group).values():
        if point.value.startswith("kpstore."):
            continue
        try:
            yield point.load()
        except Exception as error:  # whatever an outsider's module raises when it is imported
            warnings.warn(
                f"plug-in {point.name!r} ({point.value}) of {group} cannot be imported and is left "
                f"out: {visible(str(error))}",
                stacklevel=2,
            )


def imported(name: str, home: str) -> Any:
    """Return ``module:attribute``; the error for a missing library names the extra."""
    from importlib.metadata import EntryPoint

    return _loaded(EntryPoint(name, home, ""))


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("kpstore", ""):
            raise
        extra = _EXTRAS.get(missing, missing)
        if extra == missing and not point.value.startswith("kpstore."):
            raise NotFoundError(
                f"{point.name!r} needs {missing}, which is not installed"
            ) from error
        what = f"{point.name!r} ({missing} is not installed)"
        raise MissingExtraError(what, extra=extra) from error
