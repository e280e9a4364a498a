"""Records which kinds of processors computed the features of a run."""

from __future__ import annotations

from collections.abc import Iterable

from kpstore.extractors.base import AnyExtractor
from kpstore.ingest.worker import TaskResult
from kpstore.store import format as fmt
from kpstore.store.provenance import with_processors
from kpstore.store.transaction import Transaction


class Processors:
    """Kinds of processors that computed a run's features, before the run and in it so far."""

    def __init__(self, extractor: AnyExtractor) -> None:
        self._names = [spec.name for spec in extractor.specs]
        self._before: set[str] | None = None
        self._now: set[str] = set()

    def record(self, tx: Transaction, results: Iterable[TaskResult]) -> None:
        """Record the processors of some results with the features."""
        known = {
            kind
            for name in self._names
            for kind in tx.features[name].provenance.get(fmt.PROCESSORS, ())
        }
        self._before = known if self._before is None else self._before
        self._now |= {result.processor for result in results} - {""}
        for name in self._names:
            made = tx.features[name].provenance
            tx.set_provenance(name, with_processors(made, self._now))

    @property
    def notes(self) -> tuple[str, ...]:
        """One line if rows of one feature come from processors of several kinds."""
        before = self._before or set()
        new = self._now - before
        if not new or len(before | new) == 1:
            return ()
        kinds = "; ".join(sorted(before or new))
        if before:
            here = f"rows so far were computed on {kinds}, these on {' and '.join(sorted(new))}"
            return (f"{here}: last bits may differ",)
        return (
            f"computed on processors of several kinds ({kinds}): last bits may differ between them",
        )
