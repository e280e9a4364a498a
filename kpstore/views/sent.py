"""Data sets on their way to worker processes, with the functions that a user gave them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import cloudpickle

from kpstore.errors import InvalidError, one_line


class Sent:
    """A data set on its way to other processes, with lambdas and functions of a notebook.

    Pickle sends functions by their names, which other processes find where they can import the
    script again; they cannot import a notebook, and lambdas have no name.
    """

    def __init__(self, dataset: object, workers: int) -> None:
        self._dataset: object | None = None
        self._sent = b""
        try:
            try:
                _require_importable_main()
                ForkingPickler.dumps(dataset)
                self._dataset = dataset
            except (AttributeError, TypeError, pickle.PicklingError):
                self._sent = cloudpickle.dumps(dataset)
            except RuntimeError:  # multiprocessing's own locks and values travel only at a start
                self._dataset = dataset
        except Exception as error:  # whatever the user's own objects raise
            raise InvalidError(
                f"workers={workers}: the transform or collate cannot be sent to other processes "
                f"({one_line(error)}); open files and locks inside of it, or use workers=0, which "
                "reads with threads"
            ) from None

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        if self._dataset is not None:
            return _itself, (self._dataset,)
        return cloudpickle.loads, (self._sent,)


def _itself(dataset: object) -> object:
    return dataset


def _require_importable_main() -> None:
    """Raise :class:`pickle.PicklingError` in a notebook, whose functions have names in vain."""
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None:
        raise pickle.PicklingError("no script to import")
