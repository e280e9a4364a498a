"""Comparison of a store with its data set on disk, by split."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kpstore.schema.feature import State
from kpstore.sources.base import Source
from kpstore.sources.images import is_image
from kpstore.sources.lips import LipsSource
from kpstore.sources.phoenix import PhoenixSource
from kpstore.sources.videos import VideosSource, is_video
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore


@dataclass
class SplitComparison:
    """Comparison of one split.

    Parameters
    ----------
    source_videos, source_frames, store_videos, store_frames : numbers of videos and frames.
    missing, extra : ids of videos that only the data set has, and that only the store has.
    other_length : by id, number of frames in the data set and in the store.
    pending : by feature, number of pending videos among those that both hold.
    failed : by feature, number of their failed rows (frames, or videos for a feature of videos).
    """

    source_videos: int = 0
    source_frames: int = 0
    store_videos: int = 0
    store_frames: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    other_length: dict[str, tuple[int, int]] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether the store differs from its data set, or is not finished."""
        return bool(self.missing or self.extra or self.other_length or self.pending or self.failed)


@dataclass
class SourceComparison:
    """Comparison of a store with its data set.

    Parameters
    ----------
    source : name of the data set.
    splits : by name.
    other_split : ids of videos that the store has in another split; empty if its splits were set
        by hand.
    problems : problems of the data set itself, one line for each.
    removed : ids of videos that were removed from the store; they are not compared.
    """

    source: str
    splits: dict[str, SplitComparison] = field(default_factory=dict)
    other_split: list[str] = field(default_factory=list)
    problems: tuple[str, ...] = ()
    removed: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether the store differs from its data set, or is not finished."""
        return bool(self.other_split or any(split.differs for split in self.splits.values()))

    def to_json(self) -> dict[str, object]:
        """Return the comparison as JSON values."""
        return {"differs": self.differs, **asdict(self)}


def find_source(root: Path) -> Source:
    """Return the data set in a folder: PHOENIX-2014-T by its layout, mouth crops, or videos.

    A configuration (``.yml``) or a folder of npz files is read as mouth crops.
    """
    phoenix = PhoenixSource(root)
    if phoenix.is_there():
        return phoenix
    lists = root.is_file() and root.suffix in (".yml", ".yaml")
    return LipsSource(root) if lists or _holds_crops(root) else VideosSource(root)


def _holds_crops(root: Path) -> bool:
    """Whether the first folder with data holds npz files and neither videos nor pictures."""
    for _, _, names in os.walk(root):
        others = any(is_image(name) or is_video(name) for name in names)
        if others or any(n.endswith(".npz") and not n.startswith(".") for n in names):
            return not others
    return False


def compare_with_source(
    store: BaseStore, source: Source, *, on_video: Callable[[int], None] | None = None
) -> SourceComparison:
    """Compare a store with the data set that it was extracted from, video by video.

    Parameters
    ----------
    on_video : called with the number of videos that the scan has found so far.
    """
    listing = source.scan(on_video)
    found = SourceComparison(source.name, problems=listing.problems)
    index, removed = store.index, store.removed.videos
    listed = {video.id: video for video in listing.videos}
    for video in listing.videos:
        if video.id in removed:
            found.removed.append(video.id)
            continue
        split = found.splits.setdefault(video.split, SplitComparison())
        split.source_videos += 1
        split.source_frames += video.n_frames
        if video.id not in index:
            split.missing.append(video.id)
            continue
        position = index.position(video.id)
        stored = int(index.n_frames[position])
        if stored != video.n_frames:
            split.other_length[video.id] = (video.n_frames, stored)
        if index.splits[position] != video.split and not store.own_splits:
            found.other_split.append(video.id)
    for position, video_id in enumerate(index.ids.tolist()):
        split = found.splits.setdefault(index.splits[position], SplitComparison())
        split.store_videos += 1
        split.store_frames += int(index.n_frames[position])
        if video_id not in listed:
            split.extra.append(video_id)
    is_listed = np.array([video_id in listed for video_id in index.ids.tolist()], dtype=bool)
    for name in store.features:
        _count_states(store, name, found, is_listed)
    return found


def _count_states(
    store: BaseStore, name: str, found: SourceComparison, listed: NDArray[np.bool_]
) -> None:
    states = store.states(name)
    pending = (states == State.PENDING) & listed
    n_failed = (states == State.FAILED).astype(np.int64)
    if store.feature(name).axis == "frame" and len(states):
        failed = np.asarray(store[fmt.status_name(name)][:]) == State.FAILED
        offsets = store.index.offsets[:-1]
        of_video = np.add.reduceat(np.append(failed, False), offsets, dtype=np.int64)
        # A failed video without frames counts as one.
        n_failed = np.where(store.index.n_frames > 0, of_video, n_failed)
    n_failed = n_failed * listed
    for split_name, split in found.splits.items():
        here = store.index.splits == split_name
        for counts, numbers in ((split.pending, pending), (split.failed, n_failed)):
            if number := int(numbers[here].sum()):
                counts[name] = number
