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
        for number, place in enumerate(places):
            frame, where = listed.frames[place], f"{listed.place}['keypoints'][{place}]"
            if frame is None:
                failed[number] = NONE
            elif isinstance(frame, dict):
                self._fill_parts(rows, number, frame, where)
                sizes.add(_size(frame.get("image_shape"), where))
            else:
                self._fill_points(rows, number, frame, where)
        return rows, failed, self._agreed(sizes)

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
    numbers = np.asarray(shape)
    good = numbers.ndim == 1 and len(numbers) in (2, 3) and numbers.dtype.kind in "iu"
    if not good or numbers.min() < 1 or numbers.max() > 2**31 - 1:
        raise InvalidError(
            f"{where}['image_shape'] is {str(shape)[:80]}; height and width are needed"
        )
    return int(numbers[0]), int(numbers[1])
