"""Versions of a store without some videos, or without some features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Backend, ReadSession, WriteSession
from kpstore.errors import CorruptError, InvalidError
from kpstore.store import format as fmt
from kpstore.store.agreement import runs
from kpstore.store.copying import block_rows, write_differing
from kpstore.store.mentions import Mentions
from kpstore.store.removed import Removals, Removed
from kpstore.store.transaction import Transaction

_NAMED = 3
"""Number of videos or features that a commit's message names; its metadata holds all."""


@dataclass(frozen=True)
class Asked:
    """Videos or features to remove, each once."""

    videos: tuple[str, ...]
    features: tuple[str, ...]

    @classmethod
    def of(cls, videos: Iterable[str], features: Iterable[str]) -> Asked:
        """Return what was asked; :class:`InvalidError` unless it is either videos or features."""
        for what, given in (("videos", videos), ("features", features)):
            if isinstance(given, str):
                raise InvalidError(f"{what}={given!r} is one name; give a list: [{given!r}]")
        asked = cls(tuple(dict.fromkeys(videos)), tuple(dict.fromkeys(features)))
        if bool(asked.videos) == bool(asked.features):
            # A video and a feature together could be meant as that feature of that video.
            found = "both" if asked.videos else "neither"
            raise InvalidError(
                f"remove either videos or features, {found} were given: --video ID or --feature "
                "NAME, each several times if need be"
            )
        return asked

    def held(self, session: ReadSession, location: str, time: datetime) -> Removals:
        """Return which of them a version holds, as they are recorded when they are removed."""
        stored = fmt.read_root(session, location)["features"]
        features = {
            name: Removed(session.meta(name).n_rows, time)
            for name in self.features
            if name in stored
        }
        if not self.videos:
            return Removals({}, features)
        index = fmt.read_index(session, location)
        return Removals(
            {
                video: Removed(int(index.n_frames[index.position(video)]), time)
                for video in self.videos
                if video in index
            },
            features,
        )

    def missing(self, found: Removals) -> Iterator[tuple[str, str]]:
        """Yield kind and name of those that are not among what was found."""
        yield from (("video", name) for name in self.videos if name not in found.videos)
        yield from (("feature", name) for name in self.features if name not in found.features)


def commit_without(backend: Backend, branch: str, asked: Asked, removed: Removals) -> str:
    """Make a branch's next version, without what is to be removed; return its id.

    Parameters
    ----------
    removed : all that is removed. This branch may never have held some of the videos, which have to
        stay out of it as well.
    """
    with Transaction(backend, "", branch=branch) as tx:
        base = backend.session(tx.session.snapshot)
        held = asked.held(base, backend.location, datetime.now(UTC))
        tx.message = _message(held)
        tx.metadata["removed"] = held.to_json()
        for name in held.features:
            tx.remove_feature(name)
        if held.videos:
            _drop_videos(tx, base, list(held.videos))
        tx.record_removals(Removals(removed.videos).and_(tx.removed).and_(held))
    assert tx.snapshot is not None
    return tx.snapshot


def _message(held: Removals) -> str:
    if held.videos:
        frames = sum(one.rows for one in held.videos.values())
        return f"remove {told('video', list(held.videos))}: {frames} frames"
    if held.features:
        return f"remove {told('feature', list(held.features))}"
    return "record of videos that were removed elsewhere"


def told(kind: str, names: Sequence[str]) -> str:
    """Return videos or features for a message: ``video 'a'``, ``2 videos ('a', 'b')``."""
    if len(names) == 1:
        return f"{kind} {names[0]!r}"
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names)} {kind}s ({', '.join(map(repr, names[:_NAMED]))}{more})"


def _drop_videos(tx: Transaction, base: ReadSession, videos: list[str]) -> None:
    """Write all arrays without the rows of videos, and leave no mention of them elsewhere."""
    index = tx.read_index()
    lengths = {"video": len(index), "frame": index.total_frames}
    arrays = {name: (base.meta(name).dims or ("",))[0] for name in base.names()}
    for name, axis in arrays.items():
        if (n_rows := base.meta(name).n_rows) != lengths.get(axis, n_rows):
            raise CorruptError(
                f"{name!r} has {n_rows} rows, {lengths[axis]} {axis}s need as many; nothing was "
                "removed, see 'kpstore verify'"
            )
    gone = {"video": np.isin(index.ids, videos)}
    gone["frame"] = np.repeat(gone["video"], index.n_frames)
    paths = _parts(base, fmt.IMAGE_PATH, np.flatnonzero(gone["frame"]))
    mentions = Mentions(videos, set().union(*(part.tolist() for part in paths)), set(index.ids))
    for name, axis in arrays.items():
        if axis in gone and gone[axis].any():
            _keep_rows(tx.session, base, name, np.flatnonzero(~gone[axis]))
    for name, stored in tx.features.items():
        if "document" in stored.provenance:
            document = mentions.removed_from(stored.provenance["document"])
            tx.set_provenance(name, {**stored.provenance, "document": document})


def _keep_rows(
    session: WriteSession, base: ReadSession, name: str, rows: NDArray[np.int64]
) -> None:
    """Replace an array by one of some of its rows, which are ascending."""
    meta = base.meta(name)
    session.delete(name)
    session.create(name, meta.with_rows(len(rows)))
    step = block_rows(meta)
    for start in range(0, len(rows), step):
        values = np.concatenate(list(_parts(base, name, rows[start : start + step])))
        write_differing(session, name, start, values, meta.unwritten(len(values)))


def _parts(base: ReadSession, name: str, rows: NDArray[np.int64]) -> Iterator[NDArray[np.generic]]:
    for first, last in runs(rows):
        yield base.read(name, first, last + 1)
