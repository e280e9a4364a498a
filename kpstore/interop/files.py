"""Files of foreign formats: written aside and renamed, opened with one clear line, named within their folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from kpstore.backends.asides import aside_of, left_overs
from kpstore.errors import ExistsError, InvalidError, NotFoundError

_MAKING = "making"
"""How names of files begin that are being written; a dot comes first."""


def check_there(path: Path, what: str, *, folder: bool = False) -> None:
    """Raise :class:`NotFoundError` unless ``path`` is a file (or a folder).

    ``what`` is e.g. ``"pickle"``.
    """
    if folder and not path.is_dir():
        raise NotFoundError(
            f"no folder of {what} at {path}: it "
            f"{'is a file' if path.exists() else 'does not exist'}"
        )
    if not folder and not path.is_file():
        raise NotFoundError(
            f"no {what} at {path}: it {'is a folder' if path.is_dir() else 'does not exist'}"
        )


def check_free(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise :class:`ExistsError` if any of ``paths`` exists and may not be replaced."""
    paths = list(paths)
    for path in paths:
        if path.is_dir():
            raise ExistsError(
                f"{path} is a folder, and a file is to be written; choose another name"
            )
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if there and not overwrite:
        several = f" and {len(there) - 1} more exist" if there[1:] else " exists"
        what = "them" if there[1:] else "it"
        raise ExistsError(
            f"{there[0]}{several} already; choose another place, or replace {what} with --overwrite"
        )


def inside(folder: Path, name: str) -> Path:
    """Return the place of a file of a folder.

    ``name`` comes from data and may hold forward slashes.

    Raises
    ------
    InvalidError
        If it would lead out of the folder, or cannot be a file's name.
    """
    parts = PurePosixPath(name).parts
    odd = (
        not parts
        or ".." in parts
        or any(not part.isprintable() or "\\" in part or ":" in part for part in parts)
    )
    if odd or PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        raise InvalidError(
            f"{name!r} cannot be the name of a file in {folder}: it would lead elsewhere"
        )
    return folder.joinpath(*parts)


@contextmanager
def written_aside(*paths: Path) -> Iterator[list[Path]]:
    """Give names to write to.

    The files get the names asked for when the block ends without an error.

    Yields
    ------
    list of Path
        One for each of ``paths``, in the same folder; folders are made.
    """
    asides: list[Path] = []
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left_over in left_overs(path, _MAKING):
                left_over.unlink(missing_ok=True)
            asides.append(aside_of(path, _MAKING))
            asides[-1].touch(exist_ok=False)
        yield asides
        for aside, path in zip(asides, paths, strict=True):
            os.replace(aside, path)
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


@contextmanager
def folder_written_aside(path: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in left_overs(path, _MAKING):
        shutil.rmtree(left_over, ignore_errors=True)
    aside, old = aside_of(path, _MAKING), aside_of(path, _MAKING)
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
