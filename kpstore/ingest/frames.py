"""Extracts one video frame by frame, decoded ahead and in batches; failed frames are left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extractor, frame_specs
from kpstore.ingest.ahead import read_ahead
from kpstore.ingest.job import (
    Doubts,
    Job,
    OnFrames,
    UnreadableVideoError,
    VideoRows,
    opened_extractor,
)
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Frame, FrameError

Announce = Callable[[int], None]
"""Called with the number of a frame before anything touches it."""

# Least number of frames to decode ahead: hides a slow read, and takes 2.6 MB at 210 x 260
_AHEAD_FRAMES = 16


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
    collector = Collector(extractor, record, skip, announce, report)
    frames = read_frames(job, record, frozenset(skip or ()))
    collector.start(read_reference(job, record))
    if announce is None:
        with read_ahead(frames, max(_AHEAD_FRAMES, 2 * extractor.batch_size)) as ahead:
            collector.consume(ahead)
    else:
        collector.consume(_announced(frames, announce))
    return collector.finish()


def read_frames(
    job: Job, record: VideoRecord, skip: frozenset[int] = frozenset()
) -> Iterator[Frame]:
    """Yield the frames of a video, and raise the errors of its source as its own."""
    count = 0
    try:
        for frame in job.source.read_frames(record, skip=skip):
            count += 1
            if count > record.n_frames:
                break
            yield frame
    except Exception as error:  # whatever a reader raises
        raise UnreadableVideoError(error) from error
    check_count(record, count)


def check_count(record: VideoRecord, n_frames: int) -> None:
    """Raise :class:`UnreadableVideoError` unless a source gave as many frames as it announced."""
    if n_frames != record.n_frames:
        raise UnreadableVideoError(
            ValueError(f"the source gave {n_frames} frames, it had announced {record.n_frames}")
        )


def read_reference(job: Job, record: VideoRecord) -> NDArray[np.uint8] | None:
    """Return the picture that belongs to a whole video; None if its source has no such pictures."""
    read = getattr(job.source, "read_reference", None)
    try:
        found: Frame | None = None if read is None else read(record)
    except Exception as error:  # whatever a reader raises
        raise UnreadableVideoError(error) from error
    if isinstance(found, FrameError):
        raise UnreadableVideoError(InvalidError(f"the reference picture: {found.reason}"))
    return found


def _announced(frames: Iterator[Frame], announce: Announce) -> Iterator[Frame]:
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
    """Return the rows that an extractor made, with those that failed as missing.

    Parameters
    ----------
    rows : by feature; others than those of ``specs`` are ignored.
    n_rows : expected number of rows of each feature.
    failed : numbers of rows to return as missing, whatever they hold.

    Raises
    ------
    InvalidError
        If a feature is missing, or its rows are not as specified.
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
    """Copy rows ``kept`` of some features into rows ``numbers`` of the same features in ``to``."""
    for name, target in to.items():
        if name in rows:
            target.values[numbers] = rows[name].values[kept]
            for companion, array in rows[name].companions.items():
                target.companions[companion][numbers] = array[kept]


class Collector:
    """Collects rows, states and failures of a video's frames; gives them to the extractor.

    Parameters
    ----------
    raised : reasons by number of frames that have failed before.
    announce, report : see :func:`extract_frames`.
    """

    def __init__(
        self,
        extractor: Extractor,
        record: VideoRecord,
        raised: Mapping[int, str] | None = None,
        announce: Announce | None = None,
        report: OnFrames | None = None,
    ) -> None:
        # Reasons by number of each frame that failed; see :class:`Doubts`.
        self._unread: dict[int, str] = {}
        self._raised = dict(raised or {})
        self._reported: dict[int, str] = {}
        self._extractor, self._announce = extractor, announce
        self._report = report or (lambda n_frames: None)
        self._specs = frame_specs(extractor)
        self._rows = {spec.name: spec.empty_rows(record.n_frames) for spec in self._specs}
        self._record = record
        self._sizes: dict[int, tuple[int, int]] = {}

    def start(self, reference: NDArray[np.uint8] | None) -> None:
        """Begin the video in the extractor, and take the features of the video itself."""
        of_video = self._extractor.start_video(reference)
        specs = [spec for spec in self._extractor.specs if spec.axis == "video"]
        self._rows |= check_rows(specs, of_video, 1)

    def consume(self, frames: Iterable[Frame]) -> None:
        """Have all frames extracted, in batches."""
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        for number, frame in enumerate(frames):
            image = self.admit(number, frame)
            if image is None:
                continue
            batch.append((number, image))
            if len(batch) >= self._extractor.batch_size:
                self._extract(batch)
                batch = []
        self._extract(batch)

    def admit(self, number: int, frame: Frame) -> NDArray[np.uint8] | None:
        """Return the picture of a frame; None, which is on record, if it could not be read."""
        if isinstance(frame, FrameError):
            if number not in self._raised:
                self._unread[number] = one_line(frame.reason)
            self._report(1)
            return None
        shape: tuple[int, ...] = getattr(frame, "shape", ())
        if len(shape) >= 2:  # the model says what is wrong with others
            self._sizes[number] = (shape[1], shape[0])
        return frame

    def fail(self, number: int, reason: str) -> None:
        """Record that the model did not take a frame."""
        self._raised[number] = reason
        self._report(1)

    def put(
        self,
        numbers: Sequence[int],
        rows: Mapping[str, FeatureRows],
        places: Sequence[int],
        failed: Mapping[int, str],
    ) -> None:
        """Take what the model returned for some frames.

        Parameters
        ----------
        numbers : of the frames.
        places : for each, its row in ``rows``.
        failed : reasons by row.
        """
        kept = [n for n, place in enumerate(places) if place not in failed]
        put_rows(self._rows, [numbers[n] for n in kept], rows, [places[n] for n in kept])
        for number, place in zip(numbers, places, strict=True):
            if place in failed:
                self._reported[number] = one_line(failed[place])
        self._report(len(numbers))

    def _extract(self, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
        if not batch:
            return
        if self._announce is not None and len(batch) > 1:
            self._one_by_one(batch)
            return
        try:
            found = self._extractor.extract([image for _, image in batch])
            rows = check_rows(self._specs, found.rows, len(batch), found.failed)
        except ExtractorError:  # the model is at fault, and would fail for every later frame
            raise
        except Exception as error:  # whatever a model raises, the frame is at fault
            if len(batch) > 1:
                self._one_by_one(batch)
                return
            self.fail(batch[0][0], one_line(error))
            return
        self.put([number for number, _ in batch], rows, range(len(batch)), found.failed)

    def _one_by_one(self, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
        for number, image in batch:
            if self._announce is not None:
                self._announce(number)
            self._extract([(number, image)])

    def finish(self) -> VideoRows:
        """Return the rows of the video."""
        failed = self._unread | self._raised | self._reported
        doubts = Doubts(frozenset(self._unread), frozenset(self._raised), frozenset(self._reported))
        notes = _size_notes(self._record, self._sizes)
        return VideoRows(self._rows, Failures(frames=failed), doubts, notes)


def _size_notes(record: VideoRecord, sizes: dict[int, tuple[int, int]]) -> tuple[str, ...]:
    """Return one line if some pictures have another size than the store keeps for their video.

    Parameters
    ----------
    sizes : (width, height) by number of each frame that was read.
    """
    usual = (record.width, record.height)
    if not all(usual):
        usual = next(iter(sizes.values()), usual)
    others = [number for number, size in sizes.items() if size != usual]
    if not others:
        return ()
    width, height = sizes[others[0]]
    return (
        f"video {record.id!r}: {len(others)} frames, the first {others[0]}, are {width} x {height} "
        f"pixels, not the {usual[0]} x {usual[1]} that the store keeps for it",
    )
