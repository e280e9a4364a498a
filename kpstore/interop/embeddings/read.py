"""Importing lip embeddings: ``xxx_embedding.npz`` beside the mouth crops ``xxx.npz``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import (
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
)
from kpstore.interop.files import check_there
from kpstore.options import Option
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.schema.lips import CROPS_KEY, EMBEDDING_ENDING, LIP_FEATURE, LIP_LENGTH, lip_spec
from kpstore.sources.lip_lists import read_utterances
from kpstore.sources.lips import folder_utterances
from kpstore.sources.npz_files import NpzFile

KEY = "embedding"
"""Name of the array in each file."""
SPEC = lip_spec()
Layout = Literal["channels_first", "time_first"]


@dataclass(frozen=True)
class EmbeddingsImport(FileImporter):
    """Reads the ``xxx_embedding.npz`` files of a folder and its subfolders, and ``xxx.npz``.

    Each utterance is a video: its id is its path in the folder without the suffix, its frames are
    ``xxx.npz#0``, …. Without an embedding, the feature of the video is pending. If an embedding
    cannot be read, all its frames have failed, with the reason.

    Parameters
    ----------
    layout : axes of the arrays, ``"channels_first"`` (512, T) or ``"time_first"`` (T, 512); by
        default told from the axis of length 512, so it must be given where both axes are 512.
    config : a YAML configuration; only the utterances that its lists name are read, with their
        splits.
    split : the split of these utterances, without ``config``.
    """

    layout: Annotated[Layout | None, Option("Order of the axes, where both are 512.")] = None
    config: Annotated[
        Path | None,
        Option(
            "Configuration that lists utterances, e.g. configs/LRS2-IIANet.yml.", metavar="FILE"
        ),
    ] = None
    split: Annotated[str, Option("The split of these utterances, without --config.")] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split and self.config is not None:
            raise InvalidError(
                f"split={self.split!r}: a configuration names the splits itself; leave split out"
            )

    def open(self, path: Path) -> EmbeddingsDocument:
        """List the utterances of a folder; see :class:`kpstore.interop.base.Importer`."""
        check_there(path, "npz files", "folder")
        n_twice = 0
        if self.config is None:
            utterances = dict.fromkeys(folder_utterances(path, embeddings=True), self.split)
        else:
            listed = read_utterances(self.config, path)
            utterances, n_twice = listed.splits, len(listed.twice)
        if not utterances:
            raise NotFoundError(f"no npz files in {path}")
        if not any((path / f"{utterance}{EMBEDDING_ENDING}").is_file() for utterance in utterances):
            raise NotFoundError(
                f"no *{EMBEDDING_ENDING} in {path} for any of {len(utterances)} utterances; "
                "precompute the embeddings first"
            )
        document = EmbeddingsDocument(self, path, utterances)
        document.count("utterances are listed in two splits; each is stored in the first", n_twice)
        return document


class EmbeddingsDocument(NotedDocument):
    """Utterances of a folder; see :class:`kpstore.interop.base.Document`."""

    def __init__(
        self, options: EmbeddingsImport, root: Path, utterances: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._root, self._utterances, self._given = root, utterances, options.layout
        self._most_bytes = options.most_bytes
        self.name = root.resolve().name
        document = {"layout": options.layout or self._first_layout()}
        self.features = (ImportedFeature(SPEC, imported("embeddings", document)),)

    def _read(self) -> Iterator[ImportedVideo]:
        """Read all files, one after another.

        Raises
        ------
        InvalidError
            If an array has no axis of length 512, or has two and no layout was given; or if no
            embedding can be read at all.
        """
        n_read = 0
        torn: list[str] = []
        for utterance, split in self._utterances.items():
            found = self._found(utterance, torn)
            if found is not None:
                n_read += found.values is not None
                yield found.video(utterance, split)
        if torn and not n_read:
            raise InvalidError(f"none of the embeddings in {self._root} can be read; {torn[0]}")
        self.note(*torn)

    def _first_layout(self) -> Layout:
        """Return the layout of the first file that can be read."""
        for utterance in self._utterances:
            try:
                with NpzFile(self._path(utterance, EMBEDDING_ENDING), self._most_bytes) as file:
                    return _layout_of(file.header(KEY).shape, None, file.path)
            except (NotFoundError, InvalidError):
                continue  # it is noted when all files are read
        return "channels_first"

    def _path(self, utterance: str, ending: str) -> Path:
        return self._root / f"{utterance}{ending}"

    def _found(self, utterance: str, torn: list[str]) -> _Found | None:
        """Return what was found of an utterance; None if its length is unknown."""
        path, n_crops = self._path(utterance, EMBEDDING_ENDING), self._n_crops(utterance)
        if not path.is_file():
            if n_crops is None:
                self.count("utterances have neither embedding nor readable crops: not stored")
            return None if n_crops is None else _Found(n_crops)
        try:
            values = self._values(path)
        except _LayoutError:
            raise
        except InvalidError as error:
            known = (
                "" if n_crops is not None else " (not stored: without crops its length is unknown)"
            )
            torn.append(f"{utterance!r} failed: {error}{known}")
            reason = str(error).replace(str(path), path.name)
            return None if n_crops is None else _Found(n_crops, reason=reason)
        if n_crops is not None and n_crops != len(values):
            self.count(
                "embeddings are not as long as their crops; the embedding's frames are stored"
            )
        return _Found(len(values), values)

    def _values(self, path: Path) -> NDArray[np.float32]:
        """Return the embedding in a file, (T, 512) float32."""
        with NpzFile(path, self._most_bytes) as file:
            header = file.header(KEY)
            if header.dtype.kind != "f":
                raise InvalidError(f"{path}: {KEY!r} is {header.dtype}; floats are needed")
            layout = _layout_of(header.shape, self._given, path)
            n_frames = math.prod(header.shape) // LIP_LENGTH
            file.budget.check_frames(n_frames, SPEC.row_bytes, f"its {n_frames} frames")
            with file.in_order(KEY) as rows:
                values = rows.take(0, header.n_rows)
            if len(file.names) > 1:
                self.count("embeddings come with further arrays, which are not stored")
        values = values[0] if values.ndim == 3 else values
        values = values if layout == "time_first" else values.T
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(values, dtype=np.float32)
        if values.dtype.itemsize > 4 and not np.array_equal(single, values, equal_nan=True):
            raise InvalidError(
                f"{path}: {KEY!r} is {values.dtype} with more digits than float32 holds"
            )
        return single

    def _n_crops(self, utterance: str) -> int | None:
        """Return the number of mouth crops; None if their file is missing or cannot be read."""
        path = self._path(utterance, ".npz")
        if not path.is_file():
            return None
        try:
            with NpzFile(path, self._most_bytes) as file:
                n_frames = file.header(CROPS_KEY).n_rows
                file.budget.check_frames(n_frames, SPEC.row_bytes, f"its {n_frames} frames")
                return n_frames
        except InvalidError:
            self.count(f"crops cannot be read, such as {path.name}")
            return None


class _LayoutError(InvalidError):
    """An array with unknown axes, which is no damage but needs another option."""


def _layout_of(shape: tuple[int, ...], given: Layout | None, path: Path) -> Layout:
    plain = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    axes: dict[Layout, int] = {"channels_first": 0, "time_first": 1}
    fits = [
        layout for layout, axis in axes.items() if len(plain) == 2 and plain[axis] == LIP_LENGTH
    ]
    if not fits:
        raise _LayoutError(
            f"{path}: {KEY!r} has the shape {shape}, no axis is {LIP_LENGTH}; these are not lip "
            "embeddings"
        )
    if given is not None and given not in fits:
        raise _LayoutError(
            f"{path}: {KEY!r} has the shape {shape}, which is {fits[0]}; --layout says {given}"
        )
    if given is None and len(fits) > 1:
        raise _LayoutError(
            f"{path}: both axes of {KEY!r} are {LIP_LENGTH}; give --layout channels_first or "
            "time_first"
        )
    return given or fits[0]


@dataclass(frozen=True)
class _Found:
    """Contents of one utterance: its frames, and their values or why they failed."""

    n_frames: int
    values: NDArray[np.float32] | None = None
    reason: str = ""

    def video(self, utterance: str, split: str) -> ImportedVideo:
        paths = tuple(f"{utterance}.npz#{n}" for n in range(self.n_frames))
        record = VideoRecord(utterance, split, paths)
        if self.values is not None:
            odd = np.flatnonzero(~np.isfinite(self.values).all(axis=1))
            self.values[odd] = np.nan
            failed = dict.fromkeys(odd.tolist(), "the file has NaN or infinity")
            return ImportedVideo(
                record, {LIP_FEATURE: FeatureRows(self.values)}, {LIP_FEATURE: failed}
            )
        if not self.reason or not self.n_frames:
            return ImportedVideo(record)
        failed = dict.fromkeys(range(self.n_frames), self.reason)
        rows = SPEC.empty_rows(self.n_frames)
        return ImportedVideo(record, {LIP_FEATURE: rows}, {LIP_FEATURE: failed})


def recognises(path: Path) -> bool:
    """Return whether there is an embedding in a folder, at most two folders deep."""
    return path.is_dir() and any(
        next(path.glob(f"{depth}*{EMBEDDING_ENDING}"), None) for depth in ("", "*/", "*/*/")
    )
