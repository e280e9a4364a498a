"""Changes to a store that become one version, or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kpstore import plugins
from kpstore.backends.base import MAIN, TEXT, Backend, Fork, WriteSession
from kpstore.errors import ExistsError, InvalidError, MismatchError
from kpstore.schema.array import check_axes
from kpstore.schema.failures import NOTHING_FAILED, Failures
from kpstore.schema.feature import Axis, FeatureRows, FeatureSpec, Provenance, State
from kpstore.schema.fields import json_values, mapping, metadata_values, text
from kpstore.schema.index import VideoIndex, VideoRecord
from kpstore.store import format as fmt
from kpstore.store import given
from kpstore.store.feature_writer import FeatureWriter
from kpstore.store.provenance import check_same
from kpstore.store.removed import Removals


class Transaction:
    """Changes on top of a branch's newest version.

    A context manager that commits at its end, and discards the changes on an error.

    Parameters
    ----------
    backend : where the store is.
    message : of the commit.
    metadata : JSON stored with the commit; entries can be added to :attr:`metadata` until then.
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
        self.message = given.fitted("message of a commit", text, message)
        self.metadata: dict[str, Any] = given.fitted(
            "metadata of a commit", metadata_values, {} if metadata is None else metadata
        )
        self.snapshot: str | None = None
        """Id of the new version; None before the commit."""
        self._backend = backend
        self._session: WriteSession = backend.begin(branch)
        self._about = fmt.read_root(self._session, backend.location).copy()
        self._features = fmt.read_features(self._about)
        self._index: VideoIndex | None = None
        """Read once: 20 ms of each :meth:`write` otherwise."""
        self._writer = FeatureWriter(self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self._session.discard()

    @property
    def session(self) -> WriteSession:
        """The arrays as this transaction sees them."""
        self._writer.flush()
        return self._session

    @property
    def features(self) -> Mapping[str, fmt.StoredFeature]:
        """Features by name, including those added here."""
        return self._features

    def read_index(self) -> VideoIndex:
        """Return the video index, including videos added here."""
        if self._index is None:
            self._index = fmt.read_index(self._session, self._backend.location)
        return self._index

    # -- videos ------------------------------------------------------------------------------------

    def add_videos(self, videos: Sequence[VideoRecord]) -> None:
        """Append videos; they start as pending for every feature.

        Raises
        ------
        ExistsError
            If a video of that id is already in the store.
        InvalidError
            If an annotation has a name that no array can have, or if a video was removed from the
            store and not taken back; nothing is added then.
        """
        videos = given.video_records(videos)
        index, removed = self.read_index(), self.removed
        counts = Counter(video.id for video in videos)
        twice = [video_id for video_id, n in counts.items() if n > 1 or video_id in index]
        if twice:
            raise ExistsError(
                f"video {twice[0]!r} ({len(twice)} in all) is already in {self._backend.location}"
            )
        if out := [video_id for video_id in counts if video_id in removed.videos]:
            raise InvalidError(removed.stay_out(out, self._backend.location))
        new = self._new_columns(videos)
        wanted = {**fmt.VIDEO_ARRAYS, **fmt.FRAME_ARRAYS, **dict.fromkeys(new, fmt.ANNOTATION)}
        for name in wanted.keys() - set(self._session.names()):
            self._session.create(name, wanted[name])
        if new:
            self._about["annotations"] = [*self._about["annotations"], *new]
            self._write_about()
        n_frames = sum(video.n_frames for video in videos)
        lengths = {"video": len(index) + len(videos), "frame": index.total_frames + n_frames}
        self._writer.flush()
        for name in self._session.names():
            axis = (self._session.meta(name).dims or ("",))[0]
            if axis in lengths:
                self._session.resize(name, lengths[axis])
        self._index = None
        self._append_rows(videos, len(index), index.total_frames)
        self._index = index.with_videos(videos)

    def _new_columns(self, videos: Sequence[VideoRecord]) -> list[str]:
        """Return the annotations that the store does not have yet, after checking their names."""
        names = dict.fromkeys(name for video in videos for name in video.annotations)
        new = [name for name in names if name not in self._about["annotations"]]
        taken = fmt.RESERVED_NAMES | set(self._session.names())
        for name in new:
            if not name.isidentifier() or name in taken:
                raise InvalidError(
                    f"annotation {name!r}: use a name of letters, digits and underscores that is "
                    "not taken"
                )
        return new

    def _append_rows(self, videos: Sequence[VideoRecord], n_old: int, old_frames: int) -> None:
        for name, meta in fmt.VIDEO_ARRAYS.items():
            field = "id" if name == "video_id" else name
            dtype = object if meta.dtype == TEXT else meta.dtype
            values = np.array([getattr(video, field) for video in videos], dtype=dtype)
            self._session.write(name, n_old, values)
        for name in self._about["annotations"]:
            texts = np.array([v.annotations.get(name, "") for v in videos], dtype=object)
            self._session.write(name, n_old, texts)
        paths = np.array([path for video in videos for path in video.frame_paths], dtype=object)
        self._session.write(fmt.IMAGE_PATH, old_frames, paths)

    def set_splits(self, splits: Mapping[str, str]) -> int:
        """Put videos into other splits; frames and features stay as they are.

        The store records that its splits are its own, so that later ingests keep them.

        Parameters
        ----------
        splits : by video id; the other videos keep theirs. ``""`` means no split.

        Returns
        -------
        int
            Number of videos whose split changed; if 0, nothing is written.

        Raises
        ------
        NotFoundError
            If a video is not found; the message names the nearest ids.
        InvalidError
            If a split's name is not printable text without spaces around it.
        """
        index, splits = self.read_index(), given.splits_by_id(splits)
        new = index.splits.copy()
        new[[index.position(video_id) for video_id in splits]] = list(splits.values())
        changed = int((new != index.splits).sum())
        if changed:
            self._session.write("split", 0, new)
            self._index = replace(index, splits=new)
            self.keep_own_splits()
        return changed

    def keep_own_splits(self) -> None:
        """Record that the splits are the store's own, and not those of the data set."""
        if not self._about.get(fmt.OWN_SPLITS):
            self._about[fmt.OWN_SPLITS] = True
            self._write_about()

    @property
    def removed(self) -> Removals:
        """Videos and features that were removed from the store."""
        return fmt.read_removals(self._about)

    def record_removals(self, removed: Removals) -> None:
        """Replace the record of what was removed."""
        self._about[fmt.REMOVED] = removed.to_json()
        self._write_about()

    # -- features ----------------------------------------------------------------------------------

    def add_feature(self, spec: FeatureSpec | str, provenance: Provenance | None = None) -> None:
        """Add a feature, pending for every video.

        Nothing happens if the store has the same feature, made in the same way.

        Parameters
        ----------
        spec : a specification, or the name of one that is registered in the group
            ``kpstore.features``.

        Raises
        ------
        NotFoundError
            If no feature is registered under that name.
        MismatchError
            If the store has a feature of that name with another shape or made with other settings;
            the message names both.
        """
        if isinstance(spec, str):
            registered = plugins.load("kpstore.features", spec)
            spec = registered if isinstance(registered, FeatureSpec) else registered()
        spec = given.instance(spec, FeatureSpec)
        provenance = given.fitted(
            f"provenance of {spec.name!r}", json_values, {} if provenance is None else provenance
        )
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
            if dim not in self._session.names():
                self._session.create(dim, meta)
                self._session.write(dim, 0, labels)
            elif not np.array_equal(self._labels(dim), labels):
                raise MismatchError(
                    f"feature {spec.name!r} has other labels for {dim!r} than another of this store"
                )
        self._set_feature(spec, provenance)

    def _labels(self, dim: str) -> NDArray[Any]:
        return self._session.read(dim, 0, self._session.meta(dim).n_rows)

    def set_provenance(self, name: str, provenance: Provenance) -> None:
        """Replace the record of how a feature was made."""
        stored = fmt.check_feature(self._features, name)
        if provenance != stored.provenance:
            self._set_feature(stored.spec, provenance)

    def _set_feature(self, spec: FeatureSpec, provenance: Provenance) -> None:
        self._features[spec.name] = fmt.StoredFeature(spec, provenance)
        about = {"spec": spec.to_json(), "provenance": provenance}
        self._about["features"] = {**self._about["features"], spec.name: about}
        self._write_about()

    def remove_feature(self, name: str) -> None:
        """Remove a feature from this version on; earlier versions keep it."""
        stored = fmt.check_feature(self._features, name)
        self._writer.forget(stored.spec)
        for array in fmt.feature_arrays(stored.spec):
            self._session.delete(array)
        del self._features[name]
        in_use = {dim for other in self._features.values() for dim in other.spec.labels}
        for dim in stored.spec.labels.keys() - in_use:
            self._session.delete(dim)
        about = self._about["features"]
        self._about["features"] = {key: about[key] for key in about if key != name}
        self._write_about()

    def write(
        self,
        feature: str,
        video_id: str,
        values: NDArray[Any] | FeatureRows,
        *,
        failed_frames: Mapping[int, str] | None = None,
    ) -> None:
        """Write all rows of one video of a frame feature, and mark the video done.

        Parameters
        ----------
        values : (T, *row shape), NaN where missing; a presence mask (``detected``) follows from
            them. Or :class:`FeatureRows`, with companions; a given mask has to agree with values.
        failed_frames : reason by frame number; such a frame is FAILED and reads as missing,
            whatever its values.

        Raises
        ------
        NotFoundError
            If the feature or the video is not found.
        InvalidError
            If number or shape of the rows do not fit, or they break a rule of the format (infinite
            values, contradicting masks, a visibility outside 0 to 1). Nothing is written then.
        """
        spec = self._feature_of("frame", feature)
        rows = values if isinstance(values, FeatureRows) else FeatureRows(values)
        n_frames, n_rows = self._n_frames(video_id), rows.n_given(spec)
        if n_rows != n_frames:
            raise InvalidError(
                f"video {video_id!r} has {n_frames} frames, {n_rows} rows were given"
            )
        failed = given.failed_frames(failed_frames, video_id, n_rows)
        states = np.full(n_rows, State.DONE, dtype=np.uint8)
        states[list(failed)] = State.FAILED
        self._write_video(spec, video_id, rows, states, Failures(frames=failed))

    def fail(self, feature: str, video_id: str, reason: str) -> None:
        """Mark a whole video as failed for a feature; its rows read as missing."""
        spec = self._feature_of("frame", feature)
        states = np.full(self._n_frames(video_id), State.FAILED, dtype=np.uint8)
        failed = Failures("" if reason is None else reason)
        self._write_video(spec, video_id, spec.empty_rows(len(states)), states, failed)

    def write_video_feature(
        self, feature: str, video_id: str, values: NDArray[Any] | FeatureRows
    ) -> None:
        """Write one video's row of a feature on the video axis, and mark it done.

        Parameters
        ----------
        values : (*row shape), or :class:`FeatureRows` of one row; masks and errors are those of
            :meth:`write`.
        """
        spec = self._feature_of("video", feature)
        check_axes(f"feature {feature!r}", values, spec.dims, spec.labels)
        rows = values if isinstance(values, FeatureRows) else FeatureRows(given.one_row(values))
        if (n_rows := rows.n_given(spec)) != 1:
            raise InvalidError(
                f"video {video_id!r} has one row of {feature!r}, {n_rows} were given"
            )
        states = np.full(1, State.DONE, dtype=np.uint8)
        self._write_video(spec, video_id, rows, states, NOTHING_FAILED)

    def _feature_of(self, axis: Axis, feature: str) -> FeatureSpec:
        spec = fmt.check_feature(self._features, feature).spec
        if spec.axis != axis:
            way = "write" if spec.axis == "frame" else "write_video_feature"
            raise InvalidError(f"feature {feature!r} belongs to {spec.axis}s; use {way}()")
        return spec

    def _n_frames(self, video_id: str) -> int:
        index = self.read_index()
        return int(index.n_frames[index.position(video_id)])

    def _write_video(
        self,
        spec: FeatureSpec,
        video_id: str,
        rows: FeatureRows,
        states: NDArray[np.uint8],
        failures: Failures,
    ) -> None:
        index = self.read_index()
        position = index.position(video_id)
        start = index.rows(position).start if spec.axis == "frame" else position
        try:
            checked = rows.check(spec, states == State.DONE)
        except InvalidError as error:
            raise InvalidError(f"video {video_id!r}: {error}") from None
        self._writer.write_rows(spec, start, checked, states)
        self._writer.set_states(spec.name, {position: failures})

    def write_rows(
        self, feature: str, start: int, rows: FeatureRows, states: NDArray[np.uint8]
    ) -> None:
        """Write any run of rows of a feature, with a :class:`State` for each, (rows,) uint8.

        Rows that are not DONE are written as missing. States and failures of the videos are for
        :meth:`set_states` to write: a commit is refused if they disagree with the rows.

        Raises
        ------
        InvalidError
            As in :meth:`write`; also for rows beyond the end, and for unknown states.
        """
        spec = fmt.check_feature(self._features, feature).spec
        n_rows = given.instance(rows, FeatureRows).n_given(spec)
        first = given.first_row(feature, start, n_rows, self._session.meta(spec.name).n_rows)
        states = given.row_states(feature, states, n_rows)
        checked = rows.check(spec, states == State.DONE)
        self._writer.write_rows(spec, first, checked, states)

    def read_states(self, feature: str) -> NDArray[np.uint8]:
        """(videos,) uint8: a :class:`State` for each video."""
        return self._writer.read_states(fmt.check_feature(self._features, feature).spec.name)

    def set_states(self, feature: str, failures: Mapping[int, Failures]) -> None:
        """Mark videos as done for a feature, or as failed where the whole video failed.

        Parameters
        ----------
        failures : by position of the video.

        Raises
        ------
        InvalidError
            For a position out of range. A commit is refused if states, failures and rows disagree.
        """
        by_position = mapping(failures, "Failures by position of the video").values()
        odd = [value for value in by_position if not isinstance(value, Failures)]
        if odd:
            needed = "kpstore.schema.failures.Failures needed"
            raise InvalidError(f"failures of {feature!r}: {odd[0]!r} given, {needed}")
        fmt.check_feature(self._features, feature)
        self._writer.set_states(feature, failures)

    def reset_states(self, feature: str, positions: Iterable[int]) -> None:
        """Make videos pending again for a feature, with their rows, so that they are redone."""
        spec = fmt.check_feature(self._features, feature).spec
        self._writer.reset(spec, positions, self.read_index())

    def fork(self) -> Fork:
        """Return a writer of whole chunks for another process, before any changes here."""
        return self.session.fork()

    def merge(self, forks: Sequence[Fork]) -> None:
        """Take over the rows that forks have written."""
        if forks:
            self.session.merge(forks)

    def _write_about(self) -> None:
        self._session.set_attrs({**self._session.attrs(), fmt.ROOT: self._about})

    def commit(self) -> str:
        """Make the changes the newest version of the branch and return its id.

        Raises
        ------
        InvalidError
            If rows and states were written that disagree; nothing is committed then.
        """
        specs = [self._features[name].spec for name in sorted(self._features)]
        try:
            self._writer.check(specs, self.read_index())
            metadata = given.fitted("metadata of a commit", metadata_values, self.metadata)
        except InvalidError:
            self._session.discard()
            raise
        self.snapshot = self._session.commit(self.message, metadata)
        return self.snapshot
