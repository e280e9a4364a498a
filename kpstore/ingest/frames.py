"""One video, frame by frame: decoded ahead, in batches.

A frame that fails is named and left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extracted, Extractor, frame_specs
from kpstore.ingest.ahead import Ahead
from kpstore.ingest.job import (
    Doubts,
    Job,
    OnFrames,
    UnreadableVideoError,
    VideoRows,
    opened_extractor,
)
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError

Announce = Callable[[int], None]
"""Called with the number of a frame before anything touches it."""

_AHEAD_FRAMES = 16
"""Frames decoded ahead of the extractor, or two batches: enough to hide a slow read, 2.6 MB at 210 x 260."""


def extract_frames(
    job: Job,
    record: VideoRecord,
    *,
    skip: Mapping[int, str] | None = None,
    announce: Announce | None = None,
    report: OnFrames | None = None,
) -> VideoRows:
    """Extract one video in this process.

    Parameters
    ----------
    skip : reasons by number of frames that must not be touched.
    announce : called before each frame is touched; decoding then does not run ahead.
    """
    extractor = cast("Extractor", opened_extractor(job))
    collector = _Collector(extractor, record, dict(skip or {}), announce, report)
    frames = _read(job, record, frozenset(collector.failed))
    collector.start(read_reference(job, record))
    if announce is None:
        with Ahead(frames, max(_AHEAD_FRAMES, 2 * extractor.batch_size)) as ahead:
            collector.consume(ahead)
    else:
        collector.consume(_announced(frames, announce))
    return collector.finish()


def _read(job: Job, record: VideoRecord, skip: frozenset[int]) -> Iterator[Any]:
    """Yield the frames of a video.

    What its source raises is told apart from what the model raises.
    """
    count = 0
    try:
        for frame in job.source.read_frames(record, skip=skip):
            count += 1
            yield frame
    except Exception as error:  # whatever a reader raises
        raise UnreadableVideoError(error) from error
    if count != record.n_frames:
        raise UnreadableVideoError(
            ValueError(f"the source gave {count} frames, it had announced {record.n_frames}")
        )


def read_reference(job: Job, record: VideoRecord) -> NDArray[np.uint8] | None:
    """Return the picture that belongs to a whole video; None if its source has none."""
    read = getattr(job.source, "read_reference", None)
    try:
        found: NDArray[np.uint8] | FrameError | None = None if read is None else read(record)
    except Exception as error:  # whatever a reader raises
        raise UnreadableVideoError(error) from error
    if isinstance(found, FrameError):
        raise UnreadableVideoError(InvalidError(f"the reference picture: {found.reason}"))
    return found


def _announced(frames: Iterator[Any], announce: Announce) -> Iterator[Any]:
    for number in itertools.count():
        announce(number)
        try:
            yield next(frames)
        except StopIteration:
            return


def check_rows(
    specs: Iterable[FeatureSpec],
    rows: Mapping[str, FeatureRows],
    n_rows: int,
    failed: Collection[int] = (),
) -> dict[str, FeatureRows]:
    """Return the rows of some features.

    :class:`InvalidError` unless there are so many of each, as specified.

    Rows whose numbers are in ``failed`` come back as missing, whatever they hold.
    """
    odd = [number for number in failed if not 0 <= number < n_rows]
    if odd:
        raise InvalidError(
            f"the extractor says that image {odd[0]} failed; it was given images 0 to {n_rows - 1}"
        )
    done = np.ones(n_rows, dtype=np.bool_)
    done[list(failed)] = False
    checked = {}
    for spec in specs:
        if spec.name not in rows:
            raise InvalidError(f"the extractor gave no {spec.name!r}, which it says it makes")
        given = rows[spec.name].n_given(spec)
        if given != n_rows:
            raise InvalidError(f"the extractor gave {given} rows of {spec.name!r} for {n_rows}")
        checked[spec.name] = rows[spec.name].check(spec, done)
    return checked


def put_rows(
    to: Mapping[str, FeatureRows],
    numbers: list[int],
    rows: Mapping[str, FeatureRows],
    kept: list[int],
) -> None:
    """Copy rows ``kept`` into rows ``numbers`` of the features of a video."""
    for name, target in to.items():
        if name in rows:
            target.values[numbers] = rows[name].values[kept]
            for companion, array in rows[name].companions.items():
                target.companions[companion][numbers] = array[kept]


class _Collector:
    """Batches frames for the extractor and puts rows, states and failures where they belong."""

    def __init__(
        self,
        extractor: Extractor,
        record: VideoRecord,
        failed: dict[int, str],
        announce: Announce | None,
        report: Callable[[int], None] | None,
    ) -> None:
        self.failed = failed
        self._unread: set[int] = set()
        self._raised = set(failed)
        self._reported: set[int] = set()
        self._extractor, self._announce, self._report = extractor, announce, report
        self._specs = frame_specs(extractor)
        self._rows = {spec.name: spec.empty_rows(record.n_frames) for spec in self._specs}
        self._n_frames = record.n_frames
        self._sizes = _Sizes(record)

    def start(self, reference: NDArray[np.uint8] | None) -> None:
        of_video = self._extractor.start_video(reference)
        specs = [spec for spec in self._extractor.specs if spec.axis == "video"]
        self._rows |= check_rows(specs, of_video, 1)

    def consume(self, frames: Iterable[NDArray[np.uint8] | FrameError]) -> None:
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        for number, frame in enumerate(frames):
            if isinstance(frame, FrameError):
                if number not in self.failed:
                    self.failed[number] = one_line(frame.reason)
                    self._unread.add(number)
                self._done(1)
                continue
            self._sizes.see(number, frame)
            batch.append((number, frame))
            if len(batch) >= self._extractor.batch_size:
                self._extract(batch)
                batch = []
        self._extract(batch)

    def _extract(self, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
        if not batch:
            return
        if self._announce is not None and len(batch) > 1:
            self._one_by_one(batch)
            return
        try:
            found = self._extractor.extract([image for _, image in batch])
            rows = check_rows(self._specs, found.rows, len(batch), found.failed)
        except ExtractorError:  # the model is at fault, and would be for every frame after this one
            raise
        except (
            Exception
        ) as error:  # whatever a model raises, the frame is at fault and the video goes on
            if len(batch) > 1:
                self._one_by_one(batch)
                return
            self.failed[batch[0][0]] = one_line(f"{type(error).__name__}: {error}")
            self._raised.add(batch[0][0])
            self._done(1)
            return
        self._put(batch, rows, found)
        self._done(len(batch))

    def _put(
        self, batch: list[tuple[int, Any]], rows: Mapping[str, FeatureRows], found: Extracted
    ) -> None:
        kept = [n for n in range(len(batch)) if n not in found.failed]
        put_rows(self._rows, [batch[n][0] for n in kept], rows, kept)
        reported = {batch[n][0]: one_line(reason) for n, reason in found.failed.items()}
        self.failed |= reported
        self._reported |= reported.keys()

    def _one_by_one(self, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
        for number, image in batch:
            if self._announce is not None:
                self._announce(number)
            self._extract([(number, image)])

    def _done(self, n_frames: int) -> None:
        if self._report is not None:
            self._report(n_frames)

    def finish(self) -> VideoRows:
        status = np.full(self._n_frames, State.DONE, dtype=np.uint8)
        status[list(self.failed)] = State.FAILED
        doubts = Doubts(frozenset(self._unread), frozenset(self._raised), frozenset(self._reported))
        return VideoRows(
            self._rows, status, Failures(frames=self.failed), doubts, self._sizes.notes()
        )


class _Sizes:
    """Looks whether all pictures of a video have the size that the store keeps for it."""

    def __init__(self, record: VideoRecord) -> None:
        self._id = record.id
        self._usual = (record.width, record.height) if record.width and record.height else None
        self._other: tuple[int, tuple[int, int]] | None = None
        self._n_other = 0

    def see(self, number: int, image: NDArray[np.uint8]) -> None:
        """Take note of a picture's size."""
        size = (image.shape[1], image.shape[0])
        self._usual = self._usual or size
        if size != self._usual:
            self._n_other += 1
            self._other = self._other or (number, size)

    def notes(self) -> tuple[str, ...]:
        """Return a line if some pictures have another size, else nothing."""
        if self._other is None or self._usual is None:
            return ()
        number, size = self._other
        return (
            f"video {self._id!r}: {self._n_other} frames, the first {number}, are {size[0]} x "
            f"{size[1]} pixels, not the {self._usual[0]} x {self._usual[1]} that the store keeps "
            "for it",
        )
