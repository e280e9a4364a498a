"""What is settled about a run's extractor before anything is committed, and what is kept on record of who computed."""

from __future__ import annotations

from collections.abc import Iterable

from kpstore.extractors.base import AnyExtractor, is_settling
from kpstore.ingest.executors import Executor
from kpstore.ingest.job import Job
from kpstore.ingest.worker import TaskResult
from kpstore.store import format as fmt
from kpstore.store.transaction import Transaction


def settle_by_trial(executor: Executor, job: Job) -> None:
    """Let all workers try how many frames their GPU takes at once, and settle for what the least of them can do.

    Nothing is tried if the number is given or on record, or on a CPU.
    """
    extractor = job.extractor
    if is_settling(extractor) and not extractor.settled:
        extractor.keep(extractor.at_once if job.device == "cpu" else min(executor.try_out(job)))


class Processors:
    """Kinds of processors that have computed a run's features: before it, and in it as far as it has come."""

    def __init__(self, extractor: AnyExtractor) -> None:
        self._names = [spec.name for spec in extractor.specs]
        self._before: set[str] | None = None
        self._now: set[str] = set()

    def record(self, tx: Transaction, results: Iterable[TaskResult]) -> None:
        """Add those of some results to what the features have on record."""
        known = {
            kind
            for name in self._names
            for kind in tx.features[name].provenance.get(fmt.PROCESSORS, ())
        }
        self._before = known if self._before is None else self._before
        self._now |= {result.processor for result in results} - {""}
        for name in self._names:
            tx.add_processors(name, self._now)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: rows of one feature that come from processors of several kinds."""
        before = self._before or set()
        if not (new := self._now - before) or len(before | self._now) == 1:
            return ()
        rest = sorted(before or self._now)
        told = " and ".join(sorted(new))
        if not before:
            return (
                f"computed on processors of several kinds ({'; '.join(rest)}): last bits may "
                "differ between them",
            )
        return (
            f"rows so far were computed on {'; '.join(rest)}, these on {told}: last bits may "
            "differ",
        )
