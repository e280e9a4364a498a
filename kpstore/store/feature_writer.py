"""Writes rows, states and failures of features, and checks before a commit that they agree.

Both are gathered: rows into whole chunks, states and failures until somebody reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import WriteSession
from kpstore.errors import InvalidError
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.fields import whole
from kpstore.schema.index import VideoIndex
from kpstore.store import format as fmt
from kpstore.store.agreement import agrees, pieces, runs, touched_videos
from kpstore.store.row_buffer import RowBuffer

_BLOCK_CHUNKS = 16
"""Chunks of a feature that are read or written at once."""


class FeatureWriter:
    """Writes to the features of one session, and remembers which videos it has touched.

    Parameters
    ----------
    session : the changes to add to.
    """

    def __init__(self, session: WriteSession) -> None:
        self._session = session
        self._buffer = RowBuffer(session)
        self._failures: dict[str, dict[int, Failures]] = {}
        """What is known of videos, by feature and position, and not yet written."""
        self._rows: dict[str, list[tuple[int, int]]] = {}
        """Runs of rows written, by feature."""
        self._videos: dict[str, set[int]] = {}
        """Positions of videos whose state or failures were written, by feature."""

    def write_rows(
        self, spec: FeatureSpec, start: int, rows: FeatureRows, states: NDArray[np.uint8]
    ) -> None:
        """Write checked rows with their states, (rows,) uint8."""
        for name, array in fmt.row_arrays(spec, rows, states).items():
            self._buffer.write(name, start, array)
        self._rows.setdefault(spec.name, []).append((start, start + len(rows)))

    def set_states(self, feature: str, failures: Mapping[int, Failures]) -> None:
        """Mark videos, by position, as done, or as failed where the whole video failed."""
        positions = self._positions(feature, failures).tolist()
        self._failures.setdefault(feature, {}).update((p, failures[p]) for p in positions)
        self._videos.setdefault(feature, set()).update(positions)

    def flush(self) -> None:
        """Hand over to the session what is gathered; to be called before it is read."""
        self._buffer.flush()
        for feature, failures in list(self._failures.items()):
            positions = np.array(sorted(failures), dtype=np.int64)
            found = [failures[position] for position in positions.tolist()]
            states = np.array([one.state for one in found], dtype=np.uint8)
            texts = np.array([one.to_text() for one in found], dtype=object)
            self._write_states(feature, positions, states, texts)
            del self._failures[feature]

    def reset(self, spec: FeatureSpec, positions: Iterable[int], index: VideoIndex) -> None:
        """Make videos pending again: rows, states and failures."""
        videos = self._positions(spec.name, positions)
        self.flush()
        chosen = np.zeros(len(index), dtype=np.bool_)
        chosen[videos] = True
        rows = np.repeat(chosen, index.n_frames) if spec.axis == "frame" else chosen
        for start, stop in pieces(rows, _BLOCK_CHUNKS * spec.chunk_rows):
            pending = np.full(stop - start, State.PENDING, dtype=np.uint8)
            self.write_rows(spec, start, spec.empty_rows(stop - start), pending)
        self._write_states(spec.name, videos, State.PENDING, "")
        self._videos.setdefault(spec.name, set()).update(videos.tolist())

    def forget(self, spec: FeatureSpec) -> None:
        """Stop writing and checking a feature that is removed."""
        self._buffer.drop(fmt.feature_arrays(spec))
        for known in (self._failures, self._rows, self._videos):
            known.pop(spec.name, None)

    def check(self, specs: Iterable[FeatureSpec], index: VideoIndex) -> None:
        """Raise :class:`InvalidError` if rows, state and failures of a touched video disagree."""
        self.flush()
        for spec in specs:
            positions = touched_videos(
                index, spec.axis, self._rows.get(spec.name, ()), self._videos.get(spec.name, ())
            )
            wrong = next(self._disagreeing(spec, index, positions), None)
            if wrong is not None:
                raise InvalidError(
                    f"feature {spec.name!r}: the rows of video {index.ids[wrong]!r} do not agree "
                    "with its state and failures; write_rows() needs a set_states() that fits, so "
                    "nothing was committed"
                )

    def _positions(self, feature: str, positions: Iterable[int]) -> NDArray[np.int64]:
        """Return positions of videos, sorted, each once; :class:`InvalidError` if out of range."""
        given = [whole(position) for position in positions]
        found = np.unique(np.array(given, dtype=np.int64))
        n_videos = self._session.meta(fmt.state_name(feature)).n_rows
        odd = found[(found < 0) | (found >= n_videos)].tolist()
        if odd:
            raise InvalidError(f"no video at position {odd[0]}; the store has {n_videos}")
        return found

    def _write_states(
        self,
        feature: str,
        positions: NDArray[np.int64],
        states: NDArray[np.uint8] | State,
        texts: NDArray[np.object_] | str,
    ) -> None:
        all_states = self._whole(fmt.state_name(feature))
        all_states[positions] = states
        self._session.write(fmt.state_name(feature), 0, all_states)
        name = fmt.failure_name(feature)
        meta, all_texts = self._session.meta(name), self._whole(name)
        all_texts[positions] = texts
        for chunk in np.unique(positions // meta.chunk_rows).tolist():  # only those that change
            start, stop = meta.rows_of(chunk)
            self._session.write(name, start, all_texts[start:stop])

    def read_states(self, feature: str) -> NDArray[np.uint8]:
        """(videos,) uint8: a :class:`State` for each video."""
        self.flush()
        return self._whole(fmt.state_name(feature))

    def _whole(self, name: str) -> NDArray[Any]:
        return self._session.read(name, 0, self._session.meta(name).n_rows)

    def _disagreeing(
        self, spec: FeatureSpec, index: VideoIndex, positions: NDArray[np.int64]
    ) -> Iterator[int]:
        """Yield the positions of videos whose rows disagree with their state or failures."""
        if not len(positions):
            return
        states = self._whole(fmt.state_name(spec.name))
        if spec.axis == "video":
            unfinished = positions[states[positions] != State.DONE]
            yield from unfinished[~self._are_empty(spec, unfinished)].tolist()
            return
        texts = self._whole(fmt.failure_name(spec.name))
        for first, last in runs(positions):
            start, stop = index.offsets[[first, last + 1]].tolist()
            status = self._session.read(fmt.status_name(spec.name), start, stop)
            ends = (index.offsets[first : last + 2] - start).tolist()
            for position, begin, end in zip(range(first, last + 1), ends, ends[1:], strict=False):
                failures = Failures.from_text(texts[position])
                if not agrees(int(states[position]), failures, status[begin:end]):
                    yield position

    def _are_empty(self, spec: FeatureSpec, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows of a feature of videos hold nothing; positions are ascending."""
        empty = np.ones(len(positions), dtype=np.bool_)
        blocks = positions // (_BLOCK_CHUNKS * spec.chunk_rows)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            start, stop = int(positions[here][0]), int(positions[here][-1]) + 1
            for name, array in spec.arrays.items():
                rows = self._session.read(name, start, stop)[positions[here] - start]
                empty[here] &= array.are_empty(rows)
        return empty
