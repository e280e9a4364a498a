"""Writing pickle files block by block."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.interop.base import OnProgress
from kpstore.interop.outputs import ChosenRows, blocks, document_of, joined
from kpstore.interop.pickle.opcodes import PickleWriter, array_opcodes, plain
from kpstore.interop.plain_values import from_json
from kpstore.interop.splits import UNSPLIT
from kpstore.schema.feature import MASK, State
from kpstore.schema.layout import N_FACE, N_POINTS, PART_SLICES
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

if TYPE_CHECKING:
    from kpstore.interop.pickle.write import PickleExport

_KEPT = ("stats", "keypoint_info", "dataset_info", "split_dataset_info")
_FLAT = ("total", "success", "failed", "total_time")


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
