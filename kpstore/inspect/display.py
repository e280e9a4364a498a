"""How a store shows itself: a few lines in a terminal, a compact table in a notebook.

Both are made at every look, so they read the list of videos and the ledgers, and neither masks nor
values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from kpstore.inspect.summary import disk_usage
from kpstore.schema.feature import State
from kpstore.store import html
from kpstore.store.arrays import FeatureArray
from kpstore.store.store import BaseStore

_COLUMNS = ("feature", "a row", "dtype", "decoded", "videos done", "failed", "pending")


def to_text(store: BaseStore) -> str:
    """Return what ``repr`` shows: place and version, splits, and a line per feature."""
    lines = [
        f"<kpstore.Store {store.name!r}, {_videos(store)}",
        f"  {store.location} at {_version(store)}",
    ]
    if len(store.splits) > 1:
        lines.append(
            "  "
            + ", ".join(
                f"{split} {videos:,}/{frames:,}" for split, videos, frames in _splits(store)
            )
        )
    for name, row, dtype, _, done, failed, pending in _features(store):
        lines.append(
            f"  {name} {row} {dtype}: videos {done:,} done, {failed:,} failed, {pending:,} pending"
        )
    return "\n".join(lines) + ">"


def to_html(store: BaseStore) -> str:
    """Return the same, and what the store takes on disk, as HTML for a notebook.

    All text is escaped.
    """
    disk = disk_usage(store)
    on_disk = f", {html.size(disk.size_bytes)} on disk with all versions" if disk else ""
    return html.block(
        html.heading(store.name, f"{_videos(store)}{on_disk}"),
        html.table([("store", store.location), ("version", _version(store))]),
        html.table(_splits(store), ("split", "videos", "frames")),
        html.table(_features(store), _COLUMNS),
    )


def _videos(store: BaseStore) -> str:
    return f"{_count(len(store.index), 'video')}, {_count(store.index.total_frames, 'frame')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _version(store: BaseStore) -> str:
    tags = [tag for tag, snapshot in store.tags.items() if snapshot == store.snapshot]
    return f"{store.snapshot} ({', '.join(tags)})" if tags else store.snapshot


def _splits(store: BaseStore) -> list[tuple[str, int, int]]:
    index = store.index
    picked = [(split, index.splits == split) for split in store.splits]
    return [
        (name or "(none)", int(mine.sum()), int(index.n_frames[mine].sum()))
        for name, mine in picked
    ]


def _features(store: BaseStore) -> Iterator[tuple[str, str, str, str, int, int, int]]:
    for name, stored in store.features.items():
        counts = np.bincount(store.states(name), minlength=len(State)).tolist()
        states = (counts[State.DONE], counts[State.FAILED], counts[State.PENDING])
        yield (
            name,
            f"{_row(store[name])} per {stored.spec.axis}",
            stored.spec.dtype,
            _decoded(store[name]),
            *states,
        )


def _row(array: FeatureArray) -> str:
    return (
        " × ".join(
            f"{length} {dim}" for dim, length in zip(array.dims[1:], array.shape[1:], strict=True)
        )
        or "one"
    )


def _decoded(array: FeatureArray) -> str:
    return html.size(math.prod(array.shape) * array.dtype.itemsize)
