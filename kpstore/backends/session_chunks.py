"""The chunks of an array that only its session can read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ReadSession
from kpstore.backends.chunks import NearChunks


@dataclass(frozen=True)
class SessionChunks(NearChunks):
    """Chunks that are read through their session, which works for every array of numbers.

    Parameters
    ----------
    mapped : all rows, if the session has them in memory.
    """

    session: ReadSession
    name: str
    mapped: NDArray[np.generic] | None = None
    how = "by the backend's own library"
    strips = None

    def bring(self, number: int) -> None:
        """Do nothing: what is in memory is there."""

    def read_into(self, number: int, out: NDArray[np.generic]) -> None:
        """Decode a chunk; see :class:`kpstore.backends.chunks.Chunks`."""
        start, stop = self.session.meta(self.name).rows_of(number)
        out[: stop - start] = self.session.read(self.name, start, stop)
