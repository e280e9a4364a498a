"""Progress of an ingest on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kpstore.visible import visible

from .render import console, count, duration, number, say, say_above

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

    from kpstore.ingest.observer import Observer
    from kpstore.ingest.pending import IngestPlan
    from kpstore.ingest.report import Progress

LINE_EVERY_S = 15.0


@contextmanager
def make_watcher(note: str = "") -> Iterator[Observer]:
    """Yield an observer of an ingest that suits standard error; it adds a note to the plan."""
    if not sys.stderr.isatty():
        yield LineWatcher(note)
        return
    from rich.progress import TaskProgressColumn

    with noted_bar(TaskProgressColumn()) as bar:
        yield BarWatcher(bar, note)


def plan_line(plan: IngestPlan, note: str) -> str:
    """Return a plan in one line."""
    before = len(plan.listing.videos) - len(plan.pending)
    known = f", {number(before)} are there already" if before else ""
    work = f"{count(len(plan.pending), 'video')} to extract, {count(plan.n_frames, 'frame')}{known}"
    return f"{work}; {note}" if note and len(plan.pending) else work


class LineWatcher:
    """Writes plain lines, seldom enough for a log file."""

    def __init__(self, note: str) -> None:
        self._note, self._last = note, time.monotonic()
        self._lock = threading.Lock()

    def on_scan(self, n_videos: int) -> None:
        """Say how far the scan is."""
        if self._is_time():
            say(f"found {count(n_videos, 'video')} …", err=True)

    def on_plan(self, plan: IngestPlan) -> None:
        """Say what will be done."""
        say(plan_line(plan, self._note), err=True)

    def on_note(self, note: str) -> None:
        """Say it."""
        say(note, err=True)

    def on_progress(self, progress: Progress) -> None:
        """Say how far the run is, seldom."""
        if self._is_time():
            say(progress_line(progress), err=True)

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Say what is safe now."""
        say(f"committed {snapshot[:8]}: {progress_line(progress)}", err=True)

    def _is_time(self) -> bool:
        with self._lock:
            if time.monotonic() - self._last < LINE_EVERY_S:
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
    """Moves a bar."""

    def __init__(self, bar: Bar, note: str) -> None:
        self._note = note
        self._bar, self._task = bar, bar.add_task("scanning", total=None, note="")

    def on_scan(self, n_videos: int) -> None:
        """Show how far the scan is."""
        self._bar.update(self._task, note=count(n_videos, "video"))

    def on_plan(self, plan: IngestPlan) -> None:
        """Show what will be done."""
        say_above(self._bar, plan_line(plan, self._note))
        self._bar.update(self._task, description="starting", total=max(plan.n_frames, 1), note="")

    def on_note(self, note: str) -> None:
        """Show it above the bar."""
        say_above(self._bar, note)

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
    from rich.progress import SpinnerColumn, TextColumn

    text = TextColumn("{task.description}: {task.completed:,} frames", markup=False)
    with _transient_bar(SpinnerColumn(), text) as bar:
        task = bar.add_task(visible(what), total=None)
        yield lambda n_frames: bar.advance(task, n_frames)


@contextmanager
def total_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes how many are done, and of how many.

    Draws a bar on a terminal, nothing elsewhere.
    """
    with _transient_bar() as bar:
        task = bar.add_task(visible(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _transient_bar(*columns: ProgressColumn) -> Bar:
    """Return a bar that is erased at its end; it draws nothing outside a terminal."""
    from rich.progress import Progress

    off = not sys.stderr.isatty()
    return Progress(*columns, console=console(stderr=True), transient=True, disable=off)
