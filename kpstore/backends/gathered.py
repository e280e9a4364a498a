"""What backends without parallel writers share: forks that gather rows, and conflicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set

import numpy as np
from numpy.typing import NDArray

from kpstore.backends import refusals
from kpstore.backends.base import ArrayMeta

Touched = tuple[str, str | int]
"""What a commit changed: an array's name and a chunk's number, or ``"meta"``.

The array ``""`` stands for the whole store.
"""


def collide(mine: Set[Touched], theirs: Set[Touched]) -> bool:
    """Return whether changes touch what others have changed, or an array that they reshaped."""
    reshaped = {name for name, what in theirs if what == "meta"}
    return bool(mine & theirs) or any(name in reshaped for name, _ in mine)


class GatheredRows:
    """Rows that another process gathers, which are pickled with the fork.

    Parameters
    ----------
    metas : shape and type of each array, by name.
    """

    def __init__(self, metas: Mapping[str, ArrayMeta]) -> None:
        self._metas = metas
        self._written: list[tuple[str, int, NDArray[np.generic]]] = []

    def write(self, name: str, start: int, values: NDArray[np.generic]) -> None:
        """Gather whole chunks."""
        if name not in self._metas:
            raise refusals.no_array(name, self._metas)
        self._metas[name].check_values(name, start, values)
        self._metas[name].check_whole_chunks(name, start, len(values))
        self._written.append((name, start, np.array(values)))

    def check(self) -> None:
        """Do nothing: the fork itself holds the rows."""

    def rows(
        self, meta_now: Callable[[str], ArrayMeta]
    ) -> Iterator[tuple[str, int, NDArray[np.generic]]]:
        """Yield name, first row and values; ``meta_now`` describes an array in the session."""
        for name, start, values in self._written:
            meta = self._metas[name]
            if meta.has_short_chunk(start, len(values)):
                refusals.check_short_end(meta_now(name), name, meta.n_rows)
            yield name, start, values
