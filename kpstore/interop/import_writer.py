"""Writing imported videos into a store, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExistsError, InvalidError
from kpstore.interop.base import ImportedFeature, ImportedVideo, OnProgress
from kpstore.schema.failures import NOTHING_FAILED, Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.store import format as fmt
from kpstore.store.transaction import Transaction

_BLOCK_BYTES = 64 * 2**20
"""Bytes of decoded rows gathered before they are written, so that few chunks are written twice."""


class ImportWriter:
    """Gathers videos and writes many of them at once."""

    def __init__(
        self, tx: Transaction, features: Sequence[ImportedFeature], on_progress: OnProgress
    ) -> None:
        self._tx, self._on_progress = tx, on_progress
        self._specs = {feature.spec.name: feature.spec for feature in features}
        self._index, self._removed = tx.read_index(), tx.removed
        # Asked once: the transaction writes what it has gathered whenever it is read.
        self._session = tx.session
        self._states = {name: tx.read_states(name) for name in self._specs}
        self.left_out: list[str] = []
        """Videos of the file that were removed from the store, and stay out."""
        self._seen: set[str] = set()
        self._waiting: list[ImportedVideo] = []
        self._bytes = 0
        self._unstored: dict[str, list[str]] = {}
        self.n_videos = self.n_frames = self.n_failed = 0

    def add(self, video: ImportedVideo) -> None:
        """Take a video, to be written now or later."""
        record = video.record
        if record.id in self._seen:
            raise InvalidError(f"video {record.id!r} is in the file twice; give each its own name")
        self._seen.add(record.id)
        if record.id in self._removed.videos:
            self.left_out.append(record.id)
            return
        checked = {name: self._checked(video, name, rows) for name, rows in video.rows.items()}
        video = replace(video, rows=checked)
        self.n_videos += 1
        self.n_frames += record.n_frames
        self.n_failed += len({frame for failed in video.failed_frames.values() for frame in failed})
        if record.id in self._index:
            self._complete(video)
            return
        self._waiting.append(video)
        # Paths count too: a file may hold nothing else.
        self._bytes += sum(rows.values.nbytes for rows in checked.values())
        self._bytes += sum(map(len, record.frame_paths)) + 1
        if self._bytes >= _BLOCK_BYTES:
            self.flush()

    def _checked(self, video: ImportedVideo, name: str, rows: FeatureRows) -> FeatureRows:
        """Return rows of a video in the form that a store may hold; an error names the video."""
        spec, video_id = self._specs[name], video.record.id
        wanted = video.record.n_frames if spec.axis == "frame" else 1
        if (n_rows := rows.n_given(spec)) != wanted:
            raise InvalidError(f"video {video_id!r}: {n_rows} rows of {name!r} for {wanted}")
        done = np.ones(wanted, dtype=np.bool_)
        done[list(video.failed_frames.get(name, {}))] = False
        try:
            return rows.check(spec, done)
        except InvalidError as error:
            raise InvalidError(f"video {video_id!r}: {error}; nothing was imported") from None

    def flush(self) -> None:
        """Write the videos gathered so far."""
        videos, self._waiting, self._bytes = self._waiting, [], 0
        if not videos:
            return
        before = self._tx.read_index()
        first_video, first_frame = len(before), before.total_frames
        self._tx.add_videos([video.record for video in videos])
        for name, spec in self._specs.items():
            found = [_rows_of(video, spec) for video in videos]
            first = first_frame if spec.axis == "frame" else first_video
            self._tx.write_rows(
                name,
                first,
                FeatureRows.concatenate([rows for rows, _, _ in found]),
                np.concatenate([status for _, status, _ in found]),
            )
            failures = {
                first_video + n: failed
                for n, (_, _, failed) in enumerate(found)
                if failed is not None
            }
            self._tx.set_states(name, failures)
        self._on_progress(sum(video.record.n_frames for video in videos))

    def _complete(self, video: ImportedVideo) -> None:
        """Write features of a video that the store holds already."""
        record = video.record
        position = self._index.position(record.id)
        order = self._stored_order(record, position)
        self._note_unstored(record, position)
        for name in dict.fromkeys((*video.rows, *video.failed)):
            if self._states[name][position] != State.PENDING:
                raise ExistsError(
                    f"video {record.id!r} has {name!r} in the store already; "
                    "import into a new store, then kpstore merge"
                )
            spec, first = self._specs[name], position
            if spec.axis == "frame":
                video, first = _reordered(video, name, order), self._index.rows(position).start
            rows, status, failures = _rows_of(video, spec)
            self._tx.write_rows(name, first, rows, status)
            self._tx.set_states(name, {position: failures or NOTHING_FAILED})
        self._on_progress(record.n_frames)

    def _stored_order(self, record: VideoRecord, position: int) -> NDArray[np.int64]:
        """Return, for each frame of the store, which frame of the file has the same path.

        ``ID#7`` is frame 7 of any file. (frames,) int64.
        """
        rows = self._index.rows(position)
        if rows.stop - rows.start != record.n_frames:
            raise InvalidError(
                f"video {record.id!r} has {rows.stop - rows.start} frames in the store and "
                f"{record.n_frames} in the file; import into a new store"
            )
        stored = self._session.read(fmt.IMAGE_PATH, rows.start, rows.stop).tolist()
        given = list(record.frame_paths)
        if given == stored or is_numbered(given) or is_numbered(stored):
            return np.arange(record.n_frames, dtype=np.int64)
        for shorten in (str, lambda path: path.replace("\\", "/").rpartition("/")[2]):
            here, there = [shorten(path) for path in stored], [shorten(path) for path in given]
            if len(set(there)) == len(there) and set(here) == set(there):
                place = {path: number for number, path in enumerate(there)}
                return np.array([place[path] for path in here], dtype=np.int64)
        odd = next(n for n in range(len(given)) if given[n] != stored[n])
        raise InvalidError(
            f"video {record.id!r} has other frames in the store ({stored[odd]}) than in the file "
            f"({given[odd]}); import into a new store"
        )

    def _note_unstored(self, record: VideoRecord, position: int) -> None:
        """Note texts of the file that differ from those that the store holds for a video."""
        stored = {"split": str(self._index.splits[position])}
        for name in set(self._session.names()) & set(record.annotations):
            stored[name] = str(self._session.read(name, position, position + 1)[0])
        for name, given in {"split": record.split, **record.annotations}.items():
            if given and given != stored.get(name, ""):
                self._unstored.setdefault(name, []).append(record.id)

    @property
    def notes(self) -> tuple[str, ...]:
        """Texts of the file that were not stored, one line each."""
        return tuple(
            f"{name} of {len(ids)} videos that were in the store already, {ids[0]!r} the first: "
            "the store keeps its own"
            for name, ids in self._unstored.items()
        )


def is_numbered(paths: Sequence[str]) -> bool:
    """Return whether the paths of a video's frames are just numbers: ``ID#0``, ``ID#1``, …."""
    return all(path.endswith(f"#{n}") for n, path in enumerate(paths))


def _reordered(video: ImportedVideo, name: str, order: NDArray[np.int64]) -> ImportedVideo:
    """Return a video with the rows and failed frames of a feature in another order."""
    if name in video.failed:
        return video
    rows, reasons = video.rows[name], video.failed_frames.get(name, {})
    companions = {key: array[order] for key, array in rows.companions.items()}
    failed = {n: reasons[f] for n, f in enumerate(order.tolist()) if f in reasons}
    return replace(
        video,
        rows={**video.rows, name: FeatureRows(rows.values[order], companions)},
        failed_frames={**video.failed_frames, name: failed},
    )


def _rows_of(
    video: ImportedVideo, spec: FeatureSpec
) -> tuple[FeatureRows, NDArray[np.uint8], Failures | None]:
    """Return a video's rows of a feature, their states, and its failures (None if pending)."""
    n_rows = video.record.n_frames if spec.axis == "frame" else 1
    if spec.name in video.failed:
        state, failures = State.FAILED, Failures(video.failed[spec.name])
    elif spec.name in video.rows:
        state, failures = State.DONE, Failures(frames=video.failed_frames.get(spec.name, {}))
    else:
        return spec.empty_rows(n_rows), np.full(n_rows, State.PENDING, dtype=np.uint8), None
    status = np.full(n_rows, state, dtype=np.uint8)
    status[list(video.failed_frames.get(spec.name, {}))] = State.FAILED
    return video.rows.get(spec.name, spec.empty_rows(n_rows)), status, failures
