"""Exporting face features of persons as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.files import check_free, written_aside
from kpstore.interop.json.read import REST
from kpstore.interop.outputs import lost_notes
from kpstore.options import Option
from kpstore.schema.face_features import FACE_FIELDS, FACE_PATH, FRAME_FIELDS, Field
from kpstore.schema.feature import Axis, State
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore
from kpstore.store.video import Video

_BLOCK_FRAMES = 256


@dataclass(frozen=True)
class FaceJsonExport(FileExporter):
    """Writes JSON of face features, byte for byte as ``json.dump`` would.

    That is with ``indent=2, ensure_ascii=False``. Memory holds one person at a time. Frames that
    failed or are pending, and frames with a number that is not finite, are left out and counted; so
    are persons without a frontal face. Persons that were imported as paths only are written as
    such.

    Parameters
    ----------
    model : the feature of frames, where the store holds several ``dinov2_*``.
    splits : only these.
    """

    model: Annotated[
        str, Option("Which feature, e.g. dinov2_vitb14, if there are several.", metavar="NAME")
    ] = ""
    splits: Splits = None

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        positions = store.index.select(split=self.splits)
        writer = _JsonWriter(store, _find_model(store, self.model), report)
        check_free([path], overwrite=overwrite)
        with (
            written_aside(path) as (aside,),
            aside.open("w", encoding="utf-8", newline="\n") as out,
        ):
            persons = (writer.person(Video(store, int(position))) for position in positions)
            count = 0
            out.write("{")
            for pieces in filter(None, persons):
                out.write(f"{',' if count else ''}\n  ")
                out.writelines(pieces)
                count += 1
            out.write("\n}" if count else "}")
        file = ExportedFile(path, writer.n_frames, writer.n_persons, left_out=dict(writer.left_out))
        return ExportReport([file], writer.notes())


def _find_model(store: BaseStore, model: str) -> str:
    """Return the feature of frames, or ``""`` for a store of paths only."""
    held = sorted(
        n for n, f in store.features.items() if n.startswith("dinov2_") and f.spec.axis == "frame"
    )
    if model:
        return store.feature(model).name
    if (
        not held
        and FACE_PATH not in store.annotation_names
        and (store.features or len(store.index))
    ):
        have = ", ".join(sorted(store.features)) or "no features"
        raise NotFoundError(
            f"{store.location} has no face features to write: dinov2_* of frames with "
            f"face_dinov2_*, or at least the annotation {FACE_PATH!r} of an import of paths; it "
            f"has {have}"
        )
    if len(held) > 1:
        raise InvalidError(
            f"{store.location} holds {' and '.join(held)}; say --model which one to write"
        )
    return held[0] if held else ""


def to_text(value: object, indent: str = "") -> str:
    """Return ``json.dumps(value, indent=2, ensure_ascii=False)``, but several times faster."""
    if not isinstance(value, (list, dict)) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = f"{indent}  "
    if isinstance(value, dict):
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {to_text(item, inner)}"
            for key, item in value.items()
        ]
    else:
        items = [repr(item) if type(item) is float else to_text(item, inner) for item in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{right}"


class _JsonWriter:
    """Makes the text of one person after another."""

    def __init__(self, store: BaseStore, model: str, report: OnProgress) -> None:
        self._store, self._model, self._report = store, model, report
        self._frame = self._present(FRAME_FIELDS, "frame") if model else {}
        self._face = self._present(FACE_FIELDS, "video") if model else {}
        self.n_frames = self.n_persons = 0
        self.left_out: Counter[str] = Counter({"failed": 0, "pending": 0, "empty": 0})
        self._faceless = 0

    def _present(self, fields: Sequence[Field], axis: Axis) -> dict[str, str]:
        """Return the features that the store holds, by the name of their field."""
        names = {known.name: known.spec(self._model, 1, "float32", axis).name for known in fields}
        if axis == "video" and names["face_features"] not in self._store.features:
            names["face_features"] = "face_features"
        missing = [
            names[known.name]
            for known in fields
            if known.needed and names[known.name] not in self._store.features
        ]
        if missing:
            have = ", ".join(sorted(self._store.features))
            raise NotFoundError(
                f"{self._store.location} lacks {', '.join(missing)}, which the file needs; it has "
                f"{have}"
            )
        return {name: feature for name, feature in names.items() if feature in self._store.features}

    def notes(self) -> list[str]:
        """Return what was not written, one line each."""
        written = {FACE_PATH, REST, *self._frame.values(), *self._face.values()}
        faceless = [f"persons without a frontal face or any frame: {self._faceless}"]
        return lost_notes(self._store, written) + (faceless if self._faceless else [])

    def person(self, video: Video) -> Iterator[str] | None:
        """Return the text of a person in pieces; None if there is nothing to write."""
        notes = video.annotations
        rest = json.loads(notes.get(REST) or "{}")
        name = json.dumps(video.id, ensure_ascii=False)
        if not self._model or rest.get("form") == "paths":
            paths = {
                FACE_PATH: notes.get(FACE_PATH, ""),
                "video_images": video.image_paths,
                **rest.get("fields", {}),
            }
            self._count(video.n_frames)
            return iter([f"{name}: {to_text(paths, '  ')}"])
        frames = self._frames(video, rest.get("frames", {}))
        first = next(frames, None)
        face = self._face_values(video.position)
        if face is None or (first is None and video.n_frames):
            left = sum(1 for _ in frames) + (first is not None)
            self.left_out["pending"] += left
            self._faceless += 1
            return None
        head = {FACE_PATH: notes.get(FACE_PATH, ""), **face}
        start = f"{name}: {to_text(head, '  ')[:-4]}"
        texts = frames if first is None else chain([first], frames)
        return self._pieces(video, start, texts, rest.get("fields", {}))

    def _pieces(
        self, video: Video, start: str, texts: Iterable[str], fields: Mapping[str, object]
    ) -> Iterator[str]:
        yield f'{start},\n    "video_data": ['
        written = 0
        for text in texts:
            yield f"{',' if written else ''}\n      {text}"
            written += 1
        yield "\n    ]" if written else "]"
        if written < video.n_frames and "valid_video_images" in fields:
            fields = {**fields, "valid_video_images": written}
        dim = self._store.feature(self._model).shape[0]
        tail = {**fields, "feature_dim": dim, "dinov2_model": self._model}
        yield f",{to_text(tail, '  ')[1:]}"
        self._count(written)

    def _count(self, n_frames: int) -> None:
        self.n_persons += 1
        self.n_frames += n_frames
        self._report(n_frames)

    def _face_values(self, position: int) -> dict[str, object] | None:
        """Return the numbers of the frontal face; None if a needed one is missing."""
        values: dict[str, object] = {}
        for known in FACE_FIELDS:
            feature = self._face.get(known.name)
            row = None if feature is None else np.asarray(self._store[feature][position])
            if row is not None and np.isfinite(row).all():
                values[known.name] = row.tolist()
            elif known.needed:
                return None
        return values

    def _frames(self, video: Video, rest: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
        """Yield the text of each complete frame; count the others."""
        read = self._store.read
        for start in range(video.rows.start, video.rows.stop, _BLOCK_FRAMES):
            rows = np.arange(start, min(start + _BLOCK_FRAMES, video.rows.stop))
            paths = read(fmt.IMAGE_PATH, rows)
            values = {name: read(feature, rows) for name, feature in self._frame.items()}
            needed = [known.name for known in FRAME_FIELDS if known.needed]
            status = np.array([read(fmt.status_name(self._frame[name]), rows) for name in needed])
            finite = {
                name: np.isfinite(block.reshape(len(rows), -1)).all(axis=1)
                for name, block in values.items()
            }
            for i, row in enumerate(rows.tolist()):
                if (status[:, i] != State.DONE).any():
                    failed = (status[:, i] == State.FAILED).any()
                    self.left_out["failed" if failed else "pending"] += 1
                elif not all(finite[name][i] for name in needed):
                    self.left_out["empty"] += 1
                else:
                    numbers = {
                        name: block[i].tolist() for name, block in values.items() if finite[name][i]
                    }
                    more = rest.get(str(row - video.rows.start), {})
                    yield to_text({"image_path": paths[i], **numbers, **more}, "      ")
