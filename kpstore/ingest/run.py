"""The driver of an ingest: scan, plan, run, merge, commit.

The same steps for one process and for many.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Protocol

from kpstore._version import __version__
from kpstore.backends.base import Backend, Fork
from kpstore.errors import CorruptError, ExistsError, InvalidError, WorkersError
from kpstore.extractors.base import AnyExtractor, frame_specs
from kpstore.extractors.registry import provenance_of
from kpstore.ingest.blocks import join_adjacent
from kpstore.ingest.executors import Executor, make_executor
from kpstore.ingest.interrupts import interrupts_held_back, sigterm_as_interrupt
from kpstore.ingest.job import Job
from kpstore.ingest.options import Options
from kpstore.ingest.pending import IngestPlan, make_plan, title
from kpstore.ingest.plan import Task
from kpstore.ingest.report import MAX_FAILURES, IngestReport, Progress, ProgressFile
from kpstore.ingest.settling import Processors, settle_by_trial
from kpstore.ingest.worker import TaskResult
from kpstore.schema.feature import State
from kpstore.sources.base import Listing, Source
from kpstore.store import format as fmt
from kpstore.store import history
from kpstore.store.store import BaseStore, backend_for
from kpstore.store.transaction import Transaction
from kpstore.store.video import Failure, listed


class Observer(Protocol):
    """Somebody who watches a run."""

    def on_scan(self, n_videos: int) -> None:
        """Told while the source is scanned."""

    def on_plan(self, plan: IngestPlan) -> None:
        """Told what will be done."""

    def on_progress(self, progress: Progress) -> None:
        """Told often, from any thread."""

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Told after each checkpoint."""


class SilentObserver:
    """Watches and says nothing."""

    def on_scan(self, n_videos: int) -> None:
        """Ignore it."""

    def on_plan(self, plan: IngestPlan) -> None:
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
) -> IngestReport:
    """Extract features from all videos of a source into a store.

    Run it again to go on where it stopped.

    Parameters
    ----------
    source : what to extract from.
    location : the store, made if it is not there.
    extractor : not opened. Every worker process opens a copy; without worker processes, this one is
        opened and stays open.
    options : how to run; one worker process by default.

    Returns
    -------
    IngestReport
        Also in the metadata of the run's last commit, if there was anything to commit. With
        ``interrupted`` set if Ctrl-C or SIGTERM came: what was whole is committed then.

    Raises
    ------
    InvalidError
        If the source lists problems (all in the message) and ``ignore_problems`` is off; nothing is
        written.
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
            BaseStore.create(
                backend.location, name=options.name or source.name, kpstore_version=__version__
            )
        except ExistsError:
            if not backend.exists():
                # something else is there; otherwise another ingest was faster, and whoever gets the
                # lock goes on
                raise
    with backend.exclusive(f"ingest of {title(extractor)}"):
        return _Run(backend, source, extractor, options, observer).run(listing)


def plan_ingest(
    source: Source,
    location: str | os.PathLike[str],
    extractor: AnyExtractor,
    options: Options | None = None,
) -> IngestPlan:
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
            f"{source.name}: {len(listing.problems)} "
            f"problem{'' if len(listing.problems) == 1 else 's'} with the data set; mend what is "
            "wrong, or ingest what is sound "
            "with --ignore-problems:\n  " + "\n  ".join(listing.problems)
        )
    if not listing.videos:
        raise InvalidError(f"{source.name}: no videos to ingest were found")
    return listing


class _Run:
    """One ingest under way."""

    def __init__(
        self,
        backend: Backend,
        source: Source,
        extractor: AnyExtractor,
        options: Options,
        observer: Observer,
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

    def run(self, listing: Listing) -> IngestReport:
        plan = make_plan(self._backend, listing, self._extractor, self._options)
        self._begin(plan)
        interrupted = False
        if not plan.tasks:
            self._prepare(plan)
        try:
            with sigterm_as_interrupt():
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
        with interrupts_held_back(for_good=True):
            if self._results:
                self._checkpoint(final=True, interrupted=interrupted)
            report = self._report(interrupted)
            self._progress.running = False
            self._file.write(self._progress, now=True)
        return report

    def _save_what_is_whole(self) -> None:
        """Commit what came in before an error that ends the run.

        That error is what the user should hear of.
        """
        with interrupts_held_back(for_good=True), suppress(Exception):
            if self._results:
                self._checkpoint(final=True, interrupted=True)
        self._progress.running = False
        self._file.write(self._progress, now=True)

    def _how_to_go_on(self) -> str:
        before = self._progress.videos_before
        done, everything = before + self._videos_committed, before + self._progress.videos
        return (
            f"{done} of {everything} videos are in {self._backend.location}; the same command goes "
            "on from there"
        )

    def _begin(self, plan: IngestPlan) -> None:
        self._plan = plan
        progress = self._progress
        progress.videos, progress.frames = len(plan.pending), plan.n_frames
        progress.videos_before = len(plan.listing.videos) - len(plan.pending)
        self._observer.on_plan(plan)
        self._file.write(progress, now=True)

    def _prepare(self, plan: IngestPlan) -> None:
        """Commit the videos and the feature as pending, so that every later commit only fills in."""
        tx = Transaction(
            self._backend,
            f"ingest {self._title}: {len(plan.pending)} videos to do",
            metadata=self._about(),
        )
        specs, provenance = self._extractor.specs, provenance_of(self._extractor)
        known = [spec.name for spec in specs if spec.name in tx.features]
        if len(known) == len(specs) and not (
            plan.new_videos or plan.restart or len(plan.overwritten)
        ):
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
        return {
            "run": self._progress.run_id,
            "features": features,
            "source": source,
            "kpstore": __version__,
        }

    # -- running -----------------------------------------------------------------------------------

    def _execute(self, plan: IngestPlan) -> None:
        options = self._options
        made = make_executor(options.n_workers, scheduler=options.scheduler, gpus=options.gpus)
        sidecar = self._backend.sidecar_dir if self._backend.capabilities.parallel_writers else None
        meeting = sidecar and sidecar / "meeting"
        job = Job(
            self._progress.run_id, self._source, self._extractor, options.runs_on, meeting=meeting
        )
        with ExitStack() as stack:
            # Half a cluster cannot be taken down cleanly, so a Ctrl-C waits until it stands.
            with interrupts_held_back():
                executor = stack.enter_context(made)
            self._progress.workers = executor.n_workers
            try:
                settle_by_trial(executor, job)
                with interrupts_held_back():
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
                with interrupts_held_back():
                    self._checkpoint(final=False)

    def _make_fork(self, task: Task) -> Fork | None:
        spans = [task.whole(spec.chunk_rows) for spec in frame_specs(self._extractor)]
        if (
            all(first == last for first, last in spans)
            or not self._backend.capabilities.parallel_writers
        ):
            return None
        return self._backend.begin().fork()

    def _on_frames(self, n_frames: int) -> None:
        with self._lock:
            self._progress.frames_done = min(
                self._progress.frames_done + n_frames, self._progress.frames
            )
            self._progress.updated = time.time()
        self._observer.on_progress(self._progress)
        self._file.write(self._progress)

    def _take(self, result: TaskResult) -> None:
        self._results.append(result)
        self._failures += _failures(result)[: MAX_FAILURES - len(self._failures)]
        self._video_notes += result.notes
        self._finished_frames += result.task.n_frames
        self._videos_failed += sum(
            1 for failures in result.failures.values() if failures.video is not None
        )
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

    # -- committing --------------------------------------------------------------------------------

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
            for block in join_adjacent(
                [block for result in results for block in result.blocks[spec.name]]
            ):
                tx.write_rows(spec.name, block.start, block.rows, block.status)
            failures = {p: failed for result in results for p, failed in result.failures.items()}
            if spec.axis == "video":
                failures = {p: failed.of_video() for p, failed in failures.items()}
            tx.set_states(spec.name, failures)
        for spec in frame_specs(self._extractor):
            count_rows(tx, spec.name, [result.task for result in results])
        self._processors.record(tx, results)
        tx.metadata["checkpoint"] = {
            "videos": sum(len(r.task.videos) for r in results),
            "frames": frames,
        }
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

    def _draft(self, interrupted: bool) -> IngestReport:
        progress, listing = self._progress, self._plan.listing
        return IngestReport(
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

    def _report(self, interrupted: bool) -> IngestReport:
        store = BaseStore(self._backend, history.resolve(self._backend, None))
        return replace(
            self._draft(interrupted),
            snapshot=store.snapshot,
            failures=store.failures(first)
            if (first := frame_specs(self._extractor)[0].name) in store.features
            else (),
        )


def _failures(result: TaskResult) -> list[Failure]:
    return [
        failure
        for video in result.task.videos
        for failure in listed(
            video.record.id, result.failures[video.position], video.record.frame_paths.__getitem__
        )
    ]


def count_rows(tx: Transaction, feature: str, tasks: Sequence[Task]) -> None:
    """Raise :class:`CorruptError` if a row of a finished task is still unwritten after the merge.

    Forks that shared a chunk, a lost object or a bug of ours would show here, before anything is
    committed.
    """
    for task in tasks:
        status = tx.session.read(fmt.status_name(feature), task.start, task.stop)
        missing = int((status == State.PENDING).sum())
        if missing:
            raise CorruptError(
                f"{missing} of rows {task.start}:{task.stop} of {feature!r} are missing after the "
                "merge; nothing was committed, the store is as before. This is a bug of kpstore: "
                "please report it"
            )
