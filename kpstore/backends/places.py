"""The locations of kpstore's own backends, whose libraries are imported when they are used.

A backend of another package is a class with a classmethod ``claims(location)``, which is asked
first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from kpstore import plugins
from kpstore.backends.base import Backend
from kpstore.backends.object_address import is_address
from kpstore.errors import InvalidError

FILE_SUFFIXES = (".h5", ".hdf5")


def folder_of(location: str, option: str) -> Path:
    """Return the folder that holds a store, which the store's paths are relative to by default.

    Parameters
    ----------
    option : what names another folder, for the message.

    Raises
    ------
    InvalidError
        If the store is in no folder.
    """
    if not _is_local(location):
        raise InvalidError(
            f"{location} is in no folder that its frames' paths could be relative to; name one by "
            f"{option}"
        )
    return Path(location).absolute().parent


@dataclass(frozen=True)
class Place:
    """A kind of location and its backend.

    Parameters
    ----------
    name : name of the backend.
    home : module and class of the backend, in the form of an entry point.
    claims : returns whether a location is of this kind.
    """

    name: str
    home: str
    claims: Callable[[str], bool]

    def __call__(self, location: str) -> Backend:
        """Create a backend; :class:`MissingExtraError` if its library is not installed."""
        backend: Backend = plugins.imported(self.name, self.home)(location)
        return backend


def _is_local(location: str) -> bool:
    return "://" not in location


def _is_file(location: str) -> bool:
    return PurePath(location).name.endswith(FILE_SUFFIXES)  # of "phoenix.h5/", too


MEMORY = Place(
    "memory",
    "kpstore.backends.memory:MemoryBackend",
    lambda location: location.startswith("memory://"),
)
HDF5 = Place(
    "hdf5",
    "kpstore.backends.hdf5:HDF5Backend",
    lambda location: _is_local(location) and _is_file(location),
)
ICECHUNK = Place(
    "icechunk",
    "kpstore.backends.icechunk:IcechunkBackend",
    lambda location: _is_local(location) and not _is_file(location),
)

OBJECTS = Place("icechunk", "kpstore.backends.icechunk_objects:IcechunkObjects", is_address)

OWN = (MEMORY, HDF5, ICECHUNK, OBJECTS)
"""All of them, as entry points may belong to another installed kpstore than the running one."""
