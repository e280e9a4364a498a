"""Exporting files of sign language translation."""

from __future__ import annotations

import gzip
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.files import check_free, inside, written_aside
from kpstore.interop.outputs import (
    document_of,
    feature_of_frames,
    zeros_for_missing,
    zeros_note,
)
from kpstore.interop.splits import UNSPLIT, chosen_splits
from kpstore.options import Option
from kpstore.schema.feature import MASK, State, part_names
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore
from kpstore.store.video import Video

_COLUMNS = {
    "signer": ("speaker", "signer"),
    "gloss": ("gloss", "orth"),
    "text": ("text", "translation"),
}
"""Annotations that may hold the text of each key; by default the first that exists."""


@dataclass(frozen=True)
class SltExport(FileExporter):
    """Writes one file per split into a folder, ``NAME.SPLIT``: a gzip pickle of a list of dicts.

    ``sign`` is a torch tensor (frames, numbers) with the feature of each frame in one row. What was
    not detected is zeros, and so are frames that failed, so that every video keeps its length.
    Videos whose feature is pending are left out.

    Parameters
    ----------
    feature : any feature of frames; by default one that was imported from such files, else
        ``keypoints``.
    name : name of the files; that of the store by default.
    splits : only these; videos without a split go to ``NAME.all``.
    gloss_column, text_column, signer_column : annotations; by default ``gloss`` (or ``orth``),
        ``text`` (or ``translation``), ``speaker`` (or ``signer``); if there is none, the text is
        empty.
    names : ``"split/id"``, as in the files for PHOENIX-2014-T, or ``"id"``; ``"auto"`` names them
        as they were imported.
    arrays : ``"torch"`` tensors or ``"numpy"`` arrays; ``"auto"`` is as imported, else tensors.
    missing : ``"nan"`` keeps NaN. In features that came from such files, NaN is always kept.
    """

    feature: Annotated[
        str, Option("Which feature; what was imported from slt files, or `keypoints`, by default.")
    ] = ""
    name: Annotated[str, Option("Name of the files; the store's by default.")] = ""
    splits: Splits = None
    gloss_column: Annotated[str, Option("Column with the glosses; gloss or orth by default.")] = ""
    text_column: Annotated[str, Option("Column with the text; text or translation by default.")] = (
        ""
    )
    signer_column: Annotated[
        str, Option("Column with the signer; speaker or signer by default.")
    ] = ""
    names: Annotated[
        Literal["auto", "split/id", "id"],
        Option("How videos are named; auto is as imported, else split/id."),
    ] = "auto"
    arrays: Annotated[
        Literal["auto", "torch", "numpy"], Option("What sign is; auto is as imported, else torch.")
    ] = "auto"
    missing: Annotated[
        Literal["zeros", "nan"], Option("What a part that was not detected becomes.")
    ] = "zeros"

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        writer = _SltWriter(store, self, report)
        wanted = chosen_splits(store, self.splits)
        paths = [_file(path, self.name or store.name, split) for split in wanted]
        check_free(paths, overwrite=overwrite)
        with written_aside(*paths) as asides:
            files = [writer.write(*given) for given in zip(wanted, asides, paths, strict=True)]
        return ExportReport(files, writer.notes())


def _file(folder: Path, name: str, split: str) -> Path:
    full = f"{name}.{split or UNSPLIT}"
    if "/" in full or not name or name.startswith("."):
        raise InvalidError(
            f"{full!r} cannot be a file name; choose the first part with name= (--name), splits "
            "with splits= (--split)"
        )
    return inside(folder, full)


class _SltWriter:
    """Writes the files of a store, one video at a time."""

    def __init__(self, store: BaseStore, options: SltExport, report: OnProgress) -> None:
        self._store, self._report = store, report
        found = [name for name in store.features if store.provenance(name).get("format") == "slt"]
        if not options.feature and len(found) > 1:
            raise InvalidError(
                f"features {' and '.join(found)} came from slt files; choose one with --feature"
            )
        self._name = options.feature or (found[0] if found else "keypoints")
        self._spec = feature_of_frames(store, self._name, "slt")
        self._imported = self._name in found
        document = document_of(store, self._name, "slt")
        self._columns = _columns(store, options, document.get("columns"))
        self._prefixed = options.names == "split/id" or (
            options.names == "auto" and document.get("prefixed", True)
        )
        self._zeros = options.missing == "zeros" and not self._imported
        arrays = document.get("arrays", "torch") if options.arrays == "auto" else options.arrays
        self._make = _to_tensor() if arrays == "torch" else np.ascontiguousarray
        self._texts = {
            c: np.asarray(store[c]) for c in set(self._columns.values()) if c and len(store.index)
        }
        self._failed = self._n_zeroed = 0

    def notes(self) -> list[str]:
        """Return what could not be carried over, one line each."""
        notes = [
            f"{key}: the store has no such text; it is empty"
            for key, column in self._columns.items()
            if not column
        ]
        if self._failed:
            notes += [f"{self._failed} frames failed or are pending: they are written as missing"]
        return notes + zeros_note(self._name, self._n_zeroed)

    def write(self, split: str, aside: Path, path: Path) -> ExportedFile:
        """Write one file."""
        videos = frames = pending = 0
        with aside.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            # A list that grows item by item, each the body of a pickle of its own, so that memory
            # holds one at a time.
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

    def _entry(self, video: Video) -> dict[str, object]:
        name = f"{video.split}/{video.id}" if self._prefixed and video.split else video.id
        texts = {
            key: str(self._texts[column][video.position]) if column else ""
            for key, column in self._columns.items()
        }
        return {"name": name, **texts, "sign": self._make(self._sign(video))}

    def _sign(self, video: Video) -> NDArray[np.generic]:
        values = video[self._name]
        self._failed += int((video[fmt.status_name(self._name)] != State.DONE).sum())
        if self._zeros:
            has_parts = bool(part_names(self._spec))
            detected = video[self._spec.companion(MASK)] if has_parts else None
            self._n_zeroed += zeros_for_missing(self._spec, values, detected)
        if self._imported:
            return values
        return values.reshape(len(values), math.prod(self._spec.shape))


def _columns(
    store: BaseStore, options: SltExport, stored: Mapping[str, str] | None
) -> dict[str, str]:
    """Return the annotation with the text of each key; ``""`` if there is none."""
    there = store.annotation_names
    columns = {key: column for key, column in (stored or {}).items() if column in there}
    for key, defaults in _COLUMNS.items():
        asked = getattr(options, f"{key}_column")
        if asked and asked not in there:
            raise NotFoundError(f"annotation {asked!r} not found; this store has {there or 'none'}")
        default = columns.get(key, next((c for c in defaults if c in there), ""))
        if asked or stored is None:
            columns[key] = asked or default
    return columns


def _to_tensor() -> Callable[[NDArray[np.generic]], object]:
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtraError(
            "writing tensors (--arrays numpy writes arrays)", extra="torch"
        ) from None
    return lambda values: torch.from_numpy(np.ascontiguousarray(values))
