"""Importing face features of persons from JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import (
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
)
from kpstore.interop.files import check_there
from kpstore.interop.json.persons import Person, PersonReader, WideIntegerError
from kpstore.options import Option
from kpstore.schema.face_features import FACE_FIELDS, FACE_PATH, FRAME_FIELDS, MODEL_DIMS
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord

Precision = Literal["auto", "single", "double"]

REST = "person_fields"
"""Annotation with the other fields of a person's record, as JSON; empty if there are none."""
_MOST_DIGITS = 4300
"""Most digits that Python reads as one integer."""
_LONG_NUMBER = b"0" * (_MOST_DIGITS + 1)
_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
"""Turns every digit into a zero, so that a run of digits is found as fast as any text."""
_SAMPLE_FRAMES = 100
"""Number of frames from which the dtype of each feature is decided."""
_KEPT = frozenset(
    {FACE_PATH, "video_data", "feature_dim", "dinov2_model", *(known.name for known in FACE_FIELDS)}
)
"""Keys of a person's record whose values are stored elsewhere."""


@dataclass(frozen=True)
class FaceJsonImport(FileImporter):
    """Reads JSON of face features: each person is a video, whose frames are ``video_data``.

    The frontal face becomes features of videos, ``face_<model>``, ``face_landmarks_2d``, …; frames
    become ``<model>``, ``landmarks_2d``, …, ``spherical_angles``, ``avg_angle``. Persons with paths
    only (``video_images``) become videos without features. Paths are kept, with forward slashes.

    Parameters
    ----------
    base_dir : folder that relative paths start from. If given, images of the first person must be
        there.
    split : the split of these persons.
    model : the model that made the features, where the file does not say; must agree with the file
        where it does.
    precision : ``"auto"`` stores a feature as float32 if that holds the first hundred frames
        exactly (as it does if they were written by ``float32.tolist()``), else as float64; a later
        number that does not fit is an error. ``"single"`` rounds and notes how often; ``"double"``
        stores float64.
    """

    base_dir: Annotated[
        Path | None,
        Option("Folder that relative paths start from; checked if given.", metavar="DIR"),
    ] = None
    split: Annotated[str, Option("The split of these persons.")] = ""
    model: Annotated[
        str, Option("Which model made the features, e.g. dinov2_vitb14.", metavar="NAME")
    ] = ""
    precision: Annotated[
        Precision, Option("Precision of the stored numbers; auto keeps them as they are.")
    ] = "auto"

    def open(self, path: Path) -> FaceDocument:
        """Open a file and read its first persons; see :class:`kpstore.interop.base.Importer`."""
        check_there(path, "JSON file of face features")
        document = FaceDocument(path, self)
        if self.base_dir is not None:
            document.check_base_dir(self.base_dir)
        return document


class FaceDocument(NotedDocument):
    """An opened file of face features; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, path: Path, options: FaceJsonImport) -> None:
        super().__init__()
        self._path, self._options = path, options
        self._model, self._dim, self._exact = "", 0, False
        self.name = path.stem
        sample = [person for person in self._sample() if not person.paths_only]
        self._specs = self._decide(sample) if sample else {}
        document = {} if options.base_dir is None else {"base_dir": str(options.base_dir)}
        made = imported("json", document, model=self._model)
        self.features = tuple(ImportedFeature(spec, made) for spec in self._specs.values())

    def _read(self) -> Iterator[ImportedVideo]:
        for person in self._persons():
            rows = {} if person.paths_only else self._rows(person)
            notes = {FACE_PATH: self._slashes(person.face_path), REST: _rest_text(person)}
            paths = tuple(self._slashes(path) for path in person.paths)
            yield ImportedVideo(
                VideoRecord(person.name, self._options.split, paths, annotations=notes), rows
            )

    def check_base_dir(self, base_dir: Path) -> None:
        """Raise :class:`NotFoundError` unless an image of the first person is in ``base_dir``."""
        check_there(base_dir, "images", "folder")
        first = next(self._persons(), None)
        if first is None:
            return
        if not any((base_dir / path).is_file() for path in (first.face_path, *first.paths)):
            raise NotFoundError(
                f"--base-dir {base_dir}: no image of person {first.name!r} is there, such as "
                f"{base_dir / first.face_path}; give the folder that the paths in {self._path} are "
                "relative to"
            )

    def _sample(self) -> list[Person]:
        """Return the first persons, until they have enough frames with features."""
        sample: list[Person] = []
        for person in self._persons():
            if not (person.paths_only and sample):
                sample.append(person)
            if sum(len(p.paths) for p in sample if not p.paths_only) >= _SAMPLE_FRAMES:
                break
        return sample

    def _decide(self, sample: Sequence[Person]) -> dict[str, FeatureSpec]:
        """Return the features by field, with the dtype that the sample needs."""
        self._model, self._dim = self._model_of(sample[0])
        specs = {}
        for known in FRAME_FIELDS:
            values = [v for person in sample for v in person.values[known.name] if v is not None]
            if known.needed or values:
                specs[known.name] = known.spec(self._model, self._dim, self._dtype(values), "frame")
        for known in FACE_FIELDS:
            values = [person.face[known.name] for person in sample if known.name in person.face]
            if values:
                specs[known.name] = known.spec(self._model, self._dim, self._dtype(values), "video")
        return specs

    def _dtype(self, values: Sequence[NDArray[np.float64]]) -> str:
        if self._options.precision != "auto":
            return {"single": "float32", "double": "float64"}[self._options.precision]
        return "float32" if all(_singles(value).all() for value in values) else "float64"

    def _rows(self, person: Person) -> dict[str, FeatureRows]:
        place = f"{self._path}: person {person.name!r}"
        made = self._model_of(person)
        if made != (self._model, self._dim):
            raise InvalidError(
                f"{place} has features of {made[0]}, those before it of {self._model}; split the "
                "file"
            )
        rows = {}
        for known in (*FRAME_FIELDS, *FACE_FIELDS):
            spec = self._specs.get(known.name)
            if spec is not None and spec.axis == "frame":
                rows[spec.name] = self._fit(person.values_of(known.name, spec.shape), spec, place)
            elif spec is not None:
                if known.name in person.face:
                    rows[spec.name] = self._fit(person.face[known.name][None], spec, place)
            elif person.has(known.name):
                self.count(f"persons have {known.name}, which the first persons lack: not stored")
        return rows

    def _fit(self, values: NDArray[np.float64], spec: FeatureSpec, place: str) -> FeatureRows:
        """Return values in their stored dtype; those beyond float32 are rounded or refused."""
        if spec.dtype == "float32":
            rows = values.reshape(len(values), math.prod(spec.shape))
            odd = np.flatnonzero(~_singles(rows).all(axis=1))
            if len(odd) and self._options.precision == "auto":
                where = f"{place}, frame {odd[0]}" if spec.axis == "frame" else place
                raise InvalidError(
                    f"{where}: {spec.name} needs more digits than float32, which was enough in the "
                    f"first {_SAMPLE_FRAMES} frames; import with --precision double, or round with "
                    "--precision single"
                )
            self.count(f"rows of {spec.name} were rounded to float32", len(odd))
        with np.errstate(over="ignore"):
            return FeatureRows(values.astype(spec.dtype))

    def _model_of(self, person: Person) -> tuple[str, int]:
        """Return the model and length of a person's features, after checking that they agree."""
        place, wanted = f"{self._path}: person {person.name!r}", self._options.model
        model, told = person.fields.get("dinov2_model", wanted), person.fields.get("feature_dim")
        if not model or not isinstance(model, str):
            raise InvalidError(
                f"{place}: no 'dinov2_model' (found {model!r}); say which with --model"
            )
        if wanted and model != wanted:
            raise InvalidError(f"{place}: made by {model!r}, {wanted!r} was asked for")
        if not isinstance(told, int):
            raise InvalidError(f"{place}: no 'feature_dim', a whole number (found {told!r})")
        lengths = {
            len(v): n for n, v in reversed([*enumerate(person.values["features"])]) if v is not None
        }
        found = {"face_features": len(person.face["face_features"])}
        found |= {f"the features of frame {n}": length for length, n in lengths.items()}
        if {told, MODEL_DIMS.get(model, told)} != set(found.values()):
            parts = " and ".join(f"{what} {length}" for what, length in found.items())
            known = f" is {MODEL_DIMS[model]}" if model in MODEL_DIMS else ""
            raise InvalidError(
                f"{place}: lengths of features differ: feature_dim {told}, dinov2_model "
                f"{model!r}{known}, {parts}"
            )
        return model, told

    def _slashes(self, path: str) -> str:
        if "\\" not in path:
            return path
        self.count("paths had backslashes, which are now forward slashes")
        return path.replace("\\", "/")

    def _persons(self) -> Iterator[Person]:
        done = 0
        try:
            for person in self._persons_read():
                yield person
                done += 1
            return
        except WideIntegerError:
            self._exact = True
        yield from islice(self._persons_read(), done, None)

    def _persons_read(self) -> Iterator[Person]:
        with self._path.open("rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            checked = _CheckedFile(file, str(self._path))
            budget = MemoryBudget.of(self._path, self._options.most_bytes)
            reader = PersonReader(checked, str(self._path), budget, exact=self._exact)
            yield from reader.persons()


class _CheckedFile:
    """A file in which no number may have more digits than Python reads.

    The parser ends the process at an integer of more digits than it has room for.
    """

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path, self._before = file, path, b""

    def read(self, n_bytes: int = -1) -> bytes:
        """Return the next bytes; see :meth:`io.RawIOBase.read`."""
        block = self._file.read(n_bytes)
        if _LONG_NUMBER in (self._before + block).translate(_ZEROS):
            raise InvalidError(f"{self._path}: a number has more than {_MOST_DIGITS} digits")
        self._before = block[-_MOST_DIGITS:]
        return block


def _singles(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which values are exact in float32, or NaN."""
    with np.errstate(over="ignore"):
        return np.asarray((values.astype(np.float32) == values) | np.isnan(values))


def _rest_text(person: Person) -> str:
    """Return, as JSON, what of a person is stored nowhere else; empty if there is nothing."""
    known = {FACE_PATH, "video_images"} if person.paths_only else _KEPT
    rest = {
        "fields": {key: value for key, value in person.fields.items() if key not in known},
        "frames": {str(n): fields for n, fields in person.rest.items()},
        "form": "paths" if person.paths_only else "",
    }
    rest = {key: value for key, value in rest.items() if value}
    return json.dumps(rest, ensure_ascii=False) if rest else ""


def recognises(path: Path) -> bool:
    """Return whether a file is of this format, judged by its first bytes."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return f'"{FACE_PATH}"'.encode() in file.read(65_536)
    except OSError:
        return False
