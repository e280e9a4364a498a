"""Extracts many videos at once, a frame of each at a time, for models that want large batches.

Frames are decoded in threads while the model computes those before them. A video that ends makes
room for the next. Long ones come first, so that few are left alone at the end of a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, one_line
from kpstore.extractors.base import LockstepExtractor, check_image, frame_specs
from kpstore.ingest.frames import Collector, check_rows, read_frames
from kpstore.ingest.job import (
    Job,
    OnFrames,
    UnreadableVideoError,
    VideoRows,
    failed_video,
    opened_extractor,
)
from kpstore.ingest.plan import PlannedVideo
from kpstore.machine import usable_cores
from kpstore.schema.feature import FeatureRows
from kpstore.sources.base import Frame

Image = NDArray[np.uint8]


def extract_in_lockstep(
    job: Job, videos: Sequence[PlannedVideo], report: OnFrames | None
) -> Iterator[tuple[PlannedVideo, VideoRows]]:
    """Extract videos in this process, and yield them in their order."""
    extractor = cast("LockstepExtractor", opened_extractor(job))
    pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="kpstore-decode")
    try:
        batch = _Batch(job, extractor, videos, pool, report)
        for video in videos:
            while video.position not in batch.done:
                batch.step()
            yield video, batch.done.pop(video.position)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Batch:
    """The videos that are computed together.

    Parameters
    ----------
    videos : all that are to be done.
    pool : threads that decode.

    Attributes
    ----------
    done : by position, the rows of each video that has ended.
    """

    def __init__(
        self,
        job: Job,
        extractor: LockstepExtractor,
        videos: Sequence[PlannedVideo],
        pool: ThreadPoolExecutor,
        report: OnFrames | None,
    ) -> None:
        self._job, self._extractor, self._pool, self._report = job, extractor, pool, report
        self._specs = frame_specs(extractor)
        self._waiting = deque(sorted(videos, key=lambda one: one.record.n_frames, reverse=True))
        self._lanes: list[_Lane | None] = [None] * extractor.videos_at_once
        self.done: dict[int, VideoRows] = {}

    def step(self) -> None:
        """Extract the next frame of each video."""
        images = [self._next_image(number) for number in range(len(self._lanes))]
        if all(image is None for image in images):
            return
        found = self._extractor.step(images)
        rows = check_rows(self._specs, found.rows, len(images), found.failed)
        for number, (lane, image) in enumerate(zip(self._lanes, images, strict=True)):
            if lane is not None and image is not None:
                lane.put(number, rows, found.failed.get(number))

    def _next_image(self, number: int) -> Image | None:
        """Return the next frame of a row of the batch; None if no video is left for it."""
        while True:
            lane = self._lanes[number]
            if lane is None:
                if not self._waiting:
                    return None
                self._extractor.start_row(number)
                lane = _Lane(self._job, self._waiting.popleft(), self._pool, self._report)
                self._lanes[number] = lane
            image = lane.next_image()
            if image is not None:
                return image
            self.done[lane.video.position] = lane.result()
            self._lanes[number] = None


class _Lane:
    """A video in a row of the batch."""

    def __init__(
        self, job: Job, video: PlannedVideo, pool: ThreadPoolExecutor, report: OnFrames | None
    ) -> None:
        self.video, self._job, self._pool = video, job, pool
        extractor = cast("LockstepExtractor", opened_extractor(job))
        self._collector = Collector(extractor, video.record, report=report)
        self._frames = read_frames(job, video.record)
        self._number = -1
        self._error: UnreadableVideoError | None = None
        self._coming = self._ask()

    def _ask(self) -> Future[Frame | None]:
        """Have the next frame decoded."""
        return self._pool.submit(next, self._frames, None)

    def next_image(self) -> Image | None:
        """Return the next frame that can be read; None at the end of the video."""
        try:
            while (frame := self._coming.result()) is not None:
                self._coming = self._ask()
                self._number += 1
                image = self._collector.admit(self._number, frame)
                if image is None:
                    continue
                try:
                    return check_image(image)
                except InvalidError as error:
                    self._collector.fail(self._number, one_line(error))
        except UnreadableVideoError as error:
            self._error = error
        return None

    def put(self, row: int, rows: dict[str, FeatureRows], failure: str | None) -> None:
        """Take the result of the last frame, in a row of what the model returned."""
        self._collector.put([self._number], rows, [row], {} if failure is None else {row: failure})

    def result(self) -> VideoRows:
        """Return the rows of the whole video."""
        if self._error is not None:
            return failed_video(self._job, self.video.record, self._error)
        return self._collector.finish()
