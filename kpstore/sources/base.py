"""The contract of a source: list the videos of a data set, then read the frames of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.index import VideoRecord


@dataclass(frozen=True)
class Listing:
    """The result of a scan.

    Parameters
    ----------
    videos : in the order in which the store will hold them.
    problems : one line each, for missing, extra or unreadable videos; a video with a problem is
        left out of ``videos`` if it cannot be extracted at all.
    notes : one line each, for facts worth knowing that do not stop a run, such as a wrong frame
        rate in a header.
    """

    videos: tuple[VideoRecord, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameError:
    """Why a frame could not be read: one line, without the frame's path."""

    reason: str


LEFT_OUT = FrameError("left out")
"""What a source yields for a frame that it was asked to skip."""

Frame = NDArray[np.uint8] | FrameError
"""A frame, (height, width, 3) uint8 RGB or (height, width) uint8 grey, or why there is none."""


class Source(Protocol):
    """A data set to extract from; small and picklable, because workers read the frames."""

    @property
    def name(self) -> str:
        """Name of the data set, e.g. ``"PHOENIX-2014-T"``."""

    @property
    def provenance(self) -> Mapping[str, object]:
        """Where the frames come from, as JSON."""

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos; ``on_video(n)`` is called with the number found so far.

        Raises
        ------
        NotFoundError, InvalidError
            If the data set is not there or is not laid out as it should be; the message names the
            path.
        """

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Frame]:
        """Yield ``video.n_frames`` frames in order, (height, width, 3) uint8 RGB, or errors.

        Frames in ``skip`` are yielded as a :class:`FrameError` and not touched. A frame is decoded
        when it is asked for and no sooner, so that a decoder that crashes does so on the frame that
        is at fault.
        """
