"""The locations of kpstore's own backends, whose libraries are imported when they are used.

A backend of another package is a class with a classmethod ``claims(location)``, which is asked
first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from kpstore import plugins
from kpstore.backends.base import Backend

FILE_SUFFIXES = (".h5", ".hdf5")


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

OWN = (MEMORY, HDF5, ICECHUNK)
"""All of them, as entry points may belong to another installed kpstore than the running one."""
