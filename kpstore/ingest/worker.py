"""What a worker does: read the frames of whole videos, run the extractor, write its own chunks, hand back the rest."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Fork
from kpstore.errors import ExtractorError, KpstoreError, one_line
from kpstore.extractors.base import Extractor
from kpstore.ingest.plan import PlannedVideo, Task
from kpstore.schema.feature import FeatureRows, State
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Source
from kpstore.store.format import row_arrays
from kpstore.store.transaction import failure_text

_log = logging.getLogger(__name__)

Announce = Callable[[int], None]
"""Called with the number of a frame before anything touches it."""

_AHEAD_FRAMES = 16
"""Frames decoded ahead of the extractor: enough to hide a slow read, 2.6 MB at 210 x 260."""


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
    extractor: Extractor
    device: str = "cpu"
    n_gpus: int = 0


@dataclass(frozen=True)
class VideoRows:
    """What came out of one video.

    Parameters
    ----------
    rows : one per frame; missing where a frame failed.
    status : (frames,) uint8 of :class:`State`.
    failure : for the ledger; ``""`` if nothing failed.
    """

    rows: FeatureRows
    status: NDArray[np.uint8]
    failure: str = ""


@dataclass(frozen=True)
class Block:
    """A run of finished rows on the frame axis."""

    start: int
    rows: FeatureRows
    status: NDArray[np.uint8]

    @property
    def stop(self) -> int:
        """Row after the last one."""
        return self.start + len(self.rows)


@dataclass(frozen=True)
class TaskResult:
    """What a worker sends back.

    Parameters
    ----------
    fork : the whole chunks that it wrote; None if there were none.
    blocks : the rows that it did not write itself.
    failures : by position of each video: its entry in the ledger, ``""`` if nothing failed.
    failed_frames : how many frames failed.
    seconds : time spent.
    """

    task: Task
    fork: Fork | None
    blocks: tuple[Block, ...]
    failures: Mapping[int, str]
    failed_frames: int
    seconds: float


def run_task(
    job: Job,
    task: Task,
    fork: Fork | None,
    *,
    extract: Callable[[Job, VideoRecord], VideoRows] | None = None,
    report: Callable[[int], None] | None = None,
) -> TaskResult:
    """Extract all videos of a task.

    Parameters
    ----------
    fork : writer for the whole chunks; None sends all rows back.
    extract : how to do one video; in this process by default.
    report : called with the number of frames each time some more are done.
    """
    began = time.perf_counter()
    if extract is None:
        opened_extractor(job)  # here, where an error ends the run: it is not the first video's fault
    chunks = _ChunkWriter(job, task, fork)
    failures: dict[int, str] = {}
    failed_frames = 0
    for video in task.videos:
        result = _try_video(job, video, extract or (lambda job, record: extract_here(job, record, report=report)))
        failures[video.position] = result.failure
        failed_frames += int((result.status == State.FAILED).sum())
        chunks.add(Block(video.start, result.rows, result.status))
        if extract is not None and report is not None:
            report(len(result.rows))
    blocks = chunks.finish()
    return TaskResult(task, chunks.used_fork, blocks, failures, failed_frames, time.perf_counter() - began)


def _try_video(job: Job, video: PlannedVideo, extract: Callable[[Job, VideoRecord], VideoRows]) -> VideoRows:
    try:
        return extract(job, video.record)
    except ExtractorError:
        raise
    except Exception as error:  # a broken video must not end the run, whatever its reader or the model raises
        _log.warning("video %r failed: %s", video.record.id, error)
        return failed_video(job, video.record, f"{type(error).__name__}: {error}")


def failed_video(job: Job, record: VideoRecord, reason: str) -> VideoRows:
    """Return the rows of a video that failed as a whole."""
    rows = job.extractor.spec.empty_rows(record.n_frames)
    return VideoRows(rows, np.full(record.n_frames, State.FAILED, dtype=np.uint8), failure_text(video=one_line(reason)))


class _ChunkWriter:
    """Takes a task's rows in order, writes whole chunks as they fill, keeps the rows before and after them."""

    def __init__(self, job: Job, task: Task, fork: Fork | None) -> None:
        self._spec = job.extractor.spec
        self._fork = fork
        self._first, self._last = task.whole if fork is not None else (task.stop, task.stop)
        self._waiting: list[Block] = []
        self._kept: list[Block] = []
        self.used_fork: Fork | None = None

    def add(self, block: Block) -> None:
        for piece in _cut(block, (self._first, self._last)):
            if self._first <= piece.start < self._last:
                self._waiting.append(piece)
                self._write_full()
            elif len(piece.rows):
                self._kept.append(piece)

    def _write_full(self) -> None:
        joined = join_blocks(self._waiting)
        whole = (joined.stop - joined.start) // self._spec.chunk_rows * self._spec.chunk_rows
        if joined.stop == self._last:
            whole = joined.stop - joined.start
        if whole == 0 or self._fork is None:
            return
        for name, array in row_arrays(self._spec, joined.rows[:whole], joined.status[:whole]).items():
            self._fork.write(name, joined.start, array)
        self.used_fork = self._fork
        rest = Block(joined.start + whole, joined.rows[whole:], joined.status[whole:])
        self._waiting = [rest] if len(rest.rows) else []

    def finish(self) -> tuple[Block, ...]:
        if self._waiting:
            raise AssertionError("rows of a whole chunk were left unwritten")
        return tuple(join_adjacent(self._kept))


def _cut(block: Block, rows: Iterable[int]) -> Iterator[Block]:
    edges = [block.start, *sorted(row for row in set(rows) if block.start < row < block.stop), block.stop]
    for start, stop in itertools.pairwise(edges):
        part = slice(start - block.start, stop - block.start)
        yield Block(start, block.rows[part], block.status[part])


def join_blocks(blocks: list[Block]) -> Block:
    """Return adjacent blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    rows = FeatureRows.concatenate([block.rows for block in blocks])
    return Block(blocks[0].start, rows, np.concatenate([block.status for block in blocks]))


def join_adjacent(blocks: Iterable[Block]) -> list[Block]:
    """Return blocks in row order, neighbours joined."""
    runs: list[list[Block]] = []
    for block in sorted(blocks, key=lambda block: block.start):
        if runs and runs[-1][-1].stop == block.start:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [join_blocks(run) for run in runs]


# -- one video ------------------------------------------------------------------------------------------------

_opened: dict[str, Extractor] = {}
"""The extractor of the run that this process works for; models are big, so one at a time."""


def opened_extractor(job: Job) -> Extractor:
    """Return this process's extractor for a run, opening it the first time."""
    if job.run_id not in _opened:
        for extractor in _opened.values():
            extractor.close()
        _opened.clear()
        try:
            job.extractor.open(_device(job))
        except KpstoreError:
            raise
        except Exception as error:
            raise ExtractorError(
                f"the extractor of {job.extractor.spec.name!r} does not start: {type(error).__name__}: {error}"
            ) from error
        _opened[job.run_id] = job.extractor
    return _opened[job.run_id]


def _device(job: Job) -> str:
    if job.device != "cuda" or job.n_gpus == 0:
        return job.device
    from distributed import get_worker

    # LocalCluster numbers its workers, and a worker that was restarted keeps its number and so its GPU.
    return f"cuda:{int(get_worker().name) % job.n_gpus}"


def extract_here(
    job: Job,
    record: VideoRecord,
    *,
    skip: Mapping[int, str] | None = None,
    announce: Announce | None = None,
    report: Callable[[int], None] | None = None,
) -> VideoRows:
    """Extract one video in this process.

    Parameters
    ----------
    skip : reasons by number of frames that must not be touched.
    announce : called before each frame is touched; decoding then does not run ahead.
    """
    extractor = opened_extractor(job)
    collector = _Collector(extractor, record.n_frames, dict(skip or {}), announce, report)
    frames = job.source.read_frames(record, skip=frozenset(collector.failed))
    extractor.start_video()
    if announce is None:
        with _Ahead(frames) as ahead:
            collector.consume(ahead)
    else:
        collector.consume(_announced(frames, announce))
    return collector.finish(record)


def _announced(frames: Iterator[Any], announce: Announce) -> Iterator[Any]:
    for number in itertools.count():
        announce(number)
        try:
            yield next(frames)
        except StopIteration:
            return


class _Collector:
    """Batches frames for the extractor and puts rows, states and failures where they belong."""

    def __init__(
        self,
        extractor: Extractor,
        n_frames: int,
        failed: dict[int, str],
        announce: Announce | None,
        report: Callable[[int], None] | None,
    ) -> None:
        self.failed = failed
        self._extractor, self._announce, self._report = extractor, announce, report
        self._rows = extractor.spec.empty_rows(n_frames)
        self._n_frames = n_frames

    def consume(self, frames: Iterable[NDArray[np.uint8] | FrameError]) -> None:
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        count = 0
        for number, frame in enumerate(frames):
            count += 1
            if isinstance(frame, FrameError):
                self.failed.setdefault(number, one_line(frame.reason))
                self._done(1)
                continue
            batch.append((number, frame))
            if len(batch) >= self._extractor.batch_size:
                self._extract(batch)
                batch = []
        self._extract(batch)
        if count != self._n_frames:
            raise ValueError(f"the source gave {count} frames, it had announced {self._n_frames}")

    def _extract(self, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
        if not batch:
            return
        if self._announce is not None and len(batch) > 1:
            self._one_by_one(batch)
            return
        try:
            rows = self._extractor.extract([image for _, image in batch]).check(self._extractor.spec)
        except ExtractorError:  # the model is at fault, and would be for every frame after this one
            raise
        except Exception as error:  # whatever a model raises, the frame is at fault and the video goes on
            if len(batch) > 1:
                self._one_by_one(batch)
                return
            self.failed[batch[0][0]] = one_line(f"{type(error).__name__}: {error}")
            self._done(1)
            return
        numbers = [number for number, _ in batch]
        self._rows.values[numbers] = rows.values
        for name, array in rows.companions.items():
            self._rows.companions[name][numbers] = array
        self._done(len(batch))

    def _one_by_one(self, batch: list[tuple[int, NDArray[np.uint8]]]) -> None:
        for number, image in batch:
            if self._announce is not None:
                self._announce(number)
            self._extract([(number, image)])

    def _done(self, n_frames: int) -> None:
        if self._report is not None:
            self._report(n_frames)

    def finish(self, record: VideoRecord) -> VideoRows:
        status = np.full(self._n_frames, State.DONE, dtype=np.uint8)
        status[list(self.failed)] = State.FAILED
        return VideoRows(self._rows, status, failure_text(frames=self.failed))


@dataclass
class _Ahead:
    """Frames read in a thread, a bounded number ahead of whoever iterates."""

    frames: Iterator[NDArray[np.uint8] | FrameError]
    _queue: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(_AHEAD_FRAMES))
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Iterator[NDArray[np.uint8] | FrameError]:
        self._thread = threading.Thread(target=self._read, name="kpstore-decode", daemon=True)
        self._thread.start()
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _read(self) -> None:
        try:
            for frame in self.frames:
                if self._stop.is_set():
                    return
                self._queue.put(frame)
            self._queue.put(_END)
        except Exception as error:  # raised again where the frames are used
            self._queue.put(error)

    def _iterate(self) -> Iterator[NDArray[np.uint8] | FrameError]:
        while (item := self._queue.get()) is not _END:
            if isinstance(item, Exception):
                raise item
            yield item


_END = object()
