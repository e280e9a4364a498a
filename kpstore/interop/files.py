"""Files of foreign formats: finding, opening, naming and replacing them."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from kpstore.backends.asides import aside_of, left_overs, system_error
from kpstore.errors import (
    DAMAGE,
    ExistsError,
    InvalidError,
    KpstoreError,
    NotFoundError,
    UnsupportedError,
    one_line,
)

_MAKING = "making"
"""Prefix, after a dot, of the names of files that are being written."""


def check_there(path: Path, what: str, kind: Literal["file", "folder", "any"] = "file") -> None:
    """Raise :class:`NotFoundError` unless ``path`` is a file, a folder, or either.

    ``what`` is the kind of file in the message, such as ``"pickle"``.
    """
    if not {"file": path.is_file, "folder": path.is_dir, "any": path.exists}[kind]():
        found = "is a folder" if path.is_dir() else "is a file"
        raise NotFoundError(
            f"no {'folder of ' if kind == 'folder' else ''}{what} at {path}: it "
            f"{found if path.exists() else 'does not exist'}"
        )


def without_hidden(paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted, without those whose names begin with a dot.

    Such files belong to the operating system, or were left by an export that was killed.
    """
    return sorted(path for path in paths if not path.name.startswith("."))


@contextmanager
def damage_named(message: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn errors that a library raises for a damaged file into one line, ``message (error)``.

    Errors of kpstore itself stay as they are.
    """
    try:
        yield
    except KpstoreError:
        raise
    except errors as error:
        raise InvalidError(f"{message} ({one_line(error)})") from None


LIBRARY_ERRORS = (AssertionError, OSError, zipfile.BadZipFile, *DAMAGE)
"""What libraries raise for damaged files that a reader did not expect."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever a library raises for a file into :class:`InvalidError`: the last resort.

    Errors of the system, such as a file that may not be read, stay as they are.
    """
    try:
        yield
    except KpstoreError:
        raise
    except LIBRARY_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise
        raise InvalidError(
            f"{path} cannot be read: it is damaged, or not of that format ({one_line(error)})"
        ) from error


State = tuple[int, ...]
"""What is another one if a file was written to, or a file or folder replaced; () if it is gone."""


def state_of(path: Path) -> State:
    """Return the state of a file or folder."""
    try:
        about = path.stat()
    except OSError:
        return ()
    place = about.st_dev, about.st_ino
    return place if stat.S_ISDIR(about.st_mode) else (*place, about.st_size, about.st_mtime_ns)


@contextmanager
def unchanged(path: Path, since: State) -> Iterator[None]:
    """As :func:`reading`, but say so if the file is not what it was ``since``.

    What a reader makes of a file that somebody writes meanwhile may be any error, or none.
    """
    try:
        with reading(str(path)):
            yield
    except (KpstoreError, OSError) as error:
        if state_of(path) != since:
            raise _changed(path) from error
        raise
    if state_of(path) not in (since, ()):  # one that is gone is read to its end
        raise _changed(path)


def _changed(path: Path) -> InvalidError:
    return InvalidError(
        f"{path} changed while it was read, so nothing of it was stored; repeat it once the file "
        "is complete"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the place in whatever is raised while files are written there: the last resort.

    Errors of the system stay :class:`OSError`, with their number.

    Parameters
    ----------
    path : the file or folder that the user has named.
    """
    try:
        yield
    except KpstoreError:
        raise
    except Exception as error:  # whatever the system, h5py or zipfile raises
        if not isinstance(error, OSError) or error.errno is None:
            raise UnsupportedError(f"{path} cannot be written ({one_line(error)})") from error
        named = str(error.filename or "")
        at = path if not named or f".{_MAKING}-" in named else named
        raise system_error(error.errno, at, "the export was not finished") from error


def check_free(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise :class:`ExistsError` if any of ``paths`` cannot be made, or may not be replaced."""
    paths = list(paths)
    for parent in {path.parent for path in paths}:
        check_folder(parent)
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is not None:
        raise ExistsError(f"{folder} is a folder, and a file is to be written; choose another name")
    special = next((path for path in paths if path.exists() and not path.is_file()), None)
    if special is not None:  # root could replace /dev/null by an export
        raise ExistsError(
            f"{special} is a device, a pipe or a socket, which is not replaced; choose another name"
        )
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if there and not overwrite:
        several = f" and {len(there) - 1} more exist" if there[1:] else " exists"
        what = "them" if there[1:] else "it"
        raise ExistsError(
            f"{there[0]}{several} already; choose another place, or replace {what} with --overwrite"
        )


def check_folder(folder: Path) -> None:
    """Raise :class:`ExistsError` if a folder cannot be made, because something else is there."""
    on_the_way = (folder, *folder.parents)
    there = next((at for at in on_the_way if at.exists() or at.is_symlink()), None)
    if there is not None and not there.is_dir():
        raise ExistsError(
            f"{there} is no folder, and files are to be written in it; choose another place"
        )


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    ``name`` comes from data and may hold forward slashes.

    Raises
    ------
    InvalidError
        If it would lead out of the folder, or cannot be the name of a file.
    """
    parts = PurePosixPath(name).parts
    odd = (
        not parts
        or ".." in parts
        or any(not part.isprintable() or "\\" in part or ":" in part for part in parts)
    )
    if odd or PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        raise InvalidError(
            f"{name!r} cannot be the name of a file in {folder}: it would lead elsewhere, or has "
            "characters that some systems refuse"
        )
    return folder.joinpath(*parts)


@contextmanager
def written_aside(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary names to write to; the files are renamed if the block ends without an error.

    Yields
    ------
    list of Path
        One for each of ``paths``, in the same folder, which is created.
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
    """Yield a folder to write to, which replaces ``path`` if the block ends without an error."""
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
