"""Whether a store is sound: every chunk can be read, and what is in it keeps the rules of docs/format.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import MAIN, ArrayMeta, Backend
from kpstore.errors import CorruptError, InvalidError, KpstoreError, one_line
from kpstore.schema.failures import Failures
from kpstore.schema.feature import MASK, FeatureSpec, State, faults, part_names, part_slices
from kpstore.store import format as fmt
from kpstore.store.agreement import agrees
from kpstore.store.chunk_checks import ChunkKey, ChunkReader, Problem, Verification
from kpstore.store.store import BaseStore, backend_for

_INDEX = ("video_id", "split", "n_frames")
"""What every other check needs."""

FAR = 100.0
"""Keypoints further away than so many pictures are told of: real ones reach 84 (a leg far below a close-up)."""


def verify(store: BaseStore, *, on_rows: Callable[[int], None] | None = None) -> Verification:
    """Read every chunk of one version, each checked, and compare with the format's rules.

    Parameters
    ----------
    store : the version to check; what is cached on the local disk is not looked at.
    on_rows : told of rows each time some more were checked.
    """
    found = Verification(store.location, store.snapshot, lacks=store.lacks)
    _verify_rules(store, ChunkReader(store.session, found, on_rows or (lambda n: None)))
    return found


def verify_all(location: str, *, on_rows: Callable[[int], None] | None = None) -> Verification:
    """Check the newest version as :func:`verify` does.

    And names, records and every chunk of all other versions.

    Parameters
    ----------
    location : the store.
    on_rows : told of rows each time some more were checked. A chunk that versions share is read
        once.

    Raises
    ------
    NotFoundError
        If there is no store.
    """
    backend = backend_for(location)
    if not backend.exists():
        backend.branches()  # which says what is there instead
    found = Verification(location, "", versions=0)
    known: dict[ChunkKey, Problem | None] = {}
    _examine(backend, found)
    for number, snapshot in enumerate(_versions(backend, found)):
        try:
            store = BaseStore(backend, snapshot, cache="off")
            reader = ChunkReader(store.session, found, on_rows or (lambda n: None), known)
            if number == 0:
                found.snapshot, found.lacks = snapshot, store.lacks
                _verify_rules(store, reader)
            else:
                fmt.read_features(fmt.read_root(store.session, location))
                _look_at_all(store, reader)
        except KpstoreError as error:
            found.problems.append(
                Problem("", one_line(str(error)), first="the version", versions=[snapshot])
            )
        found.versions += 1
    return found


def _examine(backend: Backend, found: Verification) -> None:
    try:
        for line in backend.examine():
            found.problems.append(Problem("", line, first="names and records of versions"))
    except KpstoreError as error:
        found.problems.append(
            Problem("", one_line(str(error)), first="names and records of versions")
        )


def _versions(backend: Backend, found: Verification) -> list[str]:
    """Return every version that a branch or a tag leads to, the newest of ``main`` first."""
    names: list[tuple[str, str]] = []
    for kind, list_names in (("branch", backend.branches), ("tag", backend.tags)):
        try:
            listed = list_names()
        except KpstoreError as error:
            found.problems.append(Problem("", one_line(str(error)), first=f"each {kind}"))
            continue
        first = [MAIN] if kind == "branch" else []
        if kind == "branch" and MAIN not in listed:
            found.problems.append(Problem("", f"there is no branch {MAIN!r}", first="branches"))
        for name in dict.fromkeys([*(name for name in first if name in listed), *listed]):
            try:
                names.append((f"{kind} {name!r}", listed[name]))
            except KpstoreError as error:
                found.problems.append(Problem("", one_line(str(error)), first=f"{kind} {name!r}"))
    snapshots: dict[str, None] = {}
    for name, tip in names:
        snapshots[tip] = None
        try:
            snapshots |= dict.fromkeys(commit.id for commit in backend.history(tip))
        except KpstoreError as error:
            what = f"{name} leads to a version whose history cannot be read: {one_line(str(error))}"
            found.problems.append(Problem("", what, first=name, versions=[tip]))
    return list(snapshots)


def _look_at_all(store: BaseStore, reader: ChunkReader) -> None:
    with suppress(KpstoreError):  # what is damaged is noted when it is looked at
        reader.index = store.index
    _learn_parts(store, reader)
    for name in store.session.names():
        reader.look_at(name)


def _learn_parts(store: BaseStore, reader: ChunkReader) -> None:
    for feature, stored in store.features.items():
        arrays = [
            *stored.spec.arrays,
            *([fmt.status_name(feature)] if stored.spec.axis == "frame" else []),
        ]
        reader.parts_of |= {array: list(part_names(stored.spec)) for array in arrays}


def _verify_rules(store: BaseStore, reader: ChunkReader) -> None:
    _learn_parts(store, reader)
    try:
        reader.index = store.index
    except CorruptError as error:
        found = reader.found
        _look_at_all(store, reader)
        if not any(problem.array in _INDEX for problem in found.problems):
            found.problems.append(Problem("video_id", one_line(str(error)), first="the index"))
        return
    check = _Check(store, reader)
    check.index()
    for name in store.features:
        check.feature(name)
    check.other_arrays()


class _Check:
    """Compares one version with the rules of the format."""

    def __init__(self, store: BaseStore, reader: ChunkReader) -> None:
        self._store, self._reader = store, reader
        self._session = store.session
        self._seen: set[str] = set()
        self.found = reader.found

    # -- what was found ----------------------------------------------------------------------------

    def problem(
        self, array: str, what: str, first: str, count: int = 1, videos: Iterable[str] = ()
    ) -> None:
        """Note a broken rule, together with others of its kind."""
        self._add(self.found.problems, array, what, first, count, videos)

    def note(self, array: str, what: str, first: str, count: int = 1) -> None:
        """Note what is worth a look."""
        self._add(self.found.notes, array, what, first, count)

    def _add(
        self,
        found: list[Problem],
        array: str,
        what: str,
        first: str,
        count: int,
        videos: Iterable[str] = (),
    ) -> None:
        for known in found:
            if (known.array, known.what) == (array, what):
                known.count += count
                known.videos = list(dict.fromkeys([*known.videos, *videos]))
                return
        found.append(
            Problem(array, what, count, first, videos=list(videos), versions=[self._store.snapshot])
        )

    def _rows_problem(
        self, array: str, what: str, bad: NDArray[np.bool_], start: int, *, axis: str = "frame"
    ) -> None:
        if bad.any():
            rows = start + np.flatnonzero(bad)
            index = self._store.index
            inside = rows[rows < (len(index) if axis == "video" else index.total_frames)]
            positions = inside if axis == "video" else np.unique(index.video_of(inside))
            place = self._place(int(rows[0]), axis)
            self.problem(array, what, place, len(rows), index.ids[positions].tolist())

    def _place(self, row: int, axis: str) -> str:
        index = self._store.index
        if axis == "video":
            return f"video {index.ids[row]!r}" if row < len(index) else f"row {row}"
        if row >= index.total_frames:
            return f"row {row}"
        position = int(index.video_of(np.array([row]))[0])
        return f"video {index.ids[position]!r}, frame {row - index.rows(position).start}"

    # -- reading -----------------------------------------------------------------------------------

    def _whole(self, name: str) -> NDArray[Any] | None:
        self._seen.add(name)
        return self._reader.whole(name)

    # -- the index ---------------------------------------------------------------------------------

    def index(self) -> None:
        """Check the list of videos and the paths of frames."""
        index, names = self._store.index, self._session.names()
        if len(index) == 0 and "video_id" not in names:
            return
        text = fmt.VIDEO_ARRAYS["split"]
        for name in (*fmt.VIDEO_ARRAYS, *fmt.FRAME_ARRAYS, *self._store.annotation_names):
            if name in names:
                wanted = fmt.VIDEO_ARRAYS.get(name) or fmt.FRAME_ARRAYS.get(name) or text
                self._fits(
                    name, wanted, index.total_frames if name in fmt.FRAME_ARRAYS else len(index)
                )
            else:
                self.problem(name, "is missing", "the index")
        ids = self._whole("video_id")
        if ids is not None:
            self._rows_problem("video_id", "is empty", ids == "", 0, axis="video")
        self._whole("split")
        self._whole("n_frames")
        for name, bad in (
            ("fps", lambda v: ~np.isnan(v) & ~((v > 0) & np.isfinite(v))),
            ("width", lambda v: v < 0),
        ):
            self._column(name, bad)
        self._column("height", lambda v: v < 0)
        for name in self._store.annotation_names:
            self._whole(name)
        paths = self._whole(fmt.IMAGE_PATH)
        if paths is not None:
            self._check_paths(paths)

    def _column(self, name: str, bad: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> None:
        values = self._whole(name)
        if values is not None:
            self._rows_problem(name, "is not a sensible value", bad(values), 0, axis="video")

    def _fits(self, name: str, wanted: ArrayMeta, n_rows: int) -> bool:
        """Note an array of another length, type or shape than the format has.

        Return whether it is as it should be.
        """
        meta = self._session.meta(name)
        found = (
            [f"has {meta.n_rows} rows, the index says {n_rows}"] if meta.n_rows != n_rows else []
        )
        stored, right = ((m.dtype, m.shape[1:]) for m in (meta, wanted))
        if stored != right:
            found.append(f"has rows of {stored[0]} {stored[1]}, not of {right[0]} {right[1]}")
        for what in found:
            self.problem(name, what, "the array")
        return not found

    def _check_paths(self, paths: NDArray[Any]) -> None:
        empty = paths == ""
        if empty.any():
            self.note(
                fmt.IMAGE_PATH,
                "is empty",
                self._place(int(np.argmax(empty)), "frame"),
                int(empty.sum()),
            )
        seen: set[str] = (
            set()
        )  # sorting would take a table of all paths, as wide as the longest one
        again = []
        for row, path in enumerate(paths.tolist()):
            if path and path in seen:
                again.append(row)
            seen.add(path)
        if again:
            self.note(
                fmt.IMAGE_PATH, "comes more than once", self._place(again[0], "frame"), len(again)
            )

    # -- a feature ---------------------------------------------------------------------------------

    def feature(self, name: str) -> None:
        """Check values, masks, states and provenance of a feature."""
        spec = self._store.feature(name)
        index = self._store.index
        metas = fmt.feature_metas(spec, n_videos=len(index), n_frames=index.total_frames)
        missing = [array for array in metas if array not in self._session.names()]
        for array in missing:
            self.problem(array, "is missing", f"feature {name!r}")
        self._seen.update(metas)
        if missing:
            return
        # All of them, also if the first does not fit: hence the list.
        fits = all([self._fits(array, meta, meta.n_rows) for array, meta in metas.items()])
        provenance = self._store.provenance(name)
        if not provenance.get("extractor"):
            self.note(name, "does not say how it was made", "its provenance")
        if not fits:
            return
        states = self._whole(fmt.state_name(name))
        texts = self._whole(fmt.failure_name(name))
        statuses = self._values(spec, states)
        if states is not None and texts is not None:
            self._ledger(spec, states, statuses, texts)

    def _values(self, spec: FeatureSpec, states: NDArray[Any] | None) -> NDArray[Any] | None:
        """Check all rows, chunk by chunk.

        Return their states, (frames,) uint8, for a feature of frames.
        """
        self.found.arrays += len(spec.arrays) + (spec.axis == "frame")
        statuses = []
        for start, stop in self._reader.chunks(spec.name):
            arrays = {array: self._reader.read(array, start, stop) for array in spec.arrays}
            if spec.axis == "frame":
                status = self._reader.read(fmt.status_name(spec.name), start, stop)
            else:
                status = None if states is None else states[start:stop]
            statuses.append(status)
            if status is not None and all(block is not None for block in arrays.values()):
                self._block(spec, start, arrays, status)
        whole = [status for status in statuses if status is not None]
        if spec.axis != "frame" or len(whole) != len(statuses):
            return None
        return np.concatenate([np.empty(0, dtype=np.uint8), *whole])

    def _block(
        self, spec: FeatureSpec, start: int, arrays: dict[str, Any], status: NDArray[np.uint8]
    ) -> None:
        axis = spec.axis
        values = arrays[spec.name].reshape(len(status), *spec.shape)
        self._rows_problem(
            spec.name, "has a state that there is not", status > max(State), start, axis=axis
        )
        done = status == State.DONE
        for name, array in spec.arrays.items():
            there = ~_is_missing(arrays[name], array.empty(1))
            self._rows_problem(name, "has values, but is not done", there & ~done, start, axis=axis)
        companions = {c.name: arrays[f"{spec.name}_{c.name}"] for c in spec.companions}
        for name, what, bad in faults(spec, values, companions):
            # What is not done has no values at all, which is said above.
            self._rows_problem(name, what, bad & (done | (name == spec.name)), start, axis=axis)
        if values.dtype.kind != "f":
            return
        if companions.get(MASK) is not None:
            self._masks(spec, start, values, companions[MASK], done)
        if spec.labels.get("space") and values.ndim == 3:
            far = (np.abs(values[..., :2]) > FAR).any(axis=(1, 2))
            if far.any():
                place = self._place(start + int(np.argmax(far)), axis)
                self.note(spec.name, f"is more than {FAR:g} pictures away", place, int(far.sum()))

    def _masks(
        self,
        spec: FeatureSpec,
        start: int,
        values: NDArray[Any],
        detected: NDArray[np.bool_],
        done: NDArray[np.bool_],
    ) -> None:
        slices = part_slices(spec)
        for column, part in enumerate(part_names(spec)):
            rows = slices.get(part)
            if rows is None:
                continue
            some = np.isnan(values[:, rows]).reshape(len(values), -1)
            # Files of other tools may know but some of a part's points, or no depth.
            fewer = done & detected[:, column] & some.any(axis=1) & ~some.all(axis=1)
            if fewer.any():
                place = self._place(start + int(np.argmax(fewer)), spec.axis)
                self.note(
                    spec.name,
                    f"lacks some points or coordinates of {part}",
                    place,
                    int(fewer.sum()),
                )

    def _ledger(
        self,
        spec: FeatureSpec,
        states: NDArray[Any],
        statuses: NDArray[Any] | None,
        texts: NDArray[Any],
    ) -> None:
        """Check that the state of each video, the states of its frames and its failures say the same."""
        ledger = fmt.state_name(spec.name)
        self._rows_problem(
            ledger, "is a state that there is not", states > max(State), 0, axis="video"
        )
        for position, text in enumerate(texts.tolist()):
            place = self._place(position, "video")
            try:
                failures = Failures.from_text(text)
            except InvalidError:
                video = [self._store.index.ids[position]]
                self.problem(
                    fmt.failure_name(spec.name),
                    "is not JSON as the format has it",
                    place,
                    videos=video,
                )
                continue
            state, video = int(states[position]), [self._store.index.ids[position]]
            if (failures.video is not None) != (state == State.FAILED):
                self.problem(
                    ledger, "does not agree with the reason of the failure", place, videos=video
                )
            if statuses is not None and not agrees(
                state, failures, statuses[self._store.index.rows(position)]
            ):
                what = "does not agree with the state of its video"
                self.problem(fmt.status_name(spec.name), what, place, videos=video)

    # -- the rest ----------------------------------------------------------------------------------

    def other_arrays(self) -> None:
        """Read what is left: labels, and arrays that are not kpstore's own."""
        labels = {
            dim: names
            for stored in self._store.features.values()
            for dim, names in stored.spec.labels.items()
        }
        known = self._seen.intersection(self._session.names())
        for name in self._session.names():
            if name in self._seen:
                continue
            found = self._whole(name)
            if name not in labels:
                self.note(name, "belongs to no feature", "the array")
            elif found is not None and found.tolist() != list(labels[name]):
                self.problem(name, "names other points than its feature does", "labels")
        for dim in sorted(labels.keys() - set(self._session.names())):
            self.problem(dim, "is missing", "labels")
        self._checksums(known | (labels.keys() & set(self._session.names())))

    def _checksums(self, names: Iterable[str]) -> None:
        """Check that the format's own arrays have the checksums that the store says it has."""
        if (
            self._store.lacks or self._store.backend.sidecar_dir is None
        ):  # what is in memory cannot be damaged
            return
        for name in sorted(names):
            if self._reader.can_check(name) and self._session.checksums(name) is None:
                self.problem(name, "has no checksums by place", "the array")


def _is_missing(block: NDArray[Any], missing: NDArray[Any]) -> NDArray[np.bool_]:
    """(rows,) bool, rows that hold nothing but the missing value."""
    same = np.equal(block, missing) if missing.dtype.kind != "f" else np.isnan(block)
    return np.asarray(same.reshape(len(block), -1).all(axis=1), dtype=np.bool_)
