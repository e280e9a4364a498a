"""What differs between two versions, by video and by feature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.feature import MADE_BY
from kpstore.store import format as fmt
from kpstore.store.store import Store


@dataclass(frozen=True)
class FeatureChange:
    """What changed in one feature that both versions hold.

    Parameters
    ----------
    videos : ids of videos whose rows, masks or states differ.
    provenance_changed : whether it is said to be made in another way.
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


def diff(old: Store, new: Store) -> VersionDiff:
    """Compare two versions, of one store or of two.

    Videos are matched by id, wherever they lie. Floats count as equal if they are the same number
    or both NaN.
    """
    old, new = old.checked(), new.checked()
    common = [video_id for video_id in old.index.ids.tolist() if video_id in new.index]
    both = [name for name in old.features if name in new.features]
    changes = {name: _diff_feature(old, new, name, common) for name in both}
    return VersionDiff(
        videos_added=tuple(v for v in new.index.ids.tolist() if v not in old.index),
        videos_removed=tuple(v for v in old.index.ids.tolist() if v not in new.index),
        videos_changed=_changed_videos(old, new, common),
        features_added=tuple(name for name in new.features if name not in old.features),
        features_removed=tuple(name for name in old.features if name not in new.features),
        features_changed={
            name: change for name, change in changes.items() if change != FeatureChange()
        },
    )


def _changed_videos(old: Store, new: Store, common: Sequence[str]) -> tuple[str, ...]:
    if not common:
        return ()
    here, there = old.videos.loc[list(common)], new.videos.loc[list(common)]
    states = [fmt.state_name(name) for name in (*old.features, *new.features)]
    here, there = (
        here.drop(columns=states, errors="ignore"),
        there.drop(columns=states, errors="ignore"),
    )
    # An annotation that only one of them has is empty in the other.
    texts = dict.fromkeys((*old.annotation_names, *new.annotation_names), "")
    here, there = (
        table.assign(**{n: "" for n in texts if n not in table}) for table in (here, there)
    )
    columns = here.columns.union(there.columns)
    here, there = here.reindex(columns=columns), there.reindex(columns=columns)
    same = ((here == there) | (here.isna() & there.isna())).all(axis=1).to_numpy()
    paths = _differing(
        old, new, fmt.IMAGE_PATH, [v for v, equal in zip(common, same, strict=True) if equal]
    )
    return tuple(v for v, equal in zip(common, same, strict=True) if not equal or v in paths)


def _diff_feature(old: Store, new: Store, name: str, common: Sequence[str]) -> FeatureChange:
    changed: set[str] = set()
    if old.feature(name).arrays != new.feature(name).arrays:
        changed.update(common)
    else:
        here, there = old.states(name), new.states(name)
        changed.update(
            v for v in common if here[old.index.position(v)] != there[new.index.position(v)]
        )
        arrays = [
            a
            for a in fmt.feature_metas(old.feature(name), n_videos=0, n_frames=0)
            if a != fmt.state_name(name)
        ]
        for array in arrays:
            changed |= _differing(old, new, array, [v for v in common if v not in changed])
    before, after = (
        {**store.provenance(name), MADE_BY: None, fmt.PROCESSORS: None} for store in (old, new)
    )
    return FeatureChange(tuple(v for v in common if v in changed), before != after)


_BLOCK_VIDEOS = 256
"""Videos compared at once: some ten thousand frames, so memory stays small and reads stay long."""


def _differing(old: Store, new: Store, array: str, videos: Sequence[str]) -> set[str]:
    """Return those of ``videos`` whose part of an array differs."""
    changed: set[str] = set()
    on_frames = old[array].dims[0] == "frame"
    for first in range(0, len(videos), _BLOCK_VIDEOS):
        block = videos[first : first + _BLOCK_VIDEOS]
        here, there = (
            np.array([s.index.position(v) for v in block], dtype=np.int64) for s in (old, new)
        )
        lengths = old.index.n_frames[here] if on_frames else np.ones(len(block), dtype=np.int64)
        longer = (
            new.index.n_frames[there] != old.index.n_frames[here]
            if on_frames
            else np.zeros(len(block), dtype=bool)
        )
        changed.update(v for v, other in zip(block, longer, strict=True) if other)
        here, there, lengths = here[~longer], there[~longer], lengths[~longer]
        a = old.read(array, old.index.rows_of(here) if on_frames else here)
        b = new.read(array, new.index.rows_of(there) if on_frames else there)
        owners = np.repeat(np.flatnonzero(~longer), lengths)
        changed.update(block[owner] for owner in np.unique(owners[~_equal_rows(a, b)]).tolist())
    return changed


def _equal_rows(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """(rows,) bool: whether each row holds the same values."""
    same: NDArray[np.bool_] = np.asarray(a == b, dtype=bool)
    if a.dtype.kind == "f":
        same |= np.isnan(a) & np.isnan(b)
    return np.asarray(same.reshape(len(a), math.prod(a.shape[1:])).all(axis=1))
