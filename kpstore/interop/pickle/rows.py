"""Making rows of a store from the frames of a pickle."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.pickle.forms import NONE, Listed
from kpstore.schema.feature import MASK, FeatureRows, FeatureSpec
from kpstore.schema.layout import N_FACE, PART_SLICES, PARTS

Zeros = Literal["missing", "values"]
_NUMBER = re.compile(r"(\d+)\D*\Z")


class RowMaker:
    """Makes rows from frames.

    Parameters
    ----------
    spec, zeros : the feature, and the meaning of parts that are all zeros.
    count : counts what rows cannot hold; see :meth:`NotedDocument.count`.

    Attributes
    ----------
    gaps : for each video that lacks frames, how many are missing between its first and last.
    """

    def __init__(self, spec: FeatureSpec, zeros: Zeros, count: Callable[[str, int], None]) -> None:
        self._spec, self._zeros, self._count = spec, zeros, count
        self.gaps: list[int] = []
        self._parts = {"face": slice(0, N_FACE)} if spec.shape[0] == N_FACE else PART_SLICES

    def make(
        self, listed: Listed, places: Sequence[int]
    ) -> tuple[FeatureRows, dict[int, str], tuple[int, int]]:
        """Return the rows of some frames, the reasons of those that failed, and their size.

        The size is (height, width) in pixels, 0 where unknown.
        """
        rows = self._spec.empty_rows(len(places))
        failed: dict[int, str] = {}
        sizes: set[tuple[int, int] | None] = set()
        frames = [listed.frames[place] for place in places]
        if not self._fill_alike(rows, frames):
            for number, frame in enumerate(frames):
                where = f"{listed.place}['keypoints'][{places[number]}]"
                if isinstance(frame, dict):
                    self._fill_parts(rows, number, frame, where)
                elif frame is not None:
                    self._fill_points(rows, number, frame, where)
        for number, frame in enumerate(frames):
            if frame is None:
                failed[number] = NONE
            elif isinstance(frame, dict):
                where = f"{listed.place}['keypoints'][{places[number]}]"
                sizes.add(_size(frame.get("image_shape"), where))
        return rows, failed, self._agreed(sizes)

    def _fill_alike(self, rows: FeatureRows, frames: Sequence[object]) -> bool:
        """Fill the rows of all frames at once, which one by one takes several times as long.

        Nothing is filled, and False returned, unless frames are dicts of known parts or None, and
        parts arrays of float32 or None: what is wrong with others is said of each.
        """
        known = {*self._parts, "image_shape"}
        dicts = [(row, frame) for row, frame in enumerate(frames) if frame is not None]
        if not all(type(frame) is dict and frame.keys() <= known for _, frame in dicts):
            return False
        found: dict[str, dict[int, NDArray[np.float32]]] = {}
        for part, columns in self._parts.items():
            shape = (columns.stop - columns.start, 3)
            found[part] = {
                row: points
                for row, frame in dicts
                if (points := frame.get(part)) is not None  # type: ignore[attr-defined]
            }
            for points in found[part].values():
                if not (
                    isinstance(points, np.ndarray)
                    and points.shape == shape
                    and points.dtype == np.float32
                ):
                    return False
        for part, points_of in found.items():
            if points_of:
                places, columns = list(points_of), self._parts[part]
                block = np.concatenate(list(points_of.values())).reshape(len(places), -1, 3)
                rows.values[places, columns] = block
                detected = ~np.isnan(block).all(axis=(1, 2))
                rows.companions[MASK][places, PARTS.index(part)] = detected
        return True

    def _fill_parts(
        self, rows: FeatureRows, number: int, frame: Mapping[str, object], where: str
    ) -> None:
        for part, points in frame.items():
            if part == "image_shape":
                continue
            columns = self._parts.get(part)
            if columns is None:
                self._count(f"frames also hold {part!r}, which is an unknown part", 1)
            elif points is not None:
                shape = (columns.stop - columns.start, 3)
                found = self._points(points, shape, f"{where}[{part!r}]")
                rows.values[number, columns] = found
                rows.companions[MASK][number, PARTS.index(part)] = not np.isnan(found).all()

    def _fill_points(self, rows: FeatureRows, number: int, frame: object, where: str) -> None:
        points = self._points(frame, self._spec.shape, where)
        rows.values[number] = points
        for column, columns in enumerate(self._parts.values()):
            part = points[columns]
            missing = np.isnan(part).all() or (self._zeros == "missing" and not part.any())
            rows.companions[MASK][number, column] = not missing
            if missing:
                rows.values[number, columns] = np.nan

    def _points(self, points: object, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
        try:
            found = np.asarray(points)
        except ValueError:
            found = np.empty((), dtype=object)  # a ragged list
        if found.shape != shape or found.dtype.kind not in "fiu":
            raise InvalidError(
                f"{where}: {found.shape} of {found.dtype}, {shape} of numbers are needed"
            )
        if found.dtype != np.float32:
            self._count(f"arrays are {found.dtype}; they are stored as float32", 1)
            try:
                with np.errstate(over="raise"):
                    found = found.astype(np.float32)
            except FloatingPointError:
                largest = np.abs(found).max()
                raise InvalidError(f"{where}: {largest:g} does not fit float32") from None
        return found

    def _agreed(self, sizes: set[tuple[int, int] | None]) -> tuple[int, int]:
        known = {size for size in sizes if size is not None}
        self._count(
            "videos have some frames without an image shape; they get that of the others",
            len(sizes) > len(known) > 0,
        )
        self._count(
            "videos have frames of several image shapes; theirs are not kept", len(known) > 1
        )
        return known.pop() if len(known) == 1 else (0, 0)

    def count_gaps(self, paths: Sequence[str]) -> None:
        """Count the frames that are missing within a video, by the numbers in its paths."""
        found = [_NUMBER.search(path.rpartition("/")[2]) for path in paths]
        numbers = [int(match[1][-15:]) for match in found if match is not None]
        if len(numbers) != len(paths) or not numbers:
            return
        gap = max(numbers) - min(numbers) + 1 - len(set(numbers))
        if gap:
            self.gaps.append(gap)
        self._count(
            "videos have frames that are not in the order of their numbers; it is kept",
            any(later < earlier for earlier, later in pairwise(numbers)),
        )


def _size(shape: object, where: str) -> tuple[int, int] | None:
    """Return (height, width) of an image shape, which has two or three numbers."""
    if shape is None:
        return None
    numbers: tuple[int, ...] = ()
    if type(shape) is tuple and all(type(number) is int for number in shape):
        numbers = shape
    else:
        array = np.asarray(shape)
        if array.ndim == 1 and len(array) in (2, 3) and array.dtype.kind in "iu":
            numbers = tuple(array.tolist())
    if len(numbers) not in (2, 3) or min(numbers) < 1 or max(numbers) > 2**31 - 1:
        raise InvalidError(
            f"{where}['image_shape'] is {str(shape)[:80]}; height and width are needed"
        )
    return numbers[0], numbers[1]
