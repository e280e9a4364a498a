"""The layout of exported HDF5 files, and how HDF5 files are read safely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from kpstore.backends.hdf5_heaps import open_checked
from kpstore.backends.hdf5_items import bytes_of, datasets_of, item_of, read_numbers
from kpstore.backends.hdf5_text import TEXT_BYTES, is_text, read_texts
from kpstore.budget import MemoryBudget
from kpstore.errors import DAMAGE, InvalidError
from kpstore.interop.files import damage_named

MARK = "kpstore_export"
"""Root attribute of exported files; its value, 1, is the version of their layout."""
ABOUT = "_kpstore_export_about"
"""Scalar text (JSON): name, annotations, and spec and provenance of every feature.

An attribute could not hold more than 64 KiB. The name ``_kpstore`` is taken: it is the group by
which kpstore's own HDF5 stores are recognised.
"""
README = (
    "All videos lie one after another on the first axis of every dataset whose dimension is "
    "'frame': with start = n_frames[:i].sum(), video i, which is called video_id[i], holds rows "
    "start to start + n_frames[i]. In F_status 1 says that a frame was looked at (0: not yet, 2: "
    "it failed); NaN in F is what was not found in it."
)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
BLOCK_BYTES = 8 * 2**20
_TEXT_ROWS = 4096
"""Least texts of fixed length to read together."""
_MOST_SHOWN = 20
UNREADABLE = (OSError, *DAMAGE)


def recognises(path: Path) -> bool:
    """Return whether a file was exported by kpstore; other HDF5 files could be anything."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as start:
            if start.read(8) != _SIGNATURE:
                return False
        with open_checked(path) as file:
            return MARK in file.attrs
    except (OSError, RuntimeError):
        return False


@contextmanager
def opened(path: Path, most_bytes: int | None) -> Iterator[OpenFile]:
    """Open a file; errors of h5py become an :class:`InvalidError` of one line.

    Parameters
    ----------
    most_bytes : memory that reading it may take; see :class:`kpstore.budget.MemoryBudget`.
    """
    with (
        damage_named(f"{path}: it is no HDF5 file, or a damaged one", UNREADABLE),
        open_checked(path) as file,
    ):
        yield OpenFile(file, path, MemoryBudget.of(path, most_bytes))


@dataclass(frozen=True)
class OpenFile:
    """An open file, of which nothing is read that its budget does not allow.

    Links are not followed.
    """

    file: h5py.File
    path: Path
    budget: MemoryBudget

    def has(self, name: str) -> bool:
        """Return whether there is a dataset of this name."""
        try:
            return isinstance(item_of(self.file, name), h5py.Dataset)
        except KeyError:
            return False

    def dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset, whose values must all be in this file, to look at what it is."""
        if not self.has(name):
            raise InvalidError(
                f"{self.path} has no dataset {name!r}; it has {_listed(self.names())}"
            )
        return item_of(self.file, name)

    def names(self) -> list[str]:
        """Return the names of all datasets, sorted, not counting links."""
        return sorted(name for name, _ in datasets_of(self.file))

    def attr(self, name: str) -> object:
        """Return a number that is an attribute of the file; None if it is anything else."""
        about = self.file.attrs.get_id(name)
        return self.file.attrs[name] if about.shape == () and about.dtype.kind in "iuf" else None

    def numbers_beside(self, name: str, attribute: str) -> list[float]:
        """Return the numbers that an attribute of a dataset holds, few as they are; or none."""
        attributes = self.dataset(name).attrs
        if attribute not in attributes:
            return []
        about = attributes.get_id(attribute)
        if about.dtype.kind not in "iuf" or about.shape not in ((), (1,)):
            return []
        value = attributes[attribute].tolist()
        return value if isinstance(value, list) else [value]

    def rows(self, name: str, rows: slice, what: str) -> NDArray[Any]:
        """Return rows of a dataset of numbers; ``what`` says in an error what they are."""
        dataset = self.dataset(name)
        if dataset.dtype.kind not in "fiub" or not dataset.shape:
            raise InvalidError(f"{self.path}: {name} is {_kind(dataset)}, not rows of numbers")
        start, stop, _ = rows.indices(len(dataset))
        self.budget.check(bytes_of(dataset, stop - start), what)
        return read_numbers(dataset, start, stop, self.budget.left)

    def text(self, name: str) -> str:
        """Return the text that is all of a dataset."""
        dataset = self.dataset(name)
        if dataset.shape != () or not is_text(dataset):
            raise InvalidError(f"{self.path}: {name} is {_kind(dataset)}, not one text")
        return str(read_texts(dataset, 0, 1, lambda n: self.budget.check(n, repr(name)))[0])

    def texts(self, name: str, rows: slice = slice(None), *, held: bool = True) -> list[str]:
        """Return the texts of a dataset; :class:`InvalidError` if it holds anything else.

        Parameters
        ----------
        held : whether they are kept for as long as the file is open.
        """
        dataset = self.dataset(name)
        kind = h5py.check_string_dtype(dataset.dtype)
        if kind is None or dataset.ndim != 1:
            raise InvalidError(f"{self.path}: {name} is {_kind(dataset)}, not a text for each row")
        first, stop, _ = rows.indices(len(dataset))
        what, taken = f"the texts of {name}", 0
        texts: list[str] = []

        def allow(n_bytes: int) -> None:
            nonlocal taken
            taken += n_bytes
            self.budget.check(taken, what)

        self.budget.check((stop - first) * TEXT_BYTES, what)
        # h5py counts half of what a chunk's references to texts take.
        self.budget.check(2 * bytes_of(dataset, 0), what)
        if kind.length is None:
            texts += read_texts(dataset, first, stop, allow).tolist()
        else:
            step = max(_TEXT_ROWS, 0 if dataset.chunks is None else dataset.chunks[0])
            for start in range(first, stop, step):
                end = min(start + step, stop)
                allow((end - start) * (TEXT_BYTES + dataset.dtype.itemsize))
                found = read_numbers(dataset, start, end, self.budget.left)
                with damage_named(f"{self.path}: {name} is not text in UTF-8", (ValueError,)):
                    texts += [text.decode("utf-8") for text in found.tolist()]
        if held:
            self.budget.hold(taken, what)
        return texts

    def only_dataset(self) -> str:
        """Return the name of the only dataset with rows of numbers; of several, ``keypoints``."""
        # A dataset of nothing, not even of zero rows, has the shape None.
        every = {name: (d.dtype, tuple(d.shape or ())) for name, d in datasets_of(self.file)}
        found = [n for n, (t, shape) in every.items() if shape[1:] and shape[0] and t.kind in "fiu"]
        if "keypoints" in found:
            return "keypoints"
        if len(found) != 1:
            listed = _listed(
                [f"{n} {dtype} {shape}" for n, (dtype, shape) in sorted(every.items())]
            )
            raise InvalidError(
                f"{self.path}: choose the dataset with rows of frames by --dataset NAME; its "
                f"datasets are (not counting links): {listed}"
            )
        return found[0]


def _kind(dataset: h5py.Dataset) -> str:
    return f"{dataset.dtype} {dataset.shape}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return (", ".join(names[:_MOST_SHOWN]) or "none") + more
