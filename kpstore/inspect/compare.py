"""What differs between two versions, by video and by feature."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kpstore.inspect.matching import column, column_names, common_videos, only_in, unequal_rows
from kpstore.schema.feature import MADE_BY
from kpstore.store import format as fmt
from kpstore.store.in_order import in_order
from kpstore.store.store import BaseStore


@dataclass(frozen=True)
class FeatureChange:
    """What changed in one feature that both versions hold.

    Parameters
    ----------
    videos : ids of videos whose rows, masks or states differ.
    provenance_changed : whether the record of how it was made differs.
    """

    videos: tuple[str, ...] = ()
    provenance_changed: bool = False


@dataclass(frozen=True)
class VersionDiff:
    """What changed from one version to another; all empty if nothing did.

    Parameters
    ----------
    videos_added, videos_removed : ids.
    videos_changed : ids of videos whose split, length, frame rate, size, annotations or paths
        differ.
    features_added, features_removed : names.
    features_changed : by name, for features that both versions hold.
    """

    videos_added: tuple[str, ...] = ()
    videos_removed: tuple[str, ...] = ()
    videos_changed: tuple[str, ...] = ()
    features_added: tuple[str, ...] = ()
    features_removed: tuple[str, ...] = ()
    features_changed: dict[str, FeatureChange] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(vars(self).values())


_BLOCK_VIDEOS = 32
"""Videos that a thread compares at once: some thousand frames, which keep memory small."""


def diff(old: BaseStore, new: BaseStore) -> VersionDiff:
    """Compare two versions, of one store or of two.

    Videos are matched by id, whatever their order. Floats count as equal if they are the same
    number or both NaN.
    """
    old, new = old.checked(), new.checked()
    common = _CommonVideos(old, new)
    changes = {name: common.change_of(name) for name in old.features if name in new.features}
    return VersionDiff(
        videos_added=only_in(new, old),
        videos_removed=only_in(old, new),
        videos_changed=common.changed(),
        features_added=tuple(name for name in new.features if name not in old.features),
        features_removed=tuple(name for name in old.features if name not in new.features),
        features_changed={
            name: change for name, change in changes.items() if change != FeatureChange()
        },
    )


class _CommonVideos:
    """Compares the videos that two versions have in common; masks are (videos,) bool."""

    def __init__(self, old: BaseStore, new: BaseStore) -> None:
        self._old, self._new = old, new
        self._here, self._there = common_videos(old, new)

    def changed(self) -> tuple[str, ...]:
        """Return the ids of videos whose columns or paths differ."""
        changed = np.zeros(len(self._here), dtype=bool)
        for name in column_names(self._old, self._new):
            before = column(self._old, name, self._here)
            changed |= ~_equal_rows(before, column(self._new, name, self._there))
        return self._ids(self._or_differing(changed, fmt.IMAGE_PATH))

    def change_of(self, name: str) -> FeatureChange:
        """Return what changed in a feature that both versions hold."""
        spec = self._old.feature(name)
        changed = np.full(len(self._here), spec.arrays != self._new.feature(name).arrays)
        for array in reversed(fmt.feature_arrays(spec)):  # the values last: they are the largest
            changed = self._or_differing(changed, array)
        before, after = (
            {**store.provenance(name), MADE_BY: None, fmt.PROCESSORS: None}
            for store in (self._old, self._new)
        )
        return FeatureChange(self._ids(changed), before != after)

    def _ids(self, mask: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(self._old.index.ids[self._here[mask]].tolist())

    def _or_differing(self, changed: NDArray[np.bool_], array: str) -> NDArray[np.bool_]:
        """Return a mask of changed videos together with those whose part of an array differs."""
        if changed.all():
            return changed
        old, new = self._old.index, self._new.index
        framewise = self._old[array].dims[0] == "frame"
        if framewise:
            changed = changed | (old.n_frames[self._here] != new.n_frames[self._there])
        left = np.flatnonzero(~changed)

        def differing(first: int) -> NDArray[np.int64]:
            block = left[first : first + _BLOCK_VIDEOS]
            here, there = self._here[block], self._there[block]
            a = self._old.read(array, old.rows_of(here) if framewise else here)
            b = self._new.read(array, new.rows_of(there) if framewise else there)
            owners = np.repeat(block, old.n_frames[here] if framewise else 1)
            return owners[~_equal_rows(a, b)]

        for videos in in_order(differing, range(0, len(left), _BLOCK_VIDEOS)):
            changed[videos] = True
        return changed


def _equal_rows(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return whether each row holds the same values in both arrays, (rows,) bool."""
    n_rows, odd = len(a), np.flatnonzero(unequal_rows(a, b))  # few, and slower to compare
    a, b = a[odd], b[odd]
    same: NDArray[np.bool_] = np.asarray(a == b, dtype=bool)
    if a.dtype.kind == "f":
        same |= np.isnan(a) & np.isnan(b)
    equal = np.ones(n_rows, dtype=np.bool_)
    equal[odd] = same.reshape(len(odd), math.prod(a.shape[1:])).all(axis=1)
    return equal
