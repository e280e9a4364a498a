"""Forks of backends without parallel writers: they gather rows, and the session writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, check_short_end
from kpstore.errors import NotFoundError


class GatheredRows:
    """Rows that another process gathers; they pickle with the fork.

    Parameters
    ----------
    metas : shape and type of each array, by name.
    """

    def __init__(self, metas: Mapping[str, ArrayMeta]) -> None:
        self._metas = metas
        self._written: list[tuple[str, int, NDArray[Any]]] = []

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Gather whole chunks."""
        if name not in self._metas:
            raise NotFoundError(f"array {name!r} not found; there are {sorted(self._metas)}")
        self._metas[name].check_values(name, start, values)
        self._metas[name].check_whole_chunks(name, start, len(values))
        self._written.append((name, start, np.array(values)))

    def check(self) -> None:
        """Do nothing: the rows themselves come with the fork."""

    def rows(self, meta_now: Callable[[str], ArrayMeta]) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Yield what was gathered, for a session in which an array is ``meta_now(name)``."""
        for name, start, values in self._written:
            meta = self._metas[name]
            if meta.has_short_chunk(start, len(values)):
                check_short_end(meta_now(name), name, meta.n_rows)
            yield name, start, values
