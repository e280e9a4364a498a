"""Pickles of keypoints, as extraction and training scripts write them, out of a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import ExportedFile, ExportReport, OnProgress
from kpstore.interop.files import check_free, inside, written_aside
from kpstore.interop.outputs import blocks
from kpstore.interop.pickle.forms import NONE, OTHER_KEYS, SPLIT_FILE
from kpstore.interop.pickle.opcodes import PickleWriter, array_opcodes, plain
from kpstore.interop.plain_values import from_json
from kpstore.interop.splits import UNSPLIT, check_file_names, check_unsplit
from kpstore.options import Option
from kpstore.schema.feature import State
from kpstore.schema.layout import N_FACE, N_POINTS, PART_SLICES
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

ExportForm = Literal["raw", "split", "face", "model_input"]
Keep = Literal["drop", "keep"]

_CHOICES = {
    "form": ("raw", "split", "face", "model_input"),
    "failed": ("drop", "keep", None),
    "empty": ("drop", "keep"),
    "missing": ("zeros", "nan"),
    "paths": ("slashes", "as_imported"),
    "stats": ("recomputed", "as_imported"),
}


@dataclass(frozen=True)
class PickleExport:
    """Writes pickles; the same store gives the same bytes, and memory does not grow with it.

    Frames that are not extracted yet are in none of them.

    Parameters
    ----------
    form : ``"raw"`` is one file of lists by split; ``"split"`` a folder with such a file for each
        split, ``mediaPipe_Phoenix.train`` and so on; ``"face"`` one file with an array of faces;
        ``"model_input"`` a folder with ``train_keypoints.pkl`` and so on, arrays of 143 points.
    feature : ``keypoints`` if not given; for faces ``face_keypoints`` where the store has no
        keypoints.
    splits : only these; videos without a split are called ``all``.
    failed : frames that failed are None (``"keep"``), in arrays all missing; lists keep them by
        default, arrays do not.
    empty : ``"keep"`` writes frames in which nothing was detected (for faces: no face).
    missing : in arrays, what a part that was not detected becomes; in lists it is None.
    paths : ``"as_imported"`` writes backslashes where the imported file had them.
    stats : ``"as_imported"`` writes the imported file's statistics; otherwise they are counted, and
        only the time is taken from there.
    """

    form: Annotated[
        ExportForm,
        Option(
            "One file of lists, a folder with one per split, an array of faces, or a folder of "
            "arrays per split."
        ),
    ] = "raw"
    feature: Annotated[str | None, Option("Which feature; keypoints by default.")] = None
    splits: Annotated[
        Sequence[str] | None,
        Option("Only these, as `train dev` or `train,dev`; all by default.", metavar="SPLIT..."),
    ] = None
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

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InvalidError(
                    f"{name}={getattr(self, name)!r}: use "
                    f"{' or '.join(repr(k) for k in known if k)}"
                )

    def export(
        self,
        store: BaseStore,
        path: Path,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ExportReport:
        """Write the file, or the files of the folder ``path``.

        See :class:`kpstore.interop.base.Exporter`.
        """
        feature = self._feature(store)
        wanted = store.splits if self.splits is None else list(dict.fromkeys(self.splits))
        store.index.select(split=wanted)
        check_unsplit(wanted)
        if self.form in ("split", "model_input"):
            check_file_names(wanted)
        if self.form in ("raw", "split"):
            _check_keys(wanted)
        targets = self._targets(path, wanted)
        if self.form in ("raw", "face") and path.is_dir():
            raise InvalidError(f"{path} is a folder; form {self.form!r} is one file: name it")
        if self.form in ("split", "model_input") and path.is_file():
            raise InvalidError(
                f"{path} is a file; form {self.form!r} is a folder of files: name it"
            )
        check_free(targets, overwrite=overwrite)
        report = on_progress or (lambda n: None)
        exported = []
        for target, splits in targets.items():
            chosen = [self._choose(store, feature, split) for split in splits]
            with written_aside(target) as (aside,), aside.open("wb") as file:
                _FileWriter(store, feature, self, report).write(file, chosen)
            exported.append(self._exported(store, target, chosen))
        return ExportReport(exported, _notes(store, feature, self, wanted))

    def _feature(self, store: BaseStore) -> str:
        faces = self.form == "face"
        default = "face_keypoints" if faces and "keypoints" not in store.features else "keypoints"
        feature = self.feature or default
        if (
            self.feature is None
            and feature not in store.features
            and "face_keypoints" in store.features
        ):
            raise NotFoundError(
                f"the store has faces alone, no keypoints for form {self.form!r}; use --form face"
            )
        shape = store.feature(feature).shape
        known = ((N_FACE, 3), (N_POINTS, 3)) if faces else ((N_POINTS, 3),)
        if store.feature(feature).axis != "frame" or shape not in known:
            raise InvalidError(
                f"feature {feature!r} has rows of {shape} per {store.feature(feature).axis}; form "
                f"{self.form!r} holds {' or '.join(map(str, known))} per frame"
            )
        return feature

    def _targets(self, path: Path, splits: Sequence[str]) -> dict[Path, list[str]]:
        match self.form:
            case "split":
                return {
                    inside(path, f"{SPLIT_FILE}{split or UNSPLIT}"): [split] for split in splits
                }
            case "model_input":
                return {
                    inside(path, f"{split or UNSPLIT}_keypoints.pkl"): [split] for split in splits
                }
            case _:
                return {path: list(splits)}

    def _choose(self, store: BaseStore, feature: str, split: str) -> _Chosen:
        rows = store.index.rows_of(store.index.select(split=split))
        keep_failed = self.failed == "keep" or (
            self.failed is None and self.form in ("raw", "split")
        )
        kept, left_out = [], {"failed": 0, "pending": 0, "empty": 0}
        n_failed = 0
        for block in blocks(rows):
            status = store.read(fmt.status_name(feature), block)
            found = _detected(store, feature, block)
            if self.form == "face":
                found = found[:, :1]
            empty = (status == State.DONE) & ~found.any(axis=1)
            drop = {
                "pending": status == State.PENDING,
                "failed": (status == State.FAILED) & (not keep_failed),
                "empty": empty & (self.empty == "drop"),
            }
            for reason, mask in drop.items():
                left_out[reason] += int(mask.sum())
            n_failed += int((status == State.FAILED).sum())
            kept.append(block[~np.logical_or.reduce(list(drop.values()))])
        chosen = np.concatenate([np.empty(0, dtype=np.int64), *kept])
        n_success = len(rows) - left_out["pending"] - n_failed - left_out["empty"]
        return _Chosen(split or UNSPLIT, chosen, left_out, n_success, n_failed + left_out["empty"])

    def _exported(self, store: BaseStore, target: Path, chosen: Sequence[_Chosen]) -> ExportedFile:
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(choice.rows for choice in chosen)])
        left_out = {
            reason: sum(choice.left_out[reason] for choice in chosen)
            for reason in ("failed", "pending", "empty")
        }
        videos = len(np.unique(store.index.video_of(rows)))
        split = chosen[0].name if self.form in ("split", "model_input") else None
        return ExportedFile(target, len(rows), videos, split, left_out)


@dataclass(frozen=True)
class _Chosen:
    """Rows of one split to write; ``success`` and ``failed`` are what its statistics say."""

    name: str
    rows: NDArray[np.int64]
    left_out: Mapping[str, int]
    success: int
    failed: int


def _check_keys(splits: Sequence[str]) -> None:
    odd = next((split for split in splits if split in OTHER_KEYS), None)
    if odd is not None:
        raise InvalidError(
            f"split {odd!r} cannot be in a pickle of lists, where {odd!r} means something else; "
            "export the other splits by name, or use --form model_input"
        )


def _detected(store: BaseStore, feature: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which parts were detected, (rows, parts) bool: by the mask, or by the values where there is none."""
    if (mask := store.detected(feature)) is not None:
        return mask[rows]
    values = store.read(feature, rows)
    parts = PART_SLICES.values() if values.shape[1] == N_POINTS else [slice(0, N_FACE)]
    return np.stack([~np.isnan(values[:, part]).all(axis=(1, 2)) for part in parts], axis=1)


class _FileWriter:
    """Writes one file, block by block."""

    def __init__(
        self, store: BaseStore, feature: str, options: PickleExport, report: Callable[[int], None]
    ) -> None:
        self._store, self._feature, self._options, self._report = store, feature, options, report
        about = store.provenance(feature)
        document = about.get("document") if about.get("format") == "pickle" else None
        self._document: Mapping[str, Any] = document if isinstance(document, dict) else {}
        self._backslashes = (
            options.paths == "as_imported" and self._document.get("paths") == "backslashes"
        )
        self._renamed: Mapping[str, str] = self._document.get("renamed_videos", {})
        self._about = {
            key: from_json(value) for key, value in self._document.items() if key in _KEPT
        }

    def write(self, file: Any, chosen: Sequence[_Chosen]) -> None:
        """Write everything."""
        writer = PickleWriter(file, (*PART_SLICES, "image_shape"))
        with writer.mapping():
            match self._options.form:
                case "raw" | "split":
                    self._write_lists(writer, chosen)
                case "face":
                    self._write_faces(writer, chosen)
                case "model_input":
                    self._write_model_input(writer, chosen[0])
        writer.close()

    def _write_lists(self, writer: PickleWriter, chosen: Sequence[_Chosen]) -> None:
        found = {choice.name: choice for choice in chosen}
        for split in self._split_names(list(found)):
            rows = found[split].rows if split in found else np.empty(0, dtype=np.int64)
            writer.value(split)
            with writer.mapping():
                writer.value("keypoints")
                writer.sequence(self._frames(writer, block) for block in blocks(rows))
                writer.value("image_paths")
                writer.sequence(
                    [plain(text) for text in self._image_paths(block)] for block in blocks(rows)
                )
                writer.value("video_ids")
                writer.sequence(
                    [plain(text) for text in self._video_ids(block)] for block in blocks(rows)
                )
        for key, value in self._facts(found).items():
            writer.value(key)
            writer.value(value)

    def _split_names(self, found: list[str]) -> list[str]:
        """Return the splits in the order of the imported file, with those that had no frames in it."""
        if self._options.splits is not None or self._options.form == "split":
            return found
        listed = [split for split in self._document.get("splits", ()) if isinstance(split, str)]
        return [*listed, *(split for split in found if split not in listed)]

    def _facts(self, found: Mapping[str, _Chosen]) -> dict[str, Any]:
        given = self._about.get("stats")
        held: dict[str, Any] = given if isinstance(given, dict) else {}
        if self._options.stats == "as_imported" and held:
            stats = {
                split: held[split]
                for split in held
                if split in found or self._options.form == "raw"
            }
        else:
            stats = {
                split: {
                    **_dict(held.get(split)),
                    "total": choice.success + choice.failed,
                    "success": choice.success,
                    "failed": choice.failed,
                }
                for split, choice in found.items()
            }
            if self._options.form == "raw":
                stats = {
                    split: stats.get(split, held.get(split))
                    for split in (*held, *stats)
                    if split not in _FLAT
                }
        facts = {
            "keypoint_info": self._keypoint_info(),
            "dataset_info": self._dataset_info(list(found)),
        }
        return _in_order({"stats": stats, **facts}, self._document)

    def _keypoint_info(self) -> Any:
        if "keypoint_info" in self._about:
            return self._about["keypoint_info"]
        parts = {part: rows.stop - rows.start for part, rows in PART_SLICES.items()}
        return {
            **parts,
            "total": N_POINTS,
            "face_list": self._store.feature(self._feature).attrs.get("face_list"),
        }

    def _dataset_info(self, splits: list[str]) -> Any:
        by_split = self._about.get("split_dataset_info", {})
        if self._options.form == "split" and splits[0] in by_split:
            return by_split[splits[0]]
        given = self._about.get("dataset_info")
        if self._options.form == "raw" and given is not None:
            return given
        made = {**_dict(given)} or {"name": self._store.name, "splits": splits}
        if self._options.form == "split":
            location = PurePath(self._store.location).name
            made = {
                **made,
                "source_file": location,
                "split": splits[0],
                "original_splits": self._named_splits(),
            }
        return made

    def _named_splits(self) -> list[str]:
        return [split or UNSPLIT for split in self._store.splits]

    def _write_faces(self, writer: PickleWriter, chosen: Sequence[_Chosen]) -> None:
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(choice.rows for choice in chosen)])
        writer.value("keypoints")
        writer.array(
            (len(rows), N_FACE, 3), (self._points(block)[:, :N_FACE] for block in blocks(rows))
        )
        writer.value("image_paths")
        writer.sequence(
            [plain(text) for text in self._image_paths(block)] for block in blocks(rows)
        )

    def _write_model_input(self, writer: PickleWriter, choice: _Chosen) -> None:
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
        writer.value("image_paths")
        writer.sequence(
            [plain(text) for text in self._image_paths(block)] for block in blocks(rows)
        )
        writer.value("video_ids")
        writer.sequence([plain(text) for text in self._video_ids(block)] for block in blocks(rows))
        for key, value in (
            ("split", choice.name),
            ("num_samples", len(rows)),
            ("keypoint_shape", (len(rows), N_POINTS, 3)),
        ):
            writer.value(key)
            writer.value(value)

    # -- blocks of rows ----------------------------------------------------------------------------

    def _points(self, rows: NDArray[np.int64], *, report: bool = True) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._store.read(self._feature, rows)
        detected = _detected(self._store, self._feature, rows)
        parts = [slice(0, N_FACE)] if values.shape[1] == N_FACE else PART_SLICES.values()
        fill = 0.0 if self._options.missing == "zeros" else np.nan
        for column, where in enumerate(parts):
            values[~detected[:, column], where] = fill
        if report:
            self._report(len(rows))
        return values

    def _frames(self, writer: PickleWriter, rows: NDArray[np.int64]) -> list[bytes]:
        """Return the opcodes of frames: dicts of parts, None where a frame failed."""
        values = self._store.read(self._feature, rows)
        failed = self._store.read(fmt.status_name(self._feature), rows) == State.FAILED
        detected = _detected(self._store, self._feature, rows).T
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
            height, width = (
                int(self._store[name][video : video + 1][0]) for name in ("height", "width")
            )
            shape = (
                np.array([height, width])
                if self._document.get("image_shape") == "array"
                else (height, width)
            )
            known[video] = writer.texts["image_shape"] + plain(shape) if height and width else b""
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


_KEPT = ("stats", "keypoint_info", "dataset_info", "split_dataset_info")
_FLAT = ("total", "success", "failed", "total_time")


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _in_order(facts: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts in the order in which the imported file had them."""
    order = [key for key in document if key in facts]
    return {key: facts[key] for key in (*order, *facts)}


def _notes(
    store: BaseStore, feature: str, options: PickleExport, splits: Sequence[str]
) -> list[str]:
    """Return what a pickle has no place for."""
    chosen = store.index.select(split=splits)
    notes = []
    empty = int((store.index.n_frames[chosen] == 0).sum())
    if empty:
        notes.append(f"{empty} videos without frames")
    if options.form in ("raw", "split") and any(
        failure.reason != NONE for failure in store.failures(feature)
    ):
        notes.append("the reasons why frames failed; they are None")
    if store.annotation_names:
        notes.append(f"annotations of videos: {', '.join(store.annotation_names)}")
    if len(chosen) and np.isfinite(np.asarray(store["fps"])[chosen]).any():
        notes.append("frames per second")
    others = [name for name in store.features if name != feature]
    if others:
        notes.append(f"other features: {', '.join(others)}")
    if _has_visibility(store, feature, chosen):
        notes.append("the visibility of pose points")
    return notes


def _has_visibility(store: BaseStore, feature: str, videos: NDArray[np.int64]) -> bool:
    if not any(c.name == "visibility" for c in store.feature(feature).companions):
        return False
    every_block = blocks(store.index.rows_of(videos))
    visibility = store.feature(feature).companion("visibility")
    return any(bool(np.isfinite(store.read(visibility, block)).any()) for block in every_block)
