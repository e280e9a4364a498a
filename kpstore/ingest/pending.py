"""Plans an ingest: compares what a source holds with what a store holds already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Backend
from kpstore.errors import InvalidError, MismatchError
from kpstore.extractors.base import AnyExtractor, frame_specs, goes_in_lockstep, settle
from kpstore.ingest.options import Options
from kpstore.ingest.plan import Task, plan_tasks
from kpstore.ingest.report import read_progress
from kpstore.schema.face_features import FACE_PATH
from kpstore.schema.feature import State
from kpstore.schema.index import VideoIndex, VideoRecord
from kpstore.sources.base import Listing
from kpstore.store import format as fmt
from kpstore.store.provenance import check_same
from kpstore.store.removed import Removals
from kpstore.store.store import BaseStore

TASK_SECONDS = 30.0
"""How long a task should take: a lost task costs little, and its start does not matter."""

MAX_TASK_CHUNKS = 16
TASKS_PER_WORKER = 4
_MANY = 32
"""Workers of somebody's scheduler to share with, as nobody knows how many will come."""


@dataclass(frozen=True)
class IngestPlan:
    """What a run would do; nothing has been written yet.

    Parameters
    ----------
    listing : what the source holds, but for videos that were removed from the store.
    new_videos : videos that the store does not have yet.
    pending : positions that the videos to extract have, or will have, in the store.
    tasks : pieces of work for the workers.
    overwritten : positions of videos that are done and would be extracted again.
    restart : whether the feature is created again, with the extractor's settings instead of those
        that it was made with.
    notes : differences between the data set and the store, which keeps its own.
    died_at : ids of videos at which a worker may have died in an earlier run.
    """

    listing: Listing
    new_videos: tuple[VideoRecord, ...]
    pending: NDArray[np.int64]
    tasks: tuple[Task, ...]
    overwritten: NDArray[np.int64]
    restart: bool = False
    notes: tuple[str, ...] = ()
    died_at: frozenset[str] = frozenset()

    @property
    def n_frames(self) -> int:
        """Frames to extract."""
        return sum(task.n_frames for task in self.tasks)


def title(extractor: AnyExtractor) -> str:
    """Return a name for all features of an extractor, for messages."""
    names = [spec.name for spec in frame_specs(extractor)]
    more = len(extractor.specs) - 1
    return f"{names[0]} and {more} more" if more > 1 else " and ".join(names)


def make_plan(
    backend: Backend, listing: Listing, extractor: AnyExtractor, options: Options
) -> IngestPlan:
    """Compare what a source holds with what a store holds, and cut what is missing into tasks."""
    store = BaseStore.open(backend) if backend.exists() else None
    _check_references(extractor, listing.videos)
    listing, left_out = _without_removed(listing, store)
    videos = listing.videos
    known = [] if store is None else [video for video in videos if video.id in store.index]
    notes = () if store is None else _check_unchanged(store, known)
    new = tuple(video for video in videos if store is None or video.id not in store.index)
    index = _future_index(store, new)
    by_position = {index.position(video.id): video for video in videos}
    there, redo = _what_is_there(store, extractor, options)
    pending = sorted(p for p in by_position if p >= len(there) or not there[p] or redo[p])
    wanted = np.array(pending, dtype=np.int64)
    # Only features of which nothing is kept may be created again with other settings.
    features = {} if store is None else store.features
    restart = (
        options.overwrite
        and any(spec.name in features for spec in extractor.specs)
        and not len(np.setdiff1d(np.flatnonzero(there), wanted))
    )
    try:
        begun = _begin(extractor, {} if restart else features, options)
    except MismatchError as error:
        if there.any() or not _are_of_such_a_run(extractor, features):
            raise
        # A run that ended before it had extracted anything binds no other.
        begun = (f"begun anew, as nothing was extracted: {error}", *_begin(extractor, {}, options))
        restart = True
    task_frames = options.task_frames or _task_frames(
        extractor, index.n_frames[wanted], options.n_workers if options.scheduler is None else _MANY
    )
    died_at = _died_at(backend)
    chunk_rows = [spec.chunk_rows for spec in frame_specs(extractor)]
    tasks = plan_tasks(
        index,
        [by_position[p] for p in pending],
        wanted,
        chunk_rows=chunk_rows,
        task_frames=task_frames,
        died_at=died_at,
    )
    overwritten = np.array([p for p in pending if p < len(redo) and redo[p]], dtype=np.int64)
    return IngestPlan(
        listing,
        new,
        wanted,
        tuple(tasks),
        overwritten,
        restart,
        (*left_out, *notes, *begun),
        died_at,
    )


def _begin(
    extractor: AnyExtractor, stored: Mapping[str, fmt.StoredFeature], options: Options
) -> tuple[str, ...]:
    """Let an extractor go on with features that are stored; return notes.

    :class:`MismatchError` if its rows would not mean the same.
    """
    made = {name: one.provenance for name, one in stored.items()}
    notes = settle(extractor, made, options.runs_on)
    # Asked for a new feature too: missing weights should show before anything runs.
    provenance = extractor.provenance
    for spec in extractor.specs:
        if spec.name in stored:
            check_same(stored[spec.name], spec, provenance[spec.name])
    return notes


def _are_of_such_a_run(extractor: AnyExtractor, features: Mapping[str, fmt.StoredFeature]) -> bool:
    """Whether an ingest with an extractor of this name made these features, on the same axes."""
    provenance = extractor.provenance
    pairs = [(features[spec.name], spec) for spec in extractor.specs if spec.name in features]
    return all(
        one.provenance.get("extractor") == provenance[spec.name].get("extractor")
        and one.spec.axis == spec.axis
        for one, spec in pairs
    )


def _died_at(backend: Backend) -> frozenset[str]:
    """Return the videos at which workers may have died, as far as the last run's progress says."""
    try:
        last = read_progress(backend)
    except InvalidError:  # not readable, and about to be replaced
        return frozenset()
    return frozenset() if last is None else frozenset(last.died_at)


def _without_removed(listing: Listing, store: BaseStore | None) -> tuple[Listing, tuple[str, ...]]:
    """Return a listing without the videos that were removed from a store, and a note on these."""
    removed = Removals() if store is None else store.removed
    out = [video.id for video in listing.videos if video.id in removed.videos]
    if store is None or not out:
        return listing, ()
    kept = tuple(video for video in listing.videos if video.id not in removed.videos)
    return replace(listing, videos=kept), (removed.stay_out(out, store.location),)


def _check_references(extractor: AnyExtractor, videos: Sequence[VideoRecord]) -> None:
    """Raise :class:`InvalidError` if every video would fail because it has no reference picture."""
    is_needed = getattr(extractor, "needs_reference", False)
    if is_needed and not any(video.annotations.get(FACE_PATH) for video in videos):
        raise InvalidError(
            f"{title(extractor)} need a frontal picture of each video ({FACE_PATH!r}), and none of "
            f"these {len(videos)} videos has one; 'kpstore ingest faces' takes a folder of them"
        )


def _what_is_there(
    store: BaseStore | None, extractor: AnyExtractor, options: Options
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which videos are done or failed, and which of these to extract again, (videos,) bool.

    Raises
    ------
    InvalidError
        If a video has some of the extractor's features and lacks others: extracting it would
        replace those that it has.
    """
    if store is None:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    names = [spec.name for spec in extractor.specs]
    known = [name for name in names if name in store.features]
    none = np.full(len(store.index), State.PENDING, dtype=np.uint8)
    states = np.array([store.states(name) if name in known else none for name in names])
    there = (states != State.PENDING).any(axis=0)
    redo = there & options.overwrite
    if options.retry_failed:
        for name in known:
            redo |= np.asarray(store[fmt.failure_name(name)][:]) != ""
    partly = np.flatnonzero(there & (states == State.PENDING).any(axis=0) & ~redo)
    if len(partly):
        is_lacking = states[:, partly[0]] == State.PENDING
        lacking = [name for name, lacks in zip(names, is_lacking, strict=True) if lacks]
        raise InvalidError(
            f"video {store.index.ids[partly[0]]!r} has some features in {store.location} already, "
            f"but no {', '.join(lacking)}; overwrite=True (--overwrite) extracts all of them again"
        )
    return there, redo


def _task_frames(extractor: AnyExtractor, lengths: NDArray[np.int64], workers: int) -> int:
    """Return the frames of a task: half a minute of work, or less if there is little to share.

    Of an extractor that takes several videos at once, a task holds twice as many, if there are
    enough to share: towards its end, fewer and fewer are left to be computed together.
    """
    frames = int(lengths.sum())
    by_time = int(max(extractor.typical_fps, 0.1) * TASK_SECONDS) + 1
    if goes_in_lockstep(extractor) and frames:
        by_time = max(by_time, 2 * extractor.videos_at_once * -(-frames // len(lengths)))
    by_share = -(-frames // (TASKS_PER_WORKER * max(workers, 1)))
    largest = max(frame_specs(extractor), key=lambda spec: spec.row_bytes)
    return max(1, min(by_time, by_share, MAX_TASK_CHUNKS * largest.chunk_rows))


def _check_unchanged(store: BaseStore, videos: Sequence[VideoRecord]) -> tuple[str, ...]:
    """Return notes on harmless differences between a data set and a store.

    Raises
    ------
    InvalidError
        If a difference would mix up rows or splits.
    """
    texts = {name: store[name][:] for name in store.annotation_names} if videos else {}
    notes, resplit = list[str](), list[str]()
    for video in videos:
        position = store.index.position(video.id)
        stored, now = store.index.n_frames[position], video.n_frames
        if stored != now:
            raise InvalidError(
                f"video {video.id!r} has {stored} frames in {store.location} and {now} frames in "
                "the data set now; restore the data set, or ingest into a new store"
            )
        split = store.index.splits[position]
        if split != video.split and not store.own_splits:
            raise InvalidError(
                f"video {video.id!r} has split {split!r} in {store.location} and split "
                f"{video.split!r} in the data set now; restore the data set, set the store's "
                "splits (kpstore splits set), or ingest into a new store"
            )
        if split != video.split:
            resplit.append(video.id)
        if FACE_PATH in video.annotations and FACE_PATH not in texts:
            raise InvalidError(
                f"{store.location} holds video {video.id!r}, but no frontal pictures "
                f"({FACE_PATH!r}); ingest faces into a new store"
            )
        changed = [
            name
            for name, text in video.annotations.items()
            if name in texts and texts[name][position] != text
        ]
        if changed:
            notes.append(
                f"video {video.id!r} has another {' and '.join(changed)} now; the store keeps its "
                "own"
            )
    if resplit:
        notes.append(
            f"the splits of {store.location} were set by hand: {len(resplit)} videos, the first "
            f"{resplit[0]!r}, keep theirs; new videos get the data set's, see 'kpstore splits "
            "check'"
        )
    return tuple(notes)


def _future_index(store: BaseStore | None, new: Sequence[VideoRecord]) -> VideoIndex:
    ids = np.array([video.id for video in new], dtype=object)
    splits = np.array([video.split for video in new], dtype=object)
    lengths = np.array([video.n_frames for video in new], dtype=np.int64)
    if store is None or len(store.index) == 0:
        return VideoIndex(ids, splits, lengths)
    old = store.index
    return VideoIndex(
        np.concatenate([old.ids, ids]),
        np.concatenate([old.splits, splits]),
        np.concatenate([old.n_frames, lengths]),
    )
