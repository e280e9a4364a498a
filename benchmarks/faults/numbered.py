"""Videos and an extractor whose rows name their video and frame, and reveal interference."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.extractors.base import OneFeature
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Listing

FEATURE = "numbered"
SCALE = 1
"""Differs in a worker that has other code of the user."""

WORKER = "KPSTORE_FAULTS_WORKER"
"""Variable that names the worker to its processes; numbers of processes are used again."""

WIDTH = 64
"""Numbers of a row, four of them repeated.

Four alone would be so few bytes that they are stored inside the manifest, where no disk loses them.
"""

DISLIKED = 251
"""Third pixel of a frame at which the model raises, everywhere."""


def blind_file(worker: str | None = None) -> str:
    """Return the name of the file that makes a worker, or this one, blind."""
    return f"blind-{os.environ.get(WORKER, 'nobody') if worker is None else worker}"


@dataclass(frozen=True)
class NumberedSource:
    """Made-up videos, unreadable for a worker if ``blind-NAME`` exists or the folder does not.

    Parameters
    ----------
    lengths : frames of each video.
    folder : where this is looked up.
    broken, disliked : frames that cannot be read, or that the model does not like.
    unreadable : videos that cannot be read at all.
    """

    lengths: Sequence[int]
    folder: Path
    broken: Collection[tuple[int, int]] = ()
    disliked: Collection[tuple[int, int]] = ()
    unreadable: Collection[int] = ()
    name: str = "numbered"
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"kind": "numbered"})

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos."""
        records = []
        for video, n_frames in enumerate(self.lengths):
            paths = tuple(f"v{video}/{frame}.png" for frame in range(n_frames))
            records.append(VideoRecord(f"v{video:03}", "train", paths, 25.0, 4, 4))
        return Listing(tuple(records))

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Any]:
        """Yield frames whose first pixels are the numbers of video and frame."""
        number = int(video.id[1:])
        if number in self.unreadable:
            raise OSError(f"{video.id}: broken for everybody")
        for frame in range(video.n_frames):
            if frame in skip:
                yield FrameError("skipped")
            elif not self.folder.is_dir() or (self.folder / blind_file()).exists():
                yield FrameError("no such file")
            elif (number, frame) in self.broken:
                yield FrameError("truncated")
            else:
                image = np.zeros((4, 4, 3), dtype=np.uint8)
                image[0, 0], image[0, 1] = number, frame
                image[0, 2] = DISLIKED if (number, frame) in self.disliked else 0
                yield image


@dataclass
class NumberedExtractor(OneFeature):
    """Gives (video, frame, frames since the video began, video at its beginning).

    Its state is not safe for threads, so that interference shows.

    Parameters
    ----------
    sleep_s : between taking up its state and putting it back, so that two threads do get in each
        other's way.
    """

    chunk_rows: int = 8
    sleep_s: float = 0.001
    batch_size: int = 1
    typical_fps: float = 1000.0

    @property
    def spec(self) -> FeatureSpec:
        """The feature."""
        return FeatureSpec(FEATURE, (WIDTH,), ("number",), chunk_rows=self.chunk_rows)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Nothing but its name."""
        return {"extractor": FEATURE}

    def open(self, device: str = "cpu") -> None:
        """Begin."""
        self._seen, self._video = 0, -1

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> dict[str, FeatureRows]:
        """Forget all."""
        self._seen, self._video = 0, -1
        return {}

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image."""
        rows = self.spec.empty_rows(len(images))
        for number, image in enumerate(images):
            video, frame = int(image[0, 0, 0]), int(image[0, 1, 0])
            if image[0, 2, 0] == DISLIKED:
                raise ValueError("a frame that the model does not like")
            first, seen = (self._video, self._seen) if self._seen else (video, 0)
            time.sleep(self.sleep_s)
            self._video, self._seen = first, seen + 1
            rows.values[number] = np.resize([video, frame, seen, first], WIDTH) * SCALE
        return rows

    def close(self) -> None:
        """End."""


def expected_rows(source: NumberedSource, video: int) -> NDArray[np.float32]:
    """Return what a video's rows must be, (frames, WIDTH) float32.

    NaN for a frame that fails everywhere.
    """
    rows = np.full((source.lengths[video], WIDTH), np.nan, dtype=np.float32)
    if video in source.unreadable:
        return rows
    seen = 0
    for frame in range(source.lengths[video]):
        if (video, frame) not in source.broken and (video, frame) not in source.disliked:
            rows[frame] = np.resize([video, frame, seen, video], WIDTH)
            seen += 1
    return rows
