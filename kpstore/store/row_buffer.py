"""Rows on their way into a store, gathered into whole chunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import WriteSession


@dataclass
class _Run:
    """Rows ``start`` to ``stop``, in one or more blocks."""

    start: int
    stop: int
    blocks: list[NDArray[Any]] = field(default_factory=list)


class RowBuffer:
    """Gathers rows that follow each other, so that a chunk is encoded once, not for each write.

    It holds less than one chunk of each array. Who reads from the session flushes before.

    Parameters
    ----------
    session : where the rows go.
    """

    def __init__(self, session: WriteSession) -> None:
        self._session = session
        self._runs: dict[str, _Run] = {}

    def write(self, name: str, start: int, values: NDArray[Any]) -> None:
        """Take rows of an array; they are copied."""
        if not len(values):
            return
        if name in self._runs and self._runs[name].stop != start:
            self._flush(name)
        run = self._runs.pop(name, _Run(start, start))
        size, run.stop = self._session.meta(name).chunk_rows, start + len(values)
        whole = run.stop // size * size
        if whole > run.start:
            rows = [*run.blocks, values[: whole - start]]
            self._session.write(name, run.start, np.concatenate(rows) if run.blocks else rows[0])
            run, values = _Run(whole, run.stop), values[whole - start :]
        if len(values):
            run.blocks.append(values.copy())
            self._runs[name] = run

    def flush(self) -> None:
        """Write what is gathered."""
        for name in list(self._runs):
            self._flush(name)

    def drop(self, names: Iterable[str]) -> None:
        """Forget the rows of arrays that are deleted."""
        for name in names:
            self._runs.pop(name, None)

    def _flush(self, name: str) -> None:
        run = self._runs[name]
        self._session.write(name, run.start, np.concatenate(run.blocks))
        del self._runs[name]
