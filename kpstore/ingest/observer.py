"""What is told of a run while it goes on."""

from __future__ import annotations

from typing import Protocol

from kpstore.ingest.pending import IngestPlan
from kpstore.ingest.report import Progress


class Observer(Protocol):
    """Receives the events of a run."""

    def on_scan(self, n_videos: int) -> None:
        """Receive the number of videos found so far, while the source is scanned."""

    def on_plan(self, plan: IngestPlan) -> None:
        """Receive the plan, before anything is extracted."""

    def on_note(self, note: str) -> None:
        """Receive a line about the workers: where Dask shows them, or that the run waits."""

    def on_progress(self, progress: Progress) -> None:
        """Receive the progress, often and from any thread."""

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Receive the version that a checkpoint has committed."""


class SilentObserver:
    """An observer that does nothing."""

    def on_scan(self, n_videos: int) -> None:
        """Ignore it."""

    def on_plan(self, plan: IngestPlan) -> None:
        """Ignore it."""

    def on_note(self, note: str) -> None:
        """Ignore it."""

    def on_progress(self, progress: Progress) -> None:
        """Ignore it."""

    def on_commit(self, snapshot: str, progress: Progress) -> None:
        """Ignore it."""
