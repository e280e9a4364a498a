"""Importing files of sign language translation: a pickled list of dicts, compressed by gzip.

The layout is that of ``phoenix14t.pami0.{train,dev,test}`` of neccam/slt and its successors. No
code of a pickle is run: kpstore's own machine reads it, which knows only lists, dicts, text,
numbers, arrays and tensors.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

import numpy as np

from kpstore.budget import MemoryBudget
from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import (
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
    rows_spec,
)
from kpstore.interop.files import check_there, damage_named, without_hidden
from kpstore.interop.pickle_stream import UNREADABLE, BoundedFile, DataMachine, Tensor, fetched
from kpstore.interop.splits import split_rank
from kpstore.options import Option
from kpstore.schema.feature import FeatureRows
from kpstore.schema.fields import shown
from kpstore.schema.index import VideoRecord

Entry = Mapping[str, Any]
"""``name`` (str), ``sign`` (an array), and the texts and other values of a video."""
_GZIP = b"\x1f\x8b"
_NO_SPLIT = frozenset({"", "gz", "pkl", "pickle", "gzip"})
_TEXTS = ("signer", "gloss", "text")


@dataclass(frozen=True)
class _File:
    """A file that was read once.

    ``keep`` are the numbers of values that its pickle uses again; ``first`` is the first entry.
    """

    path: Path
    split: str
    keep: set[int]
    budget: MemoryBudget
    first: Entry | None = None

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yield the entries with their numbers, from 0."""
        with _unpacked(self.path, self.budget) as file:
            for number, entry in enumerate(DataMachine(file, self.budget, self.keep).items()):
                yield number, _check_entry(entry, self.path, number)


@contextmanager
def _unpacked(path: Path, budget: MemoryBudget) -> Iterator[IO[bytes]]:
    damaged = (
        f"{path}: it is no gzip file of a pickled list of {{name, signer, gloss, text, sign}}, or "
        "only a part of one"
    )
    # Opcodes are read byte by byte, which a buffer in C makes half as long.
    with damage_named(damaged, UNREADABLE), BufferedReader(gzip.open(path, "rb")) as file:
        yield cast("IO[bytes]", BoundedFile(file, budget))
        # The checksum is at the end of the file, behind that of the pickle.
        if file.read(1):
            raise ValueError("it goes on after its pickle; save one list to a file")


def _look(path: Path, split: str | None, most_bytes: int | None) -> _File:
    ending = path.suffix.removeprefix(".")
    split = ("" if ending.lower() in _NO_SPLIT else ending) if split is None else split
    budget = MemoryBudget.of(path, most_bytes)
    with _unpacked(path, budget) as file:
        found = _File(path, split, fetched(file, budget), budget)
    return replace(found, first=next((entry for _, entry in found.entries()), None))


def _check_entry(entry: object, path: Path, number: int) -> Entry:
    where = f"{path}, entry {number}"
    if not isinstance(entry, dict):
        raise InvalidError(
            f"{where}: a {type(entry).__name__}, not a dict of name, signer, gloss, text and sign"
        )
    odd = next((key for key in entry if not isinstance(key, str)), None)
    if odd is not None:
        raise InvalidError(f"{where}: it has the key {shown(odd)}; keys are texts")
    name, sign = entry.get("name"), entry.get("sign")
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{where}: name is {repr(name)[:100]}; it needs a text")
    if not isinstance(sign, np.ndarray) or sign.ndim < 1 or sign.dtype.kind not in "fiub":
        found = type(sign).__name__
        if isinstance(sign, np.ndarray):
            found = f"{sign.dtype} {sign.shape}"
        raise InvalidError(
            f"{where} ({name[:100]!r}): sign is {found}; it needs an array or tensor (frames, "
            "numbers)"
        )
    for key in _TEXTS:
        if not isinstance(entry.get(key), str | None):
            raise InvalidError(
                f"{where} ({name[:100]!r}): {key} is a {type(entry[key]).__name__}; it needs a text"
            )
    return entry


@dataclass(frozen=True)
class SltImport(FileImporter):
    """Reads one file, or all files of a folder; each entry is a video, and ``sign`` its feature.

    The split is the file's ending (``phoenix14t.pami0.train``) unless that is ``gz`` or ``pkl``. If
    a name starts with it (``train/11August…``), the id is the rest, as in a PHOENIX-2014-T store.
    ``signer`` becomes the column ``speaker``.

    Parameters
    ----------
    feature : name of the feature.
    split : the split of all videos, whatever the endings of the files.
    names : ``"whole"`` keeps the split in the ids, for data whose splits share names.
    """

    feature: Annotated[str, Option("Name of the feature.", metavar="NAME")] = "sign"
    split: Annotated[str | None, Option("Split of all videos; the file's ending by default.")] = (
        None
    )
    names: Annotated[
        Literal["auto", "whole"], Option("Ids are names without their split, or whole names.")
    ] = "auto"

    def open(self, path: Path) -> SltDocument:
        """Read all files once; see :class:`kpstore.interop.base.Importer`."""
        check_there(path, "file of entries, nor a folder of them,", "any")
        paths = [path]
        if path.is_dir():
            paths = [p for p in without_hidden(path.iterdir()) if p.is_file() and recognises(p)]
        if not paths:
            raise NotFoundError(f"no gzip pickle in {path}")
        files = sorted(
            (_look(p, self.split, self.most_bytes) for p in paths),
            key=lambda f: (split_rank(f.split), f.path),
        )
        return SltDocument(self, path, files)


class SltDocument(NotedDocument):
    """Files of one kind of entries; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, options: SltImport, path: Path, files: Sequence[_File]) -> None:
        super().__init__()
        self._files = files
        first = next((file for file in files if file.first is not None), None)
        if first is None or first.first is None:
            raise InvalidError(f"{path} holds no entries")
        self.name = path.name if path.is_dir() else path.name.removesuffix(f".{first.split}")
        entry = first.first
        sign = entry["sign"]
        self._keys = sorted(entry)
        texts = [key for key in self._keys if isinstance(entry[key], str | None) and key != "name"]
        self._columns = {key: key for key in texts}
        if "signer" in texts and "speaker" not in entry:
            self._columns["signer"] = "speaker"
        self._prefixed = (
            options.names == "auto"
            and bool(first.split)
            and entry["name"].startswith(f"{first.split}/")
        )
        about = "features of sign language translation"
        shape, dtype = sign.shape[1:], sign.dtype.name
        self._spec = rows_spec(options.feature, shape, dtype, description=about)
        for key in self._keys:
            if key not in (*texts, "name", "sign"):
                kind = type(entry[key]).__name__
                self.note(f"{key!r} of every entry: {kind}, not a text")
        document = {
            "columns": self._columns,
            "prefixed": self._prefixed,
            "arrays": "torch" if isinstance(sign, Tensor) else "numpy",
        }
        self.features = (ImportedFeature(self._spec, imported("slt", document)),)

    def _read(self) -> Iterator[ImportedVideo]:
        for file in self._files:
            for number, entry in file.entries():
                yield self._video(file, number, entry)

    def _video(self, file: _File, number: int, entry: Entry) -> ImportedVideo:
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
            self.count(f"names do not start with {prefix!r}, as others do; an export adds it")
        texts = {column: self._text(entry, key, where) for key, column in self._columns.items()}
        paths = tuple(f"{video_id}#{frame}" for frame in range(len(sign)))
        record = VideoRecord(video_id, file.split, paths, annotations=texts)
        rows = FeatureRows(
            np.ascontiguousarray(np.asarray(sign, dtype=self._spec.dtype)).reshape(sign.shape)
        )
        return ImportedVideo(record, {self._spec.name: rows})

    def _text(self, entry: Entry, key: str, where: str) -> str:
        text = entry[key]
        if text is None:
            self.count(f"entries have no {key} (None); an export has an empty one")
            return ""
        if not isinstance(text, str):
            raise InvalidError(
                f"{where}: {key} is a {type(text).__name__}, but the first entry's is a text"
            )
        return text


def recognises(path: Path) -> bool:
    """Return whether a file is a pickled list of dicts with a name, compressed by gzip."""
    try:
        if path.is_dir():
            return any(recognises(p) for p in sorted(path.iterdir())[:20] if p.is_file())
        with path.open("rb") as file:
            if file.read(2) != _GZIP:
                return False
        with gzip.open(path, "rb") as packed:
            start = packed.read(200)
        # In a pickle of a list, not of a dict, an empty list comes right after the head.
        listed = start[:2] == b"(l" or (start[:1] in (b"\x80", b"]") and b"]" in start[:15])
        return listed and (
            start[-1:] == b"." or any(key in start for key in (b"name", b"sign", b"gloss", b"text"))
        )
    except (OSError, EOFError, zlib.error):
        return False
