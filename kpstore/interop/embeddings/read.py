"""Lip embeddings as lip-reading scripts keep them: ``xxx_embedding.npz`` beside the mouth crops ``xxx.npz``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import (
    ImportedFeature,
    ImportedVideo,
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

FORMAT = "embeddings"
KEY = "embedding"
Layout = Literal["channels_first", "time_first"]
SPEC = lip_spec()


@dataclass(frozen=True)
class EmbeddingsImport:
    """Reads a folder of ``xxx_embedding.npz`` files, and ``xxx.npz`` beside them, folders in it included.

    An utterance is a video; its id is its path in the folder without the suffix, its frames are
    ``xxx.npz#0``, …. One without embedding is a video whose feature is pending. One whose embedding
    cannot be read has failed frames, with the reason.

    Parameters
    ----------
    layout : of the arrays, ``"channels_first"`` (512, T) or ``"time_first"`` (T, 512); seen from
        the axis of 512 by default, so it must be said where both are.
    config : a YAML configuration; only utterances of the lists that it names, with their splits.
    split : the split of these utterances, without ``config``.
    """

    layout: Annotated[Layout | None, Option("Which axis is time, where both have 512.")] = None
    config: Annotated[
        Path | None,
        Option("A configuration, e.g. configs/LRS2-IIANet.yml: what it lists.", metavar="FILE"),
    ] = None
    split: Annotated[str, Option("The split of these utterances, without --config.")] = ""

    def __post_init__(self) -> None:
        check_layout(self.layout)
        if self.split and self.config is not None:
            raise InvalidError(
                f"split={self.split!r}: a configuration names the splits; leave it out"
            )

    def open(self, path: Path) -> EmbeddingsDocument:
        """List the folder's utterances; see :class:`kpstore.interop.base.Importer`."""
        check_there(path, "npz files", folder=True)
        notes: Counter[str] = Counter()
        if self.config is None:
            utterances = dict.fromkeys(folder_utterances(path, embeddings=True), self.split)
        else:
            utterances = _listed(self.config, path, notes)
        if not utterances:
            raise NotFoundError(f"no npz files in {path}")
        if not any((path / f"{utterance}{EMBEDDING_ENDING}").is_file() for utterance in utterances):
            raise NotFoundError(
                f"no *{EMBEDDING_ENDING} in {path} for any of {len(utterances)} utterances; "
                "precompute the embeddings first"
            )
        return EmbeddingsDocument(path, utterances, self.layout, notes)


def check_layout(layout: str | None) -> None:
    """Raise :class:`InvalidError` unless the layout is one of the two, or None."""
    if layout not in (None, "channels_first", "time_first"):
        raise InvalidError(f"layout={layout!r}: use 'channels_first' or 'time_first'")


def _listed(config: Path, root: Path, notes: Counter[str]) -> dict[str, str]:
    """Return the split of every utterance that a configuration lists, by id, in the lists' order."""
    listed = read_utterances(config, root)
    if listed.twice:
        notes["utterances are listed in two splits; each is stored in the first"] = len(
            listed.twice
        )
    return listed.splits


class EmbeddingsDocument:
    """Utterances of a folder; see :class:`kpstore.interop.base.Document`."""

    n_frames = None

    def __init__(
        self, root: Path, utterances: Mapping[str, str], layout: Layout | None, notes: Counter[str]
    ) -> None:
        self._root, self._utterances, self._given, self._listed = root, utterances, layout, notes
        self._told: Counter[str] = Counter()
        self._torn: list[str] = []
        self._layout = layout or self._first_layout()

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self._root.resolve().name

    @property
    def features(self) -> tuple[ImportedFeature, ...]:
        """The one feature."""
        return (ImportedFeature(SPEC, imported(FORMAT, {"layout": self._layout})),)

    @property
    def notes(self) -> Sequence[str]:
        """What is not there, or not as it should be."""
        counted = [
            f"{n} {what}" for counter in (self._listed, self._told) for what, n in counter.items()
        ]
        return tuple([*counted, *self._torn])

    def videos(self) -> Iterator[ImportedVideo]:
        """Read all files, one after the other; see :meth:`kpstore.interop.base.Document.videos`.

        Raises
        ------
        InvalidError
            If an array has no axis of 512, or two and no layout was given; or if no embedding at
            all can be read.
        """
        self._told.clear()
        self._torn.clear()
        n_read = 0
        for utterance, split in self._utterances.items():
            found = self._read(utterance)
            if found is not None:
                n_read += found.values is not None
                yield found.video(utterance, split)
        if self._torn and not n_read:
            raise InvalidError(
                f"none of the embeddings in {self._root} can be read; {self._torn[0]}"
            )

    def _first_layout(self) -> Layout:
        """Return how the first file that can be read lies."""
        for utterance in self._utterances:
            try:
                with NpzFile(self._path(utterance, EMBEDDING_ENDING)) as file:
                    return _layout_of(file.header(KEY).shape, None, file.path)
            except (NotFoundError, InvalidError):
                continue  # it is met again, and told, when all are read
        return "channels_first"

    def _path(self, utterance: str, ending: str) -> Path:
        return self._root / f"{utterance}{ending}"

    def _read(self, utterance: str) -> _Found | None:
        """Return what there is of an utterance; None if nothing says how long it is."""
        path, n_crops = self._path(utterance, EMBEDDING_ENDING), self._n_crops(utterance)
        if not path.is_file():
            if n_crops is None:
                self._told["utterances have neither embedding nor readable crops: not stored"] += 1
            return None if n_crops is None else _Found(n_crops)
        try:
            values = self._values(path)
        except _LayoutError:
            raise
        except InvalidError as error:
            known = (
                ""
                if n_crops is not None
                else " (not stored: without crops nothing says how long it is)"
            )
            self._torn.append(f"{utterance!r} failed: {error}{known}")
            return None if n_crops is None else _Found(n_crops, reason=_shortened(str(error), path))
        if n_crops is not None and n_crops != len(values):
            self._told[
                "embeddings are not as long as their crops; the embedding's frames are stored"
            ] += 1
        return _Found(len(values), values)

    def _values(self, path: Path) -> NDArray[np.float32]:
        """Return an embedding, (T, 512) float32."""
        with NpzFile(path) as file:
            header = file.header(KEY)
            if header.dtype.kind != "f":
                raise InvalidError(f"{path}: {KEY!r} is of {header.dtype}; floats are needed")
            layout = _layout_of(header.shape, self._given, path)
            with file.in_order(KEY) as rows:
                values = rows.take(0, header.n_rows)
        values = values[0] if values.ndim == 3 else values
        values = values if layout == "time_first" else values.T
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(values, dtype=np.float32)
        if values.dtype.itemsize > 4 and not np.array_equal(single, values, equal_nan=True):
            raise InvalidError(
                f"{path}: {KEY!r} is of {values.dtype} with more digits than float32 has"
            )
        return single

    def _n_crops(self, utterance: str) -> int | None:
        """Return how many mouth crops there are.

        None if their file is not there or cannot be read.
        """
        path = self._path(utterance, ".npz")
        if not path.is_file():
            return None
        try:
            with NpzFile(path) as file:
                return file.header(CROPS_KEY).n_rows
        except InvalidError:
            self._told[f"crops cannot be read, such as {path.name}"] += 1
            return None


class _LayoutError(InvalidError):
    """An array of which nobody knows what its axes are: a mistake in how it is read, not a damaged file."""


def _layout_of(shape: tuple[int, ...], given: Layout | None, path: Path) -> Layout:
    plain = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    axes: dict[Layout, int] = {"channels_first": 0, "time_first": 1}
    fits = [
        layout for layout, axis in axes.items() if len(plain) == 2 and plain[axis] == LIP_LENGTH
    ]
    if not fits:
        raise _LayoutError(
            f"{path}: {KEY!r} has the shape {shape}, no axis is {LIP_LENGTH}; these are no lip "
            "embeddings"
        )
    if given is not None and given not in fits:
        raise _LayoutError(
            f"{path}: {KEY!r} has the shape {shape}, which is {fits[0]}; --layout says {given}"
        )
    if given is None and len(fits) > 1:
        raise _LayoutError(
            f"{path}: both axes of {KEY!r} are {LIP_LENGTH}; say --layout channels_first or "
            "time_first"
        )
    return given or fits[0]


def _shortened(reason: str, path: Path) -> str:
    return reason.replace(str(path), path.name)


@dataclass(frozen=True)
class _Found:
    """What there is of one utterance: frames, and values or why there are none."""

    n_frames: int
    values: NDArray[np.float32] | None = None
    reason: str = ""
    failed: Mapping[int, str] = field(init=False)

    def __post_init__(self) -> None:
        failed = dict.fromkeys(range(self.n_frames), self.reason) if self.reason else {}
        if self.values is not None:
            odd = np.flatnonzero(~np.isfinite(self.values).all(axis=1))
            self.values[odd] = np.nan
            failed = dict.fromkeys(odd.tolist(), "the file has NaN or infinity")
        object.__setattr__(self, "failed", failed)

    def video(self, utterance: str, split: str) -> ImportedVideo:
        name = utterance.rpartition("/")[2]
        folder = utterance.removesuffix(name)
        record = VideoRecord(
            utterance, split, tuple(f"{folder}{name}.npz#{n}" for n in range(self.n_frames))
        )
        if self.values is None and not self.failed:
            return ImportedVideo(record)
        rows = SPEC.empty_rows(self.n_frames) if self.values is None else FeatureRows(self.values)
        return ImportedVideo(record, {LIP_FEATURE: rows}, {LIP_FEATURE: self.failed})


def looks_like_embeddings(path: Path) -> bool:
    """Whether a folder is of this format: an embedding is in it, not deep down."""
    return path.is_dir() and any(
        next(path.glob(f"{depth}*{EMBEDDING_ENDING}"), None) for depth in ("", "*/", "*/*/")
    )
