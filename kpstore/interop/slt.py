"""The files that sign language translation code reads: gzip, pickle, a list of {name, signer, gloss, text, sign}.

The layout is that of ``phoenix14t.pami0.{train,dev,test}`` of neccam/slt and what grew from it. Nothing of a pickle is
ever run: it is read by a machine of our own that knows lists, dicts, text, numbers, arrays and tensors, and no more.
"""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError, one_line
from kpstore.interop.base import (
    ExportedFile,
    ExportReport,
    Format,
    ImportedFeature,
    ImportedVideo,
    OnProgress,
    imported,
)
from kpstore.interop.files import check_free, inside, written_aside
from kpstore.interop.pickle_stream import UNREADABLE, BoundedFile, DataMachine, Tensor, fetched
from kpstore.interop.splits import UNSPLIT, check_unsplit, split_rank
from kpstore.options import Option
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.store import format as fmt
from kpstore.store.store import Store, Video

Missing = Literal["zeros", "nan"]
Names = Literal["auto", "split/id", "id"]
Arrays = Literal["auto", "torch", "numpy"]

_GZIP = b"\x1f\x8b"
_NO_SPLIT = frozenset({"", "gz", "pkl", "pickle", "gzip"})
_COLUMNS = {"gloss": ("gloss", "orth"), "text": ("text", "translation"), "signer": ("speaker", "signer")}
"""Where an export looks for what each key holds."""

# -- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file that was looked through once: which of its parts are used again, and its first entry."""

    path: Path
    split: str
    keep: set[int]
    first: Mapping[str, Any] | None

    def entries(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the entries with their numbers, from 0."""
        try:
            with _unpacked(self.path) as file:
                for number, entry in enumerate(DataMachine(file, self.keep).items()):
                    yield number, _check_entry(entry, self.path, number)
        except UNREADABLE as error:
            raise _unreadable(self.path, error) from None


def _unpacked(path: Path) -> BoundedFile:
    return BoundedFile(cast("IO[bytes]", gzip.open(path, "rb")))


def _unreadable(path: Path, error: BaseException) -> Exception:
    if isinstance(error, InvalidError):
        return error
    return InvalidError(
        f"{path}: it is no gzip file of a pickled list of {{name, signer, gloss, text, sign}}, or only a part of one "
        f"({one_line(error)})"
    )


def _look(path: Path, split: str | None) -> _File:
    ending = path.suffix.removeprefix(".")
    split = ("" if ending.lower() in _NO_SPLIT else ending) if split is None else split
    try:
        with _unpacked(path) as file:
            keep = fetched(file)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    first = next((entry for _, entry in _File(path, split, keep, None).entries()), None)
    return _File(path, split, keep, first)


def _check_entry(entry: Any, path: Path, number: int) -> Mapping[str, Any]:
    where = f"{path}, entry {number}"
    if not isinstance(entry, dict):
        raise InvalidError(f"{where}: a {type(entry).__name__}, not a dict of name, signer, gloss, text and sign")
    name, sign = entry.get("name"), entry.get("sign")
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{where}: name is {repr(name)[:100]}; it needs a text")
    if not isinstance(sign, np.ndarray) or sign.ndim < 1 or sign.dtype.kind not in "fiub":
        found = f"{sign.dtype} {sign.shape}" if isinstance(sign, np.ndarray) else type(sign).__name__
        raise InvalidError(f"{where} ({name[:100]!r}): sign is {found}; it needs an array or tensor (frames, numbers)")
    for key in ("signer", "gloss", "text"):
        if not isinstance(entry.get(key), str | None):
            raise InvalidError(f"{where} ({name[:100]!r}): {key} is a {type(entry[key]).__name__}; it needs a text")
    return entry


@dataclass(frozen=True)
class SltImport:
    """Reads one file, or all files of a folder; each entry is a video, and ``sign`` its feature.

    The split is the file's ending (``phoenix14t.pami0.train``) unless that is ``gz`` or ``pkl``. A name that
    starts with it (``train/11August…``) gives the id without it, as a PHOENIX-2014-T store has it. ``signer`` becomes
    the column ``speaker``.

    Parameters
    ----------
    feature : what the feature is called.
    split : of all videos, whatever the files end in.
    names : ``"whole"`` keeps the split in the ids, for data whose splits share names.
    """

    feature: Annotated[str, Option("What the feature is called.", metavar="NAME")] = "sign"
    split: Annotated[str | None, Option("Of all videos; the file's ending by default.")] = None
    names: Annotated[Literal["auto", "whole"], Option("Names without their split, or whole, as ids.")] = "auto"

    def open(self, path: Path) -> SltDocument:
        """Look through the files once; see :class:`kpstore.interop.base.Importer`."""
        if not path.exists():
            raise NotFoundError(f"no file of entries, nor a folder of them, at {path}: it does not exist")
        # Names that begin with a dot are other systems' notes, or what a killed export left.
        inside_it = (p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else ()
        paths = sorted(p for p in inside_it if _recognises(p)) if path.is_dir() else [path]
        if not paths:
            raise NotFoundError(f"no gzip pickle in {path}")
        files = sorted((_look(p, self.split) for p in paths), key=lambda f: (split_rank(f.split), f.path))
        return SltDocument(self, path, files)


class SltDocument:
    """Files of one kind of entries; see :class:`kpstore.interop.base.Document`."""

    n_frames = None

    def __init__(self, options: SltImport, path: Path, files: Sequence[_File]) -> None:
        self._files = files
        first = next((file for file in files if file.first is not None), None)
        if first is None or first.first is None:
            raise InvalidError(f"{path} holds no entries")
        self.name = path.name if path.is_dir() else path.name.removesuffix(f".{first.split}")
        entry = first.first
        sign = entry["sign"]
        self._keys = sorted(entry)
        self._texts = [key for key in self._keys if isinstance(entry[key], str | None) and key != "name"]
        self._columns = {key: "speaker" if key == "signer" and "speaker" not in entry else key for key in self._texts}
        self._prefixed = options.names == "auto" and bool(first.split) and entry["name"].startswith(f"{first.split}/")
        self._spec = _sign_spec(options.feature, sign)
        others = [key for key in self._keys if key not in (*self._texts, "name", "sign")]
        self.notes = [f"{key!r} of every entry: {type(entry[key]).__name__}, not a text" for key in others]
        document = {
            "columns": self._columns,
            "prefixed": self._prefixed,
            "arrays": "torch" if isinstance(sign, Tensor) else "numpy",
        }
        self.features = (ImportedFeature(self._spec, imported("slt", document)),)

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the files entry by entry."""
        odd: Counter[str] = Counter()
        for file in self._files:
            for number, entry in file.entries():
                yield self._video(file, number, entry, odd)
        self.notes += [f"{count} {what}" for what, count in odd.items()]

    def _video(self, file: _File, number: int, entry: Mapping[str, Any], odd: Counter[str]) -> ImportedVideo:
        where = f"{file.path}, entry {number} ({entry['name']!r})"
        sign = entry["sign"]
        if sorted(entry) != self._keys:
            raise InvalidError(f"{where} has {sorted(entry)}, but the first entry has {self._keys}")
        if sign.shape[1:] != self._spec.shape or sign.dtype.name != self._spec.dtype:
            wanted = f"{self._spec.dtype} (frames, {', '.join(map(str, self._spec.shape))})"
            raise InvalidError(f"{where}: sign is {sign.dtype} {sign.shape}, but the first entry's is {wanted}")
        prefix = f"{file.split}/"
        video_id = entry["name"]
        if self._prefixed and len(video_id) > len(prefix) and video_id.startswith(prefix):
            video_id = video_id[len(prefix) :]
        elif self._prefixed:
            odd[f"names do not start with {prefix!r}, as others do; an export puts it there"] += 1
        texts = {column: self._text(entry, key, where, odd) for key, column in self._columns.items()}
        paths = tuple(f"{video_id}#{frame}" for frame in range(len(sign)))
        record = VideoRecord(video_id, file.split, paths, annotations=texts)
        rows = FeatureRows(np.ascontiguousarray(np.asarray(sign, dtype=self._spec.dtype)).reshape(sign.shape))
        return ImportedVideo(record, {self._spec.name: rows})

    @staticmethod
    def _text(entry: Mapping[str, Any], key: str, where: str, odd: Counter[str]) -> str:
        text = entry[key]
        if text is None:
            odd[f"entries have no {key} (None); an export has an empty one"] += 1
            return ""
        if not isinstance(text, str):
            raise InvalidError(f"{where}: {key} is a {type(text).__name__}, but the first entry's is a text")
        return text


def _sign_spec(name: str, sign: NDArray[Any]) -> FeatureSpec:
    shape = sign.shape[1:]
    dims = (f"{name}_dim",) if len(shape) == 1 else tuple(f"{name}_dim_{axis}" for axis in range(len(shape)))
    return FeatureSpec(name, shape, dims, sign.dtype.name, description="features of sign language translation")


# -- writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SltExport:
    """Writes one file per split into a folder, ``NAME.SPLIT``: a gzip pickle of a list of dicts.

    ``sign`` is a torch tensor (frames, numbers): each frame's feature in one row. What was not detected is zeros, and
    so are frames that failed: every video keeps its length. Videos whose feature is pending are left out.

    Parameters
    ----------
    feature : any feature of frames; by default one that was imported from such files, else ``keypoints``.
    name : of the files; the store's by default.
    splits : only these; videos without a split go to ``NAME.all``.
    gloss_column, text_column, signer_column : annotations; by default ``gloss`` (or ``orth``), ``text`` (or
        ``translation``), ``speaker`` (or ``signer``); ``""`` where there is none.
    names : ``"split/id"``, as in the files for PHOENIX-2014-T, or ``"id"``; ``"auto"`` as it was imported.
    arrays : ``"torch"`` tensors or ``"numpy"`` arrays; ``"auto"`` as it was imported, else tensors.
    missing : ``"nan"`` keeps NaN. In features that came from such files NaN is always kept.
    """

    feature: Annotated[str, Option("Which feature; what was imported from slt files, or `keypoints`, by default.")] = ""
    name: Annotated[str, Option("Name of the files; the store's by default.")] = ""
    splits: Annotated[Sequence[str] | None, Option("Only these; all by default.", metavar="SPLIT...")] = None
    gloss_column: Annotated[str, Option("Column with the glosses; gloss or orth by default.")] = ""
    text_column: Annotated[str, Option("Column with the text; text or translation by default.")] = ""
    signer_column: Annotated[str, Option("Column with the signer; speaker or signer by default.")] = ""
    names: Annotated[Names, Option("How videos are named; auto is as imported, else split/id.")] = "auto"
    arrays: Annotated[Arrays, Option("What sign is; auto is as imported, else torch.")] = "auto"
    missing: Annotated[Missing, Option("What a part that was not detected becomes.")] = "zeros"

    def __post_init__(self) -> None:
        for name, known in (("names", Names), ("arrays", Arrays), ("missing", Missing)):
            if getattr(self, name) not in get_args(known):
                raise InvalidError(f"{name}={getattr(self, name)!r}: use {' or '.join(map(repr, get_args(known)))}")

    def export(
        self, store: Store, path: Path, *, overwrite: bool = False, on_progress: OnProgress | None = None
    ) -> ExportReport:
        """Write the files into the folder ``path``; see :class:`kpstore.interop.base.Exporter`."""
        writer = _Writer(store, self, on_progress or (lambda n: None))
        wanted = store.splits if self.splits is None else list(dict.fromkeys(self.splits))
        store.index.select(split=wanted)
        paths = {split: _file(path, self.name or store.name, split) for split in wanted}
        check_unsplit(wanted)
        check_free(paths.values(), overwrite=overwrite)
        with written_aside(*paths.values()) as asides:
            files = [writer.write(*given) for given in zip(paths, asides, paths.values(), strict=True)]
        return ExportReport(files, writer.notes())


def _file(folder: Path, name: str, split: str) -> Path:
    full = f"{name}.{split or UNSPLIT}"
    if "/" in full or not name or name.startswith("."):
        raise InvalidError(f"{full!r} cannot be a file's name; choose the first part with --name, splits with --splits")
    return inside(folder, full)


class _Writer:
    """Writes the files of a store, a video at a time."""

    def __init__(self, store: Store, options: SltExport, report: OnProgress) -> None:
        self._store, self._report = store, report
        found = [name for name in store.features if store.provenance(name).get("format") == "slt"]
        if not options.feature and len(found) > 1:
            raise InvalidError(f"features {' and '.join(found)} came from slt files; choose one with --feature")
        self._name = options.feature or (found[0] if found else "keypoints")
        self._spec = store.feature(self._name)
        if self._spec.axis != "frame":
            raise InvalidError(f"feature {self._name!r} belongs to videos; slt files hold features of frames")
        provenance = store.provenance(self._name)
        self._imported = provenance.get("format") == "slt"
        document = provenance.get("document", {}) if self._imported else {}
        self._columns = _columns(store, options, document.get("columns"))
        self._prefixed = options.names == "split/id" or (options.names == "auto" and document.get("prefixed", True))
        self._zeros = options.missing == "zeros" and not self._imported
        arrays = document.get("arrays", "torch") if options.arrays == "auto" else options.arrays
        self._make = _to_tensor() if arrays == "torch" else np.ascontiguousarray
        self._texts = {c: np.asarray(store[c]) for c in dict.fromkeys(self._columns.values()) if c and len(store.index)}
        self._failed = 0

    def notes(self) -> list[str]:
        """Return what could not be carried over."""
        notes = [
            f"{key}: the store has no such text; it is empty" for key, column in self._columns.items() if not column
        ]
        if self._failed:
            notes.append(f"{self._failed} frames failed or are pending: they are written as missing")
        return notes

    def write(self, split: str, aside: Path, path: Path) -> ExportedFile:
        """Write one file."""
        videos = frames = pending = 0
        with aside.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            # A list that grows item by item, each a pickle of its own without head and end: memory holds one at a time.
            packed.write(b"\x80\x03]")
            for position in self._store.index.select(split=split).tolist():
                video = Video(self._store, position)
                if video.state(self._name) == State.PENDING:
                    pending += video.n_frames
                    continue
                packed.write(pickle.dumps(self._entry(video), protocol=3)[2:-1] + b"a")
                videos, frames = videos + 1, frames + video.n_frames
                self._report(video.n_frames)
            packed.write(b".")
        return ExportedFile(path, frames, videos, split, {"pending": pending})

    def _entry(self, video: Video) -> dict[str, Any]:
        name = f"{video.split}/{video.id}" if self._prefixed and video.split else video.id
        texts = {key: str(self._texts[c][video.position]) if c else "" for key, c in self._columns.items()}
        return {"name": name, **texts, "sign": self._make(self._sign(video))}

    def _sign(self, video: Video) -> NDArray[Any]:
        values = video[self._name]
        self._failed += int((video[fmt.status_name(self._name)] != State.DONE).sum())
        if self._zeros and values.dtype.kind == "f":
            values[np.isnan(values)] = 0
        return values if self._imported else values.reshape(len(values), math.prod(self._spec.shape))


def _columns(store: Store, options: SltExport, stored: Mapping[str, str] | None) -> dict[str, str]:
    """Return the annotation behind each key; ``""`` where there is none."""
    there = store.annotation_names
    columns = {key: column for key, column in (stored or {}).items() if column in there}
    for key in ("signer", "gloss", "text"):
        asked = getattr(options, f"{key}_column")
        if asked and asked not in there:
            raise NotFoundError(f"annotation {asked!r} not found; this store has {there or 'none'}")
        default = columns.get(key, next((c for c in _COLUMNS[key] if c in there), ""))
        if asked or stored is None:
            columns[key] = asked or default
    return columns


def _to_tensor() -> Callable[[NDArray[Any]], Any]:
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtraError("writing tensors (--arrays numpy writes arrays)", extra="torch") from None
    return lambda values: torch.from_numpy(np.ascontiguousarray(values))


def _recognises(path: Path) -> bool:
    """Whether a file is gzip, and holds a pickled list of dicts with a name."""
    try:
        if path.is_dir():
            return any(_recognises(p) for p in sorted(path.iterdir())[:20] if p.is_file())
        with path.open("rb") as file:
            if file.read(2) != _GZIP:
                return False
        with gzip.open(path, "rb") as packed:
            start = packed.read(200)
        # A list and no dict around it: an empty list comes right after the head.
        listed = start[:2] == b"(l" or (start[:1] in (b"\x80", b"]") and b"]" in start[:15])
        return listed and (start[-1:] == b"." or any(key in start for key in (b"name", b"sign", b"gloss", b"text")))
    except (OSError, EOFError, zlib.error):
        return False


SLT = Format(
    "slt",
    "Files of sign language translation: gzip, a pickled list of {name, signer, gloss, text, sign}.",
    importer=SltImport,
    exporter=SltExport,
    recognises=_recognises,
    target="folder",
    examples=(
        "import slt phoenix14t.pami0.train phoenix.kps",
        "export slt phoenix.kps OUT --name phoenix14t.keypoints",
        "export slt phoenix.kps OUT --feature dinov2 --splits dev test",
    ),
)
