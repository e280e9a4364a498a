"""A batch as the list of its samples, which PyTorch's ``default_collate`` takes as it was read.

A :class:`torch.utils.data.DataLoader` asks a data set for a list of samples and stacks them again.
Making a dict of each sample and stacking their arrays takes ten times as long as reading them, so
the list keeps the batch, and makes samples when somebody looks at them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.views.handed import handed

_COLLATE = "torch.utils.data._utils.collate"


class Sample(dict[str, Any]):
    """The first of several samples, while they are not made: arrays by name.

    ``default_collate`` knows it from other dicts by its type. What walks through nested values
    (PyTorch's and JAX's trees) does not, so all other samples are plain dicts.
    """


class Samples(list[Any]):
    """The samples of a batch: a list of dicts, which are made when they are needed.

    ``samples[0]`` makes the first one only, as ``default_collate`` looks at it.

    Parameters
    ----------
    batch : arrays of the same length, by name.
    """

    def __init__(self, batch: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(repeat(None, len(next(iter(batch.values())))))
        self._batch: Mapping[str, NDArray[Any]] | None = batch
        self._first: Sample | None = None
        self._made: dict[str, Any] = {}
        """What the first sample was made of."""
        _register()

    def whole(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the batch; None if samples were made from it, and may be others since."""
        first, made = self._first, self._made
        if first is not None and (
            first.keys() != made.keys() or any(first[name] is not made[name] for name in made)
        ):
            return None
        return self._batch

    def __getitem__(self, index: Any) -> Any:
        """Return a sample, or a list of samples."""
        if self._batch is None or type(index) is not int or index != 0 or not len(self):
            self.make()
            return super().__getitem__(index)
        if self._first is None:
            (self._made,) = _samples({name: array[:1] for name, array in self._batch.items()})
            self._first = Sample(self._made)
        return self._first

    def make(self) -> None:
        """Make all samples; from here on this is a list like any other."""
        batch, self._batch = self._batch, None
        if batch is not None:
            made = _samples(batch)
            if self._first is not None:
                made[0] = self._first
            super().__setitem__(slice(None), made)

    def __reduce_ex__(self, protocol: Any) -> tuple[type, tuple[list[Any]]]:
        """Pickle and copy as a plain list."""
        return list, (list(self),)

    def __radd__(self, other: list[Any]) -> list[Any]:
        """Return a list followed by these samples."""
        return other + list(self)


def _after_making(name: str) -> Callable[..., Any]:
    """Return a method of :class:`list` that makes the samples first."""
    method = getattr(list, name)

    @functools.wraps(method)
    def call(self: Samples, *args: Any, **kwargs: Any) -> Any:
        self.make()
        return method(self, *args, **kwargs)

    return call


for _name in (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__gt__", "__iadd__"),
    *("__imul__", "__iter__", "__le__", "__lt__", "__mul__", "__ne__", "__repr__"),
    *("__reversed__", "__rmul__", "__setitem__", "append", "clear", "copy", "count", "extend"),
    *("index", "insert", "pop", "remove", "reverse", "sort"),
):
    setattr(Samples, _name, _after_making(_name))


def _samples(batch: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    columns = map(_items, batch.values())
    return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]


def _items(array: NDArray[Any]) -> list[Any]:
    """Return each sample's part of an array.

    Text of several frames as a list, which ``default_collate`` takes.
    """
    return array.tolist() if array.dtype == object and array.ndim > 1 else list(array)


def _register() -> None:
    """Tell ``default_collate`` how to collate samples, as soon as PyTorch is imported.

    Of a PyTorch that has no such table, samples are collated as other dicts are.
    """
    known = getattr(sys.modules.get(_COLLATE), "default_collate_fn_map", None)
    if isinstance(known, dict) and Sample not in known:
        known[Sample] = _collate


def _collate(samples: Sequence[Sample], *, collate_fn_map: dict[Any, Any]) -> Any:
    """Return what ``default_collate`` makes of the same samples as plain dicts."""
    collate = functools.partial(sys.modules[_COLLATE].collate, collate_fn_map=collate_fn_map)
    batch = samples.whole() if isinstance(samples, Samples) else None
    # A user may have told PyTorch to collate arrays in another way.
    modules = {getattr(function, "__module__", "") for function in collate_fn_map.values()}
    if batch is None or modules != {_COLLATE, __name__}:
        return collate([dict(s) if type(s) is Sample else s for s in samples])
    return handed({name: _stacked(array, collate) for name, array in batch.items()})


def _stacked(array: NDArray[Any], collate: Callable[[list[Any]], Any]) -> Any:
    if array.dtype.kind not in "biufc":  # text
        return collate(_items(array))
    import torch

    # A tensor of its own, as torch.stack makes one: laid out in C order, and writable.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
