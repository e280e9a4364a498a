"""The layout of exported HDF5 files, and how HDF5 files are read safely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from kpstore.backends.hdf5_items import datasets_of, item_of
from kpstore.backends.hdf5_texts import read_texts
from kpstore.errors import DAMAGE, InvalidError
from kpstore.interop.files import damage_named
from kpstore.user_files import check_memory

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
"""Texts to read together."""
_TEXT_BYTES = 64
"""Memory of a text without its characters."""
UNREADABLE = (OSError, *DAMAGE)


def recognises(path: Path) -> bool:
    """Return whether a file was exported by kpstore; other HDF5 files could be anything."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as start:
            if start.read(8) != _SIGNATURE:
                return False
        with h5py.File(path, "r") as file:
            return MARK in file.attrs
    except (OSError, RuntimeError):
        return False


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open a file; errors of h5py become an :class:`InvalidError` of one line."""
    with (
        damage_named(f"{path}: it is no HDF5 file, or a damaged one", UNREADABLE),
        h5py.File(path, "r") as file,
    ):
        yield file


def dataset_of(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return a dataset, whose values must all be in this file; links are not followed."""
    found = own_item(file, name)
    if not isinstance(found, h5py.Dataset):
        there = ", ".join(sorted(name for name, _ in datasets_of(file))) or "none"
        raise InvalidError(f"{path} has no dataset {name!r}; it has {there}")
    return found


def own_item(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset | None:
    """Return an item by name, without following links; None if it does not exist."""
    try:
        return item_of(file, name)
    except KeyError:
        return None


def texts_of(dataset: h5py.Dataset, path: Path, rows: slice = slice(None)) -> list[str]:
    """Return the texts of a dataset; :class:`InvalidError` if it holds anything else."""
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind is None or dataset.ndim != 1:
        raise InvalidError(
            f"{path}: {dataset.name} is {dataset.dtype} {dataset.shape}, not a text for each row"
        )
    texts: list[str] = []
    first, stop, _ = rows.indices(len(dataset))
    n_bytes = (stop - first) * _TEXT_BYTES

    def check(more: int) -> None:
        # Rows may share one long text in the file; in memory each has its own.
        check_memory(path, n_bytes + more, f"the texts of {dataset.name}")

    for start in range(first, stop, _TEXT_ROWS):
        block = read_texts(dataset, start, min(start + _TEXT_ROWS, stop), check).tolist()
        n_bytes += sum(map(len, block))
        texts += block
    return texts


def text_of(dataset: h5py.Dataset, path: Path) -> str:
    """Return the text of a dataset that holds one; :class:`ValueError` if it does not."""
    if h5py.check_string_dtype(dataset.dtype) is None or dataset.shape != ():
        raise ValueError(f"{dataset.name} is {dataset.dtype} {dataset.shape}, not a text")
    what = f"the text of {dataset.name}"
    return str(read_texts(dataset, 0, 1, lambda n_bytes: check_memory(path, n_bytes, what))[0])


def numbers_of(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return a dataset of numbers, as :func:`dataset_of` does."""
    found = dataset_of(file, path, name)
    if found.dtype.kind not in "fiub":
        raise InvalidError(f"{path}: {name} is {found.dtype} {found.shape}, not numbers")
    return found


def only_dataset(path: Path, file: h5py.File) -> str:
    """Return the name of the only dataset with rows of numbers; of several, ``keypoints``."""
    every = dict(datasets_of(file))
    found = [n for n, d in every.items() if d.ndim >= 2 and len(d) and d.dtype.kind in "fiu"]
    if "keypoints" in found:
        return "keypoints"
    if len(found) != 1:
        listed = ", ".join(f"{n} {d.dtype} {d.shape}" for n, d in sorted(every.items()))
        raise InvalidError(
            f"{path}: choose the dataset with rows of frames by --dataset NAME; its datasets "
            f"are (not counting links): {listed or 'none'}"
        )
    return found[0]
