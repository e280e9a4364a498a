"""What is measured: kpstore, and an array in memory that holds the same rows."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import kpstore.api
from kpstore.schema.index import VideoIndex
from kpstore.store.arrays import FeatureArray
from kpstore.views.loader import loader

Rows = NDArray[np.generic]
Ints = NDArray[np.int64]

BLOCK_ROWS = 1024
POOL_BLOCKS = 32
"""The simple loader mixes this many blocks of this many rows in memory."""


class Subject(ABC):
    """Rows of one array, readable in one way. All subjects of a run hold the same rows.

    Parameters
    ----------
    n_rows : how many rows there are to read.
    like : an array with rows of the same shape and type.
    """

    name: str
    how: str
    """How rows are read, in a few words."""

    def __init__(self, n_rows: int, like: Rows | FeatureArray) -> None:
        self.n_rows = n_rows
        self._row_shape, self._dtype = tuple(like.shape[1:]), np.dtype(like.dtype)

    @abstractmethod
    def reopen(self) -> None:
        """Drop what is in memory, and open everything again that reading needs."""

    @abstractmethod
    def gather(self, rows: Ints, out: Rows) -> None:
        """Read single rows in the order given."""

    @abstractmethod
    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read consecutive rows."""

    def clips(self, starts: Ints, length: int, out: Rows) -> None:
        """Read runs of rows, (clips, length, *row shape), one after the other."""
        for start, clip in zip(starts.tolist(), out, strict=True):
            self.read(start, start + length, clip)

    def clips_at_once(self, starts: Ints, length: int, out: Rows) -> None:
        """Gather all rows of all clips together."""
        rows = (starts[:, None] + np.arange(length)).ravel()
        self.gather(rows, out.reshape(-1, *out.shape[2:]))

    def video(self, index: VideoIndex, position: int, out: Rows) -> None:
        """Read all rows of one video; ``out`` has room for the longest."""
        rows = index.rows(position)
        self.read(rows.start, rows.stop, out[: rows.stop - rows.start])

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Sized]:
        """Yield batches of a shuffled epoch, by a simple loader that mixes blocks in memory."""
        starts = rng.permutation(np.arange(0, self.n_rows, BLOCK_ROWS))
        buffer = np.empty((POOL_BLOCKS * BLOCK_ROWS, *self._row_shape), dtype=self._dtype)
        for first in range(0, len(starts), POOL_BLOCKS):
            filled = 0
            for start in starts[first : first + POOL_BLOCKS].tolist():
                stop = min(start + BLOCK_ROWS, self.n_rows)
                self.read(start, stop, buffer[filled : filled + stop - start])
                filled += stop - start
            order = rng.permutation(filled)
            for at in range(0, filled, batch_size):
                yield buffer[order[at : at + batch_size]]


class MemorySubject(Subject):
    """An array in memory: the fastest that reading can be."""

    name = "memory"
    how = "numpy array in memory"

    def __init__(self, array: Rows) -> None:
        super().__init__(len(array), array)
        self.array = array

    def reopen(self) -> None:
        """Do nothing: there is nothing to open."""

    def gather(self, rows: Ints, out: Rows) -> None:
        """Gather by numpy."""
        # Without mode="clip" numpy gathers into memory of its own first.
        np.take(self.array, rows, axis=0, out=out, mode="clip")

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Copy."""
        out[...] = self.array[start:stop]

    clips = Subject.clips_at_once


class TorchSubject(MemorySubject):
    """A tensor of everything in memory, read sample by sample, as in most scripts."""

    name = "DataLoader(TensorDataset)"
    how = "tensor in memory, a call per sample"

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Sized]:
        """Yield batches of PyTorch's own loader."""
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        data = TensorDataset(torch.from_numpy(self.array))
        for (batch,) in DataLoader(data, batch_size, shuffle=True, generator=generator):
            yield batch


class KpstoreSubject(Subject):
    """The store itself, read as users read it.

    Parameters
    ----------
    cache : as for :func:`kpstore.open`.
    """

    def __init__(
        self,
        location: str,
        at: str | None,
        feature: str,
        n_rows: int,
        *,
        cache: str,
        name: str = "kpstore",
    ) -> None:
        self.name = name
        self._location, self._at, self._feature, self._cache = location, at, feature, cache
        self.reopen()
        super().__init__(n_rows, self.store[feature])
        if cache != "off":
            self.store.reader.cache(feature)
        self.how = self.store.reader.how(feature)

    def reopen(self) -> None:
        """Open the store."""
        self.store = kpstore.api.open(self._location, self._at, cache=self._cache)

    def gather(self, rows: Ints, out: Rows) -> None:
        """Read through the batch reader."""
        self.store.read(self._feature, rows, out)

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read through the batch reader."""
        self.store.reader.read_slice(self._feature, start, stop, out)

    clips = Subject.clips_at_once  # as ClipView reads them

    def video(self, index: VideoIndex, position: int, out: Rows) -> None:
        """Read a video by its id, as users do."""
        self.store.video(str(index.ids[position]))[self._feature]

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Sized]:
        """Yield batches of :func:`kpstore.loader`."""
        view = self.store.frames(self._feature)
        if self.n_rows < len(view):
            view = view.subset(np.arange(self.n_rows))  # type: ignore[assignment]
        for batch in loader(view, batch_size, seed=int(rng.integers(2**31))):
            yield batch[self._feature]


def filesystem_of(path: str) -> str:
    """Return the type of a path's file system as Linux names it; ``"unknown"`` elsewhere."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    here = os.path.realpath(path)
    mounts = (line.split()[1:3] for line in lines)
    holding = [(len(at), kind) for at, kind in mounts if os.path.commonpath([at, here]) == at]
    return max(holding)[1] if holding else "unknown"
