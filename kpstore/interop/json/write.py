"""Exporting face features of persons as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import ExportedFile, ExportReport, OnProgress, Splits
from kpstore.interop.files import check_free, written_aside
from kpstore.interop.json.layout import REST
from kpstore.interop.outputs import lost_notes
from kpstore.options import Option
from kpstore.schema.face_features import FACE_FIELDS, FACE_PATH, FRAME_FIELDS, Field
from kpstore.schema.feature import Axis, State
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore
from kpstore.store.video import Video

_BLOCK_FRAMES = 256


@dataclass(frozen=True)
class FaceJsonExport:
    """Writes such JSON, to the byte as ``json.dump(…, indent=2, ensure_ascii=False)`` does.

    Memory holds one person at a time. Frames that failed or are pending, and frames with a number
    that is not finite, are left out and counted; so are persons without a frontal face. Persons
    that were imported as paths only are written as such.

    Parameters
    ----------
    model : the feature of frames, where the store holds several ``dinov2_*``.
    splits : only these.
    """

    model: Annotated[
        str, Option("Which feature, e.g. dinov2_vitb14, if there are several.", metavar="NAME")
    ] = ""
    splits: Splits = None

    def export(
        self,
        store: BaseStore,
        path: Path,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ExportReport:
        """Write the file; see :class:`kpstore.interop.base.Exporter`."""
        positions = store.index.select(split=self.splits)
        writer = _JsonWriter(store, _find_model(store, self.model), on_progress or (lambda n: None))
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
    """Return the frames' feature, or ``""`` for a store of paths only."""
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


def to_text(value: Any, indent: str = "") -> str:
    """Return ``json.dumps(value, indent=2, ensure_ascii=False)``, but several times as fast."""
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

    def __init__(self, store: BaseStore, model: str, on_progress: OnProgress) -> None:
        self._store, self._model, self._on_progress = store, model, on_progress
        self._frame = self._present(FRAME_FIELDS, "frame") if model else {}
        self._face = self._present(FACE_FIELDS, "video") if model else {}
        self.n_frames = self.n_persons = 0
        self.left_out: Counter[str] = Counter({"failed": 0, "pending": 0, "empty": 0})
        self._faceless = 0

    def _present(self, fields: Sequence[Field], axis: Axis) -> dict[str, str]:
        """Return the feature of each field, by the field's name."""
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
        """Return what was not written, a line each."""
        written = {FACE_PATH, REST, *self._frame.values(), *self._face.values()}
        faceless = [f"persons without a frontal face or any frame: {self._faceless}"]
        return lost_notes(self._store, written) + (faceless if self._faceless else [])

    def person(self, video: Video) -> Iterator[str] | None:
        """Return a person's text in pieces; None if there is nothing to write."""
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
        return self._pieces(
            video, name, {FACE_PATH: notes.get(FACE_PATH, ""), **face}, first, frames, rest
        )

    def _pieces(
        self,
        video: Video,
        name: str,
        head: dict[str, Any],
        first: str | None,
        frames: Iterator[str],
        rest: Any,
    ) -> Iterator[str]:
        yield f'{name}: {to_text(head, "  ")[:-4]},\n    "video_data": ['
        written = 0
        for text in chain([] if first is None else [first], frames):
            yield f"{',' if written else ''}\n      {text}"
            written += 1
        yield "\n    ]" if written else "]"
        fields = rest.get("fields", {})
        if written < video.n_frames and "valid_video_images" in fields:
            fields = {**fields, "valid_video_images": written}
        dim = self._store.feature(self._model).shape[0]
        tail = {**fields, "feature_dim": dim, "dinov2_model": self._model}
        yield f",{to_text(tail, '  ')[1:]}"
        self._count(written)

    def _count(self, n_frames: int) -> None:
        self.n_persons += 1
        self.n_frames += n_frames
        self._on_progress(n_frames)

    def _face_values(self, position: int) -> dict[str, Any] | None:
        """Return the numbers of the frontal face; None if one that is needed is missing."""
        values = {}
        for known in FACE_FIELDS:
            feature = self._face.get(known.name)
            row = None if feature is None else np.asarray(self._store[feature][position])
            if row is not None and np.isfinite(row).all():
                values[known.name] = row.tolist()
            elif known.needed:
                return None
        return values

    def _frames(self, video: Video, rest: Mapping[str, Any]) -> Iterator[str]:
        """Yield the text of each complete frame; counts the others."""
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
                    self.left_out[
                        "failed" if (status[:, i] == State.FAILED).any() else "pending"
                    ] += 1
                elif not all(finite[name][i] for name in needed):
                    self.left_out["empty"] += 1
                else:
                    numbers = {
                        name: block[i].tolist() for name, block in values.items() if finite[name][i]
                    }
                    more = rest.get(str(row - video.rows.start), {})
                    yield to_text({"image_path": paths[i], **numbers, **more}, "      ")
