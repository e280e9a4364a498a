"""The driver of an ingest: scan, plan, run, merge, commit; the same steps for one process and for many."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kpstore._version import __version__
from kpstore.backends.base import Backend, Fork
from kpstore.errors import CorruptError, ExistsError, InvalidError, WorkersError
from kpstore.extractors.base import AnyExtractor, frame_specs, settle
from kpstore.ingest.blocks import join_adjacent
from kpstore.ingest.executors import Executor, make_executor
from kpstore.ingest.gpus import count_gpus
from kpstore.ingest.job import Job
from kpstore.ingest.plan import Task, plan_tasks
from kpstore.ingest.report import MAX_FAILURES, Progress, ProgressFile, Report
from kpstore.ingest.settling import Processors, settle_by_trial
from kpstore.ingest.worker import TaskResult
from kpstore.schema.face_features import FACE_PATH
from kpstore.schema.feature import Compression, State
from kpstore.schema.index import VideoIndex, VideoRecord
from kpstore.sources.base import Listing, Source
from kpstore.store import format as fmt
from kpstore.store import history
from kpstore.store.store import Failure, Store, backend_for
from kpstore.store.transaction import Transaction, check_same

TASK_SECONDS = 30.0
"""What a task should take: short enough to lose little, long enough that starting it costs nothing."""

MAX_TASK_CHUNKS = 16
TASKS_PER_WORKER = 4


@dataclass(frozen=True)
class Options:
    """How to run an ingest; nothing here changes the numbers.

    Parameters
    ----------
    workers : Dask worker processes on this machine; 0 runs in this process.
    scheduler : address of a Dask scheduler to use instead.
    device : where all models run, ``"cpu"``, ``"cuda"`` or ``"cuda:0"``; by default on the CPU, or the GPUs asked for.
    gpus, workers_per_gpu : pin ``gpus * workers_per_gpu`` workers to GPUs; ``workers`` is then ignored.
    overwrite : extract again what is there already.
    retry_failed : extract again videos in which something failed.
    ignore_problems : go on although the source lists missing or unreadable videos.
    checkpoint_s, checkpoint_frames : commit when either has gone by.
    task_frames : frames per task; 0 sizes tasks to take about half a minute.
    name : name of the data set in a store that is made; the source's by default.
    compression : of the values of a feature that is made; one that is there keeps its own.
    """

    workers: int = 1
    scheduler: str | None = None
    gpus: int = 0
    workers_per_gpu: int = 1
    device: str = ""
    overwrite: bool = False
    retry_failed: bool = False
    ignore_problems: bool = False
    checkpoint_s: float = 300.0
    checkpoint_frames: int = 100_000
    task_frames: int = 0
    name: str = ""
    compression: Compression = "raw"

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("gpus", 0), ("workers_per_gpu", 1), ("checkpoint_frames", 1)):
            if getattr(self, name) < least:
                raise InvalidError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.checkpoint_s <= 0:
            raise InvalidError(f"checkpoint_s is {self.checkpoint_s}; it must be more than 0")
        self._check_gpus()

    def _check_gpus(self) -> None:
        kind, _, number = self.device.partition(":")
        if kind not in ("", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
            raise InvalidError(f"device {self.device!r} is none; use cpu, cuda or cuda:0")
        if self.gpus and self.device:
            raise InvalidError(f"device {self.device!r} and {self.gpus} GPUs were asked for; choose one of them")
        wanted = int(number or 0) + 1 if kind == "cuda" else self.gpus
        found = count_gpus() if wanted and self.scheduler is None else wanted
        if wanted > found:
            asked = f"device {self.device!r}" if self.device else f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"
            option = "--device" if self.device else "--gpus"
            raise InvalidError(
                f"{asked} asked for, {found or 'none'} found on this machine; leave out {option} to use the CPU"
            )

    @property
    def runs_on(self) -> str:
        """The device that each worker's models are told."""
        return self.device or ("cuda" if self.gpus else "cpu")

    @property
    def n_workers(self) -> int:
        """Worker processes to start on this machine."""
        return self.gpus * self.workers_per_gpu if self.gpus else self.workers


@dataclass(frozen=True)
class Plan:
    """What a run would do; nothing has been written yet.

    Parameters
    ----------
    listing : what the source holds.
    new_videos : videos that the store does not have yet.
    pending : positions that the videos to extract have, or will have, in the store.
    tasks : who does what.
    overwritten : positions of videos that are done and would be done again.
    restart : whether the feature is made anew, with the extractor's settings instead of those it was made with.
    notes : what differs between the data set and the store, and is left as the store has it.
    """

    listing: Listing
    new_videos: tuple[VideoRecord, ...]
    pending: NDArray[np.int64]
    tasks: tuple[Task, ...]
    overwritten: NDArray[np.int64]
    restart: bool = False
    notes: tuple[str, ...] = ()

    @property
    def n_frames(self) -> int:
        """Frames to extract."""
        return sum(task.n_frames for task in self.tasks)


class Observer(Protocol):
    """Somebody who watches a run."""

    def on_scan(self, n_videos: int) -> None:
        """Told while the source is scanned."""

    def on_plan(self, plan: Plan) -> None:
        """Told what will be done."""

    def on_progress(self, progress: Progress) -> None:
        """Told often, from any thread."""

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Told after each checkpoint."""


class SilentObserver:
    """Watches and says nothing."""

    def on_scan(self, n_videos: int) -> None:
        """Ignore it."""

    def on_plan(self, plan: Plan) -> None:
        """Ignore it."""

    def on_progress(self, progress: Progress) -> None:
        """Ignore it."""

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Ignore it."""


def run_ingest(
    source: Source,
    location: str | os.PathLike[str],
    extractor: AnyExtractor,
    options: Options | None = None,
    *,
    observer: Observer | None = None,
) -> Report:
    """Extract features from all videos of a source into a store; run it again to go on where it stopped.

    Parameters
    ----------
    source : what to extract from.
    location : the store, made if it is not there.
    extractor : not opened. Every worker process opens a copy; without worker processes, this one is opened and stays
        open.
    options : how to run; one worker process by default.

    Returns
    -------
    Report
        Also in the metadata of the run's last commit, if there was anything to commit. With ``interrupted`` set if
        Ctrl-C or SIGTERM came: what was whole is committed then.

    Raises
    ------
    InvalidError
        If the source lists problems (all in the message) and ``ignore_problems`` is off; nothing is written.
    MismatchError
        If the store holds the feature made with other settings.
    BusyError
        If another process is writing the store.
    """
    options, observer = options or Options(), observer or SilentObserver()
    backend = backend_for(os.fspath(location))
    _check_free(backend)
    listing = _scan(source, options, observer)
    if not backend.exists():
        # Planned before the store is made, so that a plan that fails leaves nothing behind.
        make_plan(backend, listing, extractor, options)
        try:
            Store.create(backend.location, name=options.name or source.name, kpstore_version=__version__)
        except ExistsError:
            if not backend.exists():
                raise  # something else is there; otherwise another ingest was faster, and whoever gets the lock goes on
    with backend.exclusive(f"ingest of {title(extractor)}"):
        return _Run(backend, source, extractor, options, observer).run(listing)


def plan_ingest(
    source: Source, location: str | os.PathLike[str], extractor: AnyExtractor, options: Options | None = None
) -> Plan:
    """Return what :func:`run_ingest` would do with the same arguments; writes nothing."""
    options = options or Options()
    backend = backend_for(os.fspath(location))
    return make_plan(backend, _scan(source, options, SilentObserver()), extractor, options)


def _check_free(backend: Backend) -> None:
    """Raise :class:`BusyError` before a long scan, not after it."""
    if backend.exists():
        with backend.exclusive("a look before an ingest"):
            pass


def _scan(source: Source, options: Options, observer: Observer) -> Listing:
    listing = source.scan(observer.on_scan)
    if listing.problems and not options.ignore_problems:
        raise InvalidError(
            f"{source.name}: {len(listing.problems)} problem{'' if len(listing.problems) == 1 else 's'} with the data "
            "set; mend what is wrong, or ingest what is sound "
            "with --ignore-problems:\n  " + "\n  ".join(listing.problems)
        )
    if not listing.videos:
        raise InvalidError(f"{source.name}: no videos to ingest were found")
    return listing


def title(extractor: AnyExtractor) -> str:
    """Return what people call the features that an extractor makes."""
    first, *others = frame_specs(extractor)
    more = len(extractor.specs) - 1
    return f"{first.name} and {more} more" if more > 1 else " and ".join(spec.name for spec in (first, *others))


def make_plan(backend: Backend, listing: Listing, extractor: AnyExtractor, options: Options) -> Plan:
    """Compare what a source holds with what a store holds, and cut what is missing into tasks."""
    store = Store(backend, history.resolve(backend, None)) if backend.exists() else None
    videos = listing.videos
    _check_references(extractor, videos)
    known = [] if store is None else [video for video in videos if video.id in store.index]
    notes = () if store is None else _check_unchanged(store, known)
    new = tuple(video for video in videos if store is None or video.id not in store.index)
    index = _future_index(store, new)
    by_position = {index.position(video.id): video for video in videos}
    there, redo = _what_is_there(store, extractor, options)
    pending = sorted(p for p in by_position if p >= len(there) or not there[p] or redo[p])
    wanted = np.array(pending, dtype=np.int64)
    # Only features of which nothing is kept may be made anew with other settings.
    restart = options.overwrite and bool(there.any()) and not len(np.setdiff1d(np.flatnonzero(there), wanted))
    stored = {} if store is None or restart else store.features
    begun = settle(extractor, {name: one.provenance for name, one in stored.items()}, options.runs_on)
    provenance = extractor.provenance  # of a new feature too: weights that are not there should show before anything
    for spec in extractor.specs:
        if spec.name in stored:
            check_same(stored[spec.name], spec, provenance[spec.name])
    task_frames = options.task_frames or _task_frames(extractor, int(index.n_frames[wanted].sum()), options.n_workers)
    chunk_rows = [spec.chunk_rows for spec in frame_specs(extractor)]
    tasks = plan_tasks(index, [by_position[p] for p in pending], wanted, chunk_rows=chunk_rows, task_frames=task_frames)
    overwritten = np.array([p for p in pending if p < len(redo) and redo[p]], dtype=np.int64)
    return Plan(listing, new, wanted, tuple(tasks), overwritten, restart, (*notes, *begun))


def _check_references(extractor: AnyExtractor, videos: Sequence[VideoRecord]) -> None:
    """Raise :class:`InvalidError` if every video would fail for want of a reference picture."""
    if getattr(extractor, "needs_reference", False) and not any(v.annotations.get(FACE_PATH) for v in videos):
        raise InvalidError(
            f"{title(extractor)} need a frontal picture of each video ({FACE_PATH!r}), and none of these "
            f"{len(videos)} videos has one; 'kpstore ingest faces' takes a folder of them"
        )


def _what_is_there(
    store: Store | None, extractor: AnyExtractor, options: Options
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which videos of a store are done or have failed, and which of these are to be done again, (videos,) bool.

    Raises
    ------
    InvalidError
        If a video has some of the extractor's features and lacks others: doing it would replace what is there.
    """
    if store is None:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    n_videos, names = len(store.index), [spec.name for spec in extractor.specs]
    known = [name for name in names if name in store.features]
    states = np.array([store.states(name) if name in known else np.zeros(n_videos, np.uint8) for name in names])
    there = (states != State.PENDING).any(axis=0)
    redo = there & options.overwrite
    if options.retry_failed:
        for name in known:
            redo |= np.asarray(store[fmt.failure_name(name)][:]) != ""
    partly = np.flatnonzero(there & (states == State.PENDING).any(axis=0) & ~redo)
    if len(partly):
        lacking = [name for name, state in zip(names, states, strict=True) if state[partly[0]] == State.PENDING]
        raise InvalidError(
            f"video {store.index.ids[partly[0]]!r} has some features in {store.location} already, but no "
            f"{', '.join(lacking)}; --overwrite makes all of them anew"
        )
    return there, redo


def _task_frames(extractor: AnyExtractor, frames: int, workers: int) -> int:
    """Return how many frames make a task: half a minute of work, or a share of a small data set for every worker."""
    by_time = int(max(extractor.typical_fps, 0.1) * TASK_SECONDS) + 1
    by_share = -(-frames // (TASKS_PER_WORKER * max(workers, 1)))
    largest = max(frame_specs(extractor), key=lambda spec: spec.row_bytes)
    return max(1, min(by_time, by_share, MAX_TASK_CHUNKS * largest.chunk_rows))


def _check_unchanged(store: Store, videos: Sequence[VideoRecord]) -> tuple[str, ...]:
    """Return what differs and does no harm; raise :class:`InvalidError` for what would mix up rows or splits."""
    texts = {name: store[name][:] for name in store.annotation_names} if videos else {}
    notes = []
    resplit = []
    for video in videos:
        position = store.index.position(video.id)
        stored, now = store.index.n_frames[position], video.n_frames
        if stored != now:
            raise InvalidError(
                f"video {video.id!r} has {stored} frames in {store.location} and {now} frames in the data set now; "
                "restore the data set, or ingest into a new store"
            )
        split = store.index.splits[position]
        if split != video.split and not store.own_splits:
            raise InvalidError(
                f"video {video.id!r} has split {split!r} in {store.location} and split {video.split!r} in the data set "
                "now; restore the data set, set the store's splits (kpstore splits set), or ingest into a new store"
            )
        resplit += [video.id] if split != video.split else []
        if FACE_PATH in video.annotations and FACE_PATH not in texts:
            raise InvalidError(
                f"{store.location} holds video {video.id!r}, but no frontal pictures ({FACE_PATH!r}); ingest faces "
                "into a new store"
            )
        changed = [name for name, text in video.annotations.items() if name in texts and texts[name][position] != text]
        if changed:
            notes.append(f"video {video.id!r} has another {' and '.join(changed)} now; the store keeps its own")
    if resplit:
        notes.append(
            f"the splits of {store.location} were set by hand: {len(resplit)} videos, the first {resplit[0]!r}, keep "
            "theirs; new videos get the data set's, see 'kpstore splits check'"
        )
    return tuple(notes)


def _future_index(store: Store | None, new: Sequence[VideoRecord]) -> VideoIndex:
    ids = np.array([video.id for video in new], dtype=object)
    splits = np.array([video.split for video in new], dtype=object)
    lengths = np.array([video.n_frames for video in new], dtype=np.int64)
    if store is None or len(store.index) == 0:
        return VideoIndex(ids, splits, lengths)
    old = store.index
    return VideoIndex(
        np.concatenate([old.ids, ids]),
        np.concatenate([old.splits, splits]),
        np.concatenate([old.n_frames, lengths]),
    )


class _Run:
    """One ingest under way."""

    def __init__(
        self, backend: Backend, source: Source, extractor: AnyExtractor, options: Options, observer: Observer
    ) -> None:
        self._backend, self._source, self._extractor = backend, source, extractor
        self._options, self._observer = options, observer
        self._title = title(extractor)
        self._began = time.monotonic()
        self._results: list[TaskResult] = []
        self._last_commit = time.monotonic()
        self._progress = Progress(run_id=uuid.uuid4().hex[:12], feature=self._title)
        self._file = ProgressFile(backend.sidecar_dir)
        self._lock = threading.Lock()
        self._finished_frames = 0
        self._videos_failed = 0
        self._videos_committed = 0
        self._failures: list[Failure] = []
        self._video_notes: list[str] = []
        self._worker_notes: tuple[str, ...] = ()
        self._processors = Processors(extractor)

    def run(self, listing: Listing) -> Report:
        plan = make_plan(self._backend, listing, self._extractor, self._options)
        self._begin(plan)
        interrupted = False
        if not plan.tasks:
            self._prepare(plan)
        try:
            with _sigterm_as_interrupt():
                if plan.tasks:
                    self._execute(plan)
        except KeyboardInterrupt:
            interrupted = True
        except WorkersError as error:
            self._save_what_is_whole()
            raise WorkersError(f"{error}; {self._how_to_go_on()}") from error
        except Exception:
            self._save_what_is_whole()
            raise
        with _interrupts_held_back(for_good=True):
            if self._results:
                self._checkpoint(final=True, interrupted=interrupted)
            report = self._report(interrupted)
            self._progress.running = False
            self._file.write(self._progress, now=True)
        return report

    def _save_what_is_whole(self) -> None:
        """Commit what came in before an error that ends the run; that error is what the user should hear of."""
        with _interrupts_held_back(for_good=True), suppress(Exception):
            if self._results:
                self._checkpoint(final=True, interrupted=True)
        self._progress.running = False
        self._file.write(self._progress, now=True)

    def _how_to_go_on(self) -> str:
        before = self._progress.videos_before
        done, everything = before + self._videos_committed, before + self._progress.videos
        return f"{done} of {everything} videos are in {self._backend.location}; the same command goes on from there"

    def _begin(self, plan: Plan) -> None:
        self._plan = plan
        progress = self._progress
        progress.videos, progress.frames = len(plan.pending), plan.n_frames
        progress.videos_before = len(plan.listing.videos) - len(plan.pending)
        self._observer.on_plan(plan)
        self._file.write(progress, now=True)

    def _prepare(self, plan: Plan) -> None:
        """Commit the videos and the feature as pending, so that every later commit only fills in."""
        tx = Transaction(
            self._backend, f"ingest {self._title}: {len(plan.pending)} videos to do", metadata=self._about()
        )
        specs, provenance = self._extractor.specs, self._extractor.provenance
        known = [spec.name for spec in specs if spec.name in tx.features]
        if len(known) == len(specs) and not (plan.new_videos or plan.restart or len(plan.overwritten)):
            return
        if plan.new_videos:
            tx.add_videos(plan.new_videos)
        for name in known:
            if plan.restart:
                tx.remove_feature(name)
            elif len(plan.overwritten):
                tx.reset_states(name, plan.overwritten.tolist())
        for spec in specs:
            compressed = replace(spec, compression=self._options.compression)
            tx.add_feature(compressed, {**provenance[spec.name], "kpstore": __version__})
        tx.commit()

    def _about(self) -> dict[str, Any]:
        """Return what every commit of this run says about it."""
        source = {"name": self._source.name, **self._source.provenance}
        features = [spec.name for spec in self._extractor.specs]
        return {"run": self._progress.run_id, "features": features, "source": source, "kpstore": __version__}

    # -- running ------------------------------------------------------------------------------------------------

    def _execute(self, plan: Plan) -> None:
        options = self._options
        made = make_executor(options.n_workers, scheduler=options.scheduler, gpus=options.gpus)
        sidecar = self._backend.sidecar_dir if self._backend.capabilities.parallel_writers else None
        meeting = sidecar and sidecar / "meeting"
        job = Job(self._progress.run_id, self._source, self._extractor, options.runs_on, meeting=meeting)
        with ExitStack() as stack:
            # Half a cluster cannot be taken down cleanly, so a Ctrl-C waits until it stands.
            with _interrupts_held_back():
                executor = stack.enter_context(made)
            self._progress.workers = executor.n_workers
            try:
                settle_by_trial(executor, job)
                with _interrupts_held_back():
                    self._prepare(plan)
                self._drive(executor, job, plan.tasks)
            finally:
                self._worker_notes = tuple(executor.notes)

    def _drive(self, executor: Executor, job: Job, tasks: Sequence[Task]) -> None:
        remaining = len(tasks)
        for result in executor.run(job, tasks, self._make_fork, self._on_frames):
            remaining -= 1
            self._take(result)
            if remaining and self._is_due():
                with _interrupts_held_back():
                    self._checkpoint(final=False)

    def _make_fork(self, task: Task) -> Fork | None:
        spans = [task.whole(spec.chunk_rows) for spec in frame_specs(self._extractor)]
        if all(first == last for first, last in spans) or not self._backend.capabilities.parallel_writers:
            return None
        return self._backend.begin().fork()

    def _on_frames(self, n_frames: int) -> None:
        with self._lock:
            self._progress.frames_done = min(self._progress.frames_done + n_frames, self._progress.frames)
            self._progress.updated = time.time()
        self._observer.on_progress(self._progress)
        self._file.write(self._progress)

    def _take(self, result: TaskResult) -> None:
        self._results.append(result)
        self._failures += _failures(result)[: MAX_FAILURES - len(self._failures)]
        self._video_notes += result.notes
        self._finished_frames += result.task.n_frames
        self._videos_failed += sum(1 for failures in result.failures.values() if failures.video is not None)
        with self._lock:
            progress = self._progress
            progress.frames_done = max(progress.frames_done, self._finished_frames)
            progress.videos_done += len(result.task.videos)
            progress.frames_failed += result.failed_frames
        self._on_frames(0)

    def _is_due(self) -> bool:
        waiting = sum(result.task.n_frames for result in self._results)
        return (
            time.monotonic() - self._last_commit >= self._options.checkpoint_s
            or waiting >= self._options.checkpoint_frames
        )

    # -- committing ---------------------------------------------------------------------------------------------

    def _checkpoint(self, *, final: bool, interrupted: bool = False) -> None:
        """Merge what has come in, count it, commit it."""
        results, progress = self._results, self._progress
        frames = sum(result.task.n_frames for result in results)
        done = progress.videos_before + progress.videos_done
        tx = Transaction(
            self._backend,
            f"{self._title}: {done} of {progress.videos_before + progress.videos} videos",
            metadata=self._about(),
        )
        tx.merge([result.fork for result in results if result.fork is not None])
        for spec in self._extractor.specs:
            for block in join_adjacent([block for result in results for block in result.blocks[spec.name]]):
                tx.write_rows(spec.name, block.start, block.rows, block.status)
            failures = {p: failed for result in results for p, failed in result.failures.items()}
            if spec.axis == "video":
                failures = {p: failed.of_video() for p, failed in failures.items()}
            tx.set_states(spec.name, failures)
        for spec in frame_specs(self._extractor):
            count_rows(tx, spec.name, [result.task for result in results])
        self._processors.record(tx, results)
        tx.metadata["checkpoint"] = {"videos": sum(len(r.task.videos) for r in results), "frames": frames}
        if final:
            tx.metadata["report"] = self._draft(interrupted).to_json()
        snapshot = tx.commit()
        self._results = []
        self._videos_committed += sum(len(result.task.videos) for result in results)
        self._last_commit = time.monotonic()
        progress.checkpoints += 1
        progress.frames_committed += frames
        self._observer.on_commit(snapshot, progress)
        self._file.write(progress, now=True)

    def _draft(self, interrupted: bool) -> Report:
        progress, listing = self._progress, self._plan.listing
        return Report(
            feature=self._title,
            snapshot="",
            videos=len(listing.videos),
            videos_done=progress.videos_done - self._videos_failed,
            videos_failed=self._videos_failed,
            videos_before=progress.videos_before,
            frames=self._finished_frames,
            frames_failed=progress.frames_failed,
            failures=tuple(self._failures),
            seconds=time.monotonic() - self._began,
            workers=progress.workers,
            interrupted=interrupted,
            notes=(
                *(*listing.problems, *listing.notes, *self._plan.notes),
                *(*self._video_notes, *self._worker_notes, *self._processors.notes),
            ),
        )

    def _report(self, interrupted: bool) -> Report:
        store = Store(self._backend, history.resolve(self._backend, None))
        return replace(
            self._draft(interrupted),
            snapshot=store.snapshot,
            failures=store.failures(first) if (first := frame_specs(self._extractor)[0].name) in store.features else (),
        )


def _failures(result: TaskResult) -> list[Failure]:
    found: list[Failure] = []
    for video in result.task.videos:
        failures = result.failures[video.position]
        if failures.video is not None:
            found.append(Failure(video.record.id, None, "", failures.video))
        for frame, reason in failures.frames.items():
            found.append(Failure(video.record.id, frame, video.record.frame_paths[frame], reason))
    return found


def count_rows(tx: Transaction, feature: str, tasks: Sequence[Task]) -> None:
    """Raise :class:`CorruptError` if a row of a finished task is still unwritten after the merge.

    Forks that shared a chunk, a lost object or a bug of ours would show here, before anything is committed.
    """
    for task in tasks:
        status = tx.view.read(fmt.status_name(feature), task.start, task.stop)
        missing = int((status == State.PENDING).sum())
        if missing:
            raise CorruptError(
                f"{missing} of rows {task.start}:{task.stop} of {feature!r} are missing after the merge; nothing was "
                "committed, the store is as before. This is a bug of kpstore: please report it"
            )


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, end a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


@contextmanager
def _interrupts_held_back(*, for_good: bool = False) -> Iterator[None]:
    """Finish a commit before Ctrl-C or SIGTERM takes effect; ``for_good`` drops what came meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    old = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if came and not for_good:
        raise KeyboardInterrupt
