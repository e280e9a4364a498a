"""Foreign files into stores, in one commit or not at all; and stores into foreign files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from kpstore import plugins
from kpstore._version import __version__
from kpstore.backends.base import Backend
from kpstore.errors import (
    InvalidError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.interop.base import Document, ExportReport, Format, ImportedVideo, OnProgress
from kpstore.interop.files import State, reading, state_of, unchanged, writing
from kpstore.interop.import_writer import ImportWriter
from kpstore.schema.fields import shown
from kpstore.store.removed import Removals
from kpstore.store.store import (
    BaseStore,
    backend_for,
    building,
    is_store,
    keep_out_of_stores,
)
from kpstore.user_files import check_regular, path_text
from kpstore.visible import visible

GROUP: plugins.Group = "kpstore.formats"
T = TypeVar("T")


@dataclass(frozen=True)
class ImportReport:
    """What an import stored.

    Parameters
    ----------
    location : location of the store.
    snapshot : id of the version that holds what was imported.
    features : names of the imported features.
    videos, frames : numbers of videos and frames in the file.
    failed_frames : number of frames that failed, according to the file.
    notes : what could not be carried over, one line each.
    """

    location: str
    snapshot: str
    features: tuple[str, ...]
    videos: int
    frames: int
    failed_frames: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {**vars(self), "features": list(self.features), "notes": list(self.notes)}


def get_format(name: str) -> Format:
    """Return a format by name; :class:`NotFoundError` lists the known formats."""
    found: Format = plugins.load(GROUP, name)
    return found


def find_format(path: Path) -> Format:
    """Return the format of a file, judged by its name and first bytes.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidError
        If no format, or more than one, recognises it.
    """
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    _check_readable(path)
    if is_store(path):
        raise InvalidError(
            f"{path} is a kpstore store itself; copy it (kpstore convert), or put it together with "
            "others (kpstore merge)"
        )
    known = []
    for name in plugins.names(GROUP):
        try:
            candidate = get_format(name)
        except MissingExtraError:
            continue
        with suppress(InvalidError), reading(str(path)):
            if candidate.importer is not None and candidate.recognises(path):
                known.append(candidate)
    if len(known) != 1:
        found = " or ".join(f.name for f in known) or f"none of {', '.join(plugins.names(GROUP))}"
        raise InvalidError(
            f"{path}: what format is it? It looks like {found}; name it: kpstore import FORMAT "
            f"{path}"
        )
    return known[0]


def import_file(
    path: str | os.PathLike[str],
    location: str | os.PathLike[str],
    format_name: str | None = None,
    *,
    name: str = "",
    on_progress: OnProgress | None = None,
    **options: object,
) -> ImportReport:
    """Store the contents of a foreign file, in one commit.

    A file that breaks the rules of its format changes nothing.

    Parameters
    ----------
    path : a file, or a folder of files.
    location : the store, which is created if it does not exist. Videos that it holds already get
        the features they lack.
    format_name : one of ``kpstore.plugins.names("kpstore.formats")``; by default the format that
        recognises the file.
    name : name of the data set, for a new store.
    options : options of the format.

    Raises
    ------
    InvalidError
        If the file cannot be read as this format.
    ExistsError
        If the store holds a feature of one of the videos already.
    MismatchError
        If the store has another feature of that name.
    """
    source = Path(path_text(path))
    found = find_format(source) if format_name is None else get_format(format_name)
    document = _open_document(found, source, options)
    backend = backend_for(os.fspath(location))
    return import_document(
        document, backend, source=str(source), name=name, on_progress=on_progress
    )


def export_file(
    store: BaseStore,
    path: str | os.PathLike[str],
    format_name: str,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **options: object,
) -> ExportReport:
    """Write the contents of a store in a foreign format.

    Parameters
    ----------
    path : the file or folder to write.
    format_name : one of ``kpstore.plugins.names("kpstore.formats")``.
    overwrite : whether to replace existing files, which are an error otherwise.
    on_progress : called with the number of frames each time some more have been written.
    options : options of the format.

    Raises
    ------
    ExistsError
        If a file exists already; nothing is written then.
    NotFoundError
        If the store does not hold what was asked for.
    OSError
        If the system refuses, over a full disk for example; no file is half written then.
    """
    found = get_format(format_name)
    if found.exporter is None:
        raise UnsupportedError(f"format {found.name!r} can be imported only")
    if not isinstance(store, BaseStore):
        raise InvalidError(f"{shown(store)} is not an open store; see kpstore.open")
    target = Path(path_text(path))
    exporter = _with_options(found, found.exporter, options)
    with writing(target):
        keep_out_of_stores(target, "the export")  # which --overwrite does not permit either
        return exporter.export(
            store.checked(), target, overwrite=overwrite, on_progress=on_progress
        )


def _open_document(found: Format, path: Path, options: Mapping[str, object]) -> Document:
    if found.importer is None:
        raise UnsupportedError(f"format {found.name!r} can be exported only")
    importer = _with_options(found, found.importer, options)
    _check_readable(path)
    state = state_of(path)
    with unchanged(path, state):
        return cast("Document", _Foreign(importer.open(path), path, state))


class _Foreign:
    """A document of a format, whose reader may raise anything over a damaged file."""

    def __init__(self, document: Document, path: Path, state: State) -> None:
        self._document, self._path, self._state = document, path, state

    def __getattr__(self, name: str) -> object:
        return getattr(self._document, name)

    def videos(self) -> Iterator[ImportedVideo]:
        """Yield the videos; see :meth:`Document.videos`."""
        with unchanged(self._path, self._state):
            videos = iter(self._document.videos())
        while True:
            with unchanged(self._path, self._state):
                video = next(videos, None)
            if video is None:
                return
            yield video


def _check_readable(path: Path) -> None:
    """Raise :class:`InvalidError` for a device, a FIFO or a socket, which may never end."""
    if path.exists() and not path.is_dir():
        check_regular(path)


def _with_options(found: Format, make: Callable[..., T], options: Mapping[str, object]) -> T:
    try:
        return make(**options)
    except TypeError as error:
        raise InvalidError(f"format {found.name!r}: {error}") from None


def import_document(
    document: Document,
    backend: Backend,
    *,
    source: str,
    name: str = "",
    own_splits: bool = False,
    removed: Removals | None = None,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Store an opened file; see :func:`import_file`.

    Parameters
    ----------
    backend : where the store is, or will be.
    source : name of the file in messages.
    own_splits : whether its splits were set by hand; see :meth:`Transaction.set_splits`.
    removed : what was removed from stores that it was made of, and has to stay out.
    """
    carried = _Carried(own_splits, removed or Removals())
    if backend.exists():
        with backend.exclusive(f"import of {source}"):
            store = BaseStore.open(backend, mode="a")
            return _import_into(store, backend.location, document, source, carried, on_progress)
    named = name or visible(document.name)
    with building(backend, name=named, kpstore_version=__version__) as store:
        return _import_into(store, backend.location, document, source, carried, on_progress)


@dataclass(frozen=True)
class _Carried:
    """What a new store takes over from the stores that it is made of, beside their videos."""

    own_splits: bool
    removed: Removals


def _import_into(
    store: BaseStore,
    location: str,
    document: Document,
    source: str,
    carried: _Carried,
    on_progress: OnProgress | None,
) -> ImportReport:
    features = tuple(feature.spec.name for feature in document.features)
    file = visible(Path(source).resolve().name)
    with store.transaction(f"import {', '.join(features) or 'videos'} from {file}") as tx:
        for feature in document.features:
            tx.add_feature(feature.spec, feature.provenance)
        if carried.removed:
            tx.record_removals(carried.removed)
        removed = tx.removed
        writer = ImportWriter(tx, document.features, on_progress or (lambda n: None))
        for video in document.videos():
            writer.add(video)
        writer.flush()
        if carried.own_splits:
            tx.keep_own_splits()
        tx.metadata["import"] = {
            "file": file,
            "videos": writer.n_videos,
            "frames": writer.n_frames,
        }
    assert tx.snapshot is not None
    out = [removed.stay_out(writer.left_out, location)] if writer.left_out else []
    return ImportReport(
        location,
        tx.snapshot,
        features,
        writer.n_videos,
        writer.n_frames,
        writer.n_failed,
        (*document.notes, *writer.notes, *out),
    )


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BaseStore]:
    """Open a store, or import a file into a store that exists only while the block runs.

    Such a store lies in the system's folder for temporary files (``$TMPDIR``).
    """
    location = os.fspath(path)
    backend = backend_for(location)
    if backend.exists():
        yield BaseStore.open(backend)
        return
    with tempfile.TemporaryDirectory(prefix="kpstore-") as folder:
        document = _open_document(find_format(Path(location)), Path(location), {})
        imported = backend_for(str(Path(folder) / "imported.kps"))
        import_document(document, imported, source=location)
        yield BaseStore.open(imported)
