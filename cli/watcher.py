"""Progress of an ingest on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import typer

from .render import console, count, duration, number

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

    from kpstore.ingest.pending import IngestPlan
    from kpstore.ingest.report import Progress

LINE_EVERY_S = 15.0


class Watcher(Protocol):
    """An observer of an ingest that is a context manager too."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def on_scan(self, n_videos: int) -> None:
        """Told while the source is scanned."""

    def on_plan(self, plan: IngestPlan) -> None:
        """Told what will be done."""

    def on_progress(self, progress: Progress) -> None:
        """Told often, from any thread."""

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Told after each checkpoint."""


def make_watcher() -> Watcher:
    """Return what fits standard error."""
    return BarWatcher() if sys.stderr.isatty() else LineWatcher()


def plan_line(plan: IngestPlan) -> str:
    """Return a plan in one line."""
    before = len(plan.listing.videos) - len(plan.pending)
    known = f", {number(before)} are there already" if before else ""
    return f"{count(len(plan.pending), 'video')} to extract, {count(plan.n_frames, 'frame')}{known}"


class LineWatcher:
    """Writes plain lines, seldom enough for a log file."""

    def __init__(self, every_s: float = LINE_EVERY_S) -> None:
        self._every_s = every_s
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def on_scan(self, n_videos: int) -> None:
        """Say how far the scan is."""
        if self._is_time():
            typer.echo(f"found {count(n_videos, 'video')} …", err=True)

    def on_plan(self, plan: IngestPlan) -> None:
        """Say what will be done."""
        typer.echo(plan_line(plan), err=True)

    def on_progress(self, progress: Progress) -> None:
        """Say how far the run is, seldom."""
        if self._is_time():
            typer.echo(progress_line(progress), err=True)

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Say what is safe now."""
        typer.echo(f"committed {snapshot[:8]}: {progress_line(progress)}", err=True)

    def _is_time(self) -> bool:
        with self._lock:
            if time.monotonic() - self._last < self._every_s:
                return False
            self._last = time.monotonic()
            return True


def progress_line(progress: Progress) -> str:
    """Return the state of a run in one line."""
    done = f"{number(progress.frames_done)} of {number(progress.frames)} frames"
    videos = f"{number(progress.videos_done)} of {number(progress.videos)} videos"
    failed = f", {number(progress.frames_failed)} failed" if progress.frames_failed else ""
    left = f", {duration(progress.eta_s)} left" if progress.frames_done < progress.frames else ""
    return f"{done}, {videos}{failed}, {progress.frames_per_second:.1f} frames/s{left}"


def noted_bar(*measures: ProgressColumn) -> Bar:
    """Return a bar across the terminal with what is being done, measures, and a note."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        *measures,
        TextColumn("{task.fields[note]}", markup=False),
        console=console(stderr=True),
    )


class BarWatcher:
    """Draws a bar."""

    def __init__(self) -> None:
        from rich.progress import TaskProgressColumn

        self._bar = noted_bar(TaskProgressColumn())
        self._task = self._bar.add_task("scanning", total=None, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_scan(self, n_videos: int) -> None:
        """Show how far the scan is."""
        self._bar.update(self._task, note=count(n_videos, "video"))

    def on_plan(self, plan: IngestPlan) -> None:
        """Show what will be done."""
        self._bar.console.print(plan_line(plan))
        self._bar.update(self._task, description="starting", total=max(plan.n_frames, 1), note="")

    def on_progress(self, progress: Progress) -> None:
        """Move the bar."""
        left = f" {duration(progress.eta_s)} left" if progress.frames_done < progress.frames else ""
        failed = f" {number(progress.frames_failed)} failed" if progress.frames_failed else ""
        videos = f"{number(progress.videos_done)}/{number(progress.videos)} videos"
        saved = f" {progress.checkpoints} commits" if progress.checkpoints else ""
        self._bar.update(
            self._task,
            description="extracting",
            completed=progress.frames_done,
            note=f"{progress.frames_per_second:.1f} frames/s{left} {videos}{failed}{saved}",
        )

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Show what is safe now."""
        self.on_progress(progress)


@contextmanager
def frames_bar(what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of frames just done.

    Draws a bar on a terminal, nothing elsewhere.
    """
    if not sys.stderr.isatty():
        yield lambda n_frames: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,} frames", markup=False),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda n_frames: bar.advance(task, n_frames)


@contextmanager
def total_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes how many are done, and of how many.

    Draws a bar on a terminal, nothing elsewhere.
    """
    from rich.progress import Progress

    with Progress(
        console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
