"""Differences between two stores, frame by frame, whatever order their frames are in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.coverage import coverage
from kpstore.inspect.matching import (
    column,
    column_names,
    common_videos,
    matched_frames,
    only_in,
    unequal_rows,
)
from kpstore.schema.feature import MASK, State, part_slices
from kpstore.store import format as fmt
from kpstore.store.arrays import FeatureArray
from kpstore.store.in_order import in_order
from kpstore.store.store import BaseStore

_BLOCK_BYTES = 8 * 2**20
"""Bytes of each store that a thread compares at once."""

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Parameters
    ----------
    where : path of the frame, or id of the video.
    feature, part : names; part is ``""`` for a feature without parts.
    what : ``"values"``, ``"only in A"``, ``"only in B"`` (missing in the other) or ``"state"``.
    largest : largest absolute difference; None unless ``what`` is ``"values"``.
    """

    where: str
    feature: str
    part: str
    what: str
    largest: float | None = None


@dataclass
class PartDiff:
    """How often a part of a feature differs.

    Parameters
    ----------
    values : rows that have it in both, with other values.
    only_a, only_b : rows in which it is missing in the other.
    largest : largest absolute difference.
    """

    values: int = 0
    only_a: int = 0
    only_b: int = 0
    largest: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.values or self.only_a or self.only_b)


@dataclass
class FeatureDiff:
    """How two stores differ in a feature that both have.

    Parameters
    ----------
    rows : number of rows compared.
    differing : rows in which anything differs, and videos without frames whose state differs.
    states : those of them whose state differs.
    parts : by name.
    """

    rows: int = 0
    differing: int = 0
    states: int = 0
    parts: dict[str, PartDiff] = field(default_factory=dict)


@dataclass
class ContentDiff:
    """How two stores differ.

    Parameters
    ----------
    videos, frames : how many each holds, A then B.
    videos_only_a, videos_only_b : ids.
    frames_only_a, frames_only_b : frames whose path the other does not have.
    columns : number of common videos that differ in a column (split, annotation, …), by its name.
    features_only_a, features_only_b : names.
    features : by name, the features that both have.
    coverage : by feature, rows done, failed and pending and parts detected, A then B.
    first : the first differences, up to the limit asked for.
    notes : where the comparison was made in another way than usual.
    """

    videos: tuple[int, int]
    frames: tuple[int, int]
    videos_only_a: tuple[str, ...] = ()
    videos_only_b: tuple[str, ...] = ()
    frames_only_a: int = 0
    frames_only_b: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    features_only_a: tuple[str, ...] = ()
    features_only_b: tuple[str, ...] = ()
    features: dict[str, FeatureDiff] = field(default_factory=dict)
    coverage: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    first: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything differs."""
        found = (
            self.frames_only_a,
            self.frames_only_b,
            self.videos_only_a,
            self.videos_only_b,
            self.features_only_a,
            self.features_only_b,
            self.columns,
        )
        return any(found) or any(feature.differing for feature in self.features.values())

    def to_json(self) -> dict[str, object]:
        """Return the differences as JSON values."""
        return {"differ": bool(self), **asdict(self)}


def compare(
    a: BaseStore,
    b: BaseStore,
    *,
    features: tuple[str, ...] | None = None,
    atol: float = 0.0,
    limit: int = 20,
    on_progress: OnProgress | None = None,
) -> ContentDiff:
    """Compare the contents of two stores; frames are matched by path, videos by id.

    Videos of the same id and length whose paths have nothing in common are matched by frame
    number, as some formats hold no paths. A companion without any value in one of the stores, such
    as the visibility in files of keypoints, is not compared. The notes mention both.

    Parameters
    ----------
    features : only these; by default all features of either store.
    atol : largest absolute difference of two values that count as equal.
    limit : number of differences to list.
    on_progress : called with the number of rows just compared.

    Raises
    ------
    NotFoundError
        If one of ``features`` is in neither store.
    InvalidError
        If ``atol`` is negative, or a feature's rows have another shape in each store.
    """
    if not atol >= 0:
        raise InvalidError(f"atol is {atol}; a tolerance is 0 or more")
    a, b = a.checked(), b.checked()
    wanted = tuple(dict.fromkeys((*a.features, *b.features))) if features is None else features
    for name in wanted:
        if name not in a.features and name not in b.features:
            raise NotFoundError(
                f"feature {name!r} is in neither; A has {sorted(a.features)}, B "
                f"{sorted(b.features)}"
            )
    rows_a, rows_b, n_by_number = matched_frames(a, b)
    found = ContentDiff(
        videos=(len(a.index), len(b.index)),
        frames=(a.index.total_frames, b.index.total_frames),
        videos_only_a=only_in(a, b),
        videos_only_b=only_in(b, a),
        frames_only_a=a.index.total_frames - len(rows_a),
        frames_only_b=b.index.total_frames - len(rows_b),
        columns=_columns(a, b),
        features_only_a=tuple(name for name in wanted if name not in b.features),
        features_only_b=tuple(name for name in wanted if name not in a.features),
    )
    if n_by_number:
        found.notes.append(
            f"{n_by_number} videos were matched by frame number: their paths have nothing in common"
        )
    for name in wanted:
        if name in a.features and name in b.features:
            found.coverage[name] = (coverage(a, name).to_json(), coverage(b, name).to_json())
            comparison = _FeatureComparison(a, b, name, atol, limit, found)
            found.features[name] = comparison.run(rows_a, rows_b, on_progress or (lambda n: None))
    return found


def _columns(a: BaseStore, b: BaseStore) -> dict[str, int]:
    """Return in how many common videos each column differs, for those that do."""
    here, there = common_videos(a, b)
    counts = {}
    for name in column_names(a, b):
        one, other = column(a, name, here), column(b, name, there)
        differing = one != other
        if name in ("fps", "width", "height"):
            # An unknown value (0 or NaN) is no difference: most formats lack these.
            differing &= (one > 0) & (other > 0)
        counts["frames" if name == "n_frames" else name] = int(differing.sum())
    return {name: count for name, count in counts.items() if count}


@dataclass
class _Block:
    """What was found in some rows.

    Parameters
    ----------
    diff : the counts.
    limit : number of differences to list.
    first : row of A, part, what and distance of those.
    """

    diff: FeatureDiff
    limit: int
    first: list[tuple[int, str, str, float | None]] = field(default_factory=list)

    def note(
        self,
        rows: NDArray[np.int64],
        differing: NDArray[np.bool_],
        part: str,
        what: Callable[[int], str],
        distance: NDArray[np.float64] | None = None,
    ) -> None:
        """Note the rows that differ in a part, as many as are to be listed."""
        for row in np.flatnonzero(differing)[: self.limit - len(self.first)].tolist():
            kind = what(row)
            largest = float(distance[row]) if distance is not None and kind == "values" else None
            self.first.append((int(rows[row]), part, kind, largest))


class _FeatureComparison:
    """One feature of two stores."""

    def __init__(
        self, a: BaseStore, b: BaseStore, name: str, atol: float, limit: int, whole: ContentDiff
    ) -> None:
        self._a, self._b, self._name, self._atol = a, b, name, atol
        self._limit, self._first = limit, whole.first
        self._spec = a.feature(name)
        other = b.feature(name)
        layouts = [(spec.shape, spec.axis, part_slices(spec)) for spec in (self._spec, other)]
        if layouts[0] != layouts[1]:
            raise InvalidError(
                f"feature {name!r} has rows of {self._spec.shape} per {self._spec.axis} in A and "
                f"of {other.shape} per {other.axis} in B; they cannot be compared"
            )
        shared = {c.name for c in other.companions}
        self._companions = []
        for companion in (c.name for c in self._spec.companions if c.name in shared):
            if companion == MASK and np.dtype(self._spec.dtype).kind == "f":
                continue  # it says which values are NaN
            here, there = (_has_any(store, self._spec.companion(companion)) for store in (a, b))
            if here == there:
                self._companions.append(companion)
            else:
                whole.notes.append(
                    f"{name}: {companion} is in {'A' if here else 'B'} only, and is not compared"
                )
        self._found = FeatureDiff()

    def run(
        self,
        rows_a: NDArray[np.int64],
        rows_b: NDArray[np.int64],
        on_progress: Callable[[int], None],
    ) -> FeatureDiff:
        """Compare all pairs of rows, a block at a time."""
        if self._spec.axis == "video":
            rows_a, rows_b = common_videos(self._a, self._b)
        else:
            self._compare_empty_videos()
        step = _block_rows(self._a[self._name])
        blocks = [
            (rows_a[start : start + step], rows_b[start : start + step])
            for start in range(0, len(rows_a), step)
        ]
        n_bytes = step * _row_bytes(self._a[self._name])
        for found in in_order(lambda rows: self._compare(*rows), blocks, item_bytes=n_bytes):
            self._add(found)
            on_progress(found.diff.rows)
        self._found.parts = {name: part for name, part in self._found.parts.items() if part}
        return self._found

    def _add(self, block: _Block) -> None:
        """Add what was found in some rows."""
        whole, more = self._found, block.diff
        whole.rows += more.rows
        whole.differing += more.differing
        whole.states += more.states
        for name, part in more.parts.items():
            known = whole.parts.setdefault(name, PartDiff())
            known.values += part.values
            known.only_a += part.only_a
            known.only_b += part.only_b
            known.largest = max(known.largest, part.largest)
        for row, part_name, what, largest in block.first[: self._n_left]:
            self._first.append(Difference(self._where(row), self._name, part_name, what, largest))

    def _compare_empty_videos(self) -> None:
        """Compare the states of videos without frames, in which no frame shows a failure."""
        here, there = common_videos(self._a, self._b)
        empty = (self._a.index.n_frames[here] == 0) & (self._b.index.n_frames[there] == 0)
        here, there = here[empty], there[empty]
        differing = here[self._a.states(self._name)[here] != self._b.states(self._name)[there]]
        self._found.states += len(differing)
        self._found.differing += len(differing)
        ids = self._a.index.ids[differing[: self._n_left]].tolist()
        self._first += [Difference(video_id, self._name, "", "state") for video_id in ids]

    @property
    def _n_left(self) -> int:
        """Number of differences that may still be listed."""
        return max(0, self._limit - len(self._first))

    def _compare(self, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]) -> _Block:
        """Compare some pairs of rows; called in threads."""
        status = fmt.row_state_name(self._spec)
        companions = {name: self._spec.companion(name) for name in self._companions}
        names = (status, self._name, *companions.values())
        arrays = {name: (self._a.read(name, rows_a), self._b.read(name, rows_b)) for name in names}
        found = _Block(FeatureDiff(rows=len(rows_a)), self._limit)
        unequal = np.zeros(len(rows_a), dtype=np.bool_)
        for one, other in arrays.values():
            unequal |= unequal_rows(one, other)
        if not unequal.any():  # as nearly always
            return found
        arrays = {name: (a[unequal], b[unequal]) for name, (a, b) in arrays.items()}
        rows = rows_a[unequal]
        here, there = arrays[status]
        differing = here != there
        found.diff.states = int(differing.sum())
        found.note(rows, differing, "", lambda row: "state")
        both = (here == State.DONE) & (there == State.DONE)
        parts = {
            part: [_flat(array[:, points] if points else array) for array in arrays[self._name]]
            for part, points in part_slices(self._spec).items()
        }
        parts |= {name: [_flat(array) for array in arrays[c]] for name, c in companions.items()}
        for part, (one, other) in parts.items():
            differing |= self._compare_part(part, one, other, both, rows, found)
        found.diff.differing = int(differing.sum())
        return found

    def _compare_part(
        self,
        part: str,
        one: NDArray[np.generic],
        other: NDArray[np.generic],
        both: NDArray[np.bool_],
        rows: NDArray[np.int64],
        block: _Block,
    ) -> NDArray[np.bool_]:
        """Record the rows of one part, (rows, numbers), that differ; return which, (rows,) bool."""
        here, there = (~np.isnan(array) for array in (one, other))
        only_a = both & (here & ~there).any(axis=1) & ~(there & ~here).any(axis=1)
        only_b = both & (there & ~here).any(axis=1)
        with np.errstate(invalid="ignore"):
            apart_by = np.where(here & there, _apart_by(one, other), 0)
        # Infinities of the same sign are equal, although their difference is NaN.
        distance = np.where(np.isnan(apart_by), 0, apart_by).max(axis=1, initial=0)
        apart = both & (distance > self._atol) & ~only_a & ~only_b
        block.diff.parts[part] = PartDiff(
            values=int(apart.sum()),
            only_a=int(only_a.sum()),
            only_b=int(only_b.sum()),
            largest=float(distance[both].max(initial=0)),
        )
        any_difference: NDArray[np.bool_] = only_a | only_b | apart
        block.note(
            rows,
            any_difference,
            part,
            lambda row: "only in A" if only_a[row] else "only in B" if only_b[row] else "values",
            distance,
        )
        return any_difference

    def _where(self, row: int) -> str:
        if self._spec.axis == "video":
            return str(self._a.index.ids[row])
        path = str(self._a[fmt.IMAGE_PATH][row])
        position = int(self._a.index.video_of(np.array([row]))[0])
        return path or f"{self._a.index.ids[position]}#{row - self._a.index.rows(position).start}"


def _has_any(store: BaseStore, name: str) -> bool:
    """Whether an array holds any number; reads no further than the first block with one."""
    array = store[name]
    if array.dtype.kind != "f":
        return True
    step = _block_rows(array)
    return any(
        not np.isnan(array[start : start + step]).all() for start in range(0, len(array), step)
    )


def _block_rows(array: FeatureArray) -> int:
    """Return the number of rows to read at once: some whole chunks."""
    chunk_bytes = array.chunk_rows * _row_bytes(array)
    return array.chunk_rows * int(max(1, _BLOCK_BYTES // max(1, chunk_bytes)))


def _row_bytes(array: FeatureArray) -> int:
    return array.dtype.itemsize * math.prod(array.shape[1:])


def _flat(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    return rows.reshape(len(rows), -1)


def _apart_by(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return absolute differences; of integers they are 0 only if the numbers are equal."""
    common = np.result_type(one, other)
    if common.kind not in "iu":
        return np.abs(one.astype(np.float64) - other.astype(np.float64))
    one, other = one.astype(common), other.astype(common)
    # Unsigned integers hold every difference: arithmetic modulo 2**64 gives the right result.
    unsigned = np.dtype(f"u{common.itemsize}")
    high, low = np.maximum(one, other).astype(unsigned), np.minimum(one, other).astype(unsigned)
    return np.asarray(high - low, dtype=np.float64)
