"""Which locations kpstore's own backends claim.

None of their libraries is imported before a location is theirs.

A backend of somebody else is a class with a classmethod ``claims(location)``, which is asked before
these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kpstore import plugins
from kpstore.backends.base import Backend

FILE_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Place:
    """A kind of location, and the backend that is made for it.

    Parameters
    ----------
    name : of the backend.
    home : module and class of the backend, as entry points name them.
    claims : whether a location is of this kind.
    """

    name: str
    home: str
    claims: Callable[[str], bool]

    def __call__(self, location: str) -> Backend:
        """Make the backend of a location.

        :class:`MissingExtraError` if its library is not installed.
        """
        backend: Backend = plugins.imported(self.name, self.home)(location)
        return backend


def _is_local(location: str) -> bool:
    return "://" not in location


MEMORY = Place(
    "memory",
    "kpstore.backends.memory:MemoryBackend",
    lambda location: location.startswith("memory://"),
)
HDF5 = Place(
    "hdf5",
    "kpstore.backends.hdf5:HDF5Backend",
    lambda location: _is_local(location) and location.endswith(FILE_SUFFIXES),
)
ICECHUNK = Place(
    "icechunk",
    "kpstore.backends.icechunk:IcechunkBackend",
    lambda location: _is_local(location) and not location.endswith(FILE_SUFFIXES),
)

OWN = (MEMORY, HDF5, ICECHUNK)
"""All of them: not looked up among entry points, which are those of what was installed, not of what is running."""
