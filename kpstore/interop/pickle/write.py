"""Exporting pickles of keypoints, as extraction and training scripts write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.files import check_free, inside, written_aside
from kpstore.interop.outputs import ChosenRows, blocks, choose_rows, joined
from kpstore.interop.pickle.file_writer import FileWriter, detected_parts
from kpstore.interop.pickle.forms import NONE, OTHER_KEYS, SPLIT_FILE
from kpstore.interop.splits import UNSPLIT, check_file_names, chosen_splits
from kpstore.options import Option
from kpstore.schema.layout import N_FACE, N_POINTS
from kpstore.store.store import BaseStore

Keep = Literal["drop", "keep"]


@dataclass(frozen=True)
class PickleExport(FileExporter):
    """Writes pickles; the same store gives the same bytes, and memory does not grow with it.

    Frames that are not extracted yet are never written.

    Parameters
    ----------
    form : ``"raw"`` is one file of lists by split; ``"split"`` a folder with such a file for each
        split, ``mediaPipe_Phoenix.train`` and so on; ``"face"`` one file with an array of faces;
        ``"model_input"`` a folder with ``train_keypoints.pkl`` and so on, arrays of 143 points.
    feature : ``keypoints`` by default; for faces ``face_keypoints`` if the store has no keypoints.
    splits : only these; videos without a split are called ``all``.
    failed : ``"keep"`` writes failed frames, as None in lists and as missing values in arrays;
        lists keep them by default, arrays do not.
    empty : ``"keep"`` writes frames in which nothing was detected (for faces: no face).
    missing : in arrays, what a part that was not detected becomes; in lists it is None.
    paths : ``"as_imported"`` writes backslashes where the imported file had them.
    stats : ``"as_imported"`` writes the statistics of the imported file; otherwise frames are
        counted, and only the time is taken from there.
    """

    form: Annotated[
        Literal["raw", "split", "face", "model_input"],
        Option(
            "One file of lists, a folder with one per split, an array of faces, or a folder of "
            "arrays per split."
        ),
    ] = "raw"
    feature: Annotated[str | None, Option("Which feature; keypoints by default.")] = None
    splits: Splits = None
    failed: Annotated[
        Keep | None, Option("Frames that failed: None in lists. Kept in lists by default.")
    ] = None
    empty: Annotated[Keep, Option("Frames in which nothing was detected.")] = "drop"
    missing: Annotated[
        Literal["zeros", "nan"], Option("In arrays: what a part that was not detected becomes.")
    ] = "zeros"
    paths: Annotated[
        Literal["slashes", "as_imported"], Option("Backslashes again, where the file had them.")
    ] = "slashes"
    stats: Annotated[
        Literal["recomputed", "as_imported"], Option("Statistics: counted, or the imported ones.")
    ] = "recomputed"

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        feature = self._feature(store)
        wanted = chosen_splits(store, self.splits)
        if self._is_folder:
            check_file_names(wanted)
        if self.has_lists:
            _check_keys(wanted)
        targets = self._targets(path, wanted)
        if not self._is_folder and path.is_dir():
            raise InvalidError(f"{path} is a folder; form {self.form!r} is one file: name one")
        if self._is_folder and path.is_file():
            raise InvalidError(f"{path} is a file; form {self.form!r} is a folder: name one")
        check_free(targets, overwrite=overwrite)
        writer = FileWriter(store, feature, self, report)
        exported = []
        with written_aside(*targets) as asides:
            for (target, splits), aside in zip(targets.items(), asides, strict=True):
                chosen = [self._choose(store, feature, split) for split in splits]
                with aside.open("wb") as file:
                    writer.write(file, chosen)
                exported.append(self._exported(store, target, chosen))
        return ExportReport(exported, _notes(store, feature, self, wanted))

    @property
    def _is_folder(self) -> bool:
        return self.form in ("split", "model_input")

    @property
    def has_lists(self) -> bool:
        """Whether frames are items of lists, and not rows of arrays."""
        return self.form in ("raw", "split")

    def _feature(self, store: BaseStore) -> str:
        faces = self.form == "face"
        default = "face_keypoints" if faces and "keypoints" not in store.features else "keypoints"
        feature = self.feature or default
        lacking = self.feature is None and feature not in store.features
        if lacking and "face_keypoints" in store.features:
            raise NotFoundError(
                f"the store has only faces, no keypoints for form {self.form!r}; use --form face"
            )
        spec = store.feature(feature)
        known = ((N_FACE, 3), (N_POINTS, 3)) if faces else ((N_POINTS, 3),)
        if spec.axis != "frame" or spec.shape not in known:
            raise InvalidError(
                f"feature {feature!r} has rows of {spec.shape} per {spec.axis}; form "
                f"{self.form!r} holds {' or '.join(map(str, known))} per frame"
            )
        return feature

    def _targets(self, path: Path, splits: Sequence[str]) -> dict[Path, list[str]]:
        if not self._is_folder:
            return {path: list(splits)}
        name = f"{SPLIT_FILE}{{}}" if self.form == "split" else "{}_keypoints.pkl"
        return {inside(path, name.format(split or UNSPLIT)): [split] for split in splits}

    def _choose(self, store: BaseStore, feature: str, split: str) -> ChosenRows:
        def found(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            parts = slice(1) if self.form == "face" else slice(None)
            return np.asarray(detected_parts(store, feature, rows)[:, parts].any(axis=1))

        keeps_failed = self.has_lists if self.failed is None else self.failed == "keep"
        drop = {"failed": not keeps_failed, "empty": self.empty == "drop"}
        return choose_rows(store, feature, split, found, [what for what in drop if drop[what]])

    def _exported(
        self, store: BaseStore, target: Path, chosen: Sequence[ChosenRows]
    ) -> ExportedFile:
        rows = joined(choice.rows for choice in chosen)
        left_out = {
            reason: sum(choice.left_out[reason] for choice in chosen)
            for reason in ("failed", "pending", "empty")
        }
        videos = len(np.unique(store.index.video_of(rows)))
        split = chosen[0].split or UNSPLIT if self._is_folder else None
        return ExportedFile(target, len(rows), videos, split, left_out)


def _check_keys(splits: Sequence[str]) -> None:
    odd = next((split for split in splits if split in OTHER_KEYS), None)
    if odd is not None:
        raise InvalidError(
            f"split {odd!r} cannot be in a pickle of lists, where {odd!r} means something else; "
            "export the other splits by name, or use --form model_input"
        )


def _notes(
    store: BaseStore, feature: str, options: PickleExport, splits: Sequence[str]
) -> list[str]:
    """Return what a pickle has no place for, one line each."""
    chosen = store.index.select(split=splits)
    notes = []
    if empty := int((store.index.n_frames[chosen] == 0).sum()):
        notes.append(f"{empty} videos without frames")
    if options.has_lists and any(failure.reason != NONE for failure in store.failures(feature)):
        notes.append("the reasons why frames failed; they are None")
    if store.annotation_names:
        notes.append(f"annotations of videos: {', '.join(store.annotation_names)}")
    if len(chosen) and np.isfinite(np.asarray(store["fps"])[chosen]).any():
        notes.append("frames per second")
    if others := [name for name in store.features if name != feature]:
        notes.append(f"other features: {', '.join(others)}")
    if _has_visibility(store, feature, chosen):
        notes.append("the visibility of pose points")
    return notes


def _has_visibility(store: BaseStore, feature: str, videos: NDArray[np.int64]) -> bool:
    spec = store.feature(feature)
    if not any(c.name == "visibility" for c in spec.companions):
        return False
    name, every_block = spec.companion("visibility"), blocks(store.index.rows_of(videos))
    return any(bool(np.isfinite(store.read(name, block)).any()) for block in every_block)
