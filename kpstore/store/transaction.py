"""Changes to a store that become one version, or nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kpstore import plugins
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Backend, Fork, WriteSession
from kpstore.errors import ExistsError, InvalidError, MismatchError
from kpstore.schema.failures import NOTHING_FAILED, Failures
from kpstore.schema.feature import MADE_BY, FeatureRows, FeatureSpec, Provenance, State
from kpstore.schema.index import VideoIndex, VideoRecord
from kpstore.store import format as fmt
from kpstore.store.agreement import agrees, pieces, runs, touched_videos
from kpstore.store.damage import read_index
from kpstore.store.salvage import StateRecords

_IGNORED_PROVENANCE = frozenset({"document", "kpstore", "libraries", MADE_BY, fmt.PROCESSORS})
"""Keys that may differ between two runs whose numbers are the same, but for the last bits."""
_OF_THE_FILE = frozenset({"format", "dataset"})
"""Keys that say what kind of file imported rows came from, not how they were made."""
_BLOCK_CHUNKS = 16  # chunks of a feature that are read or written at once


class Transaction:
    """Changes on top of a branch's newest version.

    A context manager that commits at its end or, on an error, not.

    Parameters
    ----------
    backend : where the store is.
    message : what the commit will say.
    metadata : JSON that the commit will carry; :attr:`metadata` may be added to until it ends.
    branch : the branch to add to.
    """

    def __init__(
        self,
        backend: Backend,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        branch: str = MAIN,
    ) -> None:
        self.message = message
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.snapshot: str | None = None
        """Id of the version that was made; None before the commit."""
        self._backend = backend
        self._session: WriteSession = backend.begin(branch)
        self._about = dict(fmt.read_root(self._session, backend.location))
        self._features = fmt.read_features(self._about)
        self._index: VideoIndex | None = None
        """Read once, until videos or splits change: 20 ms of each :meth:`write` otherwise."""
        self._touched: dict[str, list[tuple[int, int]]] = {}
        self._entered: dict[str, set[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self._session.discard()

    @property
    def session(self) -> WriteSession:
        """The arrays as this transaction sees them."""
        return self._session

    @property
    def features(self) -> Mapping[str, fmt.StoredFeature]:
        """Features by name, those added here included."""
        return self._features

    def read_index(self) -> VideoIndex:
        """Return the video index, with what was added here."""
        if self._index is None:
            self._index = read_index(self._session)
        return self._index

    # -- videos ------------------------------------------------------------------------------------

    def add_videos(self, videos: Sequence[VideoRecord]) -> None:
        """Append videos; for every feature they start as pending.

        Raises
        ------
        ExistsError
            If a video of that id is there already.
        InvalidError
            If an annotation has a name that no array can have; nothing is added then.
        """
        index = self.read_index()
        ids = [video.id for video in videos]
        taken = [video_id for video_id in ids if video_id in index]
        if taken or len(set(ids)) != len(ids):
            twice = taken or [video_id for video_id in ids if ids.count(video_id) > 1]
            raise ExistsError(
                f"video {twice[0]!r} ({len(set(twice))} in all) is already in "
                f"{self._backend.location}"
            )
        new_columns = self._new_columns(videos)
        for name, meta in {**fmt.VIDEO_ARRAYS, **fmt.FRAME_ARRAYS}.items():
            if name not in self._session.names():
                self._session.create(name, meta)
        n_old, n_new = len(index), len(index) + len(videos)
        old_frames, new_frames = (
            index.total_frames,
            index.total_frames + sum(video.n_frames for video in videos),
        )
        self._add_annotation_columns(new_columns, n_old)
        for name in self._session.names():
            axis = (self._session.meta(name).dims or ("",))[0]
            if axis in ("video", "frame"):
                self._session.resize(name, n_new if axis == "video" else new_frames)
        self._index = None
        self._append_rows(videos, n_old, old_frames)

    def _new_columns(self, videos: Sequence[VideoRecord]) -> list[str]:
        """Return the annotations that the store does not have yet.

        An error for a name that it cannot have.
        """
        known = self._about["annotations"]
        new = [
            c
            for c in dict.fromkeys(name for video in videos for name in video.annotations)
            if c not in known
        ]
        for name in new:
            if (
                not name.isidentifier()
                or name in self._session.names()
                or name in fmt.RESERVED_NAMES
            ):
                raise InvalidError(
                    f"annotation {name!r}: use a name of letters, digits and underscores that is "
                    "not taken"
                )
        return new

    def _add_annotation_columns(self, new: list[str], n_old: int) -> None:
        for name in new:
            self._session.create(name, ArrayMeta((n_old,), TEXT, fmt.VIDEO_CHUNK_ROWS, ("video",)))
        if new:
            self._about["annotations"] = [*self._about["annotations"], *new]
            self._write_about()

    def _append_rows(self, videos: Sequence[VideoRecord], n_old: int, old_frames: int) -> None:
        columns: dict[str, NDArray[Any]] = {
            "video_id": np.array([v.id for v in videos], dtype=object),
            "split": np.array([v.split for v in videos], dtype=object),
            "n_frames": np.array([v.n_frames for v in videos], dtype=np.int64),
            "fps": np.array([v.fps for v in videos], dtype=np.float64),
            "width": np.array([v.width for v in videos], dtype=np.int32),
            "height": np.array([v.height for v in videos], dtype=np.int32),
        }
        for name in self._about["annotations"]:
            columns[name] = np.array([v.annotations.get(name, "") for v in videos], dtype=object)
        for name, values in columns.items():
            self._session.write(name, n_old, values)
        paths = np.array([path for video in videos for path in video.frame_paths], dtype=object)
        self._session.write(fmt.IMAGE_PATH, old_frames, paths)

    def set_splits(self, splits: Mapping[str, str]) -> int:
        """Put videos into other splits; frames and features stay as they are.

        The store remembers that its splits are its own, so that an ingest goes on with them.

        Parameters
        ----------
        splits : by video id; videos that are not in it keep theirs. ``""`` is no split.

        Returns
        -------
        int
            How many videos changed; with none, nothing is written.

        Raises
        ------
        NotFoundError
            If a video is not there; the message has the nearest ids.
        InvalidError
            If a split's name is not printable text without spaces around it.
        """
        index = self.read_index()
        for video_id, split in splits.items():
            if not isinstance(split, str) or split != split.strip() or not split.isprintable():
                raise InvalidError(
                    f"split {split!r} of video {video_id!r}: use printable text without spaces "
                    "around it"
                )
        positions = [index.position(video_id) for video_id in splits]
        new = index.splits.copy()
        new[positions] = list(splits.values())
        changed = int((new != index.splits).sum())
        if changed:
            self._session.write("split", 0, new)
            self._index = None
            self.keep_own_splits()
        return changed

    def keep_own_splits(self) -> None:
        """Remember that the splits are the store's own, whatever the data set says."""
        if not self._about.get(fmt.OWN_SPLITS):
            self._about[fmt.OWN_SPLITS] = True
            self._write_about()

    # -- features ----------------------------------------------------------------------------------

    def add_feature(self, spec: FeatureSpec | str, provenance: Provenance | None = None) -> None:
        """Add a feature, pending for every video.

        Nothing happens if the same feature, made the same way, is there.

        Parameters
        ----------
        spec : a specification, or the name of one that is registered in the group
            ``kpstore.features``.

        Raises
        ------
        NotFoundError
            If no feature is registered under that name.
        MismatchError
            If a feature of that name is there with another shape or made with other settings; the
            message names both.
        """
        if isinstance(spec, str):
            registered = plugins.load("kpstore.features", spec)
            spec = registered if isinstance(registered, FeatureSpec) else registered()
        provenance = json.loads(json.dumps(dict(provenance or {})))
        if spec.name in self._features:
            check_same(self._features[spec.name], spec, provenance)
            return
        index = self.read_index()
        metas = fmt.feature_metas(spec, n_videos=len(index), n_frames=index.total_frames)
        taken = sorted(set(metas) & (set(self._session.names()) | fmt.RESERVED_NAMES))
        if taken:
            raise ExistsError(
                f"feature {spec.name!r} needs the array name {taken[0]!r}, which is taken"
            )
        for name, meta in metas.items():
            self._session.create(name, meta)
        for dim, (meta, labels) in fmt.label_metas(spec).items():
            self._add_labels(spec, dim, meta, labels)
        self._set_feature(spec, provenance)

    def add_processors(self, name: str, kinds: Collection[str]) -> None:
        """Add kinds of processors to those that have computed a feature, which its provenance names."""
        stored = fmt.check_feature(self._features, name)
        provenance = with_processors(stored.provenance, kinds)
        if provenance != stored.provenance:
            self._set_feature(stored.spec, provenance)

    def _set_feature(self, spec: FeatureSpec, provenance: Provenance) -> None:
        self._features[spec.name] = fmt.StoredFeature(spec, provenance)
        about = {"spec": spec.to_json(), "provenance": provenance}
        self._about["features"] = {**self._about["features"], spec.name: about}
        self._write_about()

    def _add_labels(
        self, spec: FeatureSpec, dim: str, meta: ArrayMeta, labels: NDArray[np.object_]
    ) -> None:
        if dim not in self._session.names():
            self._session.create(dim, meta)
            self._session.write(dim, 0, labels)
        elif self._session.read(dim, 0, self._session.meta(dim).n_rows).tolist() != labels.tolist():
            raise MismatchError(
                f"feature {spec.name!r} names {dim!r} otherwise than another feature of this store "
                "does"
            )

    def remove_feature(self, name: str) -> None:
        """Remove a feature from this version on; earlier versions keep it."""
        stored = fmt.check_feature(self._features, name)
        for array in fmt.feature_metas(stored.spec, n_videos=0, n_frames=0):
            self._session.delete(array)
        del self._features[name]
        self._touched.pop(name, None)
        self._entered.pop(name, None)
        in_use = {dim for other in self._features.values() for dim in other.spec.labels}
        for dim in stored.spec.labels:
            if dim not in in_use:
                self._session.delete(dim)
        self._about["features"] = {
            key: value for key, value in self._about["features"].items() if key != name
        }
        self._write_about()

    def write(
        self,
        feature: str,
        video_id: str,
        values: NDArray[Any] | FeatureRows,
        *,
        failed_frames: Mapping[int, str] | None = None,
    ) -> None:
        """Write one video's rows of a frame feature, all at once, and mark the video done.

        Parameters
        ----------
        values : (T, *row shape); what is NaN is missing, and a presence mask (``detected``) follows
            from it. Or :class:`FeatureRows`, to give masks and other companions with them; a mask
            that is given has to agree with the values.
        failed_frames : reason by frame number; such a frame is FAILED and reads as missing,
            whatever its values.

        Raises
        ------
        NotFoundError
            If there is no such feature or video.
        InvalidError
            If the rows are not as many or not as the feature has them, or break a rule of the
            format: infinite values, masks that contradict them, a visibility outside 0 to 1.
            Nothing is written then.
        """
        spec = self._frame_feature(feature)
        index = self.read_index()
        position = index.position(video_id)
        rows = index.rows(position)
        given = values if isinstance(values, FeatureRows) else FeatureRows(values)
        n_rows = given.n_given(spec)
        if n_rows != rows.stop - rows.start:
            raise InvalidError(
                f"video {video_id!r} has {rows.stop - rows.start} frames, {n_rows} rows were given"
            )
        failed = _failed_frames(failed_frames or {}, video_id, n_rows)
        status = np.full(n_rows, State.DONE, dtype=np.uint8)
        status[list(failed)] = State.FAILED
        self._write_checked(spec, rows.start, _checked(spec, video_id, given, status), status)
        self.set_states(feature, {position: Failures(frames=failed)})

    def fail(self, feature: str, video_id: str, reason: str) -> None:
        """Mark a whole video as failed for a feature; its rows read as missing."""
        spec = self._frame_feature(feature)
        index = self.read_index()
        position = index.position(video_id)
        rows = index.rows(position)
        n_rows = rows.stop - rows.start
        status = np.full(n_rows, State.FAILED, dtype=np.uint8)
        self._write_checked(spec, rows.start, spec.empty_rows(n_rows), status)
        self.set_states(feature, {position: Failures(reason)})

    def write_video_feature(
        self, feature: str, video_id: str, values: NDArray[Any] | FeatureRows
    ) -> None:
        """Write one video's row of a feature on the video axis, shape of one row, and mark it done.

        ``values`` may be :class:`FeatureRows` of one row; masks and errors are those of
        :meth:`write`.
        """
        spec = fmt.check_feature(self._features, feature).spec
        if spec.axis != "video":
            raise InvalidError(f"feature {feature!r} belongs to frames; use write()")
        position = self.read_index().position(video_id)
        given = values if isinstance(values, FeatureRows) else FeatureRows(_one_row(values))
        if (n_rows := given.n_given(spec)) != 1:
            raise InvalidError(
                f"video {video_id!r} has one row of {feature!r}, {n_rows} were given"
            )
        status = np.full(1, State.DONE, dtype=np.uint8)
        self._write_checked(spec, position, _checked(spec, video_id, given, status), status)
        self.set_states(feature, {position: NOTHING_FAILED})

    def _frame_feature(self, feature: str) -> FeatureSpec:
        spec = fmt.check_feature(self._features, feature).spec
        if spec.axis != "frame":
            raise InvalidError(f"feature {feature!r} belongs to videos; use write_video_feature()")
        return spec

    def write_rows(
        self, feature: str, start: int, rows: FeatureRows, status: NDArray[np.uint8]
    ) -> None:
        """Write any run of rows of a feature, with their states.

        The ledger is :meth:`set_states`' business.

        Rows whose state is not DONE are written as missing. A commit is refused where rows and
        ledger disagree.

        Raises
        ------
        InvalidError
            As :meth:`write` does; also for rows beyond the end, and for states that there are not.
        """
        spec = fmt.check_feature(self._features, feature).spec
        states = np.asarray(status)
        n_rows, n_all = rows.n_given(spec), self._session.meta(spec.name).n_rows
        if not 0 <= start <= n_all - n_rows:
            raise InvalidError(
                f"feature {feature!r} has rows 0 to {n_all}, {n_rows} were given for row {start} on"
            )
        if (
            states.shape != (n_rows,)
            or states.dtype.kind not in "iu"
            or not np.isin(states, list(State)).all()
        ):
            raise InvalidError(
                f"feature {feature!r}: one state of {[int(s) for s in State]} is needed for each "
                "row"
            )
        states = states.astype(np.uint8)
        self._write_checked(spec, start, rows.check(spec, states == State.DONE), states)

    def _write_checked(
        self, spec: FeatureSpec, start: int, rows: FeatureRows, status: NDArray[np.uint8]
    ) -> None:
        for name, array in fmt.row_arrays(spec, rows, status).items():
            self._session.write(name, start, array)
        self._touched.setdefault(spec.name, []).append((start, start + len(rows)))

    def read_states(self, feature: str) -> NDArray[np.uint8]:
        """(videos,) uint8: a :class:`State` for each video."""
        name = fmt.state_name(fmt.check_feature(self._features, feature).spec.name)
        return self._session.read(name, 0, self._session.meta(name).n_rows)

    def set_states(self, feature: str, failures: Mapping[int, Failures]) -> None:
        """Mark videos as finished for a feature: as failed where the whole video failed, else as done.

        Parameters
        ----------
        failures : by position of the video.

        Raises
        ------
        InvalidError
            If there is no video at a position. A commit is refused where states, failures and rows
            disagree.
        """
        if not failures:
            return
        odd = next((value for value in failures.values() if not isinstance(value, Failures)), None)
        if odd is not None:
            raise InvalidError(
                f"failures of {feature!r}: {odd!r} given, kpstore.schema.failures.Failures needed"
            )
        fmt.check_feature(self._features, feature)
        n_videos = self._session.meta(fmt.state_name(feature)).n_rows
        positions = _positions(failures, n_videos)
        states = self._session.read(fmt.state_name(feature), 0, n_videos)
        texts = self._session.read(fmt.failure_name(feature), 0, n_videos)
        for position in positions.tolist():
            texts[position] = failures[position].to_text()
            states[position] = failures[position].state
        self._session.write(fmt.state_name(feature), 0, states)
        self._entered.setdefault(feature, set()).update(positions.tolist())
        # Text is stored in shorter chunks; write only those that change.
        for chunk in np.unique(positions // fmt.TEXT_CHUNK_ROWS).tolist():
            rows = slice(
                chunk * fmt.TEXT_CHUNK_ROWS, min((chunk + 1) * fmt.TEXT_CHUNK_ROWS, n_videos)
            )
            self._session.write(fmt.failure_name(feature), rows.start, texts[rows])

    def reset_states(self, feature: str, positions: Iterable[int]) -> None:
        """Make videos pending again for a feature, rows and ledger; for a run that redoes them."""
        spec = fmt.check_feature(self._features, feature).spec
        index = self.read_index()
        n_videos = len(index)
        states = self._session.read(fmt.state_name(feature), 0, n_videos)
        texts = self._session.read(fmt.failure_name(feature), 0, n_videos)
        chosen = np.zeros(n_videos, dtype=np.bool_)
        chosen[_positions(positions, n_videos)] = True
        states[chosen], texts[chosen] = State.PENDING, ""
        rows = np.repeat(chosen, np.diff(index.offsets)) if spec.axis == "frame" else chosen
        for start, stop in pieces(rows, _BLOCK_CHUNKS * spec.chunk_rows):
            self._write_checked(
                spec, start, spec.empty_rows(stop - start), np.zeros(stop - start, dtype=np.uint8)
            )
        self._session.write(fmt.state_name(feature), 0, states)
        self._session.write(fmt.failure_name(feature), 0, texts)

    def restore(
        self,
        feature: str,
        ledger: StateRecords,
        redo: NDArray[np.bool_],
        damaged: Mapping[str, Collection[int]],
    ) -> None:
        """Write a feature's ledger as it was put together, and make videos pending again.

        Reads nothing damaged.

        Parameters
        ----------
        ledger : complete but for the videos of ``redo``.
        redo : (videos,) bool, videos to make pending: all that have rows in a damaged chunk of
            values or companions.
        damaged : numbers of damaged chunks, by array; each of them is written whole.
        """
        spec = fmt.check_feature(self._features, feature).spec
        blank = redo & (ledger.states != State.PENDING)
        for array in spec.arrays:
            for chunk in damaged.get(array, ()):
                blank |= ledger.touching(chunk, spec.chunk_rows)
        positions = np.flatnonzero(blank)
        for name in damaged:
            self._renew(name, damaged)
        states, texts, status = ledger.states.copy(), ledger.texts.copy(), ledger.status.copy()
        states[redo], texts[redo] = State.PENDING, ""
        rows = np.zeros(len(status), dtype=bool)
        for position in positions.tolist():
            rows[ledger.rows(position)] = True
        status[rows] = State.PENDING
        for start, stop in pieces(rows, spec.chunk_rows):
            empty = spec.empty_rows(stop - start)
            for name, values in fmt.row_arrays(spec, empty, np.empty(0, dtype=np.uint8)).items():
                if name in spec.arrays:
                    self._session.write(name, start, values)
        if spec.axis == "frame":
            self._write_whole(
                fmt.status_name(feature), status.astype(np.uint8), np.flatnonzero(rows), damaged
            )
        self._write_whole(fmt.state_name(feature), states.astype(np.uint8), positions, damaged)
        self._write_whole(fmt.failure_name(feature), texts, positions, damaged)

    def _renew(self, name: str, damaged: Mapping[str, Collection[int]]) -> None:
        """Make an array anew of which no chunk can be read: what says where its chunks lie may be what is damaged."""
        meta = self._session.meta(name)
        if len(damaged[name]) == -(-meta.n_rows // meta.chunk_rows):
            self._session.delete(name)
            self._session.create(name, meta)

    def _write_whole(
        self,
        name: str,
        values: NDArray[Any],
        changed: NDArray[np.int64],
        damaged: Mapping[str, Collection[int]],
    ) -> None:
        """Write those chunks of an array that hold changed rows or are damaged."""
        size = self._session.meta(name).chunk_rows
        for chunk in sorted({*np.unique(changed // size).tolist(), *damaged.get(name, ())}):
            self._session.write(name, chunk * size, values[chunk * size : (chunk + 1) * size])

    # -- parallel writers, end ---------------------------------------------------------------------

    def fork(self) -> Fork:
        """Return a writer of whole chunks for another process.

        Only before this transaction has changes of its own.
        """
        return self._session.fork()

    def merge(self, forks: Sequence[Fork]) -> None:
        """Take over what forks have written."""
        if forks:
            self._session.merge(forks)

    def _check_ledgers(self) -> None:
        """Raise :class:`InvalidError` if the ledger and the rows of a video disagree that were written here."""
        index = self.read_index()
        for name in sorted(self._touched.keys() | self._entered.keys()):
            spec = self._features[name].spec
            positions = touched_videos(
                index, spec.axis, self._touched.get(name, ()), self._entered.get(name, ())
            )
            states, texts = (
                self.read_states(name),
                self._session.read(fmt.failure_name(name), 0, len(index)),
            )
            empty = (
                self._empty(spec, positions[states[positions] != State.DONE])
                if spec.axis == "video"
                else set()
            )
            for first, last in runs(positions):
                rows = slice(index.rows(first).start, index.rows(last).stop)
                status = (
                    None
                    if spec.axis == "video"
                    else self._session.read(fmt.status_name(name), rows.start, rows.stop)
                )
                for position in range(first, last + 1):
                    here = slice(
                        *(
                            edge - rows.start
                            for edge in index.offsets[position : position + 2].tolist()
                        )
                    )
                    if status is None:
                        fits = states[position] == State.DONE or position in empty
                    else:
                        fits = agrees(
                            int(states[position]), Failures.from_text(texts[position]), status[here]
                        )
                    if not fits:
                        raise InvalidError(
                            f"feature {name!r}: the rows of video {index.ids[position]!r} are not "
                            "as the ledger says; write_rows() needs a set_states() that fits, so "
                            "nothing was committed"
                        )

    def _empty(self, spec: FeatureSpec, positions: NDArray[np.int64]) -> set[int]:
        """Return which of these rows of a feature of videos, in ascending order, hold nothing."""
        empty = np.ones(len(positions), dtype=np.bool_)
        for block in np.unique(positions // (size := _BLOCK_CHUNKS * spec.chunk_rows)).tolist():
            here = slice(*np.searchsorted(positions, [block * size, (block + 1) * size]).tolist())
            start, stop = int(positions[here][0]), int(positions[here][-1]) + 1
            for name, array in spec.arrays.items():
                rows = self._session.read(name, start, stop)[positions[here] - start].reshape(
                    here.stop - here.start, -1
                )
                empty[here] &= (
                    np.isnan(rows) if rows.dtype.kind == "f" else rows == array.fill
                ).all(axis=1)
        return set(positions[empty].tolist())

    def _write_about(self) -> None:
        self._session.set_attrs({**self._session.attrs(), fmt.ROOT: self._about})

    def commit(self) -> str:
        """Make the changes the newest version of the branch and return its id.

        Raises
        ------
        InvalidError
            If what :meth:`write_rows` and :meth:`set_states` wrote does not agree; nothing is
            committed then.
        """
        try:
            self._check_ledgers()
        except InvalidError:
            self._session.discard()
            raise
        self.snapshot = self._session.commit(self.message, json.loads(json.dumps(self.metadata)))
        return self.snapshot


def _one_row(values: Any) -> Any:
    """Return one row as rows; arrays and tensors keep their kind, and masked arrays their masks."""
    return [values] if isinstance(values, list | tuple | int | float) else values[None]


def _checked(
    spec: FeatureSpec, video_id: str, rows: FeatureRows, status: NDArray[np.uint8]
) -> FeatureRows:
    try:
        return rows.check(spec, status == State.DONE)
    except InvalidError as error:
        raise InvalidError(f"video {video_id!r}: {error}") from None


def _failed_frames(failed: Mapping[int, str], video_id: str, n_frames: int) -> dict[int, str]:
    found = {}
    for frame, reason in failed.items():
        if (
            not isinstance(frame, int | np.integer)
            or isinstance(frame, bool)
            or not 0 <= frame < n_frames
        ):
            raise InvalidError(
                f"failed frame {frame!r} of video {video_id!r}: it has frames 0 to {n_frames - 1}"
            )
        found[int(frame)] = reason
    return found


def _positions(positions: Iterable[int], n_videos: int) -> NDArray[np.int64]:
    """Return positions of videos, sorted, each once.

    :class:`InvalidError` for one that there is not.
    """
    found = np.unique(np.array(list(positions), dtype=np.int64))
    if len(found) and not (found[0] >= 0 and found[-1] < n_videos):
        odd = int(found[0] if found[0] < 0 else found[-1])
        raise InvalidError(f"there is no video at position {odd}; the store has {n_videos}")
    return found


def check_same(stored: fmt.StoredFeature, spec: FeatureSpec, provenance: Provenance) -> None:
    """Raise :class:`MismatchError` unless new rows would mean the same as the stored ones.

    The message names both.
    """
    spec = replace(
        spec, compression=stored.spec.compression
    )  # how rows are stored changes nothing about them
    if stored.spec != spec:
        old, new = stored.spec.to_json(), spec.to_json()
        key = next(key for key in old if old[key] != new[key])
        raise MismatchError(
            f"feature {spec.name!r} is stored with {key} {_short(old[key])}, this run would write "
            f"{_short(new[key])}; use the same settings, another feature name, or another store"
        )
    keys = (set(stored.provenance) | set(provenance)) - _IGNORED_PROVENANCE
    if stored.provenance.get("extractor") == provenance.get("extractor") == "imported":
        # Files say more or less of how their numbers were made; only what two say differently tells
        # them apart.
        keys = (set(stored.provenance) & set(provenance)) - _IGNORED_PROVENANCE - _OF_THE_FILE
    for key in sorted(keys):
        ours, theirs = stored.provenance.get(key), provenance.get(key)
        if ours != theirs and not (key == "weights" and _same_hashes(ours, theirs)):
            made, wanted = _differing_part(ours, theirs)
            raise MismatchError(
                f"feature {spec.name!r} was made with {key} {_short(made)}, this run has "
                f"{_short(wanted)}; use the same settings, or another store"
            )


def with_processors(provenance: Provenance, kinds: Collection[str]) -> Provenance:
    """Return a provenance that names further kinds of processors beside those that it names."""
    known = {*provenance.get(fmt.PROCESSORS, ()), *kinds}
    return {**provenance, fmt.PROCESSORS: sorted(known)} if known else provenance


def _same_hashes(ours: Any, theirs: Any) -> bool:
    """Whether two sets of files are the same, whatever they are called."""
    both = isinstance(ours, dict) and isinstance(theirs, dict)
    return both and sorted(ours.values()) == sorted(theirs.values())


def _differing_part(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return two values, or of two dicts only the entries that differ."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours, theirs
    keys = [key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key)]
    return {key: ours[key] for key in keys if key in ours}, {
        key: theirs[key] for key in keys if key in theirs
    }


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 160 else text[:157] + "…"
