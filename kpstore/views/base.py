"""What all views have in common: length, samples, batches, rows in storage, and lazy subsets.

A view is map-style: ``view[i]`` is one sample, a dict of arrays. ``view.batch(indices)`` reads many
samples at once and stacks them along a new first axis; iterators and loaders are built on it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.fields import sequence, shown, whole_number
from kpstore.store.store import BaseStore
from kpstore.views.pool import Pool, plan_pool
from kpstore.views.runs import Runs
from kpstore.views.samples import Samples
from kpstore.visible import visible

Sample = dict[str, Any]
Batch = dict[str, NDArray[Any]]
Transform = Callable[[Sample], Any]
Compute = Mapping[str, Any]
"""Keyword arguments of :meth:`kpstore.Store.computed`, such as ``root=`` and ``weights=``."""

_OWN_KEYS = frozenset({"row", "valid", "video", "n_frames", "video_id"})
_CHUNKS_AHEAD = 64
"""Of object storage, so many chunks' worth of rows is asked for ahead."""
_READ_AHEAD = 64
"""Samples that iterating over a view reads together."""


class Selection(TypedDict, total=False):
    """Which videos a view shows, as keywords; see :func:`select_videos`."""

    split: str | Sequence[str] | None
    videos: Sequence[str] | None
    where: str | Mapping[str, Any] | None


class ViewOptions(Selection, total=False):
    """What every view of a store takes besides parameters of its own.

    ``split``, ``videos`` and ``where`` choose videos, see :func:`select_videos`; ``compute`` are
    keyword arguments of :meth:`kpstore.Store.computed` for ``missing="compute"``; ``transform`` is
    applied to each sample.
    """

    compute: Compute | None
    transform: Transform | None


if TYPE_CHECKING:
    from torch.utils.data import Dataset

    _Samples = Dataset[Any]
else:

    class _Samples:
        """PyTorch accepts any class with a length and items, so reading need not import torch."""


class View(_Samples, ABC):
    """Samples of one version of a store: a data set for PyTorch, and a sequence without it.

    It pickles as the store, which is (location, snapshot), and the rows chosen; each process opens
    the store again.

    Parameters
    ----------
    store : the version to read from.
    reads : names of the arrays that batches are made from.
    transform : applied to each sample, in ``view[i]``, in a DataLoader and in
        :func:`kpstore.loader`.
    """

    samples_are = "frames"
    """What the view counts, for its ``repr``."""
    draws = False
    """Whether a batch holds pictures of the rows, which take longer than reading them."""

    def __init__(
        self, store: BaseStore, reads: Sequence[str], transform: Transform | None = None
    ) -> None:
        check_function("transform", transform, "a sample")
        self.store, self.reads, self.transform = store, list(reads), transform

    def __repr__(self) -> str:
        what = f"{len(self)} {self.samples_are}, {self.reads}"
        return visible(f"<{type(self).__name__} of {self.store.location}: {what}>")

    def __iter__(self) -> Iterator[Any]:
        """Yield all samples in order, many of them read at a time."""
        for first in range(0, len(self), _READ_AHEAD):
            yield from self.__getitems__(range(first, min(first + _READ_AHEAD, len(self))))

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return samples stacked, without the transform: by name an array (len(indices), …).

        Indices are from 0 to ``len(view) - 1`` and may come in any order and several times.
        """

    @property
    @abstractmethod
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64: first row of each sample on the frame axis; a shuffle groups by it."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(samples,) int64: frames of each sample; read-only."""
        return np.broadcast_to(np.int64(1), len(self))

    @property
    def are_frames(self) -> bool:
        """Whether each sample is a single frame."""
        return bool((self.lengths == 1).all())

    @property
    def row_runs(self) -> Runs:
        """:attr:`first_rows` as runs of rows that follow each other."""
        return Runs.of(self.first_rows)

    @property
    def digest(self) -> str:
        """A hash that tells the view's frames from others of the same store.

        It is made from every sample, as in states and checkpoints of earlier builds.
        """
        # Of single frames, the first rows alone.
        content = hashlib.blake2b(digest_size=8)
        for rows in self.row_runs.pieces():
            content.update(rows.astype("<i8", copy=False).data)
        if not self.are_frames:
            content.update(np.ascontiguousarray(self.lengths, dtype="<i8").data)
        return content.hexdigest()

    @property
    def run_digest(self) -> str:
        """A hash that tells the view's frames from others, made from their runs: soon for many."""
        runs = self.row_runs
        content = hashlib.blake2b(digest_size=8)
        for table in (runs.starts, runs.bounds, *([] if self.are_frames else [self.lengths])):
            content.update(np.ascontiguousarray(table, dtype="<i8").data)
        return content.hexdigest()

    def batches(self, parts: Sequence[NDArray[np.int64]]) -> list[Batch]:
        """Return :meth:`batch` of each part, all in one read; the batches share memory."""
        if len(parts) == 1:
            return [self.batch(parts[0])]
        together = self.batch(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
        bounds = np.cumsum([0, *map(len, parts)]).tolist()
        return [{name: array[a:b] for name, array in together.items()} for a, b in pairwise(bounds)]

    def plan_pool(self, n_bytes: int) -> Pool:
        """Return how to use memory for decoded chunks; see :func:`kpstore.views.pool.plan_pool`."""
        framewise = {name: self.store.reader.meta(name) for name in self._framewise()}
        return plan_pool(framewise, n_bytes, long_samples=not self.are_frames)

    def rows_ahead(self) -> int:
        """Return how many rows to ask for ahead; 0 where all chunks are on this machine."""
        reader = self.store.reader
        far = [reader.meta(name).chunk_rows for name in self._framewise() if reader.are_far(name)]
        return _CHUNKS_AHEAD * max(far, default=0)

    def ask(self, indices: NDArray[np.int64]) -> None:
        """Begin to bring samples that will be read soon, and return at once."""
        names, reader = self._framewise(), self.store.reader
        rows = self.first_rows_of(indices)
        if not self.are_frames:
            # A row of each chunk that a sample reaches into.
            step = min(reader.meta(name).chunk_rows for name in names)
            last = rows + np.maximum(self.lengths[indices], 1) - 1
            steps = np.arange(0, int((last - rows).max(initial=0)) + step, step)
            rows = np.minimum(rows[:, None] + steps, last[:, None]).ravel()
        for name in names:
            reader.ask(name, rows)

    def first_rows_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first row of some samples, (len(indices),) int64."""
        return self.first_rows[indices]

    def _framewise(self) -> list[str]:
        metas = {name: self.store.reader.meta(name) for name in self.reads}
        return [name for name, meta in metas.items() if meta.dims[0] == "frame"]

    def cache(self) -> bool:
        """Decode arrays to the local cache that are not mapped; return whether all are now."""
        return all([self.store.reader.cache(name) for name in self.reads])

    def __getitem__(self, index: int) -> Any:
        number = whole_number(index)
        if number is None:
            raise InvalidError(
                f"view[{index!r}]: use a whole number; view.batch([…]) reads several, "
                "view.subset(…) picks"
            )
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} asked for; the view has {len(self)}")
        (sample,) = self.__getitems__([number % len(self)])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return samples in one read; a DataLoader asks for a whole batch in this way."""
        samples = self.samples(indices)
        return samples if self.transform is None else [self.transform(sample) for sample in samples]

    def samples(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return samples one by one, without the transform, in one planned read."""
        return Samples(self.batch(indices))

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> Subset:
        """Return some of the samples, by index or by a boolean mask, as a view.

        Nothing is read or copied.
        """
        return Subset(self, indices)


class Subset(View):
    """Some samples of another view, in any order.

    Parameters
    ----------
    view : the other view.
    indices : its samples, ints or a mask of its length.
    """

    def __init__(self, view: View, indices: Sequence[int] | NDArray[Any]) -> None:
        super().__init__(view.store, view.reads, view.transform)
        self.view, self.draws = view, view.draws
        self.indices = picked(Runs.up_to(len(view)), indices)

    def batches(self, parts: Sequence[NDArray[np.int64]]) -> list[Batch]:
        """Return several batches; see :meth:`View.batches`."""
        return self.view.batches([self.indices[part] for part in parts])

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.view!r}>"

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return samples stacked; see :meth:`View.batch`."""
        return self.view.batch(picked(self.indices, indices))

    def samples(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Return samples one by one; see :meth:`View.samples`."""
        return self.view.samples(picked(self.indices, indices))

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """(samples,) int64; see :attr:`View.first_rows`."""
        return self.view.row_runs[self.indices]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(samples,) int64; see :attr:`View.lengths`."""
        return self.view.lengths[self.indices]

    @property
    def are_frames(self) -> bool:
        """Whether each sample is a single frame."""
        return self.view.are_frames or super().are_frames

    def ask(self, indices: NDArray[np.int64]) -> None:
        """Begin to bring samples; see :meth:`View.ask`."""
        self.view.ask(self.indices[indices])


def picked(
    values: NDArray[np.int64] | Runs, indices: Sequence[int] | NDArray[Any]
) -> NDArray[np.int64]:
    """Return the values of some samples, of (samples,), by ints or by a mask.

    Negative ints count from the end.
    """
    given, length = np.asarray(indices), len(values)
    if given.dtype == bool:
        if given.shape != (length,):
            raise InvalidError(f"a mask needs shape ({length},), found {given.shape}")
        given = np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InvalidError(
            f"samples are asked for by ints or by a mask, found {given.dtype} of shape "
            f"{given.shape}"
        )
    try:
        found: NDArray[np.int64] = values[given.astype(np.int64, copy=False)]
    except IndexError:
        worst = int(given.max() if given.max() >= length else given.min())
        raise InvalidError(f"sample {worst} asked for; the view has {length}") from None
    return found


def feature_names(store: BaseStore, features: str | Sequence[str]) -> list[str]:
    """Return names of arrays on the frame axis, ready to be read; other names are an error."""
    names = [features] if isinstance(features, str) else list(sequence(features, "names of arrays"))
    for name in names:
        array = store[name]
        feature_of(store, name)  # says where its arrays are not what the store's description says
        if array.dims[0] != "frame":
            raise InvalidError(
                f"{name!r} lies on the axis {array.dims[0]!r}, this view needs 'frame'"
            )
        if name in _OWN_KEYS:
            raise InvalidError(
                f"views use the key {name!r} for their own data; store the feature under another "
                "name"
            )
    # Not at the first read: that may happen in a forked worker, where Icechunk does not work.
    store.reader.prepare(names)
    return names


def select_videos(
    store: BaseStore,
    *,
    split: str | Sequence[str] | None = None,
    videos: Sequence[str] | None = None,
    where: str | Mapping[str, Any] | None = None,
) -> NDArray[np.int64]:
    """Return positions of videos.

    Parameters
    ----------
    split, videos : only these; all by default.
    where : annotations that a video must have, ``{"speaker": "Signer01"}`` or ``{"speaker": ["S1",
        "S4"]}``, or a query over the columns of ``store.videos``, ``"speaker == 'Signer01' and
        n_frames > 50"`` (pandas' query).

    Raises
    ------
    NotFoundError
        If a split, a video or a column does not exist.
    InvalidError
        If the query cannot be read, a video is named twice, or a column of text is asked for
        anything but text, or one of numbers for text.
    """
    chosen = store.index.select(split=split, videos=[videos] if isinstance(videos, str) else videos)
    if where is None:
        return chosen
    table = store.videos.iloc[chosen]
    if not isinstance(where, str):
        if not isinstance(where, Mapping):
            raise InvalidError(f"where={shown(where)}: use a query, or annotations by name")
        table = table.reset_index()
        keep = np.ones(len(table), dtype=bool)
        for column, value in where.items():
            if column not in table:
                raise NotFoundError(
                    f"column {column!r} not found; store.videos has {list(table.columns)}"
                )
            several = isinstance(value, Iterable) and not isinstance(value, str)
            wanted = list(value) if several else [value]
            holds_text = isinstance(next(iter(table[column]), ""), str)
            odd = [each for each in wanted if isinstance(each, str) != holds_text]
            if odd and len(table):
                raise InvalidError(
                    f"where: {column!r} holds {'text' if holds_text else 'numbers'}, "
                    f"{shown(odd[0])} was asked for; nothing is equal"
                )
            keep &= table[column].isin(wanted).to_numpy()
        return chosen[keep]
    try:
        kept = table.reset_index().query(where, engine="python").index
    except Exception as error:  # pandas raises many kinds of errors for a query it cannot parse
        first = str(error).partition("\n")[0]
        raise InvalidError(f"where={where!r}: {first}; columns are {list(table.columns)}") from None
    found: NDArray[np.int64] = chosen[kept.to_numpy()]
    return found


def feature_of(store: BaseStore, array: str) -> str | None:
    """Return the feature that an array belongs to; None for columns of the index."""
    described = store.described.items()
    name = next((name for name, stored in described if array in stored.spec.arrays), None)
    return None if name is None else store.feature(name).name


def check_function(name: str, function: object, of: str) -> None:
    """Raise :class:`InvalidError` unless a parameter is None or can be called."""
    if function is not None and not callable(function):
        raise InvalidError(f"{name}={shown(function)}: give a function of {of}, or None")
