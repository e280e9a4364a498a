"""Reading face features of persons: ``{person: {"face_features": […], "video_data": [{…}, …], …}}``, streamed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import ijson  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import ImportedFeature, ImportedVideo, imported
from kpstore.interop.files import check_there
from kpstore.options import Option
from kpstore.schema.face_features import FACE_FIELDS, FACE_PATH, FRAME_FIELDS, MODEL_DIMS, Field
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord

FORMAT = "json"
REST = "person_fields"
"""Annotation that keeps what else a person's record holds, as JSON; empty if nothing."""

Precision = Literal["auto", "single", "double"]

_SAMPLE_FRAMES = 100
"""Frames from which the type of each feature is decided."""
_MAX_DEPTH = 20


@dataclass(frozen=True)
class FaceJsonImport:
    """Reads the face-feature JSON: a person is a video, its frames are ``video_data``.

    The frontal face gives features of videos, ``face_<model>``, ``face_landmarks_2d``, …; frames
    give ``<model>``, ``landmarks_2d``, …, ``spherical_angles``, ``avg_angle``. Persons with paths
    only (``video_images``) become videos without features. Paths are kept as they are, with forward
    slashes.

    Parameters
    ----------
    base_dir : what relative paths are relative to. Checked, if given: the first person's images
        must be there.
    split : the split of these persons.
    model : which model made the features, where the file does not say; else it must be the one that
        the file says.
    precision : ``"auto"`` stores a feature as float32 if the first hundred frames are exactly that
        (as text of ``float32.tolist()`` is), else as float64; a number that then does not fit is an
        error. ``"single"`` rounds, and says how often; ``"double"`` stores float64.
    """

    base_dir: Annotated[
        Path | None, Option("What relative paths are relative to; checked if given.", metavar="DIR")
    ] = None
    split: Annotated[str, Option("The split of these persons.")] = ""
    model: Annotated[
        str, Option("Which model made the features, e.g. dinov2_vitb14.", metavar="NAME")
    ] = ""
    precision: Annotated[
        Precision, Option("Of the stored numbers; auto keeps them as they are.")
    ] = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "single", "double"):
            raise InvalidError(f"precision={self.precision!r}: use 'auto', 'single' or 'double'")

    def open(self, path: Path) -> FaceDocument:
        """Open a file and read its first persons; see :class:`kpstore.interop.base.Importer`."""
        check_there(path, "JSON file of face features")
        document = FaceDocument(path, self)
        if self.base_dir is not None:
            document.check_base_dir(self.base_dir)
        return document


@dataclass
class _Person:
    """A person as the file has it; ``video_data`` already as arrays."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    values: dict[str, list[NDArray[np.float64] | None]] = field(default_factory=dict)
    rest: dict[int, dict[str, Any]] = field(default_factory=dict)
    face: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def paths_only(self) -> bool:
        return "video_data" not in self.fields

    def values_of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """(frames, *shape) float64, NaN where a frame lacks a field that may be missing."""
        blank = np.full(shape, np.nan)
        given = [blank if value is None else value for value in self.values[name]]
        return np.array(given, dtype=np.float64).reshape(len(given), *shape)


class FaceDocument:
    """An opened file of face features; see :class:`kpstore.interop.base.Document`."""

    n_frames = None

    def __init__(self, path: Path, options: FaceJsonImport) -> None:
        self._path, self._options = path, options
        self._told: Counter[str] = Counter()
        self._model, self._dim = "", 0
        self._specs: dict[str, FeatureSpec] = {}
        self._exact = False
        sample = self._sample()
        if any(not person.paths_only for person in sample):
            self._specs = self._decide([person for person in sample if not person.paths_only])

    @property
    def name(self) -> str:
        """Name of the file, without its suffix."""
        return self._path.stem

    @property
    def features(self) -> tuple[ImportedFeature, ...]:
        """Features of frames and of the frontal face; none if there are only paths."""
        base = self._options.base_dir
        document = {} if base is None else {"base_dir": str(base)}
        made = imported(FORMAT, document, model=self._model)
        return tuple(ImportedFeature(spec, made) for spec in self._specs.values())

    @property
    def notes(self) -> Sequence[str]:
        """What was changed on the way."""
        return tuple(f"{n} {what}" for what, n in self._told.items())

    def videos(self) -> Iterator[ImportedVideo]:
        """Read all persons; see :meth:`kpstore.interop.base.Document.videos`."""
        self._told.clear()
        for person in self._persons():
            rows = {} if person.paths_only else self._rows(person)
            notes = {FACE_PATH: self._slashes(person.fields[FACE_PATH]), REST: _rest_text(person)}
            paths = tuple(self._slashes(path) for path in person.paths)
            yield ImportedVideo(
                VideoRecord(person.name, self._options.split, paths, annotations=notes), rows
            )

    def check_base_dir(self, base_dir: Path) -> None:
        """Raise :class:`NotFoundError` unless the first person's images are where ``base_dir`` says."""
        check_there(base_dir, "images", folder=True)
        first = next(self._persons(), None)
        paths = [] if first is None else [first.fields[FACE_PATH], *first.paths]
        if paths and not any((base_dir / path).is_file() for path in paths):
            raise NotFoundError(
                f"--base-dir {base_dir}: no image of person {first.name if first else ''!r} is "
                f"there, such as {base_dir / paths[0]}; give the folder that the paths in "
                f"{self._path} are relative to"
            )

    # -- what the file holds -----------------------------------------------------------------------

    def _sample(self) -> list[_Person]:
        """Return the first persons, up to enough frames with features."""
        sample: list[_Person] = []
        for person in self._persons():
            sample.append(person) if not (person.paths_only and sample) else None
            if sum(len(p.paths) for p in sample if not p.paths_only) >= _SAMPLE_FRAMES:
                break
        return sample

    def _decide(self, sample: Sequence[_Person]) -> dict[str, FeatureSpec]:
        """Return the features by field, of the type that the sample needs."""
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
        return "float32" if all(_is_single(value) for value in values) else "float64"

    def _rows(self, person: _Person) -> dict[str, FeatureRows]:
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
            elif known.name in person.face or any(
                v is not None for v in person.values.get(known.name, ())
            ):
                self._told[
                    f"persons have {known.name}, which the first persons lack: not stored"
                ] += 1
        return rows

    def _fit(self, values: NDArray[np.float64], spec: FeatureSpec, place: str) -> FeatureRows:
        """Return values as they are stored.

        A number that needs more than float32 is an error, or rounded.
        """
        if spec.dtype == "float32" and not _is_single(values):
            rows = values.reshape(len(values), -1)
            odd = np.flatnonzero(~_singles(rows).all(axis=1))
            if self._options.precision == "auto":
                where = f"{place}, frame {odd[0]}" if spec.axis == "frame" else place
                raise InvalidError(
                    f"{where}: {spec.name} needs more digits than float32, which was enough in the "
                    f"first {_SAMPLE_FRAMES} frames; import with --precision double, or round with "
                    "--precision single"
                )
            self._told[f"rows of {spec.name} were rounded to float32"] += len(odd)
        with np.errstate(over="ignore"):
            return FeatureRows(values.astype(spec.dtype))

    def _model_of(self, person: _Person) -> tuple[str, int]:
        """Return model and length of a person's features, checked against each other and what was asked for."""
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
        self._told["paths had backslashes, which are now forward slashes"] += 1
        return path.replace("\\", "/")

    def _persons(self) -> Iterator[_Person]:
        done = 0
        try:
            for person in self._persons_read():
                yield person
                done += 1
            return
        except _WideIntegerError:
            self._exact = True
        yield from islice(self._persons_read(), done, None)

    def _persons_read(self) -> Iterator[_Person]:
        with self._path.open("rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            yield from _Reader(file, str(self._path), exact=self._exact).persons()


def _singles(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray((values.astype(np.float32) == values) | np.isnan(values))


def _is_single(values: NDArray[np.float64]) -> bool:
    return bool(_singles(values).all())


_KEPT = frozenset(
    {FACE_PATH, "video_data", "feature_dim", "dinov2_model", *(known.name for known in FACE_FIELDS)}
)


def _rest_text(person: _Person) -> str:
    """Return as JSON what of a person is kept nowhere else; empty if that is nothing."""
    known = {FACE_PATH, "video_images"} if person.paths_only else _KEPT
    fields = {key: value for key, value in person.fields.items() if key not in known}
    rest = {
        **({"fields": fields} if fields else {}),
        **(
            {"frames": {str(n): fields for n, fields in person.rest.items()}} if person.rest else {}
        ),
        **({"form": "paths"} if person.paths_only else {}),
    }
    return json.dumps(rest, ensure_ascii=False) if rest else ""


class _WideIntegerError(Exception):
    """An integer of more than 64 bits, which the fast way of reading numbers has no place for."""


class _Reader:
    """Reads persons event by event; what is wrong is said with the person and the frame.

    With ``exact`` integers may have any number of digits; reading then takes longer.
    """

    def __init__(self, file: IO[bytes], path: str, *, exact: bool) -> None:
        self._place = self._path = path
        self._exact = exact
        self._events: Iterator[tuple[str, Any]] = self._checked(
            ijson.basic_parse(file, use_float=not exact)
        )

    def _checked(self, events: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        try:
            yield from self._with_floats(events) if self._exact else events
        except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
            if isinstance(error, InvalidError):
                raise
            told = _first_line(error)
            if "integer overflow" in told and not self._exact:
                raise _WideIntegerError from None
            if "overflow" in told:
                raise InvalidError(
                    f"{self._place}: a number is larger than a float can be: {told}"
                ) from None
            raise InvalidError(f"{self._place}: no JSON from here on: {told}") from None

    def _with_floats(self, events: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for kind, value in events:
            number = float(value) if isinstance(value, Decimal) else value
            if isinstance(number, float) and not math.isfinite(number):
                raise InvalidError(
                    f"{self._place}: a number is larger than a float can be: {value}"
                )
            yield kind, number

    def persons(self) -> Iterator[_Person]:
        """Yield persons; each name once."""
        kind, value = next(self._events)
        if kind != "start_map":
            raise InvalidError(
                f"{self._path}: {_kind(kind, value)} found; persons by name are needed, {{…}}"
            )
        seen: set[str] = set()
        for kind, name in self._events:
            if kind == "map_key":
                self._place = f"{self._path}: person {name!r}"
                if name in seen or not name:
                    raise InvalidError(
                        f"{self._place} {'is in the file twice' if name else 'has no name'}"
                    )
                seen.add(name)
                yield self._person(name)
                self._place = f"{self._path}: after person {name!r}"

    def _person(self, name: str) -> _Person:
        person = _Person(name, values={known.name: [] for known in FRAME_FIELDS})
        self._expect("start_map", "a record, {…}")
        for key in self._keys(person.fields):
            kind, value = next(self._events)
            if key == "video_data":
                self._need(
                    kind == "start_array", "'video_data'", _kind(kind, value), "a list of frames"
                )
                self._frames(person)
                person.fields[key] = None
            else:
                person.fields[key] = self._build(kind, value)
        self._check(person)
        return person

    def _frames(self, person: _Person) -> None:
        place = self._place
        for number, (kind, value) in enumerate(self._events):
            if kind == "end_array":
                break
            self._place = f"{place}, frame {number}"
            self._need(kind == "start_map", "it", _kind(kind, value), "a record, {…}")
            record = self._build(kind, value)
            path = self._pop(record, "image_path")
            self._need(isinstance(path, str), "'image_path'", repr(path), "text")
            person.paths.append(path)
            for known in FRAME_FIELDS:
                there = known.needed or known.name in record
                person.values[known.name].append(
                    self._array(known, self._pop(record, known.name)) if there else None
                )
            if record:
                person.rest[number] = record
        self._place = place

    def _check(self, person: _Person) -> None:
        """Check a record when all of it is there, and read the frontal face."""
        path = self._get(person.fields, FACE_PATH)
        self._need(isinstance(path, str), f"{FACE_PATH!r}", repr(path), "text")
        if person.paths_only:
            if "face_features" in person.fields or "video_images" not in person.fields:
                self._get(person.fields, "video_data")
            images = person.fields["video_images"]
            right = isinstance(images, list) and all(isinstance(image, str) for image in images)
            self._need(right, "'video_images'", "something else", "a list of paths")
            person.paths = images
            return
        for known in FACE_FIELDS:
            if known.needed or known.name in person.fields:
                person.face[known.name] = self._array(known, self._get(person.fields, known.name))

    def _array(self, known: Field, value: Any) -> NDArray[np.float64]:
        shape = (
            known.shape
            if known.shape is not None
            else (len(value) if isinstance(value, list) else 1,)
        )
        wanted = "x".join(map(str, shape)) + " numbers" if shape else "a number"
        try:
            array = np.array(value)
        except ValueError:
            raise InvalidError(
                f"{self._place}: {known.name!r} is lists of different lengths; {wanted} needed"
            ) from None
        right = array.dtype.kind in "iuf" and array.shape == shape and array.size > 0
        if not right:
            shown = json.dumps(value, ensure_ascii=False)
            found = (
                f"{'x'.join(map(str, array.shape))} numbers"
                if array.dtype.kind in "iuf" and array.ndim
                else shown
            )
            raise InvalidError(f"{self._place}: {known.name!r} is {found[:80]}; {wanted} needed")
        return array.astype(np.float64)

    def _keys(self, record: dict[str, Any]) -> Iterator[str]:
        for kind, value in self._events:
            if kind == "end_map":
                return
            if value in record:
                raise InvalidError(f"{self._place}: {value!r} is there twice")
            yield value

    def _build(self, kind: str, value: Any, depth: int = 0) -> Any:
        """Return the value that an event begins."""
        if depth > _MAX_DEPTH:
            raise InvalidError(
                f"{self._place}: lists in lists in lists, more than {_MAX_DEPTH} deep"
            )
        if kind == "start_array":
            items: list[Any] = []
            for inner, item in self._events:
                if inner == "number":
                    items.append(item)
                elif inner == "end_array":
                    return items
                else:
                    items.append(self._build(inner, item, depth + 1))
        if kind == "start_map":
            record: dict[str, Any] = {}
            for key in self._keys(record):
                record[key] = self._build(*next(self._events), depth + 1)
            return record
        return value

    def _expect(self, wanted: str, what: str) -> None:
        kind, value = next(self._events)
        self._need(kind == wanted, "it", _kind(kind, value), what)

    def _need(self, right: bool, name: str, found: str, wanted: str) -> None:
        if not right:
            raise InvalidError(f"{self._place}: {name} is {found}; {wanted} is needed")

    def _pop(self, record: dict[str, Any], key: str) -> Any:
        value = self._get(record, key)
        del record[key]
        return value

    def _get(self, record: dict[str, Any], key: str) -> Any:
        if key not in record:
            raise InvalidError(f"{self._place}: no {key!r}")
        return record[key]


def _kind(kind: str, value: Any) -> str:
    return {"start_map": "a record", "start_array": "a list"}.get(
        kind, json.dumps(value, ensure_ascii=False)[:80]
    )


def _first_line(error: BaseException) -> str:
    """Return what the parser says, and the text it stopped at, which it points to with an arrow."""
    argument = error.args[0] if error.args else ""
    text = argument.decode(errors="replace") if isinstance(argument, bytes) else str(argument)
    first, *rest = text.split("\n")
    stopped = (
        rest[0][max(rest[1].index("^") - 1, 0) :][:20] if len(rest) > 1 and "^" in rest[1] else ""
    )
    return " ".join(first.split()) + (f" ({stopped.strip()!r})" if stopped.strip() else "")


def looks_like_faces(path: Path) -> bool:
    """Whether a file is of this format, by its first bytes."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return f'"{FACE_PATH}"'.encode() in file.read(65_536)
    except OSError:
        return False
