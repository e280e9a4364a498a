"""The files that sign language translation code reads: gzip, pickle, a list of {name, signer, gloss, text, sign}.

The layout is that of ``phoenix14t.pami0.{train,dev,test}`` of neccam/slt and what grew from it.
Nothing of a pickle is ever run: it is read by a machine of our own that knows lists, dicts, text,
numbers, arrays and tensors, and no more.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError, one_line
from kpstore.interop.base import (
    ImportedFeature,
    ImportedVideo,
    imported,
)
from kpstore.interop.pickle_stream import UNREADABLE, BoundedFile, DataMachine, Tensor, fetched
from kpstore.interop.splits import split_rank
from kpstore.options import Option
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord

Missing = Literal["zeros", "nan"]
Names = Literal["auto", "split/id", "id"]
Arrays = Literal["auto", "torch", "numpy"]
_GZIP = b"\x1f\x8b"
_NO_SPLIT = frozenset({"", "gz", "pkl", "pickle", "gzip"})
COLUMNS = {
    "gloss": ("gloss", "orth"),
    "text": ("text", "translation"),
    "signer": ("speaker", "signer"),
}
"""Where an export looks for what each key holds."""


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
        f"{path}: it is no gzip file of a pickled list of {{name, signer, gloss, text, sign}}, or "
        f"only a part of one ({one_line(error)})"
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
        raise InvalidError(
            f"{where}: a {type(entry).__name__}, not a dict of name, signer, gloss, text and sign"
        )
    name, sign = entry.get("name"), entry.get("sign")
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{where}: name is {repr(name)[:100]}; it needs a text")
    if not isinstance(sign, np.ndarray) or sign.ndim < 1 or sign.dtype.kind not in "fiub":
        found = (
            f"{sign.dtype} {sign.shape}" if isinstance(sign, np.ndarray) else type(sign).__name__
        )
        raise InvalidError(
            f"{where} ({name[:100]!r}): sign is {found}; it needs an array or tensor (frames, "
            "numbers)"
        )
    for key in ("signer", "gloss", "text"):
        if not isinstance(entry.get(key), str | None):
            raise InvalidError(
                f"{where} ({name[:100]!r}): {key} is a {type(entry[key]).__name__}; it needs a text"
            )
    return entry


@dataclass(frozen=True)
class SltImport:
    """Reads one file, or all files of a folder; each entry is a video, and ``sign`` its feature.

    The split is the file's ending (``phoenix14t.pami0.train``) unless that is ``gz`` or ``pkl``. A
    name that starts with it (``train/11August…``) gives the id without it, as a PHOENIX-2014-T
    store has it. ``signer`` becomes the column ``speaker``.

    Parameters
    ----------
    feature : what the feature is called.
    split : of all videos, whatever the files end in.
    names : ``"whole"`` keeps the split in the ids, for data whose splits share names.
    """

    feature: Annotated[str, Option("What the feature is called.", metavar="NAME")] = "sign"
    split: Annotated[str | None, Option("Of all videos; the file's ending by default.")] = None
    names: Annotated[
        Literal["auto", "whole"], Option("Names without their split, or whole, as ids.")
    ] = "auto"

    def open(self, path: Path) -> SltDocument:
        """Look through the files once; see :class:`kpstore.interop.base.Importer`."""
        if not path.exists():
            raise NotFoundError(
                f"no file of entries, nor a folder of them, at {path}: it does not exist"
            )
        # Names that begin with a dot are other systems' notes, or what a killed export left.
        inside_it = (
            (p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else ()
        )
        paths = sorted(p for p in inside_it if recognises(p)) if path.is_dir() else [path]
        if not paths:
            raise NotFoundError(f"no gzip pickle in {path}")
        files = sorted(
            (_look(p, self.split) for p in paths), key=lambda f: (split_rank(f.split), f.path)
        )
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
        self._texts = [
            key for key in self._keys if isinstance(entry[key], str | None) and key != "name"
        ]
        self._columns = {
            key: "speaker" if key == "signer" and "speaker" not in entry else key
            for key in self._texts
        }
        self._prefixed = (
            options.names == "auto"
            and bool(first.split)
            and entry["name"].startswith(f"{first.split}/")
        )
        self._spec = _sign_spec(options.feature, sign)
        others = [key for key in self._keys if key not in (*self._texts, "name", "sign")]
        self.notes = [
            f"{key!r} of every entry: {type(entry[key]).__name__}, not a text" for key in others
        ]
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

    def _video(
        self, file: _File, number: int, entry: Mapping[str, Any], odd: Counter[str]
    ) -> ImportedVideo:
        where = f"{file.path}, entry {number} ({entry['name']!r})"
        sign = entry["sign"]
        if sorted(entry) != self._keys:
            raise InvalidError(f"{where} has {sorted(entry)}, but the first entry has {self._keys}")
        if sign.shape[1:] != self._spec.shape or sign.dtype.name != self._spec.dtype:
            wanted = f"{self._spec.dtype} (frames, {', '.join(map(str, self._spec.shape))})"
            raise InvalidError(
                f"{where}: sign is {sign.dtype} {sign.shape}, but the first entry's is {wanted}"
            )
        prefix = f"{file.split}/"
        video_id = entry["name"]
        if self._prefixed and len(video_id) > len(prefix) and video_id.startswith(prefix):
            video_id = video_id[len(prefix) :]
        elif self._prefixed:
            odd[f"names do not start with {prefix!r}, as others do; an export puts it there"] += 1
        texts = {
            column: self._text(entry, key, where, odd) for key, column in self._columns.items()
        }
        paths = tuple(f"{video_id}#{frame}" for frame in range(len(sign)))
        record = VideoRecord(video_id, file.split, paths, annotations=texts)
        rows = FeatureRows(
            np.ascontiguousarray(np.asarray(sign, dtype=self._spec.dtype)).reshape(sign.shape)
        )
        return ImportedVideo(record, {self._spec.name: rows})

    @staticmethod
    def _text(entry: Mapping[str, Any], key: str, where: str, odd: Counter[str]) -> str:
        text = entry[key]
        if text is None:
            odd[f"entries have no {key} (None); an export has an empty one"] += 1
            return ""
        if not isinstance(text, str):
            raise InvalidError(
                f"{where}: {key} is a {type(text).__name__}, but the first entry's is a text"
            )
        return text


def _sign_spec(name: str, sign: NDArray[Any]) -> FeatureSpec:
    shape = sign.shape[1:]
    dims = (
        (f"{name}_dim",)
        if len(shape) == 1
        else tuple(f"{name}_dim_{axis}" for axis in range(len(shape)))
    )
    return FeatureSpec(
        name, shape, dims, sign.dtype.name, description="features of sign language translation"
    )


def recognises(path: Path) -> bool:
    """Whether a file is gzip, and holds a pickled list of dicts with a name."""
    try:
        if path.is_dir():
            return any(recognises(p) for p in sorted(path.iterdir())[:20] if p.is_file())
        with path.open("rb") as file:
            if file.read(2) != _GZIP:
                return False
        with gzip.open(path, "rb") as packed:
            start = packed.read(200)
        # A list and no dict around it: an empty list comes right after the head.
        listed = start[:2] == b"(l" or (start[:1] in (b"\x80", b"]") and b"]" in start[:15])
        return listed and (
            start[-1:] == b"." or any(key in start for key in (b"name", b"sign", b"gloss", b"text"))
        )
    except (OSError, EOFError, zlib.error):
        return False
