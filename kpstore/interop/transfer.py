"""Foreign files into stores: one commit, or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore import plugins
from kpstore._version import __version__
from kpstore.errors import (
    ExistsError,
    InvalidError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.interop.base import (
    Document,
    Exporter,
    ExportReport,
    Format,
    ImportedFeature,
    ImportedVideo,
    OnProgress,
)
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore, backend_for, building
from kpstore.store.transaction import Transaction

GROUP = "kpstore.formats"
_BLOCK_BYTES = 64 * 2**20
"""Decoded rows kept before they are written: many chunks at once, so that few chunks are written twice."""


@dataclass(frozen=True)
class ImportReport:
    """What an import stored.

    Parameters
    ----------
    location : the store.
    snapshot : the version that holds it.
    features : names.
    videos, frames : how many the file held.
    failed_frames : frames that the file says have failed.
    notes : what could not be carried over, a line each.
    """

    location: str
    snapshot: str
    features: tuple[str, ...]
    videos: int
    frames: int
    failed_frames: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {**vars(self), "features": list(self.features), "notes": list(self.notes)}


def get_format(name: str) -> Format:
    """Return a format by name; :class:`NotFoundError` lists what there is."""
    found: Format = plugins.load("kpstore.formats", name)
    return found


def find_format(path: Path) -> Format:
    """Return the format of a file, by its name and first bytes.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidError
        If no format, or more than one, knows it.
    """
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    known = []
    for name in plugins.names("kpstore.formats"):
        try:
            candidate = get_format(name)
        except MissingExtraError:
            continue
        if candidate.importer is not None and candidate.recognises(path):
            known.append(candidate)
    if len(known) != 1:
        found = (
            " or ".join(f.name for f in known)
            or f"none of {', '.join(plugins.names('kpstore.formats'))}"
        )
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
    **options: Any,
) -> ImportReport:
    """Store what a foreign file holds, as one commit.

    A file that breaks its own rules changes nothing.

    Parameters
    ----------
    path : a file, or a folder of files.
    location : the store, made if it is not there. Videos that it holds already get the features
        they lack.
    format_name : one of ``kpstore.plugins.names("kpstore.formats")``; found out if not given.
    name : name of the data set, for a new store.
    options : those of the format.

    Raises
    ------
    InvalidError
        If the file cannot be read as this format.
    ExistsError
        If the store holds a feature of one of the videos already.
    MismatchError
        If the store's feature of that name is another one.
    """
    found = find_format(Path(path)) if format_name is None else get_format(format_name)
    if found.importer is None:
        raise UnsupportedError(f"format {found.name!r} can be exported only")
    document = _with_options(found, found.importer, options).open(Path(path))
    return import_document(
        document, os.fspath(location), source=str(path), name=name, on_progress=on_progress
    )


def export_file(
    store: BaseStore,
    path: str | os.PathLike[str],
    format_name: str,
    *,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> ExportReport:
    """Write a store's contents in a foreign format.

    Parameters
    ----------
    path : file or folder to write.
    format_name : one of ``kpstore.plugins.names("kpstore.formats")``.
    overwrite : replace what is there; without it that is an error, and nothing is written.
    on_progress : told of frames each time some more are written.
    options : those of the format.

    Raises
    ------
    ExistsError
        If something is there already.
    NotFoundError
        If the store does not hold what is asked for.
    """
    found = get_format(format_name)
    if found.exporter is None:
        raise UnsupportedError(f"format {found.name!r} can be imported only")
    _check_no_store(Path(path), Path(store.location))
    exporter: Exporter = _with_options(found, found.exporter, options)
    return exporter.export(
        store.checked(), Path(path), overwrite=overwrite, on_progress=on_progress
    )


def _check_no_store(path: Path, source: Path) -> None:
    """Raise :class:`ExistsError` if an export would go into a store, or replace one: --overwrite does not mean that."""
    target = path.resolve()
    for place in (target, *target.parents):
        is_store = place == source.resolve() if place != target else _is_store(place)
        if is_store:
            raise ExistsError(
                f"{path} is a store, or lies in one; choose another place for the export"
            )


def _is_store(path: Path) -> bool:
    return path.exists() and backend_for(str(path)).exists()


def _with_options(found: Format, make: Any, options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except TypeError as error:
        raise InvalidError(f"format {found.name!r}: {error}") from None


def import_document(
    document: Document,
    location: str,
    *,
    source: str,
    name: str = "",
    own_splits: bool = False,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Store an opened file; see :func:`import_file`.

    Parameters
    ----------
    source : what messages call it.
    own_splits : whether its splits were set by hand, see :meth:`Transaction.set_splits`.
    """
    backend = backend_for(location)
    if backend.exists():
        with backend.exclusive(f"import of {source}"):
            return _import_into(
                BaseStore.open(location, mode="a"), document, source, own_splits, on_progress
            )
    with building(location, name=name or document.name, kpstore_version=__version__) as store:
        report = _import_into(store, document, source, own_splits, on_progress)
    return ImportReport(**{**vars(report), "location": location})


def _import_into(
    store: BaseStore,
    document: Document,
    source: str,
    own_splits: bool,
    on_progress: OnProgress | None,
) -> ImportReport:
    names = ", ".join(feature.spec.name for feature in document.features) or "videos"
    file = Path(source).resolve().name
    with store.transaction(f"import {names} from {file}") as tx:
        for feature in document.features:
            tx.add_feature(feature.spec, feature.provenance)
        writer = _ImportWriter(tx, document.features, on_progress or (lambda n: None))
        for video in document.videos():
            writer.add(video)
        writer.flush()
        if own_splits:
            tx.keep_own_splits()
        tx.metadata["import"] = {
            "file": Path(source).resolve().name,
            "videos": writer.n_videos,
            "frames": writer.n_frames,
        }
    assert tx.snapshot is not None
    return ImportReport(
        store.location,
        tx.snapshot,
        tuple(feature.spec.name for feature in document.features),
        writer.n_videos,
        writer.n_frames,
        writer.n_failed,
        (*document.notes, *writer.notes),
    )


class _ImportWriter:
    """Gathers videos and writes many of them at once."""

    def __init__(
        self, tx: Transaction, features: Sequence[ImportedFeature], on_progress: OnProgress
    ) -> None:
        self._tx, self._on_progress = tx, on_progress
        self._specs = {feature.spec.name: feature.spec for feature in features}
        self._index = tx.read_index()
        self._seen: set[str] = set()
        self._waiting: list[ImportedVideo] = []
        self._bytes = 0
        self._unstored: dict[str, list[str]] = {}
        self.n_videos = self.n_frames = self.n_failed = 0

    def add(self, video: ImportedVideo) -> None:
        """Take a video; it is written now or later."""
        record = video.record
        if record.id in self._seen:
            raise InvalidError(
                f"video {record.id!r} is in the file twice; give each a name of its own"
            )
        self._seen.add(record.id)
        rows = {name: self._checked(video, name, rows) for name, rows in video.rows.items()}
        video = replace(video, rows=rows)
        self.n_videos += 1
        self.n_frames += record.n_frames
        self.n_failed += len({frame for failed in video.failed_frames.values() for frame in failed})
        if record.id in self._index:
            self._complete(video)
            return
        self._waiting.append(video)
        # Paths count too: a file may hold nothing else.
        self._bytes += (
            sum(rows.values.nbytes for rows in rows.values())
            + sum(map(len, record.frame_paths))
            + 1
        )
        if self._bytes >= _BLOCK_BYTES:
            self.flush()

    def _checked(self, video: ImportedVideo, name: str, rows: FeatureRows) -> FeatureRows:
        """Return a video's rows as a store may hold them; an error names the video."""
        spec, video_id = self._specs[name], video.record.id
        wanted = video.record.n_frames if spec.axis == "frame" else 1
        if (n_rows := rows.n_given(spec)) != wanted:
            raise InvalidError(f"video {video_id!r}: {n_rows} rows of {name!r} for {wanted}")
        done = np.ones(wanted, dtype=np.bool_)
        done[list(video.failed_frames.get(name, {}))] = False
        try:
            return rows.check(spec, done)
        except InvalidError as error:
            raise InvalidError(f"video {video_id!r}: {error}; nothing was imported") from None

    def flush(self) -> None:
        """Write all videos that wait."""
        videos, self._waiting, self._bytes = self._waiting, [], 0
        if not videos:
            return
        before = self._tx.read_index()
        first_video, first_frame = len(before), before.total_frames
        self._tx.add_videos([video.record for video in videos])
        for name, spec in self._specs.items():
            found = [_rows_of(video, spec) for video in videos]
            first = first_frame if spec.axis == "frame" else first_video
            self._tx.write_rows(
                name,
                first,
                FeatureRows.concatenate([rows for rows, _, _ in found]),
                np.concatenate([status for _, status, _ in found]),
            )
            failures = {
                first_video + n: failed
                for n, (_, _, failed) in enumerate(found)
                if failed is not None
            }
            self._tx.set_states(name, failures)
        self._on_progress(sum(video.record.n_frames for video in videos))

    def _complete(self, video: ImportedVideo) -> None:
        """Write features of a video that the store holds already."""
        record = video.record
        position = self._index.position(record.id)
        order = self._stored_order(record, position)
        self._tell_unstored(record, position)
        for name in dict.fromkeys((*video.rows, *video.failed)):
            if self._tx.read_states(name)[position] != State.PENDING:
                raise ExistsError(
                    f"video {record.id!r} has {name!r} in the store already; "
                    "import into a new store, then kpstore merge"
                )
            if name in video.failed:
                self._fail(name, video)
            elif self._specs[name].axis == "frame":
                rows = video.rows[name]
                moved = FeatureRows(
                    rows.values[order],
                    {key: array[order] for key, array in rows.companions.items()},
                )
                place = {int(frame): new for new, frame in enumerate(order.tolist())}
                failed = {
                    place[frame]: reason
                    for frame, reason in video.failed_frames.get(name, {}).items()
                }
                self._tx.write(name, record.id, moved, failed_frames=failed)
            else:
                self._tx.write_video_feature(name, record.id, video.rows[name])
        self._on_progress(record.n_frames)

    def _stored_order(self, record: VideoRecord, position: int) -> NDArray[np.int64]:
        """Return which of the file's frames is which of the store's, by their paths.

        ``ID#7`` is frame 7 by number.
        """
        rows = self._index.rows(position)
        if rows.stop - rows.start != record.n_frames:
            raise InvalidError(
                f"video {record.id!r} has {rows.stop - rows.start} frames in the store and "
                f"{record.n_frames} in the file; import into a new store"
            )
        stored = self._tx.session.read(fmt.IMAGE_PATH, rows.start, rows.stop).tolist()
        given = list(record.frame_paths)
        by_number = np.arange(record.n_frames)
        if given == stored or is_numbered(given) or is_numbered(stored):
            return by_number
        for shorten in (str, lambda path: path.replace("\\", "/").rpartition("/")[2]):
            here, there = [shorten(path) for path in stored], [shorten(path) for path in given]
            if len(set(there)) == len(there) and set(here) == set(there):
                place = {path: number for number, path in enumerate(there)}
                return np.array([place[path] for path in here], dtype=np.int64)
        odd = next(n for n in range(len(given)) if given[n] != stored[n])
        raise InvalidError(
            f"video {record.id!r} has other frames in the store ({stored[odd]}) than in the file "
            f"({given[odd]}); import into a new store"
        )

    def _tell_unstored(self, record: VideoRecord, position: int) -> None:
        """Note what the file says of a video that the store holds already, and says otherwise or not at all."""
        known = {"split": (str(self._index.splits[position]), record.split)}
        names = set(self._tx.session.names())
        for name, text in record.annotations.items():
            there = self._tx.session.read(name, position, position + 1)[0] if name in names else ""
            known[name] = (str(there), text)
        for name, (stored, given) in known.items():
            if given and given != stored:
                self._unstored.setdefault(name, []).append(record.id)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the file was not stored, a line each."""
        return tuple(
            f"{name} of {len(ids)} videos that were in the store already, {ids[0]!r} the first: "
            "the store keeps its own"
            for name, ids in self._unstored.items()
        )

    def _fail(self, name: str, video: ImportedVideo) -> None:
        if self._specs[name].axis == "frame":
            self._tx.fail(name, video.record.id, video.failed[name])
        else:
            self._tx.set_states(
                name, {self._index.position(video.record.id): Failures(video.failed[name])}
            )


def is_numbered(paths: Sequence[str]) -> bool:
    """Whether frames of a video have no paths of their own: they are called ``ID#0``, ``ID#1`` and so on."""
    return all(path.endswith(f"#{n}") for n, path in enumerate(paths))


def _rows_of(
    video: ImportedVideo, spec: FeatureSpec
) -> tuple[FeatureRows, NDArray[np.uint8], Failures | None]:
    """Return a video's rows of a feature, their states, and its failures.

    None if it stays pending.
    """
    n_rows = video.record.n_frames if spec.axis == "frame" else 1
    if spec.name in video.failed:
        state, failures = State.FAILED, Failures(video.failed[spec.name])
    elif spec.name in video.rows:
        state, failures = State.DONE, Failures(frames=video.failed_frames.get(spec.name, {}))
    else:
        return spec.empty_rows(n_rows), np.full(n_rows, State.PENDING, dtype=np.uint8), None
    status = np.full(n_rows, state, dtype=np.uint8)
    status[list(video.failed_frames.get(spec.name, {}))] = State.FAILED
    return video.rows.get(spec.name, spec.empty_rows(n_rows)), status, failures


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BaseStore]:
    """Open a store, or anything that can be imported: that is then a store for as long as the block runs.

    The store of a foreign file lies in the system's folder for temporary files (``$TMPDIR``).
    """
    location = os.fspath(path)
    if backend_for(location).exists():
        yield BaseStore.open(location)
        return
    with tempfile.TemporaryDirectory(prefix="kpstore-") as folder:
        found = find_format(Path(location))
        report = import_file(location, Path(folder) / "imported.kps", found.name)
        yield BaseStore.open(report.location)
