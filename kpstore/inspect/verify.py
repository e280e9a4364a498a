"""Checks that the chunks of a store can be read and follow the rules of docs/format.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, Backend
from kpstore.errors import CorruptError, InvalidError, KpstoreError, UnreachableError, one_line
from kpstore.inspect import rules
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureSpec, State, part_names
from kpstore.schema.index import distinct
from kpstore.store import format as fmt
from kpstore.store.agreement import agrees
from kpstore.store.chunk_checks import (
    ChunkKey,
    ChunkReader,
    Problem,
    Rows,
    Span,
    Statuses,
    Verification,
)
from kpstore.store.history import known_versions
from kpstore.store.store import BaseStore, backend_for

_INDEX = ("video_id", "split", "n_frames")
"""Arrays that every other check needs."""

_NOT_SENSIBLE = "is not a sensible value"


def verify(store: BaseStore, *, on_rows: Callable[[int], None] | None = None) -> Verification:
    """Read and check every chunk of one version, and compare them with the format's rules.

    Parameters
    ----------
    store : the version to check. The cache on the local disk is not used.
    on_rows : called with the number of rows just checked.
    """
    found = Verification(store.location, store.snapshot, lacks=store.lacks)
    _verify_rules(store, ChunkReader(store.session, found, on_rows or (lambda n: None)))
    return found


def verify_all(location: str, *, on_rows: Callable[[int], None] | None = None) -> Verification:
    """Check the newest version as :func:`verify` does, and read every chunk of all the others.

    Parameters
    ----------
    location : the store.
    on_rows : called with the number of rows just checked. A chunk that versions share is read
        once.

    Raises
    ------
    NotFoundError
        If there is no store.
    """
    backend = backend_for(location)
    if not backend.exists():
        backend.branches()  # raises an error that says what is there instead
    found = Verification(location, "", versions=0)
    known: dict[ChunkKey, Problem | None] = {}
    with _noted(found, "names and records of versions"):
        for line in backend.examine():
            found.problems.append(Problem("", line, first="names and records of versions"))
    for number, snapshot in enumerate(_versions(backend, found)):
        with _noted(found, "the version", snapshot):
            store = BaseStore(backend, snapshot, cache="off")
            reader = ChunkReader(store.session, found, on_rows or (lambda n: None), known)
            if number == 0:
                found.snapshot, found.lacks = snapshot, store.lacks
                _verify_rules(store, reader)
            else:
                fmt.read_features(fmt.read_root(store.session, location))
                _look_at_all(store, reader)
        found.versions += 1
    return found


@contextmanager
def _noted(found: Verification, where: str, *versions: str) -> Iterator[None]:
    """Note an error as a problem instead of raising it."""
    try:
        yield
    except UnreachableError:
        raise
    except KpstoreError as error:
        what = one_line(str(error))
        found.problems.append(Problem("", what, first=where, versions=list(versions)))


def _versions(backend: Backend, found: Verification) -> list[str]:
    def note(where: str, error: KpstoreError, tip: str) -> None:
        what, versions = one_line(str(error)), [tip] if tip else []
        if tip:
            what = f"{where} leads to a version whose history cannot be read: {what}"
        found.problems.append(Problem("", what, first=where, versions=versions))

    return list(known_versions(backend, note))


def _look_at_all(store: BaseStore, reader: ChunkReader) -> None:
    reader.read_index = lambda: store.index
    _learn_parts(store, reader)
    for name in store.session.names():
        reader.look_at(name)


def _learn_parts(store: BaseStore, reader: ChunkReader) -> None:
    for feature, stored in store.described.items():
        arrays = [*stored.spec.arrays, fmt.status_name(feature)]
        reader.parts_of |= {array: list(part_names(stored.spec)) for array in arrays}


def _verify_rules(store: BaseStore, reader: ChunkReader) -> None:
    _learn_parts(store, reader)
    reader.read_index = lambda: store.index
    try:
        reader.read_index()
    except CorruptError as error:
        found = reader.found
        _look_at_all(store, reader)
        if not any(problem.array in _INDEX for problem in found.problems):
            found.problems.append(Problem("video_id", one_line(str(error)), first="the index"))
        return
    check = _Check(store, reader)
    check.index()
    for name in store.described:
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
        """Record a broken rule, together with others of its kind."""
        self._add(self.found.problems, array, what, first, count, videos)

    def note(self, array: str, what: str, rows: Rows, axis: str = "frame") -> None:
        """Record rows that are allowed and may be worth a look."""
        if len(rows):
            self._add(self.found.notes, array, what, self._place(int(rows[0]), axis), len(rows))

    def _add(
        self,
        found: list[Problem],
        array: str,
        what: str,
        first: str,
        count: int,
        videos: Iterable[str] = (),
    ) -> None:
        """Add to a list; the same finding in other rows counts as one."""
        for known in found:
            if (known.array, known.what) == (array, what):
                known.count += count
                known.videos = list(dict.fromkeys([*known.videos, *videos]))
                return
        found.append(
            Problem(array, what, count, first, videos=list(videos), versions=[self._store.snapshot])
        )

    def _rows_problem(self, array: str, what: str, rows: Rows, *, axis: str = "frame") -> None:
        if len(rows):
            ids = self._store.index.ids[self._videos_of(rows, axis)].tolist()
            self.problem(array, what, self._place(int(rows[0]), axis), len(rows), ids)

    def _videos_of(self, rows: Rows, axis: str) -> NDArray[np.int64]:
        """Return the positions of the videos that have some of these rows."""
        index = self._store.index
        if axis == "video":
            return np.asarray(rows)
        if not isinstance(rows, range):
            return np.unique(index.video_of(rows))
        first, last = index.video_of(np.array([rows[0], rows[-1]])).tolist()
        return np.arange(first, last + 1)[index.n_frames[first : last + 1] > 0]

    def _place(self, row: int, axis: str) -> str:
        index = self._store.index
        if axis == "video":
            return f"video {index.ids[row]!r}"
        position = int(index.video_of(np.array([row]))[0])
        return f"video {index.ids[position]!r}, frame {row - index.rows(position).start}"

    # -- reading -----------------------------------------------------------------------------------

    def _whole(self, name: str) -> NDArray[Any] | None:
        self._seen.add(name)
        return self._reader.whole(name)

    def _blocks(self, name: str) -> Iterator[tuple[Span, NDArray[Any]]]:
        """Yield the rows of an array that are sound; text that has one digest as a whole."""
        if self._session.digest(name) is not None:
            whole = self._whole(name)
            if whole is not None:
                yield Span(0, len(whole), is_written=True), whole
            return
        self._seen.add(name)
        self.found.arrays += 1
        for span in self._reader.spans(name):
            block = self._reader.read(name, span)
            if block is not None:
                yield span, block

    # -- the index ---------------------------------------------------------------------------------

    def index(self) -> None:
        """Check the list of videos and the paths of frames."""
        index, names = self._store.index, self._session.names()
        if len(index) == 0 and "video_id" not in names:
            return
        text, fitting = fmt.VIDEO_ARRAYS["split"], set[str]()
        for name in (*fmt.VIDEO_ARRAYS, *fmt.FRAME_ARRAYS, *self._store.annotation_names):
            if name in names:
                wanted = fmt.VIDEO_ARRAYS.get(name) or fmt.FRAME_ARRAYS.get(name) or text
                n_rows = index.total_frames if name in fmt.FRAME_ARRAYS else len(index)
                if self._fits(name, wanted, n_rows):
                    fitting.add(name)
                else:
                    self._seen.add(name)
                    if self._session.meta(name).n_rows <= n_rows:  # it may claim any number
                        self._reader.look_at(name)
            else:
                self.problem(name, "is missing", "the index")
        rules: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[np.bool_]]]] = {
            "video_id": ("is empty", lambda ids: ids == ""),
            "fps": (_NOT_SENSIBLE, lambda v: ~np.isnan(v) & ~((v > 0) & np.isfinite(v))),
            "width": (_NOT_SENSIBLE, lambda v: v < 0),
            "height": (_NOT_SENSIBLE, lambda v: v < 0),
        }
        for name in (*fmt.VIDEO_ARRAYS, *self._store.annotation_names):
            values = self._whole(name) if name in fitting else None
            if values is not None and name in rules:
                what, bad = rules[name]
                self._rows_problem(name, what, np.flatnonzero(bad(values)), axis="video")
        if fmt.IMAGE_PATH in fitting:
            self._check_paths()

    def _fits(self, name: str, wanted: ArrayMeta, n_rows: int) -> bool:
        """Return whether length, type and shape of an array are right; record a problem if not."""
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

    def _check_paths(self) -> None:
        # Their hashes, as a store of a stranger may unpack to more paths than memory holds.
        hashes, rows = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for span, paths in self._blocks(fmt.IMAGE_PATH):
            texts = paths.tolist()
            found = np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))
            empty = found == hash("")
            if empty.any():
                empty = paths == ""
                self.note(fmt.IMAGE_PATH, "is empty", span.where(empty))
            if empty.all():
                continue
            hashes.append(found[~empty])
            rows.append(span.start + np.flatnonzero(~empty))
        every = np.concatenate(hashes)
        if len(distinct(every)) == len(every):
            return
        order = np.argsort(every, kind="stable")
        again = order[1:][every[order[1:]] == every[order[:-1]]]
        self.note(fmt.IMAGE_PATH, "occurs more than once", np.sort(np.concatenate(rows)[again]))

    # -- a feature ---------------------------------------------------------------------------------

    def feature(self, name: str) -> None:
        """Check values, masks, states and provenance of a feature."""
        spec = self._store.described[name].spec
        index = self._store.index
        metas = fmt.feature_metas(spec, n_videos=len(index), n_frames=index.total_frames)
        missing = [array for array in metas if array not in self._session.names()]
        for array in missing:
            self.problem(array, "is missing", f"feature {name!r}")
        self._seen.update(metas)
        if missing:
            return
        # A list, so that all of them are checked even if the first does not fit.
        fits = all([self._fits(array, meta, meta.n_rows) for array, meta in metas.items()])
        status = fmt.status_name(name)
        if status in metas and self._session.meta(status).fill != State.PENDING:
            self.problem(status, "is not pending where nobody wrote", "the array")
            fits = False
        if not self._store.described[name].provenance.get("extractor"):
            what = "does not say how it was made"
            self._add(self.found.notes, name, what, "its provenance", 1)
        if not fits:
            return
        states = self._whole(fmt.state_name(name))
        texts = self._whole(fmt.failure_name(name))
        statuses = self._values(spec, states)
        if states is not None and texts is not None:
            self._states(spec, states, statuses, texts)

    def _values(self, spec: FeatureSpec, states: NDArray[np.uint8] | None) -> Statuses | None:
        """Check all rows, chunk by chunk; for a feature of frames, return their states.

        None if any of them cannot be read.
        """
        of_frames = [fmt.status_name(spec.name)] if spec.axis == "frame" else []
        self.found.arrays += len(spec.arrays) + len(of_frames)
        statuses, unread = Statuses(), False

        def status_in(span: Span, last: NDArray[Any] | None) -> NDArray[np.uint8] | None:
            if of_frames:
                return last
            return None if states is None else states[span.start : span.stop]

        def look(span: Span, arrays: Sequence[NDArray[Any]]) -> list[rules.Finding]:
            status = status_in(span, arrays[-1])
            by_name = dict(zip(spec.arrays, arrays, strict=False))
            return [] if status is None else rules.look(spec, by_name, status)

        for span, arrays, seen in self._reader.blocks([*spec.arrays, *of_frames], look):
            status = status_in(span, arrays[-1])
            if status is None:
                unread = True
                continue
            statuses.add(span, status)
            for one in seen or ():
                record = self._rows_problem if one.is_problem else self.note
                record(one.array, one.what, span.where(one.bad), axis=spec.axis)
        return None if unread or not of_frames else statuses

    def _states(
        self,
        spec: FeatureSpec,
        states: NDArray[np.uint8],
        statuses: Statuses | None,
        texts: NDArray[np.object_],
    ) -> None:
        """Check that each video's state, its frames' states and its failures agree."""
        index, name = self._store.index, fmt.state_name(spec.name)
        unknown = np.flatnonzero(states > max(State))
        self._rows_problem(name, "is an unknown state", unknown, axis="video")
        for position, text in enumerate(texts.tolist()):
            state, rows = int(states[position]), index.rows(position)
            if (
                not text
                and state == State.DONE
                and (statuses is None or statuses.are_surely_done(rows))
            ):
                continue
            wrong: list[tuple[str, str]] = []
            try:
                failures = Failures.from_text(text)
            except InvalidError:
                wrong = [(fmt.failure_name(spec.name), "is not JSON as the format has it")]
            else:
                if (failures.video is not None) != (state == State.FAILED):
                    wrong = [(name, "does not agree with the reason of the failure")]
                if statuses is not None and not agrees(state, failures, statuses.of(rows)):
                    status = fmt.status_name(spec.name)
                    wrong += [(status, "does not agree with the state of its video")]
            for array, what in wrong:
                place, video = self._place(position, "video"), index.ids[position]
                self.problem(array, what, place, videos=[video])

    # -- the rest ----------------------------------------------------------------------------------

    def other_arrays(self) -> None:
        """Read the remaining arrays: labels, and arrays that are not kpstore's own."""
        labels = {
            dim: names
            for stored in self._store.described.values()
            for dim, names in stored.spec.labels.items()
        }
        known = self._seen.intersection(self._session.names())
        for name in self._session.names():
            if name in self._seen:
                continue
            fits = self._session.meta(name).n_rows == len(labels.get(name, ()))
            found = self._whole(name) if fits else None
            if not fits:
                self._reader.look_at(name)
            if name not in labels:
                self._add(self.found.notes, name, "belongs to no feature", "the array", 1)
            elif not fits or (found is not None and found.tolist() != list(labels[name])):
                self.problem(name, "names other points than its feature", "labels")
        for dim in sorted(labels.keys() - set(self._session.names())):
            self.problem(dim, "is missing", "labels")
        self._checksums(known | (labels.keys() & set(self._session.names())))

    def _checksums(self, names: Iterable[str]) -> None:
        """Check that the format's own arrays have the checksums that the format promises."""
        if self._store.lacks or self._store.backend.sidecar is None:
            return  # an older format, or a store in memory, which cannot be damaged
        for name in sorted(names):
            if self._reader.can_check(name) and self._session.checksums(name) is None:
                self.problem(name, "has no checksums by place", "the array")
