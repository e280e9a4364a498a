"""Exporting pickles of keypoints, as extraction and training scripts write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.files import check_free, inside, written_aside
from kpstore.interop.outputs import ChosenRows, blocks, choose_rows, document_of, joined
from kpstore.interop.pickle.forms import NONE, OTHER_KEYS, SPLIT_FILE
from kpstore.interop.pickle.opcodes import PickleWriter, array_opcodes, plain
from kpstore.interop.plain_values import from_json
from kpstore.interop.splits import UNSPLIT, check_file_names, chosen_splits
from kpstore.options import Option
from kpstore.schema.feature import MASK, State
from kpstore.schema.layout import N_FACE, N_POINTS, PART_SLICES
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

Keep = Literal["drop", "keep"]
_KEPT = ("stats", "keypoint_info", "dataset_info", "split_dataset_info")
_FLAT = ("total", "success", "failed", "total_time")


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


# -- one file, block by block ----------------------------------------------------------------------


def detected_parts(store: BaseStore, feature: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which parts were detected, (rows, parts) bool, by the mask or else by the values."""
    spec = store.feature(feature)
    if any(c.name == MASK for c in spec.companions):
        mask: NDArray[np.bool_] = store.read(spec.companion(MASK), rows)
        return mask
    values = store.read(feature, rows)
    parts = _parts_of(values)
    return np.stack([~np.isnan(values[:, part]).all(axis=(1, 2)) for part in parts], axis=1)


def _parts_of(values: NDArray[np.float32]) -> Collection[slice]:
    """Return the points of each part of rows of 143 points, or of faces alone."""
    return PART_SLICES.values() if values.shape[1] == N_POINTS else [slice(0, N_FACE)]


class FileWriter:
    """Writes the pickle files of a store."""

    def __init__(
        self, store: BaseStore, feature: str, options: PickleExport, report: OnProgress
    ) -> None:
        self._store, self._feature, self._options, self._report = store, feature, options, report
        self._document = document_of(store, feature, "pickle")
        self._backslashes = (
            options.paths == "as_imported" and self._document.get("paths") == "backslashes"
        )
        self._renamed: Mapping[str, str] = self._document.get("renamed_videos", {})
        self._about = {
            key: from_json(self._document[key]) for key in _KEPT if key in self._document
        }

    def write(self, file: IO[bytes], chosen: Sequence[ChosenRows]) -> None:
        """Write one file with the rows of some splits."""
        writer = PickleWriter(file, (*PART_SLICES, "image_shape"))
        with writer.mapping():
            match self._options.form:
                case "raw" | "split":
                    self._write_lists(writer, chosen)
                case "face":
                    self._write_faces(writer, joined(choice.rows for choice in chosen))
                case "model_input":
                    self._write_model_input(writer, chosen[0])
        writer.close()

    def _write_texts(
        self, writer: PickleWriter, rows: NDArray[np.int64], *, ids: bool = True
    ) -> None:
        texts = {"image_paths": self._image_paths}
        if ids:
            texts["video_ids"] = self._video_ids
        for key, read in texts.items():
            writer.value(key)
            writer.sequence([plain(text) for text in read(block)] for block in blocks(rows))

    def _write_lists(self, writer: PickleWriter, chosen: Sequence[ChosenRows]) -> None:
        found = {choice.split or UNSPLIT: choice for choice in chosen}
        for split in self._split_names(list(found)):
            rows = joined(choice.rows for name, choice in found.items() if name == split)
            writer.value(split)
            with writer.mapping():
                writer.value("keypoints")
                writer.sequence(self._frames(writer, block) for block in blocks(rows))
                self._write_texts(writer, rows)
        writer.entries(self._facts(found))

    def _split_names(self, found: list[str]) -> list[str]:
        """Return the splits in the order of the imported file, with those that had no frames."""
        if self._options.splits is not None or self._options.form == "split":
            return found
        listed = [split for split in self._document.get("splits", ()) if isinstance(split, str)]
        return [*listed, *(split for split in found if split not in listed)]

    def _facts(self, found: Mapping[str, ChosenRows]) -> dict[str, object]:
        facts = {
            "stats": self._stats(found),
            "keypoint_info": self._keypoint_info(),
            "dataset_info": self._dataset_info(list(found)),
        }
        order = [key for key in self._document if key in facts]  # that of the imported file
        return {key: facts[key] for key in (*order, *facts)}

    def _stats(self, found: Mapping[str, ChosenRows]) -> dict[str, object]:
        raw, held = self._options.form == "raw", _dict(self._about.get("stats"))
        if self._options.stats == "as_imported" and held:
            return {split: held[split] for split in held if split in found or raw}
        stats: dict[str, object] = {}
        for split, choice in found.items():
            failed = choice.failed + choice.left_out["empty"]
            success = len(choice.rows) + choice.left_out["failed"] - choice.failed
            counted = {"total": success + failed, "success": success, "failed": failed}
            stats[split] = {**_dict(held.get(split)), **counted}
        if not raw:
            return stats
        names = dict.fromkeys(split for split in (*held, *stats) if split not in _FLAT)
        return {split: stats.get(split, held.get(split)) for split in names}

    def _keypoint_info(self) -> object:
        if "keypoint_info" in self._about:
            return self._about["keypoint_info"]
        parts = {part: rows.stop - rows.start for part, rows in PART_SLICES.items()}
        face_list = self._store.feature(self._feature).attrs.get("face_list")
        return {**parts, "total": N_POINTS, "face_list": face_list}

    def _dataset_info(self, splits: list[str]) -> object:
        by_split = self._about.get("split_dataset_info", {})
        if self._options.form == "split" and splits[0] in by_split:
            return by_split[splits[0]]
        given = self._about.get("dataset_info")
        if self._options.form == "raw" and given is not None:
            return given
        made = _dict(given) or {"name": self._store.name, "splits": splits}
        if self._options.form != "split":
            return made
        return {
            **made,
            "source_file": PurePath(self._store.location).name,
            "split": splits[0],
            "original_splits": [split or UNSPLIT for split in self._store.splits],
        }

    def _write_faces(self, writer: PickleWriter, rows: NDArray[np.int64]) -> None:
        writer.value("keypoints")
        writer.array(
            (len(rows), N_FACE, 3), (self._points(block)[:, :N_FACE] for block in blocks(rows))
        )
        self._write_texts(writer, rows, ids=False)

    def _write_model_input(self, writer: PickleWriter, choice: ChosenRows) -> None:
        rows = choice.rows
        writer.value("keypoints")
        writer.array((len(rows), N_POINTS, 3), (self._points(block) for block in blocks(rows)))
        writer.value("keypoints_dict")
        with writer.mapping():
            for part, where in PART_SLICES.items():
                shape = (len(rows), where.stop - where.start, 3)
                writer.value(part)
                writer.array(
                    shape, (self._points(block, report=False)[:, where] for block in blocks(rows))
                )
        self._write_texts(writer, rows)
        shape = (len(rows), N_POINTS, 3)
        writer.entries(
            {"split": choice.split or UNSPLIT, "num_samples": len(rows), "keypoint_shape": shape}
        )

    def _points(self, rows: NDArray[np.int64], *, report: bool = True) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._store.read(self._feature, rows)
        detected = detected_parts(self._store, self._feature, rows)
        fill = 0.0 if self._options.missing == "zeros" else np.nan
        for column, where in enumerate(_parts_of(values)):
            values[~detected[:, column], where] = fill
        if report:
            self._report(len(rows))
        return values

    def _frames(self, writer: PickleWriter, rows: NDArray[np.int64]) -> list[bytes]:
        """Return the opcodes of frames: dicts of parts, None where a frame failed."""
        values = self._store.read(self._feature, rows)
        failed = self._store.read(fmt.status_name(self._feature), rows) == State.FAILED
        detected = detected_parts(self._store, self._feature, rows).T
        columns = []
        for found, (part, where) in zip(detected, PART_SLICES.items(), strict=True):
            head, tail = array_opcodes((where.stop - where.start, 3))
            key = writer.texts[part]
            points = np.ascontiguousarray(values[:, where], dtype="<f4")
            columns.append(
                [
                    key + head + row.tobytes() + tail if there else key + b"N"
                    for row, there in zip(points, found, strict=True)
                ]
            )
        sizes = self._image_shapes(writer, rows)
        self._report(len(rows))
        return [
            b"N" if lost else b"".join((b"}(", *parts, size, b"u"))
            for lost, size, *parts in zip(failed, sizes, *columns, strict=True)
        ]

    def _image_shapes(self, writer: PickleWriter, rows: NDArray[np.int64]) -> list[bytes]:
        videos = self._store.index.video_of(rows)
        known: dict[int, bytes] = {}
        for video in np.unique(videos).tolist():
            size = [int(self._store[name][video : video + 1][0]) for name in ("height", "width")]
            as_array = self._document.get("image_shape") == "array"
            shape = plain(np.array(size) if as_array else tuple(size))
            known[video] = writer.texts["image_shape"] + shape if all(size) else b""
        return [known[video] for video in videos.tolist()]

    def _image_paths(self, rows: NDArray[np.int64]) -> list[str]:
        return self._slashes(self._store.read(fmt.IMAGE_PATH, rows).tolist())

    def _video_ids(self, rows: NDArray[np.int64]) -> list[str]:
        index = self._store.index
        ids = [
            self._renamed.get(video, video) for video in index.ids[index.video_of(rows)].tolist()
        ]
        return self._slashes(ids)

    def _slashes(self, texts: list[str]) -> list[str]:
        return [text.replace("/", "\\") for text in texts] if self._backslashes else texts


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
