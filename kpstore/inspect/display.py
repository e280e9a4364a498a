"""How a store is shown: a few lines in a terminal, a compact table in a notebook.

Both are made whenever the store is shown, so they read only the list of videos and the states, and
neither masks nor values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from kpstore.inspect.summary import count_states, disk_usage, summarize_splits
from kpstore.store import shown
from kpstore.store.arrays import FeatureArray
from kpstore.store.store import BaseStore
from kpstore.visible import visible

_COLUMNS = ("feature", "a row", "dtype", "decoded", "videos done", "failed", "pending")


def to_text(store: BaseStore) -> str:
    """Return the text of ``repr``: location and version, splits, and a line per feature."""
    lines = [
        f"<kpstore.Store {store.name!r}, {_videos(store)}",
        f"  {store.location} at {_version(store)}",
    ]
    splits = [f"{split} {videos:,}/{frames:,}" for split, videos, frames in _splits(store)]
    if len(splits) > 1:
        lines.append(f"  {', '.join(splits)}")
    for name, row, dtype, _, done, failed, pending in _features(store):
        lines.append(
            f"  {name} {row} {dtype}: videos {done:,} done, {failed:,} failed, {pending:,} pending"
        )
    return "\n".join(map(visible, lines)) + ">"


def to_html(store: BaseStore) -> str:
    """Return the same with the size on disk, as HTML for a notebook; all text is escaped."""
    disk = disk_usage(store)
    on_disk = f", {shown.size(disk.size_bytes)} on disk with all versions" if disk else ""
    return shown.block(
        shown.heading(store.name, f"{_videos(store)}{on_disk}"),
        shown.table([("store", store.location), ("version", _version(store))]),
        shown.table(_splits(store), ("split", "videos", "frames")),
        shown.table(_features(store), _COLUMNS),
    )


def _videos(store: BaseStore) -> str:
    videos, frames = len(store.index), store.index.total_frames
    return f"{shown.count(videos, 'video')}, {shown.count(frames, 'frame')}"


def _version(store: BaseStore) -> str:
    tags = [tag for tag, snapshot in store.tags.items() if snapshot == store.snapshot]
    return f"{store.snapshot} ({', '.join(tags)})" if tags else store.snapshot


def _splits(store: BaseStore) -> list[tuple[str, int, int]]:
    return [(one.name or "(none)", one.videos, one.frames) for one in summarize_splits(store)]


def _features(store: BaseStore) -> Iterator[tuple[str, str, str, str, int, int, int]]:
    for name, stored in store.features.items():
        pending, done, failed = count_states(store, name)
        array = store[name]
        yield (
            name,
            f"{_row(array)} per {stored.spec.axis}",
            stored.spec.dtype,
            shown.size(math.prod(array.shape) * array.dtype.itemsize),
            done,
            failed,
            pending,
        )


def _row(array: FeatureArray) -> str:
    axes = list(zip(array.dims, array.shape, strict=True))[1:]
    return " × ".join(f"{length} {dim}" for dim, length in axes) or "one"
