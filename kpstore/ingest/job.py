"""What the tasks of one run share, what comes out of a video, and the extractor that this process has opened for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, KpstoreError, one_line
from kpstore.extractors.base import AnyExtractor, is_settling
from kpstore.extractors.processors import cpu_name
from kpstore.schema.feature import FeatureRows, State
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Source
from kpstore.store.transaction import failure_text

_log = logging.getLogger(__name__)

Report = Callable[[int], None]
"""Called with the number of frames each time some more are done."""


@dataclass(frozen=True)
class Job:
    """What all tasks of one run share; picklable.

    Parameters
    ----------
    run_id : unique; a worker opens the extractor once per run.
    device : ``"cpu"``, ``"cuda"`` for one GPU per worker, or a device by number.
    n_gpus : GPUs on this machine to share out; 0 if workers were pinned by other means.
    """

    run_id: str
    source: Source
    extractor: AnyExtractor
    device: str = "cpu"
    n_gpus: int = 0


@dataclass(frozen=True)
class VideoRows:
    """What came out of one video.

    Parameters
    ----------
    rows : by feature: one row per frame, missing where a frame failed; or one row, for a feature of videos.
    status : (frames,) uint8 of :class:`State`.
    failure : for the ledger; ``""`` if nothing failed.
    """

    rows: Mapping[str, FeatureRows]
    status: NDArray[np.uint8]
    failure: str = ""


def failed_video(job: Job, record: VideoRecord, reason: str | Exception) -> VideoRows:
    """Return the rows of a video that failed as a whole."""
    text = one_line(f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason)
    _log.warning("video %r failed: %s", record.id, text)
    rows = {spec.name: spec.empty_rows(record.n_frames if spec.axis == "frame" else 1) for spec in job.extractor.specs}
    return VideoRows(rows, np.full(record.n_frames, State.FAILED, dtype=np.uint8), failure_text(video=text))


@dataclass
class Opened:
    """The extractor of the run that this process works for; models are big, so one at a time."""

    run_id: str = ""
    extractor: AnyExtractor | None = None


_opened = Opened()


def opened_extractor(job: Job) -> AnyExtractor:
    """Return this process's extractor for a run, opening it the first time."""
    if _opened.run_id != job.run_id or _opened.extractor is None:
        if _opened.extractor is not None:
            _opened.extractor.close()
        _opened.extractor = None
        _open(job)
        _opened.run_id, _opened.extractor = job.run_id, job.extractor
    return _opened.extractor


def _open(job: Job) -> None:
    try:
        job.extractor.open(_device(job))
    except KpstoreError:
        raise
    except Exception as error:
        name = job.extractor.specs[0].name
        raise ExtractorError(f"the extractor of {name!r} does not start: {type(error).__name__}: {error}") from error


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
    """Return the kind of processor on which this process's extractor computes; MediaPipe's is the CPU."""
    return getattr(opened_extractor(job), "processor", "") or cpu_name()


def _device(job: Job) -> str:
    if job.device != "cuda" or job.n_gpus == 0:
        return job.device
    from distributed import get_worker

    # LocalCluster numbers its workers, and a worker that was restarted keeps its number and so its GPU.
    return f"cuda:{int(get_worker().name) % job.n_gpus}"
