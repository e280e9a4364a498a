"""One version of a store at a glance, and its history with the names that lead into it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kpstore.backends.base import Commit
from kpstore.inspect.coverage import Coverage, coverage_by_split, total
from kpstore.schema.feature import Provenance, State
from kpstore.store.store import BaseStore


@dataclass(frozen=True)
class DiskUsage:
    """What a store takes on disk, all versions together."""

    size_bytes: int
    files: int


def disk_usage(store: BaseStore) -> DiskUsage | None:
    """Return what a store takes on disk; None where it does not lie on a local disk."""
    root = Path(store.location)
    if not root.exists():
        return None
    sizes = list(_file_sizes(root))
    return DiskUsage(sum(sizes), len(sizes))


def _file_sizes(root: Path) -> Iterator[int]:
    if root.is_file():
        yield root.stat().st_size
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                yield os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue  # a running ingest renames files


@dataclass(frozen=True)
class SplitSummary:
    """Videos and frames of one split."""

    name: str
    videos: int
    frames: int


@dataclass(frozen=True)
class FeatureSummary:
    """What a feature is, how it was made, and how much of it is there.

    Parameters
    ----------
    shape : of the whole array, rows first.
    videos_done, videos_failed, videos_pending : by the ledger; a done video may hold failed frames.
    coverage : by split, and ``total`` over all of them.
    """

    name: str
    axis: str
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    videos_done: int
    videos_failed: int
    videos_pending: int
    coverage: Mapping[str, Coverage]
    total: Coverage
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        by_split = {split: cover.to_json() for split, cover in self.coverage.items()}
        coverage = {"coverage": self.total.to_json(), "coverage_by_split": by_split}
        plain = {
            key: value
            for key, value in vars(self).items()
            if key not in ("coverage", "total", "provenance")
        }
        return {**plain, "shape": list(self.shape), **coverage, "provenance": dict(self.provenance)}


@dataclass(frozen=True)
class LogEntry:
    """One version, with the tags and branches that name it."""

    commit: Commit
    tags: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()

    @property
    def report(self) -> Mapping[str, Any] | None:
        """What an ingest had to say at its end; None for any other version."""
        return self.commit.metadata.get("report")

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON values."""
        time = self.commit.time.isoformat()
        return {
            **asdict(self.commit),
            "time": time,
            "tags": list(self.tags),
            "branches": list(self.branches),
        }


@dataclass(frozen=True)
class Summary:
    """One version of a store.

    Parameters
    ----------
    newest : the commit of this version.
    disk : what the store takes on disk, all versions together.
    lacks : what a store of an older format does without, in one line; empty if that is nothing.
    """

    location: str
    name: str
    newest: LogEntry
    splits: tuple[SplitSummary, ...]
    features: tuple[FeatureSummary, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    branches: Mapping[str, str] = field(default_factory=dict)
    disk: DiskUsage | None = None
    lacks: str = ""

    @property
    def videos(self) -> int:
        """Number of videos."""
        return sum(split.videos for split in self.splits)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(split.frames for split in self.splits)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            "location": self.location,
            "name": self.name,
            "version": self.newest.commit.id,
            "time": self.newest.commit.time.isoformat(),
            "message": self.newest.commit.message,
            "videos": self.videos,
            "frames": self.frames,
            "splits": [asdict(split) for split in self.splits],
            "features": {feature.name: feature.to_json() for feature in self.features},
            "tags": dict(self.tags),
            "branches": dict(self.branches),
            "disk": None if self.disk is None else asdict(self.disk),
            "lacks": self.lacks,
        }


def summarize(store: BaseStore) -> Summary:
    """Return one version at a glance; reads the masks of its features, not their values."""
    splits = store.index.splits.astype(str)
    return Summary(
        location=store.location,
        name=store.name,
        newest=read_log(store, limit=1)[0],
        splits=tuple(
            SplitSummary(
                name, int((splits == name).sum()), int(store.index.n_frames[splits == name].sum())
            )
            for name in store.splits
        ),
        features=tuple(_summarize_feature(store, name) for name in store.features),
        tags=store.tags,
        branches=store.branches,
        disk=disk_usage(store),
        lacks=store.lacks,
    )


def _summarize_feature(store: BaseStore, name: str) -> FeatureSummary:
    spec, states = store.feature(name), store.states(name)
    counts = np.bincount(states, minlength=len(State)).tolist()
    by_split = coverage_by_split(store, name)
    return FeatureSummary(
        name=name,
        axis=spec.axis,
        shape=store[name].shape,
        dtype=spec.dtype,
        chunk_rows=spec.chunk_rows,
        videos_done=counts[State.DONE],
        videos_failed=counts[State.FAILED],
        videos_pending=counts[State.PENDING],
        coverage=by_split,
        total=total(by_split.values()),
        provenance=store.provenance(name),
    )


def read_log(store: BaseStore, *, limit: int | None = None) -> list[LogEntry]:
    """Return a version and those before it, newest first, with the tags and branches that name them."""
    tags, branches = store.tags, store.branches
    history = store.backend.history(store.snapshot)
    commits = (
        list(history)
        if limit is None
        else [commit for _, commit in zip(range(limit), history, strict=False)]
    )
    return [
        LogEntry(commit, _names_of(commit.id, tags), _names_of(commit.id, branches))
        for commit in commits
    ]


def read_tags(store: BaseStore) -> dict[str, LogEntry]:
    """Return all tags of a store, sorted, with the versions that they name."""
    return {tag: read_log(store.at(tag), limit=1)[0] for tag in store.tags}


def _names_of(snapshot: str, names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, target in names.items() if target == snapshot)
