"""Differences between two stores, frame by frame, whatever order their frames are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.coverage import coverage
from kpstore.inspect.matching import column, column_names, common_videos, only_in
from kpstore.schema.feature import MASK, State, part_slices
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

_BLOCK_ROWS = 8192
"""Rows of both stores in memory at once: 14 MB of keypoints each."""

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
    rows_a, rows_b, n_by_number = _matched_frames(a, b)
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


def _matched_frames(a: BaseStore, b: BaseStore) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return the rows of common frames in A and in B, and the number of videos matched by number.

    The rows are in the order of A.
    """
    of_b = np.full(a.index.total_frames, -1, dtype=np.int64)
    taken = np.zeros(b.index.total_frames, dtype=bool)
    # First within videos of one id, as frames of several videos may have the same path; then
    # anywhere.
    for by_video in (True, False):
        places = {
            key: row for row, key in enumerate(_frame_keys(b, by_video=by_video)) if not taken[row]
        }
        for row, key in enumerate(_frame_keys(a, by_video=by_video)):
            if of_b[row] < 0 and key in places:
                of_b[row] = places[key]
        taken[of_b[of_b >= 0]] = True
        if taken.all() or (of_b >= 0).all():
            break
    n_by_number = 0
    for position, video_id in enumerate(a.index.ids.tolist()):
        rows = a.index.rows(position)
        if rows.start == rows.stop or video_id not in b.index or (of_b[rows] >= 0).any():
            continue
        others = b.index.rows(b.index.position(video_id))
        if others.stop - others.start == rows.stop - rows.start and not taken[others].any():
            of_b[rows] = np.arange(others.start, others.stop)
            n_by_number += 1
    rows_a = np.flatnonzero(of_b >= 0)
    return rows_a, of_b[rows_a], n_by_number


def _frame_keys(store: BaseStore, *, by_video: bool) -> Iterator[tuple[str, str, int]]:
    """Yield each frame's video (or ``""``), path (or number), and how often that came before."""
    seen: dict[tuple[str, str], int] = {}
    if not len(store.index):
        return
    for position, video_id in enumerate(store.index.ids.tolist()):
        rows = store.index.rows(position)
        if by_video:
            seen.clear()  # no other video has keys like this one's
        for number, path in enumerate(store[fmt.IMAGE_PATH][rows].tolist()):
            key = (video_id if by_video else "", path.replace("\\", "/") or f"{video_id}#{number}")
            seen[key] = seen.get(key, -1) + 1
            yield *key, seen[key]


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
        for start in range(0, len(rows_a), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            self._compare(rows_a[block], rows_b[block])
            on_progress(len(rows_a[block]))
        self._found.parts = {name: part for name, part in self._found.parts.items() if part}
        return self._found

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

    def _read(
        self, array: str, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._a.read(array, rows_a), self._b.read(array, rows_b)

    def _compare(self, rows_a: NDArray[np.int64], rows_b: NDArray[np.int64]) -> None:
        here, there = self._read(fmt.row_state_name(self._spec), rows_a, rows_b)
        states = here != there
        self._found.states += int(states.sum())
        differing = states.copy()
        self._note(rows_a, states, "", lambda row: "state")
        both = (here == State.DONE) & (there == State.DONE)
        values = self._read(self._name, rows_a, rows_b)
        for part, rows in part_slices(self._spec).items():
            one, other = (_flat(array[:, rows] if rows else array) for array in values)
            differing |= self._compare_part(part, one, other, both, rows_a)
        for companion in self._companions:
            one, other = map(_flat, self._read(self._spec.companion(companion), rows_a, rows_b))
            differing |= self._compare_part(companion, one, other, both, rows_a)
        self._found.rows += len(rows_a)
        self._found.differing += int(differing.sum())

    def _compare_part(
        self,
        part: str,
        one: NDArray[np.generic],
        other: NDArray[np.generic],
        both: NDArray[np.bool_],
        rows_a: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Record the rows of one part, (rows, numbers), that differ; return which, (rows,) bool."""
        found = self._found.parts.setdefault(part, PartDiff())
        here, there = (~np.isnan(array) for array in (one, other))
        only_a = both & (here & ~there).any(axis=1) & ~(there & ~here).any(axis=1)
        only_b = both & (there & ~here).any(axis=1)
        with np.errstate(invalid="ignore"):
            apart_by = np.where(here & there, _apart_by(one, other), 0)
        # Infinities of the same sign are equal, although their difference is NaN.
        distance = np.where(np.isnan(apart_by), 0, apart_by).max(axis=1, initial=0)
        apart = both & (distance > self._atol) & ~only_a & ~only_b
        found.only_a += int(only_a.sum())
        found.only_b += int(only_b.sum())
        found.values += int(apart.sum())
        found.largest = max(found.largest, float(distance[both].max(initial=0)))
        any_difference: NDArray[np.bool_] = only_a | only_b | apart
        self._note(
            rows_a,
            any_difference,
            part,
            lambda row: "only in A" if only_a[row] else "only in B" if only_b[row] else "values",
            distance,
        )
        return any_difference

    def _note(
        self,
        rows_a: NDArray[np.int64],
        differing: NDArray[np.bool_],
        part: str,
        what: Callable[[int], str],
        distance: NDArray[np.float64] | None = None,
    ) -> None:
        for row in np.flatnonzero(differing)[: self._n_left].tolist():
            kind = what(row)
            largest = float(distance[row]) if distance is not None and kind == "values" else None
            self._first.append(
                Difference(self._where(int(rows_a[row])), self._name, part, kind, largest)
            )

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
    return any(
        not np.isnan(array[start : start + _BLOCK_ROWS]).all()
        for start in range(0, array.shape[0], _BLOCK_ROWS)
    )


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
