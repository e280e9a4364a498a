"""What the tasks of one run share, what comes out of a video, and the extractor that this process has opened for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, KpstoreError, one_line
from kpstore.extractors.base import AnyExtractor, is_settling
from kpstore.extractors.processors import cpu_name
from kpstore.ingest.gpus import VISIBLE
from kpstore.schema.failures import NOTHING_FAILED, Failures
from kpstore.schema.feature import FeatureRows, State
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Source

_log = logging.getLogger(__name__)

OnFrames = Callable[[int], None]
"""Called with the number of frames each time some more are done."""


@dataclass(frozen=True)
class Job:
    """What all tasks of one run share; picklable.

    Parameters
    ----------
    run_id : unique; a worker opens the extractor once per run.
    device : ``"cpu"``, ``"cuda"`` for one GPU per worker, or a device by number.
    gpu : the only GPU that this process may use, as ``CUDA_VISIBLE_DEVICES`` calls it; ``""``
        leaves that alone.
    meeting : a folder beside the store, in which workers show that they see the same store as the
        driver; None where they need not see it, because the driver alone writes.
    """

    run_id: str
    source: Source
    extractor: AnyExtractor
    device: str = "cpu"
    gpu: str = ""
    meeting: Path | None = None


@dataclass(frozen=True)
class Doubts:
    """Frames of a video that failed in a way that may be the fault of the worker, not of the video.

    Parameters
    ----------
    unread : frames that could not be read.
    raised : frames at which the model raised an exception, or that killed its process.
    reported : frames of which the model itself says that it could not do them (no face in it, say).
        Few of them are in no doubt (:func:`kpstore.ingest.doubts.doubted_videos`).
    """

    unread: frozenset[int] = frozenset()
    raised: frozenset[int] = frozenset()
    reported: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.unread or self.raised or self.reported)


@dataclass(frozen=True)
class VideoRows:
    """What came out of one video.

    Parameters
    ----------
    rows : by feature: one row per frame, missing where a frame failed; or one row, for a feature of
        videos.
    status : (frames,) uint8 of :class:`State`.
    failures : what of the video failed.
    doubts : which of its failures another worker might not have.
    notes : a line each, for what is odd about the video and no failure.
    """

    rows: Mapping[str, FeatureRows]
    status: NDArray[np.uint8]
    failures: Failures = NOTHING_FAILED
    doubts: Doubts = Doubts()
    notes: tuple[str, ...] = ()


class UnreadableVideoError(Exception):
    """A video, or its reference picture, that its source could not read.

    Parameters
    ----------
    cause : what the source raised.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def failed_video(job: Job, record: VideoRecord, reason: str | Exception) -> VideoRows:
    """Return the rows of a video that failed as a whole."""
    every = frozenset(range(record.n_frames))
    doubts = (
        Doubts(unread=every) if isinstance(reason, UnreadableVideoError) else Doubts(raised=every)
    )
    if isinstance(reason, UnreadableVideoError):
        reason = reason.cause
    text = one_line(
        f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    )
    _log.warning("video %r failed: %s", record.id, text)
    rows = {
        spec.name: spec.empty_rows(record.n_frames if spec.axis == "frame" else 1)
        for spec in job.extractor.specs
    }
    return VideoRows(
        rows, np.full(record.n_frames, State.FAILED, dtype=np.uint8), Failures(text), doubts
    )


@dataclass
class Opened:
    """The extractor of the run that this process works for; models are big, so one at a time."""

    run_id: str = ""
    extractor: AnyExtractor | None = None


_opened = Opened()


def opened_extractor(job: Job) -> AnyExtractor:
    """Return this process's extractor for a run, opening it the first time.

    A model has one state, so whoever uses it is the only one in its process that does: the serial
    run, an isolated process, and a worker's one thread for tasks
    (:func:`kpstore.ingest.on_worker.run_on_worker`).
    """
    if _opened.run_id != job.run_id or _opened.extractor is None:
        if _opened.extractor is not None:
            _opened.extractor.close()
        _opened.extractor = None
        _open(job)
        _opened.run_id, _opened.extractor = job.run_id, job.extractor
    return _opened.extractor


def _open(job: Job) -> None:
    if job.gpu:
        os.environ[VISIBLE] = job.gpu  # before the model asks CUDA what there is
    try:
        job.extractor.open(job.device)
    except KpstoreError:
        raise
    except Exception as error:
        name = job.extractor.specs[0].name
        raise ExtractorError(
            f"the extractor of {name!r} does not start: {type(error).__name__}: {error}"
        ) from error


def try_out(job: Job) -> int:
    """Return how many frames at once the model takes here, on this process's device, with what memory is free now."""
    extractor = job.extractor
    assert is_settling(extractor)  # who asks knows
    _open(job)
    try:
        return extractor.at_once
    finally:
        job.extractor.close()


def processor(job: Job) -> str:
    """Return the kind of processor on which this process's extractor computes.

    MediaPipe's is the CPU.
    """
    return getattr(opened_extractor(job), "processor", "") or cpu_name()
