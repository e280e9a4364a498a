"""Rows of a feature by state, and how often each part was detected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kpstore.schema.feature import State, part_names
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

_BLOCK_CHUNKS = 16
"""Chunks read at once: a few thousand rows of masks, which keep memory small and reads long."""


@dataclass(frozen=True)
class Coverage:
    """Rows of a feature by state, and in how many done rows each part was detected.

    Parameters
    ----------
    done, failed, pending : frames (videos, for a feature of videos).
    detected : by part, done rows in which it was detected; empty for a feature without a presence
        mask.
    """

    done: int = 0
    failed: int = 0
    pending: int = 0
    detected: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows, whatever their state."""
        return self.done + self.failed + self.pending

    def share(self, part: str) -> float | None:
        """Return the share of done rows with a part detected, 0 to 1; None if no row is done."""
        return self.detected[part] / self.done if self.done else None

    def __add__(self, other: Coverage) -> Coverage:
        parts = dict.fromkeys((*self.detected, *other.detected))
        return Coverage(
            self.done + other.done,
            self.failed + other.failed,
            self.pending + other.pending,
            {part: self.detected.get(part, 0) + other.detected.get(part, 0) for part in parts},
        )

    def to_json(self) -> dict[str, Any]:
        """Return counts and shares as JSON values."""
        counts = {
            "rows": self.rows,
            "done": self.done,
            "failed": self.failed,
            "pending": self.pending,
        }
        shares = {part: self.share(part) for part in self.detected}
        return {**counts, "detected": dict(self.detected), "share": shares}


def coverage(store: BaseStore, feature: str, split: str | None = None) -> Coverage:
    """Return the coverage of a feature, over one split or over all.

    Raises
    ------
    NotFoundError
        If the store has no such feature or split.
    """
    if split is not None:
        store.index.select(split=split)
    by_split = coverage_by_split(store, feature)
    return total(by_split.values()) if split is None else by_split[split]


def coverage_by_split(store: BaseStore, feature: str) -> dict[str, Coverage]:
    """Return the coverage of a feature for each split, in storage order.

    Masks are read a few chunks at a time.
    """
    store = store.checked()
    spec, splits = store.feature(feature), store.splits
    number = {split: n for n, split in enumerate(splits)}
    split_of = np.array([number[split] for split in store.index.splits], dtype=np.int64)
    parts = part_names(spec)
    states = np.zeros((len(splits), len(State)), dtype=np.int64)
    found = np.zeros((len(splits), len(parts)), dtype=np.int64)
    state_of, mask = store[fmt.row_state_name(spec)], store.detected(feature)
    step = spec.chunk_rows * _BLOCK_CHUNKS
    for start in range(0, len(state_of), step):
        rows = np.arange(start, min(start + step, len(state_of)))
        owner = split_of[store.index.video_of(rows) if spec.axis == "frame" else rows]
        state = state_of[start : start + step]
        np.add.at(states, (owner, state), 1)
        if parts and mask is not None:
            done = state == State.DONE
            for part, there in enumerate(mask[start : start + step][done].T):
                found[:, part] += np.bincount(owner[done][there], minlength=len(splits))
    return {
        split: Coverage(
            done=int(states[n, State.DONE]),
            failed=int(states[n, State.FAILED]),
            pending=int(states[n, State.PENDING]),
            detected=dict(zip(parts, found[n].tolist(), strict=True)),
        )
        for split, n in number.items()
    }


def total(parts: Iterable[Coverage]) -> Coverage:
    """Return the sum of several coverages."""
    return sum(parts, Coverage())
