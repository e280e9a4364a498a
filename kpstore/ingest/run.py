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
from itertools import islice

from kpstore._version import __version__
from kpstore.backends.base import Backend, Fork
from kpstore.budget import allowed_by_user
from kpstore.errors import CorruptError, ExistsError, InvalidError, WorkersError, several
from kpstore.extractors.base import AnyExtractor, frame_specs
from kpstore.extractors.registry import provenance_of
from kpstore.ingest.blocks import join_adjacent
from kpstore.ingest.executors import Executor, make_executor
from kpstore.ingest.interrupts import interrupts_held_back, sigterm_as_interrupt
from kpstore.ingest.job import Job
from kpstore.ingest.observer import Observer, SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.pending import IngestPlan, make_plan, title
from kpstore.ingest.plan import Task
from kpstore.ingest.processors import Processors
from kpstore.ingest.report import MAX_FAILURES, IngestReport, Progress, ProgressFile
from kpstore.ingest.watch import MAX_LIMIT_S
from kpstore.ingest.worker import TaskResult
from kpstore.main_guard import require_main_guard
from kpstore.schema.feature import State
from kpstore.sources.base import Listing, Source
from kpstore.store import format as fmt
from kpstore.store.damage import named
from kpstore.store.store import BaseStore, backend_for
from kpstore.store.transaction import Transaction
from kpstore.store.video import Failure, listed
from kpstore.visible import visible


def run_ingest(
    source: Source,
    location: str | os.PathLike[str],
    extractor: AnyExtractor,
    options: Options | None = None,
    *,
    observer: Observer | None = None,
) -> IngestReport:
    """Extract features from all videos of a source into a store.

    Run it again to continue where it stopped.

    Parameters
    ----------
    source : what to extract from.
    location : the store; it is created if it does not exist.
    extractor : not opened. Every worker process opens a copy; without worker processes, this one is
        opened and stays open.
    options : how to run; one worker process by default.
    observer : is told of the scan, the plan, progress and commits.

    Returns
    -------
    IngestReport
        Also in the metadata of the run's last commit, if there was anything to commit. With
        ``interrupted`` set if Ctrl-C or SIGTERM came: what was whole is committed then.

    Raises
    ------
    InvalidError
        If the source lists problems (each a note of the error) and ``ignore_problems`` is off; or
        if the script that calls this with workers lacks ``if __name__ == "__main__":``. Nothing is
        written.
    MismatchError
        If the store holds the feature made with other settings.
    BusyError
        If another process is writing the store.
    """
    options, observer = options or Options(), observer or SilentObserver()
    if options.scheduler is None and options.n_workers:
        require_main_guard("an ingest with workers", "use workers=0 (Options)")
    backend = backend_for(os.fspath(location))
    if backend.exists():
        with backend.exclusive("a check before an ingest"):
            pass  # another writer should be reported before a long scan, not after it
    listing = _scan(source, options, observer)
    if not backend.exists():
        # Planned before the store is created, so that a plan that fails leaves nothing behind.
        make_plan(backend, listing, extractor, options)
        try:
            name = options.name or visible(source.name)
            BaseStore.create(backend, name=name, kpstore_version=__version__)
        except ExistsError:
            # Another ingest may have created it first; the one that gets the lock continues.
            if not backend.exists():
                raise
    with backend.exclusive(f"ingest of {title(extractor)}"):
        plan = make_plan(backend, listing, extractor, options)
        return _Run(backend, source, extractor, options, observer, plan).run()


def plan_ingest(
    source: Source,
    location: str | os.PathLike[str],
    extractor: AnyExtractor,
    options: Options | None = None,
) -> IngestPlan:
    """Return what :func:`run_ingest` would do with the same arguments; writes nothing."""
    options, backend = options or Options(), backend_for(os.fspath(location))
    return make_plan(backend, _scan(source, options, SilentObserver()), extractor, options)


def _scan(source: Source, options: Options, observer: Observer) -> Listing:
    allowed_by_user()  # refused here, a wrong size does not pass for damage of each file
    listing = source.scan(observer.on_scan)
    n_problems = len(listing.problems)
    if n_problems and not options.ignore_problems:
        error = InvalidError(
            f"{source.name}: {n_problems} problem{'' if n_problems == 1 else 's'} with the data "
            "set; repair it, or ingest the rest with ignore_problems=True (--ignore-problems):"
        )
        raise several(error, listing.problems)
    if not listing.videos:
        raise InvalidError(f"{source.name}: no videos to ingest were found")
    return listing


class _Run:
    """One ingest in progress."""

    def __init__(
        self,
        backend: Backend,
        source: Source,
        extractor: AnyExtractor,
        options: Options,
        observer: Observer,
        plan: IngestPlan,
    ) -> None:
        self._backend, self._source, self._extractor = backend, source, extractor
        self._options, self._observer, self._plan = options, observer, plan
        self._began = self._last_commit = time.monotonic()
        self._results: list[TaskResult] = []
        """Results that are not committed yet."""
        self._progress = Progress(
            run_id=uuid.uuid4().hex[:12],
            feature=title(extractor),
            videos=len(plan.pending),
            videos_before=len(plan.listing.videos) - len(plan.pending),
            frames=plan.n_frames,
            died_at=sorted(plan.died_at),
        )
        self._file = ProgressFile(backend.sidecar)
        self._lock = threading.Lock()
        self._videos_failed = 0
        self._failures: list[Failure] = []
        self._video_notes: list[str] = []
        self._worker_notes: tuple[str, ...] = ()
        self._processors = Processors(extractor)

    def run(self) -> IngestReport:
        self._observer.on_plan(self._plan)
        self._file.write(self._progress, now=True)
        interrupted = False
        if not self._plan.tasks:
            self._prepare()
        try:
            with sigterm_as_interrupt():
                if self._plan.tasks:
                    self._execute()
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:
            # This error, not one of the commit, is what the user should see.
            with interrupts_held_back(for_good=True), suppress(Exception):
                self._commit_rest(interrupted=True)
            self._end()
            if isinstance(error, WorkersError):
                raise WorkersError(f"{error}; {self._how_to_continue()}") from error
            raise
        with interrupts_held_back(for_good=True):
            self._commit_rest(interrupted)
            report = self._report(interrupted)
            self._end()
        return report

    def _commit_rest(self, interrupted: bool) -> None:
        if self._results:
            self._checkpoint(final=True, interrupted=interrupted)

    def _end(self) -> None:
        self._progress.running = False
        self._file.write(self._progress, now=True)

    def _how_to_continue(self) -> str:
        progress = self._progress
        done = progress.videos_before + progress.videos_done - self._videos_waiting
        alone = f" ({named(progress.died_at)}, where a worker died, in processes of their own)"
        return (
            f"{done} of {progress.videos_before + progress.videos} videos are in "
            f"{self._backend.location}; the same command continues from there"
            f"{alone if progress.died_at else ''}"
        )

    def _prepare(self) -> None:
        """Commit videos and features as pending, so that later commits only fill them in."""
        plan = self._plan
        tx = Transaction(
            self._backend,
            f"ingest {self._progress.feature}: {len(plan.pending)} videos to do",
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

    def _about(self) -> dict[str, object]:
        """Return what every commit of this run says about it."""
        return {
            "run": self._progress.run_id,
            "features": [spec.name for spec in self._extractor.specs],
            "source": {"name": self._source.name, **self._source.provenance},
            "kpstore": __version__,
        }

    # -- running -----------------------------------------------------------------------------------

    def _execute(self) -> None:
        options = self._options
        limit_s = min(options.frame_limit_s, MAX_LIMIT_S)
        made = make_executor(options, frame_timeout_s=limit_s)
        meeting = self._backend.sidecar if self._backend.capabilities.parallel_writers else None
        job = Job(
            self._progress.run_id,
            self._source,
            self._extractor,
            options.runs_on,
            meeting=meeting,
            frame_timeout_s=limit_s,
        )
        with ExitStack() as stack:
            # Half a cluster cannot be taken down cleanly, so a Ctrl-C waits until it stands.
            with interrupts_held_back():
                executor = stack.enter_context(made)
            executor.gather(self._observer.on_note)
            self._progress.workers = executor.n_workers
            try:
                executor.fix_at_once(job)
                with interrupts_held_back():
                    self._prepare()
                self._drive(executor, job)
            finally:
                self._worker_notes = tuple(executor.notes)

    def _drive(self, executor: Executor, job: Job) -> None:
        tasks = self._plan.tasks
        results = executor.run(job, tasks, self._make_fork, self._on_frames, self._on_death)
        for n_done, result in enumerate(results, start=1):
            self._progress.workers = executor.n_workers
            self._take(result)
            if n_done < len(tasks) and self._is_due():
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
        progress = self._progress
        with self._lock:
            progress.frames_done = min(progress.frames_done + n_frames, progress.frames)
            progress.updated = time.time()
        self._observer.on_progress(progress)
        self._file.write(progress)

    def _on_death(self, task: Task) -> None:
        # At once: without another worker the run may end with this, or be ended.
        self._progress.lose(task.video_ids)
        self._file.write(self._progress, now=True)

    def _take(self, result: TaskResult) -> None:
        self._results.append(result)
        self._progress.settle(result.task.video_ids)
        frames_failed = 0
        for video in result.task.videos:
            failed = result.failures[video.position]
            found = listed(video.record.id, failed, video.record.frame_paths.__getitem__)
            self._failures += islice(found, MAX_FAILURES - len(self._failures))
            self._videos_failed += failed.video is not None
            frames_failed += video.record.n_frames if failed.video else len(failed.frames)
        self._video_notes += result.notes
        with self._lock:
            progress = self._progress
            progress.frames_done = max(progress.frames_done, self._frames_finished)
            progress.videos_done += len(result.task.videos)
            progress.frames_failed += frames_failed
        self._on_frames(0)

    @property
    def _videos_waiting(self) -> int:
        """Videos of results that are not committed yet."""
        return sum(len(result.task.videos) for result in self._results)

    @property
    def _frames_waiting(self) -> int:
        """Frames of results that are not committed yet."""
        return sum(result.task.n_frames for result in self._results)

    @property
    def _frames_finished(self) -> int:
        return self._progress.frames_committed + self._frames_waiting

    def _is_due(self) -> bool:
        return (
            time.monotonic() - self._last_commit >= self._options.checkpoint_s
            or self._frames_waiting >= self._options.checkpoint_frames
        )

    # -- committing --------------------------------------------------------------------------------

    def _checkpoint(self, *, final: bool, interrupted: bool = False) -> None:
        """Merge the results that came in, count their rows, and commit them."""
        results, progress = self._results, self._progress
        done = progress.videos_before + progress.videos_done
        tx = Transaction(
            self._backend,
            f"{progress.feature}: {done} of {progress.videos_before + progress.videos} videos",
            metadata=self._about(),
        )
        tx.merge([result.fork for result in results if result.fork is not None])
        failures = {p: failed for result in results for p, failed in result.failures.items()}
        for spec in self._extractor.specs:
            blocks = [block for result in results for block in result.blocks[spec.name]]
            for block in join_adjacent(blocks):
                tx.write_rows(spec.name, block.start, block.rows, block.states)
            if spec.axis == "video":
                tx.set_states(spec.name, {p: failed.of_video() for p, failed in failures.items()})
            else:
                tx.set_states(spec.name, failures)
                count_rows(tx, spec.name, [result.task for result in results])
        self._processors.record(tx, results)
        frames = self._frames_waiting
        tx.metadata["checkpoint"] = {"videos": self._videos_waiting, "frames": frames}
        if final:
            tx.metadata["report"] = self._draft(interrupted).to_json()
        snapshot = tx.commit()
        self._results = []
        self._last_commit = time.monotonic()
        progress.checkpoints += 1
        progress.frames_committed += frames
        self._observer.on_commit(snapshot, progress)
        self._file.write(progress, now=True)

    def _draft(self, interrupted: bool) -> IngestReport:
        progress, listing = self._progress, self._plan.listing
        return IngestReport(
            feature=progress.feature,
            snapshot="",
            videos=len(listing.videos),
            videos_done=progress.videos_done - self._videos_failed,
            videos_failed=self._videos_failed,
            videos_before=progress.videos_before,
            frames=self._frames_finished,
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
        store, name = BaseStore.open(self._backend), frame_specs(self._extractor)[0].name
        return replace(
            self._draft(interrupted),
            snapshot=store.snapshot,
            failures=store.failures(name) if name in store.features else (),
        )


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
