"""Reading records of persons one event at a time, so that memory does not grow with the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

import ijson  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from kpstore.budget import VALUE_BYTES, MemoryBudget
from kpstore.errors import InvalidError
from kpstore.schema.face_features import FACE_FIELDS, FACE_PATH, FRAME_FIELDS, Field

Event = tuple[str, object]
"""Kind and value of what the parser found."""
_MAX_DEPTH = 20
_NUMBER_BYTES = 32
"""Memory of a number in a list."""
_STORED = frozenset({"image_path", *(known.name for known in FRAME_FIELDS)})
"""Keys of a frame whose values are stored by themselves."""


@dataclass
class Person:
    """The record of a person, with ``video_data`` as arrays.

    Parameters
    ----------
    fields : fields of the record; that of ``video_data`` is None.
    face_path, paths : paths of the frontal picture and of the frames.
    values : for each field of numbers its values by frame, None where a frame lacks it.
    rest : other fields of frames, by frame number.
    face : values of the frontal face, by field.
    """

    name: str
    fields: dict[str, object] = field(default_factory=dict)
    face_path: str = ""
    paths: list[str] = field(default_factory=list)
    values: dict[str, list[NDArray[np.float64] | None]] = field(default_factory=dict)
    rest: dict[int, dict[str, object]] = field(default_factory=dict)
    face: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def paths_only(self) -> bool:
        """Whether the person has only paths of images, and no features."""
        return "video_data" not in self.fields

    def has(self, name: str) -> bool:
        """Return whether the frontal face or any frame has a field."""
        return name in self.face or any(v is not None for v in self.values.get(name, ()))

    def values_of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return a field as (frames, *shape) float64, NaN where a frame lacks it."""
        blank = np.full(shape, np.nan)
        given = [blank if value is None else value for value in self.values[name]]
        return np.array(given, dtype=np.float64).reshape(len(given), *shape)


class Readable(Protocol):
    """What persons are read from."""

    def read(self, n_bytes: int = -1, /) -> bytes:
        """Return the next bytes."""


class WideIntegerError(Exception):
    """An integer of more than 64 bits, for which the fast way of reading numbers has no room."""


class PersonReader:
    """Reads persons one event at a time; errors name the person and the frame.

    With ``exact``, integers may have any number of digits, and reading takes longer.
    """

    def __init__(self, file: Readable, path: str, budget: MemoryBudget, *, exact: bool) -> None:
        self._place = self._path = path
        self._exact, self._budget, self._most = exact, budget, budget.left
        self._taken = 0
        """Memory of the person so far."""
        self._events = self._checked(ijson.basic_parse(file, use_float=not exact))

    def _checked(self, events: Iterator[Event]) -> Iterator[Event]:
        try:
            for event in self._with_floats(events) if self._exact else events:
                # A file is millions of events, so that a function for each would be felt.
                kind, value = event
                self._taken += _NUMBER_BYTES if kind == "number" else VALUE_BYTES
                if isinstance(value, str):
                    self._taken += len(value)
                if self._taken > self._most:
                    self._budget.check(self._taken, self._place.removeprefix(f"{self._path}: "))
                yield event
        except InvalidError:
            raise
        except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
            told = _first_line(error)
            if "integer overflow" in told and not self._exact:
                raise WideIntegerError from None
            if "overflow" in told:
                raise InvalidError(
                    f"{self._place}: a number is larger than a float can be: {told}"
                ) from None
            raise InvalidError(f"{self._place}: not JSON from here on: {told}") from None

    def _with_floats(self, events: Iterator[Event]) -> Iterator[Event]:
        for kind, value in events:
            number = float(value) if isinstance(value, Decimal) else value
            if isinstance(number, float) and not math.isfinite(number):
                raise InvalidError(
                    f"{self._place}: a number is larger than a float can be: {value}"
                )
            yield kind, number

    def persons(self) -> Iterator[Person]:
        """Yield the persons; it is an error if two have the same name."""
        kind, value = next(self._events)
        if kind != "start_map":
            raise InvalidError(
                f"{self._path}: {_kind(kind, value)} found; persons by name are needed, {{…}}"
            )
        seen: set[str] = set()
        for kind, value in self._events:
            if kind == "map_key":
                name = str(value)
                self._place = f"{self._path}: person {name!r}"
                if name in seen or not name:
                    raise InvalidError(
                        f"{self._place} {'is in the file twice' if name else 'has no name'}"
                    )
                seen.add(name)
                self._taken = 0
                yield self._person(name)
                self._place = f"{self._path}: after person {name!r}"

    def _person(self, name: str) -> Person:
        person = Person(name, values={known.name: [] for known in FRAME_FIELDS})
        kind, value = next(self._events)
        self._need(kind == "start_map", "it", _kind(kind, value), "a record, {…}")
        for key in self._keys(person.fields):
            kind, value = next(self._events)
            if key == "video_data":
                found = _kind(kind, value)
                self._need(kind == "start_array", "'video_data'", found, "a list of frames")
                self._frames(person)
                person.fields[key] = None
            else:
                person.fields[key] = self._build(kind, value)
        self._check(person)
        return person

    def _frames(self, person: Person) -> None:
        place = self._place
        for number, (kind, value) in enumerate(self._events):
            if kind == "end_array":
                break
            self._place = f"{place}, frame {number}"
            self._need(kind == "start_map", "it", _kind(kind, value), "a record, {…}")
            before = self._taken
            record = self._record()
            person.paths.append(self._text(record, "image_path"))
            for known in FRAME_FIELDS:
                there = known.needed or known.name in record
                person.values[known.name].append(self._array(known, record) if there else None)
            if rest := {key: value for key, value in record.items() if key not in _STORED}:
                person.rest[number] = rest
            else:  # lists of numbers became arrays
                arrays = [values[-1] for values in person.values.values()]
                sizes = [0 if array is None else array.nbytes for array in arrays]
                n_texts = len(person.paths[-1])
                self._taken = before + sum(sizes) + n_texts + VALUE_BYTES * 2 * len(arrays)
        self._place = place

    def _check(self, person: Person) -> None:
        """Check a complete record, and read the frontal face."""
        person.face_path = self._text(person.fields, FACE_PATH)
        if person.paths_only:
            if "face_features" in person.fields or "video_images" not in person.fields:
                self._get(person.fields, "video_data")
            images = person.fields["video_images"]
            if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
                raise InvalidError(f"{self._place}: 'video_images' is not a list of paths")
            person.paths = images
            return
        for known in FACE_FIELDS:
            if known.needed or known.name in person.fields:
                person.face[known.name] = self._array(known, person.fields)

    def _array(self, known: Field, record: Mapping[str, object]) -> NDArray[np.float64]:
        value = self._get(record, known.name)
        length = len(value) if isinstance(value, list) else 1
        shape = (length,) if known.shape is None else known.shape
        wanted = "x".join(map(str, shape)) + " numbers" if shape else "a number"
        try:
            array = np.array(value)
        except ValueError:
            raise InvalidError(
                f"{self._place}: {known.name!r} is lists of different lengths; {wanted} needed"
            ) from None
        numeric = array.dtype.kind in "iuf"
        if not numeric or array.shape != shape or not array.size:
            found = json.dumps(value, ensure_ascii=False)
            if numeric and array.ndim:
                found = f"{'x'.join(map(str, array.shape))} numbers"
            raise InvalidError(f"{self._place}: {known.name!r} is {found[:80]}; {wanted} needed")
        return array.astype(np.float64)

    def _keys(self, record: Mapping[str, object]) -> Iterator[str]:
        for kind, value in self._events:
            if kind == "end_map":
                return
            if value in record:
                raise InvalidError(f"{self._place}: {value!r} is there twice")
            yield str(value)

    def _record(self, depth: int = 0) -> dict[str, object]:
        """Return the record that begins here."""
        record: dict[str, object] = {}
        for key in self._keys(record):
            record[key] = self._build(*next(self._events), depth + 1)
        return record

    def _build(self, kind: str, value: object, depth: int = 0) -> object:
        """Return the value that begins with an event."""
        if depth > _MAX_DEPTH:
            raise InvalidError(
                f"{self._place}: lists in lists in lists, more than {_MAX_DEPTH} deep"
            )
        if kind == "start_array":
            items: list[object] = []
            for inner, item in self._events:
                if inner == "number":
                    items.append(item)
                elif inner == "end_array":
                    return items
                else:
                    items.append(self._build(inner, item, depth + 1))
        return self._record(depth) if kind == "start_map" else value

    def _need(self, right: bool, name: str, found: str, wanted: str) -> None:
        if not right:
            raise InvalidError(f"{self._place}: {name} is {found}; {wanted} is needed")

    def _text(self, record: Mapping[str, object], key: str) -> str:
        text = self._get(record, key)
        self._need(isinstance(text, str), repr(key), repr(text), "text")
        return str(text)

    def _get(self, record: Mapping[str, object], key: str) -> object:
        if key not in record:
            raise InvalidError(f"{self._place}: no {key!r}")
        return record[key]


def _kind(kind: str, value: object) -> str:
    return {"start_map": "a record", "start_array": "a list"}.get(
        kind, json.dumps(value, ensure_ascii=False)[:80]
    )


def _first_line(error: BaseException) -> str:
    """Return the parser's message in one line, with the text that its arrow points to."""
    argument = error.args[0] if error.args else ""
    text = argument.decode(errors="replace") if isinstance(argument, bytes) else str(argument)
    first, *rest = text.split("\n")
    stopped = (
        rest[0][max(rest[1].index("^") - 1, 0) :][:20] if len(rest) > 1 and "^" in rest[1] else ""
    )
    return " ".join(first.split()) + (f" ({stopped.strip()!r})" if stopped.strip() else "")
