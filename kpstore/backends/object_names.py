"""Tags and branches of a repository in object storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import icechunk

from kpstore.backends.icechunk_errors import translated, translation
from kpstore.backends.icechunk_names import Kind, decode, encode
from kpstore.errors import InvalidError, UnreachableError


class ObjectNames(Mapping[str, str]):
    """Tags or branches; to find one takes no list of all."""

    def __init__(
        self,
        location: str,
        kind: Kind,
        names: Callable[[], set[str]],
        look_up: Callable[[str], str],
    ) -> None:
        self._location, self._kind, self._list, self._look_up = location, kind, names, look_up
        self._found: dict[str, str] = {}

    def _find(self, name: str) -> str | None:
        try:
            return str(self._look_up(encode(self._kind, name)))
        except InvalidError:  # no name of kpstore's
            return None
        except icechunk.IcechunkError as error:
            told = translation(error, self._location)
            if isinstance(told, UnreachableError):
                raise told from error
            return None

    def __getitem__(self, name: str) -> str:
        found = self._found.get(name) or self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._found or self._find(name) is not None)

    @cached_property
    def _all(self) -> list[str]:
        """All names that lead somewhere; others may have been deleted meanwhile."""
        with translated(self._location):
            names = sorted(map(decode, self._list()))
        with ThreadPoolExecutor(8) as pool:
            found = zip(names, pool.map(self._find, names), strict=True)
            self._found.update({name: version for name, version in found if version})
        return list(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
