"""Summary of one version of a store, and its history with tags and branches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kpstore.backends.base import Commit
from kpstore.backends.optional import KeepsCopies
from kpstore.inspect.coverage import Coverage, coverage_by_split, total
from kpstore.schema.feature import Provenance, State
from kpstore.store.removed import Removals
from kpstore.store.store import BaseStore


@dataclass(frozen=True)
class DiskUsage:
    """Size of a store on disk, all versions together."""

    size_bytes: int
    files: int


def disk_usage(store: BaseStore) -> DiskUsage | None:
    """Return the size of a store on disk, or in object storage; None if it is in memory."""
    if isinstance(store.backend, KeepsCopies):
        sizes = list(store.backend.sizes())
        return DiskUsage(sum(sizes), len(sizes))
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
    """What a feature is, how it was made, and how much of it is done.

    Parameters
    ----------
    shape : of the whole array, rows first.
    videos_done, videos_failed, videos_pending : by state; a done video may hold failed frames.
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

    def to_json(self) -> dict[str, object]:
        """Return the summary as JSON values."""
        by_split = {split: cover.to_json() for split, cover in self.coverage.items()}
        others = ("coverage", "total", "provenance")
        return {
            **{key: value for key, value in vars(self).items() if key not in others},
            "shape": list(self.shape),
            "coverage": self.total.to_json(),
            "coverage_by_split": by_split,
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True)
class LogEntry:
    """One version, with the tags and branches that name it."""

    commit: Commit
    tags: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()

    @property
    def report(self) -> Mapping[str, Any] | None:
        """Report that an ingest stored with the version; None for other versions."""
        found = self.commit.metadata.get("report")
        return found if isinstance(found, dict) else None

    def to_json(self) -> dict[str, object]:
        """Return the entry as JSON values."""
        return {
            **asdict(self.commit),
            "time": self.commit.time.isoformat(),
            "tags": list(self.tags),
            "branches": list(self.branches),
        }


@dataclass(frozen=True)
class Summary:
    """One version of a store.

    Parameters
    ----------
    newest : the commit of this version.
    disk : size of the store on disk, all versions together.
    lacks : what a store of an older format lacks, in one line; empty for the newest format.
    removed : videos and features that were removed.
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
    removed: Removals = field(default_factory=Removals)

    @property
    def videos(self) -> int:
        """Number of videos."""
        return sum(split.videos for split in self.splits)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(split.frames for split in self.splits)

    def to_json(self) -> dict[str, object]:
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
            "removed": self.removed.to_json(),
        }


def summarize(store: BaseStore) -> Summary:
    """Return a summary of one version; reads the masks of its features, not their values."""
    return Summary(
        location=store.location,
        name=store.name,
        newest=read_log(store, limit=1)[0],
        splits=summarize_splits(store),
        features=tuple(_summarize_feature(store, name) for name in store.features),
        tags=store.tags,
        branches=store.branches,
        disk=disk_usage(store),
        lacks=store.lacks,
        removed=store.removed,
    )


def summarize_splits(store: BaseStore) -> tuple[SplitSummary, ...]:
    """Return the number of videos and frames of each split, in storage order."""
    lengths = {name: store.index.n_frames[store.index.splits == name] for name in store.splits}
    return tuple(SplitSummary(name, len(n), int(n.sum())) for name, n in lengths.items())


def count_states(store: BaseStore, feature: str) -> list[int]:
    """Return how many videos are pending, done and failed for a feature."""
    counts = np.bincount(store.states(feature), minlength=len(State))
    return [int(counts[state]) for state in State]  # a damaged store may hold other states


def _summarize_feature(store: BaseStore, name: str) -> FeatureSummary:
    spec = store.feature(name)
    pending, done, failed = count_states(store, name)
    by_split = coverage_by_split(store, name)
    return FeatureSummary(
        name=name,
        axis=spec.axis,
        shape=store[name].shape,
        dtype=spec.dtype,
        chunk_rows=spec.chunk_rows,
        videos_done=done,
        videos_failed=failed,
        videos_pending=pending,
        coverage=by_split,
        total=total(by_split.values()),
        provenance=store.provenance(name),
    )


def read_log(store: BaseStore, *, limit: int | None = None) -> list[LogEntry]:
    """Return a version and its ancestors, newest first, with their tags and branches."""
    tags, branches = store.tags, store.branches
    return [
        LogEntry(commit, _names_of(commit.id, tags), _names_of(commit.id, branches))
        for commit in islice(store.backend.history(store.snapshot), limit)
    ]


def read_named(store: BaseStore, names: Mapping[str, str]) -> dict[str, LogEntry]:
    """Return the version behind each name of ``store.tags`` or ``store.branches``."""
    return {name: read_log(store.at(version), limit=1)[0] for name, version in names.items()}


def _names_of(snapshot: str, names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, target in names.items() if target == snapshot)
