"""States of a feature's videos and frames, derived from those records that can be read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ReadSession, WriteSession
from kpstore.errors import InvalidError
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureSpec, State
from kpstore.schema.index import VideoIndex
from kpstore.store import format as fmt
from kpstore.store.agreement import pieces

_UNKNOWN = -1


@dataclass
class StateRecords:
    """States and failures of a feature's videos; unknown where their chunk is damaged.

    Parameters
    ----------
    spec : the feature.
    index : the videos.
    states : (videos,) int16 of :class:`State`; -1 where unknown.
    texts : (videos,) object: JSON of failures, ``""`` for none; None where unknown.
    status : (frames,) int16; -1 where unknown. Of a feature of videos, (videos,): 1 where a row
        holds values, else 0.
    """

    spec: FeatureSpec
    index: VideoIndex
    states: NDArray[np.int16]
    texts: NDArray[np.object_]
    status: NDArray[np.int16]

    @property
    def framewise(self) -> bool:
        """Whether rows are frames, so that the store keeps ``status``."""
        return self.spec.axis == "frame"

    def derive(self) -> NDArray[np.bool_]:
        """Fill in what follows exactly from the rest.

        Return the videos of which something remains unknown, (videos,) bool.
        """
        redo = np.zeros(len(self.index), dtype=bool)
        unknown = (self.states == _UNKNOWN) | np.array(
            [text is None for text in self.texts], dtype=bool
        )
        if self.framewise and (self.status == _UNKNOWN).any():
            unknown[np.unique(self.index.video_of(np.flatnonzero(self.status == _UNKNOWN)))] = True
        elif not self.framewise:
            unknown |= self.status == _UNKNOWN
        for position in np.flatnonzero(unknown).tolist():
            redo[position] = not self._derive_video(position)
        return redo

    def rows(self, position: int) -> slice:
        """Return the rows of a video in the feature's arrays."""
        return self.index.rows(position) if self.framewise else slice(position, position + 1)

    def touched(self, damaged: Mapping[str, Collection[int]]) -> NDArray[np.bool_]:
        """Return which videos have rows in a damaged chunk of values or companions, (videos,) bool.

        Parameters
        ----------
        damaged : numbers of damaged chunks, by array.
        """
        n_rows = self.index.total_frames if self.framewise else len(self.index)
        rows = np.zeros(n_rows, dtype=np.int64)
        for chunk in {chunk for array in self.spec.arrays for chunk in damaged.get(array, ())}:
            rows[chunk * self.spec.chunk_rows : (chunk + 1) * self.spec.chunk_rows] = 1
        if not self.framewise:
            return rows > 0
        return np.diff(np.append(0, np.cumsum(rows))[self.index.offsets]) > 0

    def write(
        self,
        session: WriteSession,
        redo: NDArray[np.bool_],
        damaged: Mapping[str, Collection[int]],
    ) -> None:
        """Write these records, and make videos pending again; nothing damaged is read.

        Parameters
        ----------
        redo : (videos,) bool, videos to make pending: all that have rows in a damaged chunk of
            values or companions. The records of the others are complete.
        damaged : numbers of damaged chunks, by array; each of them is written whole.
        """
        spec, name = self.spec, self.spec.name
        positions = np.flatnonzero((redo & (self.states != State.PENDING)) | self.touched(damaged))
        for array, chunks in damaged.items():
            meta = session.meta(array)
            if len(chunks) == meta.n_chunks:  # the record of where they lie may be damaged too
                session.delete(array)
                session.create(array, meta)
        states, texts, status = self.states.copy(), self.texts.copy(), self.status.copy()
        states[redo], texts[redo] = State.PENDING, ""
        rows = np.zeros(len(status), dtype=bool)
        for position in positions.tolist():
            rows[self.rows(position)] = True
        status[rows] = State.PENDING
        for start, stop in pieces(rows, spec.chunk_rows):
            for array, kind in spec.arrays.items():
                session.write(array, start, kind.empty(stop - start))
        whole: list[tuple[str, NDArray[np.generic], NDArray[np.int64]]] = [
            (fmt.state_name(name), states.astype(np.uint8), positions),
            (fmt.failure_name(name), texts, positions),
        ]
        if self.framewise:
            whole.append((fmt.status_name(name), status.astype(np.uint8), np.flatnonzero(rows)))
        for array, values, changed in whole:
            meta = session.meta(array)
            numbers = {*(changed // meta.chunk_rows).tolist(), *damaged.get(array, ())}
            for start, stop in map(meta.rows_of, sorted(numbers)):
                session.write(array, start, values[start:stop])

    def _derive_video(self, position: int) -> bool:
        rows = self.rows(position)
        status, text = self.status[rows], self.texts[position]
        state = int(self.states[position])
        try:
            failures = Failures.from_text(text or "")
        except InvalidError:
            return False
        if state == _UNKNOWN:
            state = self._state_from(failures, status)
        if state == _UNKNOWN:
            return False
        if text is None:
            unclear = state == State.FAILED or (self.framewise and (status == _UNKNOWN).any())
            if state != State.PENDING and (unclear or (status == State.FAILED).any()):
                return False  # the reason is lost, or whether there was one
            text = ""
        if self.framewise and (status == _UNKNOWN).any():
            status[:] = state
            status[list(failures.frames)] = State.FAILED
        self.states[position], self.texts[position] = state, text
        return True

    def _state_from(self, failures: Failures, status: NDArray[np.int16]) -> int:
        """Return a video's state from its failures and its rows; -1 if they leave it open."""
        if failures:
            return failures.state
        if len(status) == 0 or (status == _UNKNOWN).any():
            return _UNKNOWN
        if not self.framewise:
            # A row without values may be one in which nothing was found.
            return State.DONE if status[0] else _UNKNOWN
        found = np.unique(status)
        return int(found[0]) if len(found) == 1 and found[0] != State.FAILED else _UNKNOWN


def read_state_records(
    session: ReadSession, spec: FeatureSpec, index: VideoIndex, damaged: Mapping[str, set[int]]
) -> StateRecords:
    """Read a feature's states and failures around its damaged chunks.

    Parameters
    ----------
    damaged : numbers of damaged chunks, by array.
    """
    states, known = read_around(session, fmt.state_name(spec.name), damaged)
    states = np.where(known, states.astype(np.int16), _UNKNOWN)
    texts, known = read_around(session, fmt.failure_name(spec.name), damaged)
    texts[~known] = None
    if spec.axis == "frame":
        status, known = read_around(session, fmt.status_name(spec.name), damaged)
    else:
        status, known = read_around(session, spec.name, damaged, lambda rows: ~spec.are_empty(rows))
    status = np.where(known, status.astype(np.int16), _UNKNOWN)
    return StateRecords(spec, index, states, texts, status)


def read_around(
    session: ReadSession,
    name: str,
    damaged: Mapping[str, set[int]],
    of_rows: Callable[[NDArray[Any]], NDArray[Any]] = lambda values: values,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return ``of_rows`` of each row of an array, and which rows could be read, (rows,) bool.

    Rows that could not be read give 0 or ``""``.
    """
    meta, skip = session.meta(name), damaged.get(name, set())
    sample = of_rows(meta.unwritten(0))
    values = np.full(
        (meta.n_rows, *sample.shape[1:]), "" if meta.dtype == TEXT else 0, sample.dtype
    )
    known = np.zeros(meta.n_rows, dtype=bool)
    for chunk in range(meta.n_chunks):
        if chunk not in skip:
            start, stop = meta.rows_of(chunk)
            values[start:stop] = of_rows(session.read(name, start, stop))
            known[start:stop] = True
    return values, known
