"""The contract of a foreign format: what an importer gives, and what an exporter tells.

A format is one object of :class:`Format`, found by name in the group ``kpstore.formats`` (entry
points, or :func:`kpstore.plugins.register`). Its importer and exporter are dataclasses. Their
fields, annotated as :class:`kpstore.options.Option`, are their options; the command line makes its
own from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance
from kpstore.schema.index import VideoRecord
from kpstore.store.store import BaseStore

OnProgress = Callable[[int], None]
"""Told of frames (or of rows, where a file has no frames) each time some more are done."""


@dataclass(frozen=True)
class ImportedFeature:
    """A feature that a file holds.

    ``provenance`` says how its values were made, as far as the file knows; see :func:`imported`.
    """

    spec: FeatureSpec
    provenance: Provenance


def imported(
    format_name: str, document: Mapping[str, Any] | None = None, **known: Any
) -> dict[str, Any]:
    """Return the provenance of a feature that comes from a file.

    Parameters
    ----------
    document : what else the file holds and an export should give back (JSON). It does not make two
        features different: files of one extraction in several parts go into one store.
    known : what the file says of how the values were made, e.g. ``model="dinov2_vitb14"``.
    """
    return {
        "extractor": "imported",
        "format": format_name,
        **known,
        "document": dict(document or {}),
    }


@dataclass(frozen=True)
class ImportedVideo:
    """One video of a file.

    Parameters
    ----------
    record : the video.
    rows : by feature; (frames, …) for a feature of frames, one row for a feature of videos. A
        feature that is not here stays pending.
    failed_frames : by feature, what failed: reason by frame number.
    failed : by feature, why the whole video failed; such a feature has no rows.
    """

    record: VideoRecord
    rows: Mapping[str, FeatureRows] = field(default_factory=dict)
    failed_frames: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


class Document(Protocol):
    """A foreign file (or folder of files), opened by an importer that has checked what can be checked at once."""

    @property
    def name(self) -> str:
        """Name of the data set, for a new store."""

    @property
    def features(self) -> Sequence[ImportedFeature]:
        """What the file holds."""

    @property
    def n_frames(self) -> int | None:
        """Frames in all, for the progress bar; None where nobody knows before the end."""

    @property
    def notes(self) -> Sequence[str]:
        """What cannot be carried over, a line each; complete when all videos were read."""

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the file from its beginning, a video at a time, so that memory does not grow with the file.

        Raises
        ------
        InvalidError
            If the file breaks its own rules; the message names the file, the place in it, what was
            expected and what was found. Nothing of the file is then stored.
        """


class Importer(Protocol):
    """Options for reading one format."""

    def open(self, path: Path) -> Document:
        """Open a file or a folder.

        Raises
        ------
        NotFoundError
            If there is nothing at ``path``.
        InvalidError
            If it is not of this format.
        """


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Parameters
    ----------
    path : where.
    frames, videos : what it holds.
    split : if it holds one.
    left_out : frames left out, by reason: ``"failed"``, ``"pending"``, ``"empty"``.
    """

    path: Path
    frames: int
    videos: int
    split: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {**vars(self), "path": str(self.path), "left_out": dict(self.left_out)}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Parameters
    ----------
    files : one or more.
    notes : what of the store could not be carried over, a line each.
    """

    files: Sequence[ExportedFile]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {"files": [file.to_json() for file in self.files], "notes": list(self.notes)}


class Exporter(Protocol):
    """Options for writing one format."""

    def export(
        self,
        store: BaseStore,
        path: Path,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ExportReport:
        """Write a file or the files of a folder: aside, then renamed, so that a kill leaves no half of one.

        Raises
        ------
        ExistsError
            If something is there already, without ``overwrite``; nothing is written then.
        NotFoundError
            If the store does not hold what is asked for.
        InvalidError
            If a name in the store would lead out of ``path``, or cannot be part of a file's name.
        """


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Parameters
    ----------
    name : as users type it.
    summary : one line for ``--help``.
    importer, exporter : classes of options; None where there is no such way.
    recognises : whether a file or folder is of this format, by its name and its first bytes; must
        be quick, and must not raise.
    target : what an export writes.
    examples : for ``--help``, without the program's name: ``"import pickle phoenix.pkl
        phoenix.kps"``.
    """

    name: str
    summary: str
    importer: Callable[..., Importer] | None = None
    exporter: Callable[..., Exporter] | None = None
    recognises: Callable[[Path], bool] = lambda path: False
    target: Literal["file", "folder"] = "file"
    examples: tuple[str, ...] = ()
