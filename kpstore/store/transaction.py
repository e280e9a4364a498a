"""Changes to a store that become one version, or nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kpstore import plugins
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Backend, Fork, WriteView
from kpstore.errors import ExistsError, InvalidError, MismatchError
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance, State
from kpstore.schema.index import VideoIndex, VideoRecord
from kpstore.store import format as fmt
from kpstore.store.damage import read_index
from kpstore.store.ledger import Ledger

_IGNORED_PROVENANCE = frozenset({"document", "kpstore", "libraries"})
"""Keys that may differ between two runs whose numbers are the same, but for the last bits."""
_OF_THE_FILE = frozenset({"format", "dataset"})
"""Keys that say what kind of file imported rows came from, not how they were made."""


class Transaction:
    """Changes on top of a branch's newest version; a context manager that commits at its end or, on an error, not.

    Parameters
    ----------
    backend : where the store is.
    message : what the commit will say.
    metadata : JSON that the commit will carry; :attr:`metadata` may be added to until it ends.
    branch : the branch to add to.
    """

    def __init__(
        self, backend: Backend, message: str, *, metadata: Mapping[str, Any] | None = None, branch: str = MAIN
    ) -> None:
        self.message = message
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.snapshot: str | None = None
        """Id of the version that was made; None before the commit."""
        self._backend = backend
        self._view: WriteView = backend.begin(branch)
        self._about = dict(fmt.read_root(self._view, backend.location))
        self._features = fmt.read_features(self._about)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self._view.discard()

    @property
    def view(self) -> WriteView:
        """The arrays as this transaction sees them."""
        return self._view

    @property
    def features(self) -> Mapping[str, fmt.StoredFeature]:
        """Features by name, those added here included."""
        return self._features

    def read_index(self) -> VideoIndex:
        """Return the video index, with what was added here."""
        return read_index(self._view)

    # -- videos ---------------------------------------------------------------------------------------------

    def add_videos(self, videos: Sequence[VideoRecord]) -> None:
        """Append videos; for every feature they start as pending.

        Raises
        ------
        ExistsError
            If a video of that id is there already.
        """
        for video in videos:
            _check_text(video)
        index = self.read_index()
        ids = [video.id for video in videos]
        taken = [video_id for video_id in ids if video_id in index]
        if taken or len(set(ids)) != len(ids):
            twice = taken or [video_id for video_id in ids if ids.count(video_id) > 1]
            raise ExistsError(f"video {twice[0]!r} ({len(set(twice))} in all) is already in {self._backend.location}")
        for name, meta in {**fmt.VIDEO_ARRAYS, **fmt.FRAME_ARRAYS}.items():
            if name not in self._view.names():
                self._view.create(name, meta)
        n_old, n_new = len(index), len(index) + len(videos)
        old_frames, new_frames = index.total_frames, index.total_frames + sum(video.n_frames for video in videos)
        self._add_annotation_columns(videos, n_old)
        for name in self._view.names():
            axis = (self._view.meta(name).dims or ("",))[0]
            if axis in ("video", "frame"):
                self._view.resize(name, n_new if axis == "video" else new_frames)
        self._append_rows(videos, n_old, old_frames)

    def _add_annotation_columns(self, videos: Sequence[VideoRecord], n_old: int) -> None:
        columns: list[str] = list(self._about["annotations"])
        new = [c for c in dict.fromkeys(name for video in videos for name in video.annotations) if c not in columns]
        for name in new:
            if not name.isidentifier() or name in self._view.names() or name in fmt.RESERVED_NAMES:
                raise InvalidError(
                    f"annotation {name!r}: use a name of letters, digits and underscores that is not taken"
                )
            self._view.create(name, ArrayMeta((n_old,), TEXT, fmt.VIDEO_CHUNK_ROWS, ("video",)))
        if new:
            self._about["annotations"] = columns + new
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
            self._view.write(name, n_old, values)
        paths = np.array([path for video in videos for path in video.frame_paths], dtype=object)
        self._view.write(fmt.IMAGE_PATH, old_frames, paths)

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
                    f"split {split!r} of video {video_id!r}: use printable text without spaces around it"
                )
        positions = [index.position(video_id) for video_id in splits]
        new = index.splits.copy()
        new[positions] = list(splits.values())
        changed = int((new != index.splits).sum())
        if changed:
            self._view.write("split", 0, new)
            self.keep_own_splits()
        return changed

    def keep_own_splits(self) -> None:
        """Remember that the splits are the store's own, whatever the data set says."""
        if not self._about.get(fmt.OWN_SPLITS):
            self._about[fmt.OWN_SPLITS] = True
            self._write_about()

    # -- features -------------------------------------------------------------------------------------------

    def add_feature(self, spec: FeatureSpec | str, provenance: Provenance | None = None) -> None:
        """Add a feature, pending for every video; nothing happens if the same feature, made the same way, is there.

        Parameters
        ----------
        spec : a specification, or the name of one that is registered in the group ``kpstore.features``.

        Raises
        ------
        NotFoundError
            If no feature is registered under that name.
        MismatchError
            If a feature of that name is there with another shape or made with other settings; the message names both.
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
        taken = sorted(set(metas) & (set(self._view.names()) | fmt.RESERVED_NAMES))
        if taken:
            raise ExistsError(f"feature {spec.name!r} needs the array name {taken[0]!r}, which is taken")
        for name, meta in metas.items():
            self._view.create(name, meta)
        for dim, (meta, labels) in fmt.label_metas(spec).items():
            self._add_labels(spec, dim, meta, labels)
        self._features[spec.name] = fmt.StoredFeature(spec, provenance)
        self._about["features"] = {
            **self._about["features"],
            spec.name: {"spec": spec.to_json(), "provenance": provenance},
        }
        self._write_about()

    def _add_labels(self, spec: FeatureSpec, dim: str, meta: ArrayMeta, labels: NDArray[np.object_]) -> None:
        if dim not in self._view.names():
            self._view.create(dim, meta)
            self._view.write(dim, 0, labels)
        elif self._view.read(dim, 0, self._view.meta(dim).n_rows).tolist() != labels.tolist():
            raise MismatchError(
                f"feature {spec.name!r} names {dim!r} otherwise than another feature of this store does"
            )

    def remove_feature(self, name: str) -> None:
        """Remove a feature from this version on; earlier versions keep it."""
        stored = fmt.check_feature(self._features, name)
        for array in fmt.feature_metas(stored.spec, n_videos=0, n_frames=0):
            self._view.delete(array)
        del self._features[name]
        in_use = {dim for other in self._features.values() for dim in other.spec.labels}
        for dim in stored.spec.labels:
            if dim not in in_use:
                self._view.delete(dim)
        self._about["features"] = {key: value for key, value in self._about["features"].items() if key != name}
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
        values : (T, *row shape), or :class:`FeatureRows` to give masks and other companions with them.
        failed_frames : reason by frame number; such a frame is FAILED and reads as missing, whatever its values.
        """
        spec = self._frame_feature(feature)
        index = self.read_index()
        position = index.position(video_id)
        rows = index.rows(position)
        block = (values if isinstance(values, FeatureRows) else FeatureRows(np.asarray(values))).check(spec)
        if len(block) != rows.stop - rows.start:
            raise InvalidError(f"video {video_id!r} has {rows.stop - rows.start} frames, {len(block)} rows were given")
        failed = dict(failed_frames or {})
        outside = sorted(frame for frame in failed if not 0 <= frame < len(block))
        if outside:
            raise InvalidError(f"failed frame {outside[0]} of video {video_id!r}: it has frames 0 to {len(block) - 1}")
        status = np.full(len(block), State.DONE, dtype=np.uint8)
        status[list(failed)] = State.FAILED
        block = blanked(spec, block, status == State.FAILED) if failed else block
        self.write_rows(feature, rows.start, block, status)
        self.set_states(feature, {position: failure_text(frames=failed)})

    def fail(self, feature: str, video_id: str, reason: str) -> None:
        """Mark a whole video as failed for a feature; its rows read as missing."""
        spec = self._frame_feature(feature)
        index = self.read_index()
        position = index.position(video_id)
        rows = index.rows(position)
        n_rows = rows.stop - rows.start
        self.write_rows(feature, rows.start, spec.empty_rows(n_rows), np.full(n_rows, State.FAILED, dtype=np.uint8))
        self.set_states(feature, {position: failure_text(video=reason)})

    def write_video_feature(self, feature: str, video_id: str, values: NDArray[Any] | FeatureRows) -> None:
        """Write one video's row of a feature on the video axis, shape of one row, and mark it done."""
        spec = fmt.check_feature(self._features, feature).spec
        if spec.axis != "video":
            raise InvalidError(f"feature {feature!r} belongs to frames; use write()")
        position = self.read_index().position(video_id)
        block = (values if isinstance(values, FeatureRows) else FeatureRows(np.asarray(values)[None])).check(spec)
        self.write_rows(feature, position, block, np.full(1, State.DONE, dtype=np.uint8))
        self.set_states(feature, {position: ""})

    def _frame_feature(self, feature: str) -> FeatureSpec:
        spec = fmt.check_feature(self._features, feature).spec
        if spec.axis != "frame":
            raise InvalidError(f"feature {feature!r} belongs to videos; use write_video_feature()")
        return spec

    def write_rows(self, feature: str, start: int, rows: FeatureRows, status: NDArray[np.uint8]) -> None:
        """Write any run of rows of a feature, with their states; the ledger is :meth:`set_states`' business."""
        for name, array in fmt.row_arrays(self._features[feature].spec, rows, status).items():
            self._view.write(name, start, array)

    def read_states(self, feature: str) -> NDArray[np.uint8]:
        """(videos,) uint8: a :class:`State` for each video."""
        name = fmt.state_name(fmt.check_feature(self._features, feature).spec.name)
        return self._view.read(name, 0, self._view.meta(name).n_rows)

    def set_states(self, feature: str, failures: Mapping[int, str]) -> None:
        """Enter finished videos into the ledger of a feature.

        Parameters
        ----------
        failures : by position of the video: ``""`` if all went well, else what :func:`failure_text` returned.
        """
        if not failures:
            return
        positions = np.array(sorted(failures), dtype=np.int64)
        n_videos = self._view.meta(fmt.state_name(feature)).n_rows
        states = self._view.read(fmt.state_name(feature), 0, n_videos)
        texts = self._view.read(fmt.failure_name(feature), 0, n_videos)
        for position in positions.tolist():
            texts[position] = failures[position]
            states[position] = State.FAILED if is_whole_video(failures[position]) else State.DONE
        self._view.write(fmt.state_name(feature), 0, states)
        # Text is stored in shorter chunks; write only those that change.
        for chunk in np.unique(positions // fmt.TEXT_CHUNK_ROWS).tolist():
            rows = slice(chunk * fmt.TEXT_CHUNK_ROWS, min((chunk + 1) * fmt.TEXT_CHUNK_ROWS, n_videos))
            self._view.write(fmt.failure_name(feature), rows.start, texts[rows])

    def reset_states(self, feature: str, positions: Iterable[int]) -> None:
        """Make videos pending again for a feature, rows and ledger; for a run that redoes them."""
        spec = fmt.check_feature(self._features, feature).spec
        index = self.read_index()
        n_videos = len(index)
        states = self._view.read(fmt.state_name(feature), 0, n_videos)
        texts = self._view.read(fmt.failure_name(feature), 0, n_videos)
        for position in positions:
            rows = index.rows(position) if spec.axis == "frame" else slice(position, position + 1)
            n_rows = rows.stop - rows.start
            self.write_rows(feature, rows.start, spec.empty_rows(n_rows), np.zeros(n_rows, dtype=np.uint8))
            states[position], texts[position] = State.PENDING, ""
        self._view.write(fmt.state_name(feature), 0, states)
        self._view.write(fmt.failure_name(feature), 0, texts)

    def restore(
        self, feature: str, ledger: Ledger, redo: NDArray[np.bool_], damaged: Mapping[str, Collection[int]]
    ) -> None:
        """Write a feature's ledger as it was put together, and make videos pending again; reads nothing damaged.

        Parameters
        ----------
        ledger : complete but for the videos of ``redo``.
        redo : (videos,) bool, videos to make pending: all that have rows in a damaged chunk of values or companions.
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
        for start, stop in _pieces(rows, spec.chunk_rows):
            empty = spec.empty_rows(stop - start)
            for name, values in fmt.row_arrays(spec, empty, np.empty(0, dtype=np.uint8)).items():
                if name in spec.arrays:
                    self._view.write(name, start, values)
        if spec.axis == "frame":
            self._write_whole(fmt.status_name(feature), status.astype(np.uint8), np.flatnonzero(rows), damaged)
        self._write_whole(fmt.state_name(feature), states.astype(np.uint8), positions, damaged)
        self._write_whole(fmt.failure_name(feature), texts, positions, damaged)

    def _renew(self, name: str, damaged: Mapping[str, Collection[int]]) -> None:
        """Make an array anew of which no chunk can be read: what says where its chunks lie may be what is damaged."""
        meta = self._view.meta(name)
        if len(damaged[name]) == -(-meta.n_rows // meta.chunk_rows):
            self._view.delete(name)
            self._view.create(name, meta)

    def _write_whole(
        self, name: str, values: NDArray[Any], changed: NDArray[np.int64], damaged: Mapping[str, Collection[int]]
    ) -> None:
        """Write those chunks of an array that hold changed rows or are damaged."""
        size = self._view.meta(name).chunk_rows
        for chunk in sorted({*np.unique(changed // size).tolist(), *damaged.get(name, ())}):
            self._view.write(name, chunk * size, values[chunk * size : (chunk + 1) * size])

    # -- parallel writers, end ---------------------------------------------------------------------------------

    def fork(self) -> Fork:
        """Return a writer of whole chunks for another process; only before this transaction has changes of its own."""
        return self._view.fork()

    def merge(self, forks: Sequence[Fork]) -> None:
        """Take over what forks have written."""
        if forks:
            self._view.merge(forks)

    def _write_about(self) -> None:
        self._view.set_attrs({**self._view.attrs(), fmt.ROOT: self._about})

    def commit(self) -> str:
        """Make the changes the newest version of the branch and return its id."""
        self.snapshot = self._view.commit(self.message, json.loads(json.dumps(self.metadata)))
        return self.snapshot


def _pieces(rows: NDArray[np.bool_], chunk_rows: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rows, cut where chunks end: a chunk of which all rows are wanted comes in one piece."""
    wanted = np.flatnonzero(rows)
    if len(wanted):
        ends = np.flatnonzero((np.diff(wanted) > 1) | (wanted[1:] % chunk_rows == 0)) + 1
        for piece in np.split(wanted, ends):
            yield int(piece[0]), int(piece[-1]) + 1


def _check_text(video: VideoRecord) -> None:
    """Raise :class:`InvalidError` for text that no file can hold, such as halves of characters."""
    for text in (video.id, video.split, *video.frame_paths, *video.annotations.values()):
        if not text.isascii() and text != text.encode("utf-8", "ignore").decode("utf-8"):
            raise InvalidError(f"video {video.id!r}: {text[:100]!r} is no text that can be stored")


def blanked(spec: FeatureSpec, block: FeatureRows, rows: NDArray[np.bool_]) -> FeatureRows:
    """Return a copy of ``block`` in which ``rows`` read as missing."""
    missing = spec.empty_rows(int(rows.sum()))
    copied = FeatureRows(block.values.copy(), {name: array.copy() for name, array in block.companions.items()})
    copied.values[rows] = missing.values
    for name, array in copied.companions.items():
        array[rows] = missing.companions[name]
    return copied


def failure_text(*, video: str = "", frames: Mapping[int, str] | None = None) -> str:
    """Return what the ledger keeps of a video's failures: JSON, or ``""`` if there are none."""
    if video:
        return json.dumps({"video": video}, ensure_ascii=False)
    if frames:
        return json.dumps({"frames": {str(n): frames[n] for n in sorted(frames)}}, ensure_ascii=False)
    return ""


def is_whole_video(text: str) -> bool:
    """Whether a ledger entry says that the whole video failed."""
    return bool(text) and "video" in json.loads(text)


def check_same(stored: fmt.StoredFeature, spec: FeatureSpec, provenance: Provenance) -> None:
    """Raise :class:`MismatchError` unless new rows would mean the same as the stored ones; the message names both."""
    spec = replace(spec, compression=stored.spec.compression)  # how rows are stored changes nothing about them
    if stored.spec != spec:
        old, new = stored.spec.to_json(), spec.to_json()
        key = next(key for key in old if old[key] != new[key])
        raise MismatchError(
            f"feature {spec.name!r} is stored with {key} {_short(old[key])}, this run would write {_short(new[key])}; "
            "use the same settings, another feature name, or another store"
        )
    keys = (set(stored.provenance) | set(provenance)) - _IGNORED_PROVENANCE
    if stored.provenance.get("extractor") == provenance.get("extractor") == "imported":
        # Files say more or less of how their numbers were made; only what two say differently tells them apart.
        keys = (set(stored.provenance) & set(provenance)) - _IGNORED_PROVENANCE - _OF_THE_FILE
    for key in sorted(keys):
        ours, theirs = stored.provenance.get(key), provenance.get(key)
        if ours != theirs and not (key == "weights" and _same_hashes(ours, theirs)):
            made, wanted = _differing_part(ours, theirs)
            raise MismatchError(
                f"feature {spec.name!r} was made with {key} {_short(made)}, this run has {_short(wanted)}; "
                "use the same settings, or another store"
            )


def _same_hashes(ours: Any, theirs: Any) -> bool:
    """Whether two sets of files are the same, whatever they are called."""
    both = isinstance(ours, dict) and isinstance(theirs, dict)
    return both and sorted(ours.values()) == sorted(theirs.values())


def _differing_part(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return two values, or of two dicts only the entries that differ."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours, theirs
    keys = [key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key)]
    return {key: ours[key] for key in keys if key in ours}, {key: theirs[key] for key in keys if key in theirs}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 160 else text[:157] + "…"
