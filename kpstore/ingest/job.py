"""The job that all tasks of a run share, the rows of a video, and this process's extractor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kpstore.backends.optional import Sidecar
from kpstore.errors import ExtractorError, KpstoreError, one_line
from kpstore.extractors.base import AnyExtractor, is_settling
from kpstore.extractors.devices import cpu_name
from kpstore.ingest.gpus import VISIBLE
from kpstore.schema.failures import NOTHING_FAILED, Failures
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Source
from kpstore.visible import logger

_log = logger(__name__)

OnFrames = Callable[[int], None]
"""Called with the number of frames that were done since the last call."""


@dataclass(frozen=True)
class Job:
    """Source, extractor and device, which all tasks of one run share; picklable.

    Parameters
    ----------
    run_id : unique; a worker opens the extractor once per run.
    device : ``"cpu"``, ``"cuda"`` for one GPU per worker, or a device by number.
    gpu : the only GPU that this process may use, as ``CUDA_VISIBLE_DEVICES`` calls it; ``""`` does
        not restrict it.
    meeting : a place beside the store, at which workers show that they see the same store as the
        driver; None if only the driver writes.
    frame_timeout_s : how long one frame, or one batch, may take in a worker; 0 for any time.
    """

    run_id: str
    source: Source
    extractor: AnyExtractor
    device: str = "cpu"
    gpu: str = ""
    meeting: Sidecar | None = None
    frame_timeout_s: float = 0.0


@dataclass(frozen=True)
class Doubts:
    """Frames of a video whose failure may be the fault of the worker, not of the video.

    Parameters
    ----------
    unread : frames that could not be read.
    raised : frames at which the model raised an exception, or that killed its process.
    reported : frames that the model itself reports as failed, for example because they show no
        face. A few of them are not in doubt (:func:`kpstore.ingest.doubts.doubted_videos`).
    """

    unread: frozenset[int] = frozenset()
    raised: frozenset[int] = frozenset()
    reported: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.unread or self.raised or self.reported)


@dataclass(frozen=True)
class VideoRows:
    """Rows extracted from one video.

    Parameters
    ----------
    rows : by feature: one row per frame, missing where a frame failed; or one row, for a feature of
        videos.
    failures : of the video and its frames.
    doubts : failures that another worker might not have.
    notes : one line for each oddity of the video that is not a failure.
    """

    rows: Mapping[str, FeatureRows]
    failures: Failures = NOTHING_FAILED
    doubts: Doubts = Doubts()
    notes: tuple[str, ...] = ()


def by_value(message: object) -> bytes:
    """Pickle as Dask does: other processes cannot import classes of a user's script or notebook."""
    import cloudpickle

    return bytes(cloudpickle.dumps(message))


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
    doubts = Doubts(raised=every)
    if isinstance(reason, UnreadableVideoError):
        doubts, reason = Doubts(unread=every), reason.cause
    text = one_line(reason)
    _log.warning("video %r failed: %s", record.id, text)
    rows = {
        spec.name: spec.empty_rows(record.n_frames if spec.axis == "frame" else 1)
        for spec in job.extractor.specs
    }
    return VideoRows(rows, Failures(text), doubts)


# The extractor that this process has opened, by run: at most one, because models are big
_opened: dict[str, AnyExtractor] = {}


def opened_extractor(job: Job) -> AnyExtractor:
    """Return this process's extractor for a run, opening it the first time.

    A model has one state, so only one thread of a process may use it: that of a serial run or of an
    isolated process, or a worker's thread for tasks
    (:func:`kpstore.ingest.on_worker.run_on_worker`).
    """
    if job.run_id not in _opened:
        while _opened:
            _opened.popitem()[1].close()
        _open(job)
        _opened[job.run_id] = job.extractor
    return _opened[job.run_id]


def _open(job: Job) -> None:
    if job.gpu:
        os.environ[VISIBLE] = job.gpu  # before the model asks CUDA for its devices
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
    """Return how many frames the model can take at once now, on this process's device."""
    extractor = job.extractor
    assert is_settling(extractor)
    _open(job)
    try:
        return extractor.at_once
    finally:
        job.extractor.close()


def processor(job: Job) -> str:
    """Return the kind of processor on which this process's extractor computes."""
    return getattr(opened_extractor(job), "processor", "") or cpu_name()
