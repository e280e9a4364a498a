"""Extracts many videos at once, a frame of each at a time, for models that want large batches.

Frames are decoded in threads while the model computes those before them. A video that ends makes
room for the next. Long ones come first, so that few are left alone at the end of a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, InvalidError, one_line
from kpstore.extractors.base import Extracted, LockstepExtractor, check_image, frame_specs
from kpstore.ingest.ahead import read_ahead
from kpstore.ingest.frames import Collector, check_rows, read_frames
from kpstore.ingest.job import Job, OnFrames, VideoRows, failed_video, opened_extractor
from kpstore.ingest.plan import PlannedVideo
from kpstore.schema.feature import FeatureRows, FeatureSpec

Image = NDArray[np.uint8]
_AHEAD_FRAMES = 2
"""Of each video, which are decoded while the model computes."""


def extract_in_lockstep(
    job: Job, videos: Sequence[PlannedVideo], report: OnFrames | None
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    """Extract videos in this process, and yield them in their order."""
    batch = _Batch(job, videos, report)
    try:
        for video in videos:
            while video.position not in batch.done:
                batch.step()
            yield video, batch.done.pop(video.position)
    finally:
        batch.close()


class _Batch:
    """The videos that are computed together.

    Parameters
    ----------
    videos : all that are to be done.

    Attributes
    ----------
    done : by position, the rows of each video that has ended.
    """

    def __init__(self, job: Job, videos: Sequence[PlannedVideo], report: OnFrames | None) -> None:
        self._extractor = cast("LockstepExtractor", opened_extractor(job))
        self._job, self._report = job, report
        self._specs = frame_specs(self._extractor)
        self._waiting = deque(sorted(videos, key=lambda one: one.record.n_frames, reverse=True))
        self._lanes: list[_Lane | None] = [None] * self._extractor.videos_at_once
        self.done: dict[int, VideoRows] = {}

    def step(self) -> None:
        """Extract the next frame of each video."""
        images = [self._next_image(number) for number in range(len(self._lanes))]
        lanes = {
            number: lane
            for number, (lane, image) in enumerate(zip(self._lanes, images, strict=True))
            if lane is not None and image is not None
        }
        if lanes:
            self._compute(images, lanes)

    def _compute(self, images: Sequence[Image | None], lanes: Mapping[int, _Lane]) -> None:
        """Extract images of some rows; if that fails, each by itself."""
        try:
            found = self._extractor.step(images)
        except ExtractorError:  # the model is at fault, and would fail for every later frame
            raise
        except Exception as error:  # whatever a model raises, a frame is at fault
            if len(lanes) == 1:
                for lane in lanes.values():
                    lane.fail(error)
                return
            for number, lane in lanes.items():
                alone = [image if place == number else None for place, image in enumerate(images)]
                self._compute(alone, {number: lane})
            return
        # The model remembers these frames now: whatever is wrong with rows, it gets them once.
        idle = [number for number in range(len(images)) if number not in lanes]
        try:
            rows = check_rows(self._specs, found.rows, len(images), {*found.failed, *idle})
        except Exception:
            for number, lane in lanes.items():
                lane.put_checked(self._specs, found, number)
            return
        for number, lane in lanes.items():
            lane.put(number, rows, found.failed.get(number))

    def _next_image(self, number: int) -> Image | None:
        """Return the next frame of a row of the batch; None if no video is left for it."""
        while True:
            lane = self._lanes[number]
            if lane is None:
                if not self._waiting:
                    return None
                self._extractor.start_row(number)
                lane = _Lane(self._job, self._waiting.popleft(), self._report)
                self._lanes[number] = lane
            image = lane.next_image()
            if image is not None:
                return image
            self._lanes[number] = None
            self.done[lane.video.position] = lane.result()

    def close(self) -> None:
        """Stop decoding."""
        for lane in self._lanes:
            if lane is not None:
                lane.close()


class _Lane:
    """A video in a row of the batch."""

    def __init__(self, job: Job, video: PlannedVideo, report: OnFrames | None) -> None:
        self.video, self._job, self._ahead = video, job, ExitStack()
        extractor = cast("LockstepExtractor", opened_extractor(job))
        self._collector = Collector(extractor, video.record, report=report)
        frames = read_frames(job, video.record)
        self._frames = enumerate(self._ahead.enter_context(read_ahead(frames, _AHEAD_FRAMES)))
        self._number = -1
        self._error: Exception | None = None

    def next_image(self) -> Image | None:
        """Return the next frame that can be read; None at the end of the video."""
        try:
            for number, frame in self._frames:
                self._number = number
                image = self._collector.admit(number, frame)
                if image is None:
                    continue
                try:
                    return check_image(image)
                except InvalidError as error:
                    self.fail(error)
        except Exception as error:  # whatever a reader raises, this video is at fault
            self._error = error
        return None

    def put(self, row: int, rows: Mapping[str, FeatureRows], failure: str | None) -> None:
        """Take the result of the last frame, in a row of what the model returned."""
        self._collector.put([self._number], rows, [row], {} if failure is None else {row: failure})

    def put_checked(self, specs: Sequence[FeatureSpec], found: Extracted, row: int) -> None:
        """Take the result of the last frame, unless it is not as specified."""
        failure = found.failed.get(row)
        try:
            mine = {name: rows[row : row + 1] for name, rows in found.rows.items()}
            self.put(0, check_rows(specs, mine, 1, () if failure is None else (0,)), failure)
        except Exception as error:  # its frame is at fault
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Record that the model did not take the last frame."""
        self._collector.fail(self._number, one_line(error))

    def result(self) -> VideoRows:
        """Return the rows of the whole video, which has ended."""
        self.close()
        if self._error is not None:
            return failed_video(self._job, self.video.record, self._error)
        return self._collector.finish()

    def close(self) -> None:
        """Stop decoding."""
        self._ahead.close()
