"""The contract of a foreign format: what an importer returns, and what an exporter reports.

A format is one object of :class:`Format`, found by name in the group ``kpstore.formats`` (entry
points, or :func:`kpstore.plugins.register`). Its importer and exporter are dataclasses. Their
fields, annotated with :class:`kpstore.options.Option`, are their options, and become those of the
command line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol, get_args, get_origin, get_type_hints

from kpstore.budget import parse_size
from kpstore.options import Option, check_choice
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance
from kpstore.schema.index import VideoRecord
from kpstore.store.store import BaseStore

OnProgress = Callable[[int], None]
"""Called with the number of frames just done (rows, where a file has no frames)."""

Splits = Annotated[
    Sequence[str] | None,
    Option("Only these, as `train dev` or `train,dev`; all by default.", metavar="SPLIT..."),
]
"""The option ``splits`` of an exporter."""


@dataclass(frozen=True)
class ImportedFeature:
    """A feature that a file holds.

    ``provenance`` says how its values were made, as far as the file says; see :func:`imported`.
    """

    spec: FeatureSpec
    provenance: Provenance


def imported(
    format_name: str, document: Mapping[str, object] | None = None, **known: object
) -> dict[str, object]:
    """Return the provenance of a feature that comes from a file.

    Parameters
    ----------
    document : other contents of the file that an export should restore (JSON). Features that differ
        only in these count as the same, so that the parts of one extraction fit into one store.
    known : what the file says about how the values were made, e.g. ``model="dinov2_vitb14"``.
    """
    return {
        "extractor": "imported",
        "format": format_name,
        **known,
        "document": dict(document or {}),
    }


def rows_spec(
    name: str, shape: tuple[int, ...], dtype: str, *, description: str = ""
) -> FeatureSpec:
    """Return a feature of which only the shape and dtype of its rows are known."""
    dims = tuple(f"{name}_dim_{axis}" for axis in range(len(shape)))
    plain = (f"{name}_dim",) if len(shape) == 1 else dims
    return FeatureSpec(name, shape, plain, dtype, description=description)


@dataclass(frozen=True)
class ImportedVideo:
    """One video of a file.

    Parameters
    ----------
    record : the video.
    rows : rows by feature; (frames, …) for a feature of frames, one row for a feature of videos. A
        feature without rows stays pending.
    failed_frames : for each feature, the reason for each failed frame, by frame number.
    failed : for each feature, why the whole video failed; such a feature has no rows.
    """

    record: VideoRecord
    rows: Mapping[str, FeatureRows] = field(default_factory=dict)
    failed_frames: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


class Document(Protocol):
    """A foreign file or folder, opened and checked by an importer as far as one look allows."""

    @property
    def name(self) -> str:
        """Name of the data set, for a new store."""

    @property
    def features(self) -> Sequence[ImportedFeature]:
        """Features that the file holds."""

    @property
    def n_frames(self) -> int | None:
        """Total number of frames, for the progress bar; None if unknown before the end."""

    @property
    def notes(self) -> Sequence[str]:
        """What cannot be carried over, one line each; complete once all videos have been read."""

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the file from its beginning, one video at a time.

        Memory does not grow with the file. Each call reads the same videos and leaves the same
        notes.

        Raises
        ------
        InvalidError
            If the file breaks the rules of its format; the message names the file, the place in it,
            what was expected and what was found. Nothing of the file is stored then.
        """


class NotedDocument:
    """Base class of documents that note what they cannot carry over.

    Subclasses read their videos in ``_read``. Notes made there replace those of an earlier reading;
    notes made while the document is opened stay.
    """

    n_frames: int | None = None

    def __init__(self) -> None:
        self._of_opening: list[str] | None = None
        self._lines: list[str] = []
        self._counts: Counter[str] = Counter()

    def note(self, *lines: str) -> None:
        """Add lines to the notes."""
        self._lines += lines

    def count(self, what: str, n: int = 1) -> None:
        """Count something that gets a single note, such as ``"3 paths had backslashes"``."""
        self._counts[what] += n

    @property
    def notes(self) -> list[str]:
        """What cannot be carried over, one line each; complete once all videos have been read."""
        counted = [f"{n} {what}" for what, n in self._counts.items() if n]
        return [*(self._of_opening or ()), *counted, *self._lines]

    def videos(self) -> Iterator[ImportedVideo]:
        """Read all videos; see :meth:`Document.videos`."""
        if self._of_opening is None:
            self._of_opening = self.notes
        self._lines, self._counts = [], Counter()
        yield from self._read()

    def _read(self) -> Iterator[ImportedVideo]:
        raise NotImplementedError


class Options:
    """Base class of options: refuses a word that its field's type does not list."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            known = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
            if known and getattr(self, name) is not None:
                check_choice(name, getattr(self, name), get_args(known[0]))


@dataclass(frozen=True)
class FileImporter(Options):
    """Base class of kpstore's own importers.

    Parameters
    ----------
    max_memory : what reading a file may take: bytes, or text such as ``"8GiB"``; by default ten
        times the file and 256 MiB, which is enough but for what is packed very well.
    """

    max_memory: Annotated[
        str | int | None,
        Option(
            "Memory that reading may take, such as 8GiB; by default ten times the file and 256 "
            "MiB, as a file may be made to fill it.",
            metavar="SIZE",
            kind=str | None,
        ),
    ] = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_memory is not None:
            object.__setattr__(self, "max_memory", parse_size(self.max_memory))

    @property
    def most_bytes(self) -> int | None:
        """What the user allows, in bytes; None for what any file may take."""
        return None if self.max_memory is None else parse_size(self.max_memory)


class Importer(Protocol):
    """Options for reading one format."""

    def open(self, path: Path) -> Document:
        """Open a file or a folder.

        Raises
        ------
        NotFoundError
            If there is nothing at ``path``.
        InvalidError
            If it is of another format.
        """


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Parameters
    ----------
    path : where the file is.
    frames, videos : how many it holds.
    split : the split that it holds, if it holds just one.
    left_out : number of frames left out, by reason: ``"failed"``, ``"pending"``, ``"empty"``.
    """

    path: Path
    frames: int
    videos: int
    split: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {**vars(self), "path": str(self.path), "left_out": dict(self.left_out)}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Parameters
    ----------
    files : one or more.
    notes : what of the store could not be carried over, one line each.
    """

    files: Sequence[ExportedFile]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
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
        """Write a file, or the files of a folder.

        Files are written under another name and then renamed, so that none is left half written.

        Raises
        ------
        ExistsError
            If a file exists already and ``overwrite`` is false; nothing is written then.
        NotFoundError
            If the store does not hold what was asked for.
        InvalidError
            If a name in the store would lead out of ``path``, or cannot be part of a file name.
        """


class FileExporter(Options, ABC):
    """Base class of kpstore's own exporters; subclasses write their files in ``_write``."""

    def export(
        self,
        store: BaseStore,
        path: Path,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ExportReport:
        """Write the file or the files; see :meth:`Exporter.export`."""
        return self._write(store, path, overwrite, on_progress or (lambda n: None))

    @abstractmethod
    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport: ...


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Parameters
    ----------
    name : name as users type it.
    summary : one line for ``--help``.
    importer, exporter : classes of options; None where the format works in one direction only.
    recognises : whether a file or folder is of this format, judged by its name and first bytes;
        must be quick, and must not raise.
    examples : examples for ``--help``, without the program's name: ``"import pickle phoenix.pkl
        phoenix.kps"``.
    """

    name: str
    summary: str
    importer: Callable[..., Importer] | None = None
    exporter: Callable[..., Exporter] | None = None
    recognises: Callable[[Path], bool] = lambda path: False
    examples: tuple[str, ...] = ()
